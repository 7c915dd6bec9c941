"""Validation shared by the public functions: shapes, dtypes and devices only, never a pass over the data.

TypeError: a wrong Python type or dtype. ValueError: a wrong rank, shape, size, value, window or mix of devices.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from . import reference
from .sampling import Sampling, as_float

FLOATING = frozenset((torch.float32, torch.float64, torch.float16, torch.bfloat16))
_STRIDED = torch.strided
LABELS = frozenset((torch.uint8, torch.int16, torch.int32, torch.int64))
REDUCTIONS = {
    "none": reference.NONE,
    "mean": reference.MEAN,
    "sum": reference.SUM,
    "mean_all": reference.MEAN_ALL,
}


def check_image(op: str, name: str, x: Tensor, form: str = "[N, C, H, W]") -> None:
    """A floating tensor [N, C, H, W] in ordinary memory, with at least one channel and one pixel."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be float32, float64, float16 or bfloat16, got {x.dtype}")
    shape = x.shape
    if len(shape) != 4:
        raise ValueError(f"{op}: {name} must be {form}, got shape {list(shape)}")
    if x.layout is not _STRIDED:
        raise TypeError(f"{op}: {name} must be a dense tensor, got one of layout {x.layout}")
    if shape[1] == 0 or shape[2] == 0 or shape[3] == 0:
        raise ValueError(f"{op}: {name} must have at least one channel and one pixel, got shape {list(shape)}")


def encode_sampling(op: str, x: Tensor, sampling: Sampling | int | Sequence[int]) -> list[int]:
    """The sampling, or the plain output size (H, W), as the 11 integers of the schemas, checked against x."""
    height, width = x.shape[2:]
    if not isinstance(sampling, Sampling):
        try:
            if isinstance(sampling, (tuple, list)) and not torch.compiler.is_compiling():
                sizes = (height, width, *sampling)
                if _INT.issuperset(map(type, sizes)):
                    return list(_encoded(*sizes))
            return Sampling.interpolate((height, width), sampling).encode()
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"{op}: sampling must be a Sampling or an output size (H, W), got {sampling!r} ({error})"
            ) from None
    h, w = sampling.input_size
    if h != height or w != width:
        raise ValueError(f"{op}: the sampling reads {h} x {w} pixels, but x has {height} x {width}")
    return sampling.encode()


_INT = frozenset((int,))


@lru_cache(maxsize=1024)
def _encoded(height: int, width: int, *size: int) -> tuple[int, ...]:
    return tuple(Sampling.interpolate((height, width), size).encode())


def check_out(
    op: str, out: Tensor, x: Tensor, size: Sequence[int], dtype: torch.dtype, *inputs: Tensor | None, name: str = "out"
) -> None:
    """`out` is what the operator would allocate: of this size and dtype, laid out as x if it is an image.

    It shares no memory with x or another input, and nobody records a gradient.
    """
    if not isinstance(out, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(out).__name__}")
    if out.dtype != dtype:
        raise TypeError(f"{op}: {name} must be {dtype}, as the result is, got {out.dtype}")
    check_same_device(op, x, **{name: out})
    if out.shape != tuple(size):
        raise ValueError(f"{op}: {name} must be {list(size)}, as the result is, got shape {list(out.shape)}")
    layout = reference.memory_format(x) if len(size) == 4 else torch.contiguous_format
    strides = _strides(size, layout)
    if out.stride()[1:] != strides[1:] or (out.stride(0) != strides[0] and size[0] > 1):
        kind = "channels_last, as x is" if layout is torch.channels_last else "contiguous"
        raise ValueError(f"{op}: {name} must be {kind}, with strides {list(strides)}, got {list(out.stride())}")
    inputs = [t for t in (x, *inputs) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in (out, *inputs)):
        raise RuntimeError(f"{op}: {name}= records no gradient: call it under torch.no_grad() or with detached tensors")
    if not torch.compiler.is_compiling() and any(_overlap(out, t) for t in inputs):
        raise ValueError(f"{op}: {name} shares memory with an input, which would be overwritten while it is read")


