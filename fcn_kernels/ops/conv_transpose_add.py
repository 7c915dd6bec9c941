"""conv_transpose_add: a learned transposed convolution with crop and skip fusion."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import reference
from .._checks import (
    autocast,
    check_image,
    check_index,
    check_out,
    check_pair,
    check_same_device,
    check_same_dtype,
    check_scale,
    check_window,
)
from .._library import batched_per_sample, define, define_out, differentiable
from ..sampling import Sampling
from ._fakes import empty_image
from .upsample import upsample
from .upsample_add import _upsample_add, window, window_gradient

_LARGEST_STRIDE = 2**16  # csrc/conv_transpose.h says why

define(
    "conv_transpose_add(Tensor x, Tensor weight, Tensor? skip, SymInt[] stride, SymInt groups, SymInt[] offset,"
    " SymInt[] output_size, SymInt[] skip_offset, float skip_scale) -> Tensor",
    reference.conv_transpose_add,
    lambda x, weight, skip, stride, groups, offset, output_size, skip_offset, skip_scale: empty_image(
        x, weight.shape[1] * groups, output_size
    ),
)


define(
    "conv_transpose_add_backward(Tensor grad, Tensor x, Tensor weight, SymInt[] stride, SymInt groups,"
    " SymInt[] offset, bool need_x, bool need_weight) -> (Tensor grad_x, Tensor grad_weight)",
    reference.conv_transpose_add_backward,
    lambda grad, x, weight, stride, groups, offset, need_x, need_weight: (
        empty_image(x, x.shape[1], x.shape[2:]) if need_x else x.new_empty(0),
        weight.new_empty(weight.shape if need_weight else 0),
    ),
)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, skip, ctx.stride, ctx.groups, ctx.offset, _, ctx.skip_offset, ctx.skip_scale = inputs
    ctx.skip_size = None if skip is None else skip.shape[2:]
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    x, weight = ctx.saved_tensors
    need_x, need_weight, need_skip = ctx.needs_input_grad[:3]
    grad_x = grad_weight = grad_skip = None
    if need_skip:
        grad_skip = window_gradient(grad, ctx.skip_scale, ctx.skip_offset, ctx.skip_size)
    if need_x or need_weight:
        grad_x, grad_weight = _gradients(grad, x, weight, ctx.stride, ctx.groups, ctx.offset, need_x, need_weight)
    return grad_x if need_x else None, grad_weight if need_weight else None, grad_skip, *(None,) * 6


def _jvp(inputs: tuple, tangents: tuple) -> Tensor:
    """``conv(dx, weight) + conv(x, dweight) + scale * window(dskip)``."""
    x, weight, _, *where, size, offset, scale = inputs
    dx, dweight, dskip, *_ = tangents
    if dx is None and dweight is None:
        return scale * window(dskip, offset, size)
    if dx is not None:
        dskip, offset, scale = _conv_transpose_add(dx, weight, dskip, *where, size, offset, scale), (0, 0), 1.0
    if dweight is not None:
        dskip = _conv_transpose_add(x, dweight, dskip, *where, size, offset, scale)
    return dskip


def _setup_context_of_backward(ctx: Any, inputs: tuple, output: tuple) -> None:
    grad, x, weight, ctx.stride, ctx.groups, ctx.offset, ctx.need_x, ctx.need_weight = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad, x, weight)


def _backward_of_backward(ctx: Any, u: Tensor | None, v: Tensor | None) -> tuple:
    """With u for the gradient in x and v for that in weight: ``<u, grad_x> = <conv(u, weight), grad>``, which is also
    ``<weight, the gradient in weight for x = u>``; ``<v, grad_weight> = <conv(x, v), grad>`` likewise."""
    grad, x, weight = ctx.saved_tensors
    u, v = u if ctx.need_x else None, v if ctx.need_weight else None
    where = ctx.stride, ctx.groups, ctx.offset
    grad_grad = grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        for image, filters in ((u, weight), (x, v)):
            if image is not None and filters is not None:
                grad_grad = _conv_transpose_add(image, filters, grad_grad, *where, grad.shape[2:], (0, 0), 1.0)
    if ctx.needs_input_grad[1] and v is not None:
        grad_x, _ = _gradients(grad, x, v, *where, True, False)
    if ctx.needs_input_grad[2] and u is not None:
        _, grad_weight = _gradients(grad, u, weight, *where, False, True)
    return grad_grad, grad_x, grad_weight, *(None,) * 5


def _jvp_of_backward(inputs: tuple, tangents: tuple) -> tuple:
    """Both gradients are linear in `grad`, that in x also in weight, and that in weight also in x."""
    grad, x, weight, *where, need_x, need_weight = inputs
    dgrad, dx, dweight, *_ = tangents
    grad_x = grad_weight = None
    if dgrad is not None:
        grad_x, grad_weight = _gradients(dgrad, x, weight, *where, need_x, need_weight)
    if need_x and dweight is not None:
        more, _ = _gradients(grad, x, dweight, *where, True, False)
        grad_x = more if grad_x is None else grad_x + more
    if need_weight and dx is not None:
        _, more = _gradients(grad, dx, weight, *where, False, True)
        grad_weight = more if grad_weight is None else grad_weight + more
    return grad_x if need_x else None, grad_weight if need_weight else None


_conv_transpose_add = differentiable("conv_transpose_add", _backward, _setup_context, _jvp)
_gradients = differentiable(
    "conv_transpose_add_backward", _backward_of_backward, _setup_context_of_backward, _jvp_of_backward
)
batched_per_sample("conv_transpose_add", [0, 2])
batched_per_sample("conv_transpose_add_backward", [0, 1], loop_if=lambda *args: args[7])


def check_conv_transpose(
    op: str,
    x: Tensor,
    weight: Tensor,
    stride: int | Sequence[int],
    groups: int,
    offset: int | Sequence[int],
    output_size: int | Sequence[int] | None,
) -> tuple[tuple[int, int], int, tuple[int, int], tuple[int, int]]:
    """A transposed convolution and a crop that lies inside its output: stride, groups, offset and size of the crop."""
    sy, sx = check_pair(op, "stride", stride, 1)
    if sy > _LARGEST_STRIDE or sx > _LARGEST_STRIDE:
        raise ValueError(f"{op}: stride must be at most {_LARGEST_STRIDE}, got {stride!r}")
    groups = check_index(op, "groups", groups)
    if groups < 1:
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
    return (sy, sx), groups, (cy, cx), size


def _bilinear_sampling(
    x: Tensor, weight: Tensor, stride: tuple[int, int], groups: int, offset: tuple[int, int], size: tuple[int, int]
) -> Sampling | None:
    """The sampling that gives the same, where the weight is a constant: FCN's bilinear filter in every channel.

    It looks at the values, so only where that costs nothing: on the CPU, and not while something traces or transforms
    the program. A learned weight differs in its first element already.
    """
    if torch.compiler.is_compiling() or (weight.requires_grad and torch.is_grad_enabled()):
        return None
    if not is_plain(weight) or not is_plain(x) or x.device.type != "cpu":
        return None
    (ky, kx), (sy, sx) = weight.shape[2:], stride
    if groups != weight.shape[0] or weight.shape[1] != 1:
        return None
    if ky not in (2 * sy - 1, 2 * sy) or kx not in (2 * sx - 1, 2 * sx):
        return None
    if not is_bilinear(weight):
        return None
    return Sampling.transposed_conv(x.shape[2:], stride, kernel_size=(ky, kx), offset=offset, output_size=size)


def is_bilinear(weight: Tensor) -> bool:
    """Whether a weight [C, 1, ky, kx], or [C, C, ky, kx] on its diagonal, holds FCN's bilinear filter.

    Within two roundings of its dtype, and with zeros elsewhere. A learned weight differs in its first element already.
    """
    weight = weight.detach()
    (c, group, ky, kx), tolerance = weight.shape, 2 * torch.finfo(weight.dtype).eps
    if not abs(weight[0, 0, 0, 0].item() - _bilinear_end(ky) * _bilinear_end(kx)) <= tolerance:
        return False
    row, column = reference.bilinear_filter(ky), reference.bilinear_filter(kx)
    expected = (row[:, None] * column).to(weight.device, weight.dtype)
    if group > 1:
        # Between two elements of the diagonal lie c others.
        if weight.flatten(0, 1)[:-1].unflatten(0, (c - 1, c + 1))[:, 1:].any().item():
            return False
        weight = weight.diagonal().movedim(-1, 0)[:, None]
    return ((weight - expected).abs().max() <= tolerance).item()


@functools.lru_cache(maxsize=64)  # making a small tensor takes as long as a small kernel
def _bilinear_end(kernel_size: int) -> float:
    return reference.bilinear_filter(kernel_size)[0].item()


def is_plain(t: Tensor) -> bool:
    """An ordinary tensor in memory, seen by nobody but autograd: no fake, no mode, no transform, no tangent."""
    return (
        type(t) in (Tensor, torch.nn.Parameter)
        and t.device.type != "meta"
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not torch.jit.is_tracing()
    )


_upsample_add_out = torch.ops.fcn_kernels.upsample_add.out
_conv_transpose_add_out = define_out("conv_transpose_add")


def conv_transpose_add(
    x: Tensor,  # [N, Cin, h, w]
    weight: Tensor,  # [Cin, Cout / groups, ky, kx]
    skip: Tensor | None = None,  # [N, Cout, Hs, Ws]
    *,
    stride: int | Sequence[int],
    groups: int = 1,
    offset: int | Sequence[int] = 0,
    output_size: int | Sequence[int] | None = None,
    skip_offset: int | Sequence[int] = 0,
    skip_scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:  # [N, Cout, H, W]
    """Learned upsampling: transposed convolution, crop, and a window of finer scores added.

    Equivalent PyTorch::

        (cy, cx), (oy, ox) = offset, skip_offset
        y = F.conv_transpose2d(x, weight, stride=stride, groups=groups)[:, :, cy : cy + H, cx : cx + W]
        y + skip_scale * skip[:, :, oy : oy + H, ox : ox + W]

    On the CPU in eager mode a depthwise weight that is a constant and holds FCN's bilinear filter is recognised (within
    two roundings of its dtype), and `upsample_add` does the work.

    Args:
        x: [N, Cin, h, w] in float32, float64, float16 or bfloat16. Under autocast, x, weight and skip are cast as a
            convolution casts its arguments.
        weight: [Cin, Cout / groups, ky, kx] in the dtype of x: dense for groups = 1, depthwise for groups = Cin.
        skip: [N, Cout, Hs, Ws] in the dtype of x.
        stride: of the transposed convolution, an int or a pair.
        groups: of the transposed convolution.
        offset: where the crop starts in its output, an int or a pair (y, x).
        output_size: (H, W) of the crop; by default all that follows the offset.
        skip_offset: where the window of H x W pixels starts in skip, an int or a pair (y, x).
        skip_scale: a finite factor.
        out: a tensor for the result, of its shape, dtype and layout, apart from all inputs; no gradient is recorded.

    Returns:
        [N, Cout, H, W] in the dtype of x, channels_last if x is. Differentiable in x, weight and skip, any number of
        times, also in forward mode.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: wrong rank, batch or channels, another device, a stride or groups below 1, a stride above 65536,
            channels that groups does not divide, a crop or a window that leaves its tensor, a factor not finite.
        Of `out`: TypeError (dtype), ValueError (shape, layout, device, overlap), RuntimeError (a gradient is recorded).
    """
    op = "conv_transpose_add"
    check_image(op, "x", x)
    check_image(op, "weight", weight, "[Cin, Cout / groups, ky, kx]")
    if skip is not None:
        check_image(op, "skip", skip)
    x, weight, skip = autocast(x, weight, skip)
    check_same_dtype(op, x, weight=weight, skip=skip)
    check_same_device(op, x, weight=weight, skip=skip)
    stride, groups, offset, size = check_conv_transpose(op, x, weight, stride, groups, offset, output_size)
    window = (0, 0)
    if skip is not None:
        window = check_window(op, "skip", skip, x, weight.shape[1] * groups, skip_offset, size)
    scale = check_scale(op, "skip_scale", skip_scale)
    sampling = _bilinear_sampling(x, weight, stride, groups, offset, size)
    if out is not None:
        check_out(op, out, x, (x.shape[0], weight.shape[1] * groups, *size), x.dtype, weight, skip)
    if sampling is not None and skip is None:
        return upsample(x, sampling, out=out)
    if sampling is not None:
        f, f_out, args = _upsample_add, _upsample_add_out, (x, skip, sampling.encode(), window, scale)
    else:
        f, f_out = _conv_transpose_add, _conv_transpose_add_out
        args = (x, weight, skip, stride, groups, offset, size, window, scale)
    if out is None:
        return f(*args)
    f_out(*args, out=out)
    return out
