"""Samplings of every kind, drawn by Hypothesis, and how large a drawn call may be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from hypothesis import strategies as st

from fcn_kernels import Sampling
from fcn_kernels.sampling import Axis


class Limits(NamedTuple):
    """How large calls are, and which numbers they hold."""

    pixels: int  # of an image at full resolution, and
    elements: int  # with its channels: most of the time of a case goes into the reference
    line: int  # pixels that a row of a learned transposed convolution has, and its kernel
    dtypes: tuple[torch.dtype, ...]
    smoothing: float


FULL = Limits(
    6000, 60_000, 33, (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16), smoothing=0.1
)
# Triton's interpreter takes a tenth of a millisecond for an operation on a tile of any size: rows and taps cost, pixels
# of a row do not. It truncates what it stores as bfloat16, and hands numbers on in float32: one that is exact there.
INTERPRETED = Limits(32, 64, 4, (torch.float32, torch.float32, torch.float64, torch.float16), smoothing=0.125)

_limits = [FULL]


def limits() -> Limits:
    return _limits[-1]


@contextmanager
def limited(found: Limits) -> Iterator[None]:
    """Calls that are drawn inside keep to these limits."""
    _limits.append(found)
    try:
        yield
    finally:
        _limits.pop()


@st.composite
def free_axes(draw: st.DrawFn) -> Axis:
    """Positions of any kind, also far outside the input, and backwards never."""
    den = draw(st.integers(1, 12))
    out = draw(st.integers(1, 40))
    return Axis(draw(st.integers(1, 9)), out, draw(st.integers(0, 3 * den)), draw(st.integers(-5 * den, 9 * den)), den)


@st.composite
def resized(draw: st.DrawFn) -> Sampling:
    size = draw(st.tuples(st.integers(1, 13), st.integers(1, 40)))
    corners = draw(st.booleans())
    if draw(st.integers(0, 3)) == 0:
        factors = [draw(st.sampled_from([0.3, 0.5, 1.0, 1.7, 2.0, 2.6, 4.0])) for _ in size]
        if all(int(s * f) >= 1 for s, f in zip(size, factors, strict=True)):
            return Sampling.interpolate(size, scale_factor=factors, align_corners=corners)
    out = draw(
        st.one_of(
            st.tuples(st.integers(1, 40), st.integers(1, 150)),
            st.sampled_from([2, 3, 4, 8, 16]).map(lambda s: (min(size[0] * s, 60), min(size[1] * s, 200))),
        )
    )
    return Sampling.interpolate(size, out, align_corners=corners)


@st.composite
def cropped(draw: st.DrawFn) -> Sampling:
    """FCN's transposed convolution with a crop."""
    size, strides, kernels, offsets, crops = [], [], [], [], []
    for longest in (60, 160):
        stride = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 16, 32]))
        n = draw(st.integers(1, max(2, min(12, longest // stride))))
        kernel = draw(st.sampled_from([2 * stride - 1, 2 * stride]))
        full = (n - 1) * stride + kernel
        offset = draw(st.integers(0, full - 1))
        crop = draw(st.integers(1, min(full - offset, longest)))
        for values, value in zip(
            (size, strides, kernels, offsets, crops), (n, stride, kernel, offset, crop), strict=True
        ):
            values.append(value)
    return Sampling.transposed_conv(size, strides, kernel_size=kernels, offset=offsets, output_size=crops)


free = st.builds(Sampling, free_axes(), free_axes(), st.sampled_from(["zero", "clamp"]))


def window(sampling: Sampling, top: int, left: int, height: int, width: int) -> Sampling:
    """The outputs from (top, left) on: pos(o + top) = (num o + off + num top) / den."""
    rows, cols = sampling.rows, sampling.cols
    return Sampling(
        rows._replace(output_size=height, off=rows.off + rows.num * top),
        cols._replace(output_size=width, off=cols.off + cols.num * left),
        sampling.boundary,
    )


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    """Of any kind; of a large one a window."""
    pixels = limits().pixels
    s = draw(st.one_of(resized(), cropped(), free).filter(lambda s: s.input_size[0] * s.input_size[1] <= pixels))
    height = min(s.output_size[0], math.isqrt(pixels))
    width = min(s.output_size[1], pixels // height)
    if (height, width) == s.output_size:
        return s
    top, left = (draw(st.integers(0, full - part)) for full, part in zip(s.output_size, (height, width), strict=True))
    return window(s, top, left, height, width)