def _strides(size: Sequence[int], layout: torch.memory_format) -> tuple[int, ...]:
    """Those of a new tensor."""
    if layout is torch.channels_last:
        _, channels, height, width = size
        return channels * height * width, 1, channels * width, channels
    return tuple(itertools.accumulate(reversed(size[1:]), operator.mul, initial=1))[::-1]


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether the ranges of memory from the first to the last element have a byte in common."""
    if a.numel() == 0 or b.numel() == 0 or a.device != b.device or a.device.type == "meta":
        return False
    (begin, end), (first, last) = (
        (p, p + (1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))) * t.element_size())
        for t, p in ((a, a.data_ptr()), (b, b.data_ptr()))
    )
    return begin < last and first < end


def check_same_device(op: str, x: Tensor, **others: Tensor | None) -> None:
    """All tensors live where x does."""
    device = x.device
    for name, t in others.items():
        if t is not None and t.device != device:
            raise ValueError(f"{op}: {name} is on {t.device}, but x is on {device}")


def check_same_dtype(op: str, x: Tensor, **others: Tensor | None) -> None:
    """All tensors have the dtype of x."""
    dtype = x.dtype
    for name, t in others.items():
        if t is not None and t.dtype != dtype:
            advice = (
                "also under autocast, which leaves float64 as it is"
                if torch.float64 in (t.dtype, dtype)
                else "or use autocast"
            )
            raise TypeError(f"{op}: {name} is {t.dtype}, but x is {dtype}; cast one of them, {advice}")


def check_window(
    op: str, name: str, t: Tensor, x: Tensor, channels: int, offset: int | Sequence[int], size: Sequence[int]
) -> tuple[int, int]:
    """The window of `size` at `offset` lies inside t, whose batch and channels fit x; returns the offset as a pair."""
    oy, ox = check_pair(op, f"{name}_offset", offset)
    n, c, height, width = t.shape
    if n != x.shape[0] or c != channels:
        raise ValueError(
            f"{op}: {name} must have {x.shape[0]} images of {channels} channels as x gives, got shape {list(t.shape)}"
        )
    if oy < 0 or ox < 0 or oy + size[0] > height or ox + size[1] > width:
        raise ValueError(
            f"{op}: the window of {size[0]} x {size[1]} pixels at ({oy}, {ox}) leaves {name}, "
            f"which has {height} x {width}"
        )
    return oy, ox


def check_scale(op: str, name: str, value: float) -> float:
    """A finite number."""
    value = as_float(op, name, value)
    if not -math.inf < value < math.inf:  # also false for NaN
        raise ValueError(f"{op}: {name} must be finite, got {value}")
    return value


def label_dtype(op: str, dtype: torch.dtype | None, out: Tensor | None, classes: int) -> torch.dtype:
    """The dtype of a result of labels: `dtype`, or that of `out`, or int64; it holds `classes - 1`."""
    if dtype is None:
        dtype = out.dtype if isinstance(out, Tensor) else torch.int64
    if dtype not in LABELS:
        raise TypeError(f"{op}: dtype must be uint8, int16, int32 or int64, got {dtype}")
    if classes - 1 > torch.iinfo(dtype).max:
        raise ValueError(f"{op}: {classes} classes do not fit {dtype}")
    return dtype


def check_target(op: str, target: Tensor, shape: Sequence[int]) -> None:
    """Integer labels [N, H, W] of the given shape."""
    if not isinstance(target, Tensor):
        raise TypeError(f"{op}: target must be a tensor of labels, got {type(target).__name__}")
    if target.dtype not in LABELS:
        if target.dtype.is_floating_point:
            raise TypeError(
                f"{op}: soft targets are not supported: target must hold integer labels [N, H, W], got {target.dtype}"
            )
        raise TypeError(f"{op}: target must be uint8, int16, int32 or int64, got {target.dtype}")
    if target.shape != tuple(shape):
        raise ValueError(f"{op}: target must be [N, H, W] = {list(shape)}, got shape {list(target.shape)}")


def target_size(op: str, target: Tensor) -> tuple[int, int]:
    """(H, W) of a label image, where no sampling is given."""
    if not isinstance(target, Tensor):
        raise TypeError(f"{op}: target must be a tensor of labels, got {type(target).__name__}")
    if target.dim() < 3 and not target.dtype.is_floating_point:
        raise ValueError(f"{op}: target must be [N, H, W], got shape {list(target.shape)}")
    return tuple(target.shape[-2:]) if target.dim() >= 2 else (1, 1)


def check_class_weight(op: str, name: str, weight: Tensor | None, x: Tensor, classes: int) -> Tensor | None:
    """One constant factor per class, returned in the dtype of the arithmetic."""
    if weight is None:
        return None
    if not isinstance(weight, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(weight).__name__}")
    if weight.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be a floating tensor, got {weight.dtype}")
    if weight.dim() != 1 or weight.shape[0] != classes:
        raise ValueError(f"{op}: {name} must be [{classes}], one factor per class, got shape {list(weight.shape)}")
    return _constant(op, name, weight, x)


def check_pixel_weight(op: str, weight: Tensor | None, x: Tensor, shape: Sequence[int]) -> Tensor | None:
    """One constant factor per pixel, returned in the dtype of the arithmetic."""
    if weight is None:
        return None
    if not isinstance(weight, Tensor):
        raise TypeError(f"{op}: pixel_weight must be a tensor, got {type(weight).__name__}")
    if weight.dtype not in FLOATING:
        raise TypeError(f"{op}: pixel_weight must be a floating tensor, got {weight.dtype}")
    if weight.shape != shape:
        raise ValueError(f"{op}: pixel_weight must be [N, H, W] = {list(shape)}, got shape {list(weight.shape)}")
    return _constant(op, "pixel_weight", weight, x)


def _constant(op: str, name: str, weight: Tensor, x: Tensor) -> Tensor:
    """Factors that get no gradient, on the device of x and in its arithmetic."""
    if weight.device != x.device:
        raise ValueError(f"{op}: {name} is on {weight.device}, but x is on {x.device}")
    if weight.requires_grad:
        raise ValueError(f"{op}: {name} requires a gradient, but is a constant here; pass {name}.detach()")
    return weight.to(reference.arithmetic_dtype(x.dtype))


def check_index(op: str, name: str, value: int) -> int:
    """An integer of any type, NumPy's too, that fits 64 bits; as an int."""
    if type(value) is not int and not isinstance(value, torch.SymInt):
        if isinstance(value, (bool, Tensor)) or not hasattr(value, "__index__"):
            raise TypeError(f"{op}: {name} must be an int, got {value!r}")
        value = operator.index(value)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{op}: {name} must fit 64 bits, got {value}")
    return value


