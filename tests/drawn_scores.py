"""Arguments of the score convolution's operators, drawn by Hypothesis: a function for each operator, of its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from call import Call
from drawn_samplings import limits
from drawn_tensors import LABELS, Draw
from hypothesis import strategies as st
from torch import Tensor

from fcn_kernels import reference


class Scores(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    size: tuple[int, int, int]


def _score(d: Draw, values: Sequence[str] = ("normal", "hot", "ties")) -> Scores:
    n, h, w = d.batch(), d.draw(st.integers(1, 9)), d.draw(st.integers(1, 50))
    k = d.one_of(1, 2, 5, 8, 17, 33, 64, 270, 300)
    classes = d.one_of(1, 2, 3, 7, 8, 9, 19, 21, 41, 150)
    x = d.image(n, k, h, w, values=values)
    weight = (torch.randn(classes, k) * k**-0.5).to(d.dtype)
    if d.one_of(True, False, False):
        weight = weight.t().contiguous().t()
    return Scores(x, weight, d.one_of(None, torch.randn(classes).to(d.dtype)), (n, h, w))


def score_softmax(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    s = _score(d)
    return Call("score_softmax", (s.x, s.weight, s.bias, draw(st.booleans())), (2.0 * s.x.shape[1] ** 0.5,), s.x)


def score_softmax_backward(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    s = _score(d)
    log, (n, h, w), classes = draw(st.booleans()), s.size, s.weight.shape[0]
    z = torch.randn(n, classes, h, w)
    output = d.layout((z.log_softmax(1) if log else z.softmax(1)).to(d.dtype))
    need_x, need_weight = d.one_of((True, True), (True, False), (False, True), (False, False))
    args = (d.like(n, classes, h, w), s.x, s.weight, output, log, need_x, need_weight)
    gain = 4.0 * (n * h * w + classes) * (classes if log else 1)
    return Call("score_softmax_backward", args, (gain, gain, gain), s.x)


def score_argmax(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    s = _score(d)
    return Call("score_argmax", (s.x, s.weight, s.bias, d.one_of(*LABELS)), (0.0,), s.x)


def score_cross_entropy(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    s = _score(d)
    classes, pixels = s.weight.shape[0], float(s.size[0] * s.size[1] * s.size[2])
    target, ignored = d.labels(classes, *s.size)
    reduction = draw(st.integers(0, 3))
    needs = d.one_of((True, True), (True, False), (False, True), (False, False))
    args = (
        s.x,
        s.weight,
        s.bias,
        target,
        d.class_weight(classes),
        ignored,
        reduction,
        d.one_of(0.0, limits().smoothing),
        *needs,
    )
    depth = 4.0 * s.x.shape[1] ** 0.5
    loss, gradient = depth * (pixels if reduction == reference.SUM else 1.0), depth * pixels * classes
    return Call("score_cross_entropy", args, (loss, pixels, depth, gradient, gradient, gradient), s.x)


def score_cross_entropy_backward(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    s = _score(d)
    classes, pixels = s.weight.shape[0], float(s.size[0] * s.size[1] * s.size[2])
    target, ignored = d.labels(classes, *s.size)
    lse = reference._scores(s.x, s.weight, s.bias).logsumexp(1)
    grad = d.layout(torch.rand(s.size[0], 1, *s.size[1:]).to(d.arithmetic))[:, 0]
    if d.one_of(False, True):  # what autograd hands on for a reduced loss
        grad = torch.rand((), dtype=d.arithmetic).expand(s.size)
    needs = d.one_of((True, True), (True, False), (False, True))
    args = (
        grad,
        s.x,
        s.weight,
        s.bias,
        target,
        d.class_weight(classes),
        lse,
        ignored,
        d.one_of(0.0, limits().smoothing),
        *needs,
    )
    gain = 4.0 * s.x.shape[1] ** 0.5 * pixels * classes
    return Call("score_cross_entropy_backward", args, (gain,) * 3, s.x)
