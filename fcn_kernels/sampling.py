"""Where an output pixel reads: exact rational geometry of bilinear resampling.

Per axis, output index ``o`` reads the position ``pos(o) = (num * o + off) / den`` (integers), and with
``i = floor(pos)`` and ``f = pos - i`` its value is ``(1 - f) x[i] + f x[i + 1]``. Taps outside the input count zero
(boundary "zero", as in a transposed convolution) or are moved to the border ("clamp", as in ``F.interpolate``). A tap
of weight zero is not read.

Integers stay exact where float32 coordinates drift on large images. `csrc/sampling.h` mirrors the formulas.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

import torch

__all__ = ["Axis", "CoordinateMap", "Sampling"]

# |num| * out + |off| stays below 2^62, so that int64 arithmetic on positions never overflows.
_POSITION_LIMIT = 2**62
_SIZE_LIMIT = 2**31 - 1


class Axis(NamedTuple):
    """One axis: ``pos(o) = (num * o + off) / den`` for ``0 <= o < output_size``."""

    input_size: int
    output_size: int
    num: int
    off: int
    den: int

    def position(self, o: int) -> Fraction:
        """The exact input position that output index ``o`` reads."""
        return Fraction(self.num * o + self.off, self.den)


@dataclass(frozen=True)
class Sampling:
    """Bilinear resampling of an image: two axes and what lies beyond the border.

    Hashable and immutable, cheap to make. Build it with `transposed_conv` or `interpolate`.
    """

    rows: Axis
    cols: Axis
    boundary: Literal["zero", "clamp"]

    def __post_init__(self) -> None:
        if self.boundary not in ("zero", "clamp"):
            raise ValueError(f"Sampling: boundary must be 'zero' or 'clamp', got {self.boundary!r}")
        _check_axis(self.rows)
        _check_axis(self.cols)

    @property
    def input_size(self) -> tuple[int, int]:
        """(h, w) of the image that is read."""
        return self.rows.input_size, self.cols.input_size

    @property
    def output_size(self) -> tuple[int, int]:
        """(H, W) of the image that is written."""
        return self.rows.output_size, self.cols.output_size

    def encode(self) -> list[int]:
        """The 11 integers of the operator schemas: h, H, num, off, den, w, W, num, off, den, clamp."""
        return [*self.rows, *self.cols, 1 if self.boundary == "clamp" else 0]

    @classmethod
    def transposed_conv(
        cls,
        input_size: int | Sequence[int],
        stride: int | Sequence[int],
        *,
        kernel_size: int | Sequence[int] | None = None,
        offset: int | Sequence[int] = 0,
        output_size: int | Sequence[int] | None = None,
    ) -> Sampling:
        """FCN's bilinear transposed convolution, then a crop of `output_size` at `offset`.

        Equals ``F.conv_transpose2d(x, bilinear, stride=stride, groups=C)[..., oy:oy + H, ox:ox + W]`` with the bilinear
        filter of `kernel_size`: a filter of size k in {2s - 1, 2s} spans two taps, at
        ``pos(o) = (o + offset - (k - 1) / 2) / stride``. By default k = 2s - s % 2 and the output is all that follows
        the offset. Taps outside the input count zero.

        Raises:
            TypeError: a size that is not an int or a pair of ints.
            ValueError: a size or stride below 1, another kernel size, a window that leaves the full output.
        """
        name = "Sampling.transposed_conv"
        h, w = _pair(name, "input_size", input_size)
        sy, sx = _pair(name, "stride", stride)
        ky, kx = (None, None) if kernel_size is None else _pair(name, "kernel_size", kernel_size)
        oy, ox = _pair(name, "offset", offset)
        height, width = (None, None) if output_size is None else _pair(name, "output_size", output_size)
        if torch.compiler.is_compiling() or not _plain(h, w, sy, sx, ky, kx, oy, ox, height, width):
            return cls(_transposed(h, sy, ky, oy, height), _transposed(w, sx, kx, ox, width), "zero")
        return _transposed_cached(h, w, sy, sx, ky, kx, oy, ox, height, width)

    @classmethod
    def interpolate(
        cls,
        input_size: int | Sequence[int],
        size: int | Sequence[int] | None = None,
        *,
        scale_factor: float | Sequence[float] | None = None,
        align_corners: bool = False,
    ) -> Sampling:
        """``F.interpolate(x, size, scale_factor, mode="bilinear", align_corners=align_corners)``.

        Exactly one of `size` and `scale_factor` is given. With the latter the output size is
        ``floor(input * factor)``, and unless `align_corners` the coordinates use the factor as given, not the ratio of
        the sizes (torch's meaning). The factor is taken as the nearest fraction with a denominator of at most 10^6: 0.1
        then means 1/10 where the double's own denominator, 2^55, would overflow the integers. Down-sampling reads two
        taps per axis as well (no antialias).

        An axis that keeps its size, as 3 pixels times 1.3 do, is copied whatever the factor, as torch does on the CPU.
        Torch on CUDA copies only where both axes keep their size, and there differs from its own result on the CPU.

        Raises:
            TypeError: a size that is not an int or a pair of ints, a factor that is not a real number.
            ValueError: sizes below 1, a factor that is not positive and finite, neither or both of size and factor.
        """
        name = "Sampling.interpolate"
        h, w = _pair(name, "input_size", input_size)
        if (size is None) == (scale_factor is None):
            raise ValueError(f"{name}: give exactly one of size and scale_factor")
        align_corners = bool(align_corners)
        if scale_factor is not None:
            fy, fx = _factors(name, scale_factor)
            return cls(_scaled(h, fy, align_corners), _scaled(w, fx, align_corners), "clamp")
        height, width = _pair(name, "size", size)
        if torch.compiler.is_compiling() or not _plain(h, w, height, width):
            return cls(_resized(h, height, align_corners), _resized(w, width, align_corners), "clamp")
        return _resized_cached(h, w, height, width, align_corners)


@dataclass(frozen=True)
class CoordinateMap:
    """An affine map ``pos(o) = scale * o + shift`` from indices of a layer's output to positions in its input.

    Maps of consecutive layers compose; where two paths of a network meet, the crop that aligns them follows:

    >>> image = CoordinateMap()
    >>> pool = image.pool(2, 2)
    >>> up = pool.conv(1).deconv(4, 2)
    >>> up.crop_offset(image)
    1
    """

    scale: Fraction = Fraction(1)
    shift: Fraction = Fraction(0)

    def then(self, layer: CoordinateMap) -> CoordinateMap:
        """This path followed by `layer`: positions in the layer's input are indices of this path's output."""
        return CoordinateMap(self.scale * layer.scale, self.scale * layer.shift + self.shift)

    def conv(self, kernel_size: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> CoordinateMap:
        """A convolution: output o looks at a window around ``stride * o + dilation * (k - 1) / 2 - padding``."""
        _positive("CoordinateMap.conv", kernel_size=kernel_size, stride=stride, dilation=dilation)
        return self.then(CoordinateMap(Fraction(stride), Fraction(dilation * (kernel_size - 1), 2) - padding))

    def pool(self, kernel_size: int, stride: int, padding: int = 0) -> CoordinateMap:
        """A pooling layer: windows as those of a convolution, whichever way its output size is rounded."""
        return self.conv(kernel_size, stride, padding)

    def deconv(self, kernel_size: int, stride: int, padding: int = 0) -> CoordinateMap:
        """A transposed convolution: the inverse of the convolution with the same parameters."""
        return self.then(CoordinateMap().conv(kernel_size, stride, padding).inverse())

    def crop(self, offset: int) -> CoordinateMap:
        """A crop that starts at `offset`."""
        return self.then(CoordinateMap(Fraction(1), Fraction(offset)))

    def inverse(self) -> CoordinateMap:
        """The map that undoes this one."""
        if self.scale == 0:
            raise ValueError("CoordinateMap.inverse: a map of scale 0 has no inverse")
        return CoordinateMap(1 / self.scale, -self.shift / self.scale)

    def crop_offset(self, reference: CoordinateMap) -> int:
        """The crop of this path's output that puts its index 0 where `reference` has index 0.

        Both paths must start from the same image. Raises ValueError when no integer crop aligns them.
        """
        if self.scale != reference.scale:
            raise ValueError(
                f"CoordinateMap.crop_offset: the paths have different scales, {self.scale} and {reference.scale}"
            )
        offset = (reference.shift - self.shift) / self.scale
        if offset.denominator != 1 or offset < 0:
            raise ValueError(f"CoordinateMap.crop_offset: the paths differ by {offset} pixels, no crop can align them")
        return int(offset)


def _plain(*values: int | None) -> bool:
    return all(type(v) is int or v is None for v in values)


def _pair(name: str, what: str, value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{name}: {what} must be an int or a pair (height, width), got {len(value)} values")
        first, second = value
    else:
        first = second = value
    return _integer(name, what, first), _integer(name, what, second)


def _integer(name: str, what: str, value: int) -> int:
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        return value
    try:
        if not isinstance(value, bool):
            return operator.index(value)  # numpy integers, 0-d integer tensors
    except TypeError:
        pass
    raise TypeError(f"{name}: {what} must be an int or a pair of ints, got {value!r}")


def _positive(name: str, **values: int) -> None:
    for what, value in values.items():
        if value < 1:
            raise ValueError(f"{name}: {what} must be at least 1, got {value}")


def as_float(name: str, what: str, value: float) -> float:
    """A real number of any type, as a float; an integer beyond all floats is a ValueError."""
    if type(value) is float:
        return value
    if isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: {what} must be a number, got a tensor (its gradient would be lost)")
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{name}: {what} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}: {what} must be finite, got an integer of {value.bit_length()} bits") from None


def _factors(name: str, value: float | Sequence[float]) -> tuple[float, float]:
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{name}: scale_factor must be a number or a pair, got {len(value)} values")
        first, second = value
    else:
        first = second = value
    factors = as_float(name, "scale_factor", first), as_float(name, "scale_factor", second)
    for factor in factors:
        if not (math.isfinite(factor) and factor > 0):
            raise ValueError(f"{name}: scale_factor must be positive and finite, got {factor}")
    return factors


def _check_axis(axis: Axis) -> None:
    if torch.compiler.is_compiling() or not _plain(*axis):
        return  # symbolic sizes: the numbers are checked again where they are known
    for what, value in (("input", axis.input_size), ("output", axis.output_size)):
        if not 1 <= value <= _SIZE_LIMIT:
            raise ValueError(f"Sampling: {what} size must be from 1 to {_SIZE_LIMIT}, got {value}")
    if axis.den < 1 or axis.num < 0:
        raise ValueError(f"Sampling: positions need den > 0 and num >= 0, got num {axis.num} and den {axis.den}")
    if max(axis.num * axis.output_size + abs(axis.off), axis.den * (axis.input_size + 2)) >= _POSITION_LIMIT:
        raise ValueError(
            f"Sampling: {axis.input_size} to {axis.output_size} pixels at ({axis.num} o + {axis.off}) / {axis.den} "
            "overflows 64-bit positions"
        )


def _reduced(input_size: int, output_size: int, num: int, off: int, den: int) -> Axis:
    """The axis in lowest terms, so that equal samplings compare equal; symbolic integers stay as they are."""
    if not torch.compiler.is_compiling() and _plain(num, off, den):
        divisor = math.gcd(num, off, den)
        num, off, den = num // divisor, off // divisor, den // divisor
    return Axis(input_size, output_size, num, off, den)


def _transposed(size: int, stride: int, kernel: int | None, offset: int, output: int | None) -> Axis:
    name = "Sampling.transposed_conv"
    _positive(name, input_size=size, stride=stride)
    if kernel is None:
        kernel = 2 * stride - stride % 2
    elif kernel != 2 * stride and kernel != 2 * stride - 1:
        raise ValueError(
            f"{name}: a bilinear filter of stride {stride} has kernel_size {2 * stride - 1} or {2 * stride}, "
            f"got {kernel}"
        )
    full = (size - 1) * stride + kernel
    if output is None:
        output = full - offset
    if offset < 0 or output < 1 or offset + output > full:
        raise ValueError(f"{name}: the window [{offset}, {offset + output}) is empty or leaves the output [0, {full})")
    return _reduced(size, output, 2, 2 * offset - (kernel - 1), 2 * stride)


def _resized(size: int, output: int, align_corners: bool) -> Axis:
    """``pos(o) = o (in - 1) / (out - 1)`` with aligned corners, else ``(o + 1/2) in / out - 1/2``."""
    _positive("Sampling.interpolate", input_size=size, size=output)
    if not align_corners:
        return _reduced(size, output, 2 * size, size - output, 2 * output)
    if output == 1:
        return Axis(size, output, 0, 0, 1)
    return _reduced(size, output, size - 1, 0, output - 1)


def _grows_from(factor: float) -> int:
    """The smallest n with ``floor(n * factor) > n``, for a factor from 1 to 2; else 0: every size changes, or none.

    A bound on the size, which a graph of dynamic sizes can be guarded with.
    """
    if not 1 < factor < 2:
        return 0
    n = min(math.ceil(1 / (factor - 1)), _SIZE_LIMIT + 1)
    while math.floor((n - 1) * factor) > n - 1:  # the product is rounded
        n -= 1
    return n


def is_copied(size: Sequence[int], scale_factor: float | Sequence[float]) -> bool:
    """Whether an axis keeps its size under a factor that is not 1: whether torch then copies depends on the device."""
    factors = _factors("Sampling.interpolate", scale_factor)
    return any(n < _grows_from(factor) for n, factor in zip(size, factors, strict=True))


def _scaled(size: int, factor: float, align_corners: bool) -> Axis:
    """``pos(o) = (o + 1/2) / factor - 1/2``: for factor p / q this is ``(2 q o + q - p) / (2 p)``."""
    _positive("Sampling.interpolate", input_size=size)
    if not torch.compiler.is_compiling() and _plain(size) and size > _SIZE_LIMIT:
        raise ValueError(f"Sampling: input size must be from 1 to {_SIZE_LIMIT}, got {size}")
    if factor.is_integer():  # a symbolic size stays a multiple of the input's
        output = size * int(factor)
    elif torch.compiler.is_compiling() or not _plain(size):
        output = torch.sym_int(size * factor)
    else:
        output = math.floor(size * factor)
    if output < 1:
        raise ValueError(f"Sampling.interpolate: {size} pixels times scale_factor {factor} leave no output")
    if align_corners:
        return _resized(size, output, align_corners)
    if size < _grows_from(factor):
        return Axis(size, size, 1, 0, 1)
    fraction = Fraction(factor).limit_denominator(10**6)
    if fraction == 0:
        fraction = Fraction(1, 10**6)
    p, q = fraction.numerator, fraction.denominator
    return _reduced(size, output, 2 * q, q - p, 2 * p)


@lru_cache(maxsize=1024)
def _resized_cached(h: int, w: int, height: int, width: int, align_corners: bool) -> Sampling:
    return Sampling(_resized(h, height, align_corners), _resized(w, width, align_corners), "clamp")


@lru_cache(maxsize=1024)
def _transposed_cached(h, w, sy, sx, ky, kx, oy, ox, height, width) -> Sampling:
    return Sampling(_transposed(h, sy, ky, oy, height), _transposed(w, sx, kx, ox, width), "zero")
