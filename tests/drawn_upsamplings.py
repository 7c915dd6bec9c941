"""Arguments of the operators that upsample by a sampling, drawn by Hypothesis: a function for each, of its name."""

from __future__ import annotations

from typing import NamedTuple

import torch
from call import Call
from drawn_samplings import limits, samplings
from drawn_tensors import LABELS, VALUES, Draw, channels
from hypothesis import strategies as st
from torch import Tensor

from fcn_kernels import reference


class Place(NamedTuple):
    """Where an upsampling reads and writes."""

    n: int
    c: int
    size: tuple[int, int]
    full: tuple[int, int]
    code: list[int]

    @property
    def small(self) -> tuple[int, int, int, int]:
        return (self.n, self.c, *self.size)

    @property
    def large(self) -> tuple[int, int, int, int]:
        return (self.n, self.c, *self.full)

    @property
    def reached(self) -> float:
        """All outputs may read one input."""
        return float(self.full[0] * self.full[1])


def place(d: Draw) -> Place:
    s = d.draw(samplings())
    n = d.batch()
    return Place(
        n, channels(d, max(s.output_size[0] * s.output_size[1], 1), n), s.input_size, s.output_size, s.encode()
    )


def upsample(draw: st.DrawFn) -> Call:
    d = Draw(draw, values=tuple(VALUES))
    p = place(d)
    x = d.image(*p.small)
    return Call("upsample", (x, p.code), (1.0,), x)


def upsample_backward(draw: st.DrawFn) -> Call:
    d = Draw(draw, values=tuple(VALUES))
    p = place(d)
    grad = d.image(*p.large)
    return Call("upsample_backward", (grad, p.code), (p.reached,), grad)


def upsample_add(draw: st.DrawFn) -> Call:
    d = Draw(draw, values=tuple(VALUES))
    p = place(d)
    oy, ox = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    below, right = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    x, skip = d.image(*p.small), d.like(p.n, p.c, p.full[0] + oy + below, p.full[1] + ox + right)
    return Call("upsample_add", (x, skip, p.code, [oy, ox], d.one_of(1.0, 0.5, -2.0, 0.0)), (2.0,), x)


def upsample_softmax(draw: st.DrawFn) -> Call:
    d = Draw(draw, values=tuple(VALUES))
    p = place(d)
    x, log = d.image(*p.small), draw(st.booleans())
    return Call("upsample_softmax", (x, p.code, log), (2.0,), x)


def upsample_softmax_backward(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    p = place(d)
    log, z = draw(st.booleans()), torch.randn(p.large)
    output = d.layout((z.log_softmax(1) if log else z.softmax(1)).to(d.dtype))
    grad = d.like(*p.large)
    gain = p.reached * (p.c if log else 1)
    return Call("upsample_softmax_backward", (grad, output, p.code, log), (gain,), grad)


def upsample_argmax(draw: st.DrawFn) -> Call:
    d = Draw(draw, values=tuple(VALUES))
    p = place(d)
    x = d.image(*p.small)
    return Call("upsample_argmax", (x, p.code, d.one_of(*LABELS), draw(st.booleans())), (0.0, 2.0), x)


def upsample_confusion_matrix(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    p = place(d)
    x = d.image(*p.small)
    target, ignored = d.labels(p.c, p.n, *p.full)
    if not (target == ignored).any():
        ignored = d.one_of(None, ignored)
    return Call("upsample_confusion_matrix", (x, target, p.code, ignored), (0.0,), x)


def upsample_cross_entropy(draw: st.DrawFn) -> Call:
    d = Draw(draw, values=tuple(VALUES))
    p = place(d)
    x = d.image(*p.small)
    target, ignored = d.labels(p.c, p.n, *p.full)
    reduction, smoothing = draw(st.integers(0, 3)), d.one_of(0.0, limits().smoothing, 1.0)
    args = (x, target, d.class_weight(p.c), p.code, ignored, reduction, smoothing, draw(st.booleans()))
    loss = 4.0 * (p.n * p.reached if reduction == reference.SUM else 1.0)
    return Call("upsample_cross_entropy", args, (loss, p.reached, p.reached * p.c, 2.0), x)


def upsample_cross_entropy_backward(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    p = place(d)
    x = d.image(*p.small)
    target, ignored = d.labels(p.c, p.n, *p.full)
    lse = reference._sampled(x, p.code).logsumexp(1)
    grad = d.layout(torch.rand(p.n, 1, *p.full).to(d.arithmetic))[:, 0]
    args = (grad, x, target, d.class_weight(p.c), lse, p.code, ignored, d.one_of(0.0, limits().smoothing))
    return Call("upsample_cross_entropy_backward", args, (p.reached * p.c,), x)


def upsample_sigmoid(draw: st.DrawFn) -> Call:
    d = Draw(draw, values=tuple(VALUES))
    p = place(d)
    x = d.image(*p.small)
    return Call("upsample_sigmoid", (x, p.code), (1.0,), x)


def upsample_sigmoid_backward(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    p = place(d)
    output, grad = d.layout(torch.randn(p.large).sigmoid().to(d.dtype)), d.like(*p.large)
    return Call("upsample_sigmoid_backward", (grad, output, p.code), (p.reached,), grad)


def _binary_target(d: Draw, p: Place) -> tuple[Tensor, int | None]:
    if d.one_of(True, True, False):
        kind = d.one_of(*LABELS)
        ignored = d.one_of(255, None) if kind == torch.uint8 else d.one_of(255, -1, None)
        target = torch.randint(0, 2, p.large)
        if ignored is not None:
            target[torch.rand(p.large) < d.one_of(0.1, 1.0)] = ignored
        return d.layout(target.to(kind)), ignored
    return d.layout(torch.rand(p.large).to(d.one_of(torch.float32, torch.float64, torch.float16))), None


def upsample_binary_cross_entropy(draw: st.DrawFn) -> Call:
    d = Draw(draw, values=tuple(VALUES))
    p = place(d)
    x = d.image(*p.small)
    target, ignored = _binary_target(d, p)
    reduction = draw(st.integers(0, 3))
    args = (x, target, d.class_weight(p.c), p.code, ignored, reduction, draw(st.booleans()))
    loss = 2.0 * (p.n * p.c * p.reached if reduction == reference.SUM else 1.0)
    return Call("upsample_binary_cross_entropy", args, (loss, 0.0, p.reached), x)


def upsample_binary_cross_entropy_backward(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    p = place(d)
    x = d.image(*p.small)
    target, ignored = _binary_target(d, p)
    grad = d.like(*p.large, dtype=d.arithmetic)
    args = (grad, x, target, d.class_weight(p.c), p.code, ignored)
    return Call("upsample_binary_cross_entropy_backward", args, (p.reached,), x)
