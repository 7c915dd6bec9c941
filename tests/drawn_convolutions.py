"""Arguments of the learned transposed convolutions and of the sum that is the gradient of a bias, drawn by Hypothesis:
a function for each operator, of its name.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from call import Call
from drawn_samplings import limits
from drawn_tensors import VALUES, Draw, channels
from hypothesis import strategies as st
from torch import Tensor


class Convolution(NamedTuple):
    x: Tensor
    weight: Tensor
    stride: list[int]
    groups: int
    offset: list[int]
    crop: list[int]
    outputs: int


def _convolution(d: Draw) -> Convolution:
    """A transposed convolution; in half of the cases without overlap (kernel = stride), or depthwise."""
    draw = d.draw
    groups = d.one_of(1, 1, 1, 2, 3, 5)
    inputs, outputs = groups * d.one_of(1, 2, 3, 8, 17), groups * d.one_of(1, 1, 2, 5, 16)
    if d.one_of(False, False, True):  # depthwise
        inputs = outputs = groups = d.one_of(1, 3, 7, 19, 40)
    strides = [s for s in (1, 2, 2, 3, 4, 8) if s <= limits().line]
    stride = [d.one_of(*strides), d.one_of(*strides)]
    if d.one_of(True, False):
        kernel = list(stride)
    elif d.one_of(True, False):
        kernel = [2 * s - s % 2 for s in stride]
    else:
        kernel = [draw(st.integers(1, min(9, limits().line))), draw(st.integers(1, min(20, limits().line)))]
    size = [draw(st.integers(1, min(9, limits().line))), draw(st.integers(1, limits().line))]
    full = [(i - 1) * s + k for i, s, k in zip(size, stride, kernel, strict=True)]
    offset = [draw(st.integers(0, min(f - 1, 9))) for f in full]
    crop = [draw(st.integers(1, f - o)) for f, o in zip(full, offset, strict=True)]
    if d.one_of(True, False):
        offset, crop = [0, 0], full
    n = d.batch() if crop[0] * crop[1] * outputs * inputs < 100_000 else 1
    x = d.image(n, inputs, *size, values=("normal", "ties", "offset"))
    weight = (torch.randn(inputs, outputs // groups, *kernel) * inputs**-0.5).to(d.dtype)
    if d.one_of(True, False):
        weight = d.layout(weight)
    return Convolution(x, weight, stride, groups, offset, crop, outputs)


def _terms(c: Convolution) -> float:
    """How many products a value sums up, at most."""
    return float(c.weight.numel())


def conv_transpose_add(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    c = _convolution(d)
    at = [draw(st.integers(0, 3)), draw(st.integers(0, 3))]
    skip = d.like(c.x.shape[0], c.outputs, c.crop[0] + at[0], c.crop[1] + at[1] + draw(st.integers(0, 2)))
    if d.one_of(True, False):
        skip, at = None, [0, 0]
    args = (c.x, c.weight, skip, c.stride, c.groups, c.offset, c.crop, at, d.one_of(1.0, 0.5))
    return Call("conv_transpose_add", args, (2 + _terms(c) ** 0.5,), c.x)


def conv_transpose_add_backward(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    c = _convolution(d)
    grad = d.like(c.x.shape[0], c.outputs, *c.crop)
    need_x, need_weight = d.one_of((True, True), (True, False), (False, True))
    gain = 8 * max(_terms(c), float(grad.numel())) ** 0.5
    args = (grad, c.x, c.weight, c.stride, c.groups, c.offset, need_x, need_weight)
    return Call("conv_transpose_add_backward", args, (gain, gain), c.x)


def conv_transpose_concat(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    c = _convolution(d)
    at = [draw(st.integers(0, 3)), draw(st.integers(0, 3))]
    skip = d.like(c.x.shape[0], d.one_of(1, 3, 16), c.crop[0] + at[0], c.crop[1] + at[1] + draw(st.integers(0, 2)))
    bias = d.one_of(None, torch.randn(c.outputs).to(d.dtype))
    args = (c.x, c.weight, skip, bias, c.stride, c.groups, c.offset, c.crop, at)
    return Call("conv_transpose_concat", args, (2 + _terms(c) ** 0.5,), c.x)


def channel_sum(draw: st.DrawFn) -> Call:
    d = Draw(draw, values=tuple(VALUES))
    n, size = d.batch(), [draw(st.integers(1, 20)), draw(st.integers(1, 70))]
    x = d.image(n, channels(d, size[0] * size[1], n), *size)
    return Call("channel_sum", (x,), (float(x.numel()) ** 0.5,), x)
