"""upsample_add: FCN's skip fusion, upsample + crop + add in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from .._checks import (
    check_image,
    check_out,
    check_same_device,
    check_same_dtype,
    check_scale,
    check_window,
    encode_sampling,
)
from .._library import batched_per_sample, define, define_out, differentiable
from ..sampling import Sampling
from ._fakes import empty_image, output_size
from .upsample import _upsample, _upsample_backward

define(
    "upsample_add(Tensor x, Tensor skip, SymInt[] sampling, SymInt[] skip_offset, float skip_scale) -> Tensor",
    reference.upsample_add,
    lambda x, skip, sampling, skip_offset, skip_scale: empty_image(x, x.shape[1], output_size(sampling)),
)


def window(image: Tensor, offset: Sequence[int], size: Sequence[int]) -> Tensor:
    (oy, ox), (height, width) = offset, size
    return image[:, :, oy : oy + height, ox : ox + width]


def window_gradient(grad: Tensor, scale: float, offset: Sequence[int], size: Sequence[int]) -> Tensor:
    """The gradient of ``scale * image[:, :, oy : oy + H, ox : ox + W]`` in an image of the given size."""
    if scale != 1:
        grad = grad * scale
    (oy, ox), (height, width) = offset, grad.shape[2:]
    if (height, width) == tuple(size):
        return grad
    return F.pad(grad, (ox, size[1] - ox - width, oy, size[0] - oy - height))


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, skip, ctx.sampling, ctx.skip_offset, ctx.skip_scale = inputs
    ctx.skip_size = skip.shape[2:]


def _backward(ctx: Any, grad: Tensor) -> tuple:
    grad_x = grad_skip = None
    if ctx.needs_input_grad[0]:
        grad_x = _upsample_backward(grad, ctx.sampling)
    if ctx.needs_input_grad[1]:
        grad_skip = window_gradient(grad, ctx.skip_scale, ctx.skip_offset, ctx.skip_size)
    return grad_x, grad_skip, None, None, None


def _jvp(inputs: tuple, tangents: tuple) -> Tensor:
    _, _, sampling, offset, scale = inputs
    dx, dskip, *_ = tangents
    if dskip is None:
        return _upsample(dx, sampling)
    if dx is None:
        return scale * window(dskip, offset, output_size(sampling))
    return _upsample_add(dx, dskip, sampling, offset, scale)


_upsample_add = differentiable("upsample_add", _backward, _setup_context, _jvp)
batched_per_sample("upsample_add", [0, 1])

_upsample_add_out = define_out("upsample_add")


def upsample_add(
    x: Tensor,  # [N, C, h, w]
    skip: Tensor,  # [N, C, Hs, Ws]
    sampling: Sampling | Sequence[int],
    *,
    skip_offset: int | Sequence[int] = 0,
    skip_scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:  # [N, C, H, W]
    """Upsample coarse scores and add a window of finer ones.

    Equivalent PyTorch::

        oy, ox = skip_offset
        upsample(x, sampling) + skip_scale * skip[:, :, oy : oy + H, ox : ox + W]

    Args:
        x: [N, C, h, w] in float32, float64, float16 or bfloat16; half types compute in float32.
        skip: [N, C, Hs, Ws] in the dtype of x (under autocast both go to the wider one).
        sampling: a `Sampling` made for (h, w), or the output size (H, W).
        skip_offset: where the window of H x W pixels starts in skip, an int or a pair (y, x).
        skip_scale: a finite factor.
        out: a tensor for the result, of its shape, dtype and layout, apart from all inputs; no gradient is recorded.

    Returns:
        [N, C, H, W] in the dtype of x, channels_last if x is. Differentiable in x and skip, any number of
        times, also in forward mode.

    Raises:
        TypeError: x or skip is not a floating tensor, or their dtypes differ.
        ValueError: wrong rank, batch or channels, another device, a sampling made for another size, a window that
            leaves skip, a factor that is not finite.
        Of `out`: TypeError (dtype), ValueError (shape, layout, device, overlap), RuntimeError (a gradient is recorded).
    """
    op = "upsample_add"
    check_image(op, "x", x)
    check_image(op, "skip", skip)
    if x.dtype != skip.dtype:
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.promote_types(x.dtype, skip.dtype)
            x, skip = x.to(dtype), skip.to(dtype)
        else:
            check_same_dtype(op, x, skip=skip)
    check_same_device(op, x, skip=skip)
    encoded = encode_sampling(op, x, sampling)
    offset = check_window(op, "skip", skip, x, x.shape[1], skip_offset, (encoded[1], encoded[6]))
    scale = check_scale(op, "skip_scale", skip_scale)
    if out is None:
        return _upsample_add(x, skip, encoded, offset, scale)
    check_out(op, out, x, (*x.shape[:2], encoded[1], encoded[6]), x.dtype, skip)
    _upsample_add_out(x, skip, encoded, offset, scale, out=out)
    return out
