"""conv_transpose_add: a learned transposed convolution with crop and skip fusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from .._checks import (
    autocast_dtype,
    check_image,
    check_index,
    check_pair,
    check_same_device,
    check_same_dtype,
    check_scale,
    check_window,
)
from .._library import batched_per_sample, define, differentiable
from ._fakes import empty_image
from .upsample_add import window_gradient

define(
    "conv_transpose_add(Tensor x, Tensor weight, Tensor? skip, SymInt[] stride, SymInt groups, SymInt[] offset,"
    " SymInt[] output_size, SymInt[] skip_offset, float skip_scale) -> Tensor",
    reference.conv_transpose_add,
    lambda x, weight, skip, stride, groups, offset, output_size, skip_offset, skip_scale: empty_image(
        x, weight.shape[1] * groups, output_size
    ),
)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, skip, ctx.stride, ctx.groups, ctx.offset, _, ctx.skip_offset, ctx.skip_scale = inputs
    ctx.skip_size = None if skip is None else skip.shape[2:]
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    x, weight = ctx.saved_tensors
    grad_x = grad_weight = grad_skip = None
    if ctx.needs_input_grad[2]:
        grad_skip = window_gradient(grad, ctx.skip_scale, ctx.skip_offset, ctx.skip_size)
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        (sy, sx), (ky, kx) = ctx.stride, weight.shape[2:]
        full = (x.shape[2] - 1) * sy + ky, (x.shape[3] - 1) * sx + kx
        grad = window_gradient(grad, 1, ctx.offset, full)
        stride = (sy, sx)
        if ctx.needs_input_grad[0]:
            grad_x = F.conv2d(grad, weight, stride=stride, groups=ctx.groups)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.nn.grad.conv2d_weight(grad, weight.shape, x, stride=stride, groups=ctx.groups)
    return grad_x, grad_weight, grad_skip, None, None, None, None, None, None


differentiable("conv_transpose_add", _backward, _setup_context)
batched_per_sample("conv_transpose_add", [0, 2])

_conv_transpose_add = torch.ops.fcn_kernels.conv_transpose_add.default


def conv_transpose_add(
    x: Tensor,  # [N, Cin, h, w]
    weight: Tensor,  # [Cin, Cout / groups, ky, kx]
    skip: Tensor | None = None,  # [N, Cout, Hs, Ws]
    *,
    stride: int | Sequence[int],
    groups: int = 1,
    offset: Sequence[int] = (0, 0),
    output_size: Sequence[int] | None = None,
    skip_offset: Sequence[int] = (0, 0),
    skip_scale: float = 1.0,
) -> Tensor:  # [N, Cout, H, W]
    """Learned upsampling: transposed convolution, crop, and a window of finer scores added.

    Equivalent PyTorch::

        (cy, cx), (oy, ox) = offset, skip_offset
        y = F.conv_transpose2d(x, weight, stride=stride, groups=groups)[:, :, cy : cy + H, cx : cx + W]
        y + skip_scale * skip[:, :, oy : oy + H, ox : ox + W]

    Args:
        x: [N, Cin, h, w] in float32, float64, float16 or bfloat16. Under autocast, x, weight and skip are cast as a
            convolution casts its arguments.
        weight: [Cin, Cout / groups, ky, kx] in the dtype of x: dense for groups = 1, depthwise for groups = Cin.
        skip: [N, Cout, Hs, Ws] in the dtype of x.
        stride: of the transposed convolution, an int or a pair.
        groups: of the transposed convolution.
        offset: where the crop starts in its output.
        output_size: (H, W) of the crop; by default all that follows the offset.
        skip_offset: where the window of H x W pixels starts in skip.
        skip_scale: a finite factor.

    Returns:
        [N, Cout, H, W] in the dtype of x, channels_last if x is. Differentiable in x, weight and skip, any number of
        times.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: wrong rank, batch or channels, another device, a stride or groups below 1, channels that groups does
            not divide, a crop or a window that leaves its tensor, a factor that is not finite.
    """
    op = "conv_transpose_add"
    check_image(op, "x", x)
    check_image(op, "weight", weight)
    if skip is not None:
        check_image(op, "skip", skip)
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, weight = x.to(dtype), weight.to(dtype)
        skip = None if skip is None else skip.to(dtype)
    check_same_dtype(op, x, weight=weight, skip=skip)
    check_same_device(op, x, weight=weight, skip=skip)
    sy, sx = check_pair(op, "stride", stride, 1)
    if check_index(op, "groups", groups) < 1:
        raise ValueError(f"{op}: groups must be at least 1, got {groups}")
    if weight.shape[0] != x.shape[1] or x.shape[1] % groups != 0:
        raise ValueError(
            f"{op}: weight must be [Cin, Cout / groups, ky, kx] with Cin = {x.shape[1]}, the channels of x, "
            f"divisible by groups = {groups}, got shape {list(weight.shape)}"
        )
    full = (x.shape[2] - 1) * sy + weight.shape[2], (x.shape[3] - 1) * sx + weight.shape[3]
    cy, cx = check_pair(op, "offset", offset, 0)
    size = (full[0] - cy, full[1] - cx) if output_size is None else check_pair(op, "output_size", output_size, 1)
    if size[0] < 1 or size[1] < 1 or cy + size[0] > full[0] or cx + size[1] > full[1]:
        raise ValueError(
            f"{op}: the crop of {size[0]} x {size[1]} pixels at ({cy}, {cx}) leaves the transposed convolution, "
            f"which has {full[0]} x {full[1]}"
        )
    window = (0, 0)
    if skip is not None:
        window = check_window(op, "skip", skip, x, weight.shape[1] * groups, skip_offset, size)
    scale = check_scale(op, "skip_scale", skip_scale)
    return _conv_transpose_add(x, weight, skip, (sy, sx), groups, (cy, cx), size, window, scale)
