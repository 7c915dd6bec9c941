"""Where an output reads, and who reads an input: the geometry of all Triton kernels, in integers.

Per axis an output index o reads pos(o) = (num * o + off) / den: i = floor(pos), f = pos - i,
y[o] = (1 - f) x[i] + f x[i + 1]. The outputs with the same i share an *interval*; those of an interval, at most
`longest` of them, are a *segment*. Where an interval holds fewer than two outputs (down-sampling, small factors) every
output is a segment of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl


@triton.jit
def position(o, num, off, den, INDEX: tl.constexpr):
    """floor(pos(o)) and the numerator of pos(o) - floor(pos(o))."""
    p = (o * num + off).to(INDEX)
    q = (p // den).to(INDEX)  # rounds towards zero
    q = tl.where(q * den > p, q - 1, q)
    return q, p - q * den


@triton.jit
def clamped(i, size):
    return tl.minimum(tl.maximum(i, 0), size - 1)


@triton.jit
def taps(o, size, num, off, den, CLAMP: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr):
    """The two input indices that output o reads, whether each is read at all, and the weight f of the second."""
    i, rest = position(o, num, off, den, INDEX)
    j = i + 1
    if CLAMP:
        i = clamped(i, size)
        j = clamped(j, size)
    first = (i >= 0) & (i < size)
    second = (rest > 0) & (j >= 0) & (j < size)
    return i, j, first, second, rest.to(ACC) / den


@triton.jit
def first_output(i, out, num, off, den, INDEX: tl.constexpr):
    """The first output o >= 0 with floor(pos(o)) >= i, or `out`."""
    p = (i * den - off).to(INDEX)  # num * o >= p
    step = tl.maximum(num, 1)
    o = tl.minimum((p + step - 1) // step, out)
    return tl.where(p <= 0, 0, tl.where(num == 0, out, o)).to(INDEX)


@triton.jit
def readers(i, size, out, num, off, den, CLAMP: tl.constexpr, INDEX: tl.constexpr):
    """The range of outputs that can read input i."""
    begin = first_output(i - 1, out, num, off, den, INDEX)
    end = first_output(i + 1, out, num, off, den, INDEX)
    if CLAMP:
        begin = tl.where(i == 0, 0, begin)
        end = tl.where(i == size - 1, out, end)
    return begin, end


@triton.jit
def weight_of(o, i, size, num, off, den, CLAMP: tl.constexpr, ACC: tl.constexpr):
    """The weight with which output o reads input i: max(0, 1 - |pos(o) - i|), exact in integers up to the division."""
    p = o * num + off
    if CLAMP:
        p = tl.minimum(tl.maximum(p, 0), (size - 1) * den)
    return tl.maximum(den - tl.abs(p - i * den), 0).to(ACC) / den


@triton.jit
def segment(s, low, out, num, off, den, PIECES: tl.constexpr, STEPS: tl.constexpr, INDEX: tl.constexpr):
    """Segment s: its first output, the end of its outputs, its interval. PIECES = 0: every output is a segment."""
    if PIECES == 0:
        i, _ = position(s, num, off, den, INDEX)
        begin = s
        end = s + 1
    else:
        i = (low + s // PIECES).to(INDEX)
        begin = first_output(i, out, num, off, den, INDEX) + (s % PIECES) * STEPS
        end = tl.minimum(first_output(i + 1, out, num, off, den, INDEX), begin + STEPS)
    return begin, end, i


@triton.jit
def corners(i, size, CLAMP: tl.constexpr):
    """The two inputs around interval i and whether they are there."""
    j = i + 1
    if CLAMP:
        i = clamped(i, size)
        j = clamped(j, size)
    return i, j, (i >= 0) & (i < size), (j >= 0) & (j < size)


class Segments(NamedTuple):
    """An axis as segments of at most `steps` outputs: `pieces` for each of the intervals from `low` on."""

    low: int
    count: int
    pieces: int  # 0: every output is a segment
    steps: int


def segments(axis: Sequence[int], longest: int) -> Segments:
    """The axis (in, out, num, off, den) in segments of at most `longest` outputs, a power of two."""
    _, out, num, off, den = axis
    if den < 2 * num:
        return Segments(0, out, 0, 1)
    low, high = off // den, (num * (out - 1) + off) // den
    run = out if num == 0 else min(-(-den // num), out)
    pieces = -(-run // longest)
    return Segments(low, (high - low + 1) * pieces, pieces, -(-run // pieces))
