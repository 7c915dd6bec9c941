"""conv_transpose_concat: U-Net's skip fusion, a learned transposed convolution beside a window of finer features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._checks import (
    FLOATING,
    autocast,
    check_image,
    check_out,
    check_same_device,
    check_same_dtype,
    check_window,
)
from .._library import batched_per_sample, define, define_out, differentiable
from ._fakes import empty_image
from .channel_sum import channel_sum
from .conv_transpose_add import _conv_transpose_add, _gradients, check_conv_transpose
from .upsample_add import window, window_gradient

define(
    "conv_transpose_concat(Tensor x, Tensor weight, Tensor skip, Tensor? bias, SymInt[] stride, SymInt groups,"
    " SymInt[] offset, SymInt[] output_size, SymInt[] skip_offset) -> Tensor",
    reference.conv_transpose_concat,
    lambda x, weight, skip, bias, stride, groups, offset, output_size, skip_offset: empty_image(
        x, skip.shape[1] + weight.shape[1] * groups, output_size
    ),
)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, skip, _, ctx.stride, ctx.groups, ctx.offset, _, ctx.skip_offset = inputs
    ctx.skip_shape = skip.shape
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    """The parts of `grad` are read where they stand."""
    x, weight = ctx.saved_tensors
    need_x, need_weight, need_skip, need_bias = ctx.needs_input_grad[:4]
    grad_x = grad_weight = grad_skip = grad_bias = None
    skip_grad, up_grad = grad[:, : ctx.skip_shape[1]], grad[:, ctx.skip_shape[1] :]
    if need_skip:
        grad_skip = window_gradient(skip_grad, 1.0, ctx.skip_offset, ctx.skip_shape[2:])
    if need_bias:
        grad_bias = channel_sum(up_grad).to(grad.dtype)
    if need_x or need_weight:
        grad_x, grad_weight = _gradients(up_grad, x, weight, ctx.stride, ctx.groups, ctx.offset, need_x, need_weight)
    return grad_x if need_x else None, grad_weight if need_weight else None, grad_skip, grad_bias, *(None,) * 5


def _jvp(inputs: tuple, tangents: tuple) -> Tensor:
    """``window(dskip)`` beside ``conv(dx, weight) + conv(x, dweight) + dbias``."""
    x, weight, skip, _, *where, size, offset = inputs
    dx, dweight, dskip, dbias, *_ = tangents
    up = None if dbias is None else dbias[:, None, None].expand(x.shape[0], -1, *size)
    for image, filters in ((dx, weight), (x, dweight)):
        if image is not None and filters is not None:
            up = _conv_transpose_add(image, filters, up, *where, size, (0, 0), 1.0)
    if up is None:
        up = x.new_zeros(()).expand(x.shape[0], weight.shape[1] * where[1], *size)
    beside = window(skip if dskip is None else dskip, offset, size)
    return torch.cat([torch.zeros_like(beside) if dskip is None else beside, up], dim=1)


_conv_transpose_concat = differentiable("conv_transpose_concat", _backward, _setup_context, _jvp)
batched_per_sample("conv_transpose_concat", [0, 2])

_conv_transpose_concat_out = define_out("conv_transpose_concat")


def conv_transpose_concat(
    x: Tensor,  # [N, Cin, h, w]
    weight: Tensor,  # [Cin, Cout / groups, ky, kx]
    skip: Tensor,  # [N, Cskip, Hs, Ws]
    bias: Tensor | None = None,  # [Cout]
    *,
    stride: int | Sequence[int],
    groups: int = 1,
    offset: int | Sequence[int] = 0,
    output_size: int | Sequence[int] | None = None,
    skip_offset: int | Sequence[int] = 0,
    out: Tensor | None = None,
) -> Tensor:  # [N, Cskip + Cout, H, W]
    """U-Net's skip fusion: a window of finer features, and behind them in one tensor a transposed convolution, cropped.

    Both are written to their place at once: there is no tensor of the convolution, and none of the window.
    Equivalent PyTorch::

        (cy, cx), (oy, ox) = offset, skip_offset
        y = F.conv_transpose2d(x, weight, bias, stride=stride, groups=groups)[:, :, cy : cy + H, cx : cx + W]
        torch.cat([skip[:, :, oy : oy + H, ox : ox + W], y], dim=1)

    Args:
        x: [N, Cin, h, w] in float32, float64, float16 or bfloat16. Under autocast, all tensors are cast as a
            convolution casts its arguments.
        weight: [Cin, Cout / groups, ky, kx] in the dtype of x.
        skip: [N, Cskip, Hs, Ws] in the dtype of x.
        bias: [Cout] in the dtype of x.
        stride: of the transposed convolution, an int or a pair.
        groups: of the transposed convolution.
        offset: where the crop starts in its output, an int or a pair (y, x).
        output_size: (H, W) of the crop; by default all that follows the offset.
        skip_offset: where the window of H x W pixels starts in skip, an int or a pair (y, x); its centre is
            ((Hs - H) // 2, (Ws - W) // 2).
        out: a tensor for the result, of its shape, dtype and layout, apart from all inputs; no gradient is recorded.

    Returns:
        [N, Cskip + Cout, H, W] in the dtype of x, channels_last if x is. Differentiable in x, weight, skip and bias,
        any number of times, also in forward mode.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: wrong rank, batch or channels, another device, a stride or groups below 1, a stride above 65536,
            channels that groups does not divide, a crop or a window that leaves its tensor.
        Of `out`: TypeError (dtype), ValueError (shape, layout, device, overlap), RuntimeError (a gradient is recorded).
    """
    op = "conv_transpose_concat"
    check_image(op, "x", x)
    check_image(op, "weight", weight, "[Cin, Cout / groups, ky, kx]")
    check_image(op, "skip", skip)
    if bias is not None:
        if not isinstance(bias, Tensor):
            raise TypeError(f"{op}: bias must be a tensor, got {type(bias).__name__}")
        if bias.dtype not in FLOATING:
            raise TypeError(f"{op}: bias must be float32, float64, float16 or bfloat16, got {bias.dtype}")
    x, weight, skip, bias = autocast(x, weight, skip, bias)
    check_same_dtype(op, x, weight=weight, skip=skip, bias=bias)
    check_same_device(op, x, weight=weight, skip=skip, bias=bias)
    stride, groups, offset, size = check_conv_transpose(op, x, weight, stride, groups, offset, output_size)
    channels = weight.shape[1] * groups
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"{op}: bias must be [{channels}], one per output channel, got shape {list(bias.shape)}")
    window = check_window(op, "skip", skip, x, skip.shape[1], skip_offset, size)
    args = (x, weight, skip, bias, stride, groups, offset, size, window)
    if out is None:
        return _conv_transpose_concat(*args)
    check_out(op, out, x, (x.shape[0], skip.shape[1] + channels, *size), x.dtype, weight, skip, bias)
    _conv_transpose_concat_out(*args, out=out)
    return out