def check_count(op: str, name: str, value: int) -> int:
    """An integer of at least 1."""
    value = check_index(op, name, value)
    if value < 1:
        raise ValueError(f"{op}: {name} must be at least 1, got {value}")
    return value


def reduction_code(op: str, reduction: str) -> int:
    """The integer of the schemas for "none", "mean", "sum" or "mean_all"."""
    try:
        return REDUCTIONS[reduction]
    except (KeyError, TypeError):
        raise ValueError(f"{op}: reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}") from None


def check_smoothing(op: str, label_smoothing: float) -> float:
    """A number in [0, 1]."""
    label_smoothing = as_float(op, "label_smoothing", label_smoothing)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"{op}: label_smoothing must lie in [0, 1], got {label_smoothing}")
    return label_smoothing


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that a convolution of x would run in under autocast; None when autocast is off or leaves x alone."""
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(kind)


def autocast(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """The arguments of a convolution as autocast casts them: float64 stays, so that dtypes may then differ."""
    dtype = autocast_dtype(x)
    if dtype is None:
        return x, *others
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in (x, *others))


def check_binary_target(op: str, target: Tensor, shape: Sequence[int]) -> None:
    """Labels 0 and 1, or probabilities, [N, C, H, W], or [N, H, W] for one channel."""
    if not isinstance(target, Tensor):
        raise TypeError(f"{op}: target must be a tensor, got {type(target).__name__}")
    if target.dtype not in LABELS and target.dtype not in FLOATING and target.dtype != torch.bool:
        raise TypeError(f"{op}: target must be bool, uint8, int16, int32, int64 or floating, got {target.dtype}")
    n, c, height, width = shape
    if target.shape != (n, c, height, width) and not (c == 1 and target.shape == (n, height, width)):
        either = f"[N, H, W] = {[n, height, width]} or " if c == 1 else ""
        raise ValueError(f"{op}: target must be {either}[N, C, H, W] = {list(shape)}, got shape {list(target.shape)}")
    if target.requires_grad:
        raise ValueError(f"{op}: target requires a gradient, but is a constant here; pass target.detach()")


def check_pair(op: str, name: str, value: int | Sequence[int], minimum: int | None = None) -> tuple[int, int]:
    """An int or a pair of ints (height, width), of at least `minimum` where there is one, as a pair."""
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{op}: {name} must be an int or a pair (height, width), got {value!r}")
    pair = check_index(op, name, pair[0]), check_index(op, name, pair[1])
    if minimum is not None and (pair[0] < minimum or pair[1] < minimum):
        raise ValueError(f"{op}: {name} must be at least {minimum}, got {value!r}")
    return pair


def check_score(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The arguments of a 1x1 convolution, cast as autocast casts them, with weight as [C, K]."""
    check_image(op, "x", x)
    for name, t in (("weight", weight), ("bias", bias)):
        if t is None and name == "bias":
            continue
        if not isinstance(t, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(t).__name__}")
        if t.dtype not in FLOATING:
            raise TypeError(f"{op}: {name} must be float32, float64, float16 or bfloat16, got {t.dtype}")
    k = x.shape[1]
    if weight.dim() == 4 and weight.shape[2:] == (1, 1):
        weight = weight.flatten(1)
    if weight.dim() != 2 or weight.shape[0] == 0 or weight.shape[1] != k:
        raise ValueError(
            f"{op}: weight must be [C, {k}] or [C, {k}, 1, 1] for x with {k} channels, got shape {list(weight.shape)}"
        )
    if bias is not None and bias.shape != (weight.shape[0],):
        raise ValueError(f"{op}: bias must be [{weight.shape[0]}], one per class, got shape {list(bias.shape)}")
    x, weight, bias = autocast(x, weight, bias)
    check_same_dtype(op, x, weight=weight, bias=bias)
    check_same_device(op, x, weight=weight, bias=bias)
    return x, weight, bias
