"""upsample_binary_cross_entropy in Triton: loss and gradient without the upsampled logits.

With z = upsample(x), target t and the channel's factor q, a pixel costs q t s(-z) + (1 - t) s(z), where
s(z) = log(1 + exp(z)) = max(z, 0) + log1p(exp(-|z|)); its derivative is (1 - t) p(z) - q t p(-z), p(z) = s'(z).

Forward: one exponential, one logarithm and one division per output; x and the target are read once, and the losses
added per program, in a fixed order. Backward: a gather over the outputs that read an input pixel, which evaluates z
again for each: an output is evaluated by its four owners, four exponentials and four divisions, and its target comes
from cache after the first. On an H200 a map of one channel, 512 x 512 from 128 x 128, N = 8, moves 2.6e6 targets: 21 MB
of int64, 5 us at 4.3 TB/s; 1.3e7 exponentials take 3.5 us at 16 per clock and multiprocessor: bandwidth bound, and
launches weigh as much. These are counts: no GPU has run it yet.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import reference
from ...reference import NONE, arithmetic_dtype
from .geometry import readers, taps, weight_of
from .launch import accumulator, device_of, empty_image, index_type, reduced


@triton.jit
def sampled(
    x, oy, ox, read, h, num_h, off_h, den_h, w, num_w, off_w, den_w, x_h, x_w,
    CLAMP: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """z at the outputs (oy, ox) of the channel that starts at x."""
    top, bottom, has_top, has_bottom, fy = taps(oy, h, num_h, off_h, den_h, CLAMP, INDEX, ACC)
    left, right, has_left, has_right, fx = taps(ox, w, num_w, off_w, den_w, CLAMP, INDEX, ACC)
    in_top = read & (ox < tl.where(has_top, ox + 1, ox))
    in_bottom = read & (ox < tl.where(has_bottom, ox + 1, ox))
    a = tl.load(x + (top * x_h + left * x_w), mask=in_top & has_left, other=0).to(ACC)
    b = tl.load(x + (top * x_h + right * x_w), mask=in_top & has_right, other=0).to(ACC)
    c = tl.load(x + (bottom * x_h + left * x_w), mask=in_bottom & has_left, other=0).to(ACC)
    d = tl.load(x + (bottom * x_h + right * x_w), mask=in_bottom & has_right, other=0).to(ACC)
    return (1 - fy) * ((1 - fx) * a + fx * b) + fy * ((1 - fx) * c + fx * d)


@triton.jit
def label(t, read, ignore_index, IGNORE: tl.constexpr, INTEGER: tl.constexpr, ACC: tl.constexpr):
    """The target as a number, 0 where it does not count; whether it counts; whether it is wrong."""
    kept = read
    if INTEGER:
        t = t.to(tl.int64)
    if IGNORE:
        kept = read & (t != ignore_index)
    if INTEGER:
        wrong = kept & ((t < 0) | (t > 1))
    else:
        wrong = kept ^ kept
    return tl.where(kept, t, 0).to(ACC), kept, wrong


@triton.jit
def binary_loss_kernel(
    x, target, pos_weight, loss, partial,
    C, h, H, num_h, off_h, den_h, w, W, num_w, off_w, den_w,
    x_n, x_c, x_h, x_w, target_n, target_c, target_h, target_w, ignore_index,
    PER_PIXEL: tl.constexpr, WEIGHTED: tl.constexpr, IGNORE: tl.constexpr, INTEGER: tl.constexpr,
    CLAMP: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_W outputs of a row of one channel: their losses, or the sums of losses and of pixels."""
    tiles = tl.cdiv(W, BLOCK_W)
    pid = tl.program_id(0)
    n = (pid // (tiles * H) // C).to(tl.int64)
    c = pid // (tiles * H) % C
    oy = (pid // tiles % H).to(INDEX)
    ox = (pid % tiles * BLOCK_W + tl.arange(0, BLOCK_W)).to(INDEX)
    inside = ox < W
    x += n * x_n + c.to(tl.int64) * x_c
    z = sampled(x, oy, ox, inside, h, num_h, off_h, den_h, w, num_w, off_w, den_w, x_h, x_w, CLAMP, ACC, INDEX)
    target += n * target_n + c.to(tl.int64) * target_c
    t = tl.load(target + (oy * target_h + ox * target_w), mask=inside, other=0)
    t, kept, wrong = label(t, inside, ignore_index, IGNORE, INTEGER, ACC)
    q = t
    if WEIGHTED:
        q = t * tl.load(pos_weight + c)
    e = tl.exp(-tl.abs(z))
    u = 1 + e
    tail = tl.log(u) - ((u - 1) - e) / u  # log1p(e)
    value = tl.where(q != 0, q * (tl.maximum(-z, 0) + tail), 0)
    value += tl.where(t != 1, (1 - t) * (tl.maximum(z, 0) + tail), 0)
    value = tl.where(kept, tl.where(wrong, float("nan"), value), 0)
    if PER_PIXEL:
        tl.store(loss + (pid // (tiles * H)).to(tl.int64) * H * W + (oy * W + ox), value, mask=inside)
    else:
        partial += pid.to(tl.int64) * 2
        tl.store(partial, tl.sum(value.to(tl.float64), 0))
        tl.store(partial + 1, tl.sum(kept.to(tl.float64), 0))


@triton.jit
def binary_gradient_kernel(
    x, target, pos_weight, grad, dx,
    C, h, H, num_h, off_h, den_h, w, W, num_w, off_w, den_w,
    x_n, x_c, x_h, x_w, target_n, target_c, target_h, target_w, grad_n, grad_c, grad_h, grad_w,
    dx_n, dx_c, dx_h, dx_w, ignore_index,
    PIXEL_GRAD: tl.constexpr, WEIGHTED: tl.constexpr, IGNORE: tl.constexpr, INTEGER: tl.constexpr,
    CLAMP: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_W inputs of a row of one channel."""
    tiles = tl.cdiv(w, BLOCK_W)
    pid = tl.program_id(0)
    n = (pid // (tiles * h) // C).to(tl.int64)
    c = pid // (tiles * h) % C
    i = (pid // tiles % h).to(INDEX)
    j = (pid % tiles * BLOCK_W + tl.arange(0, BLOCK_W)).to(INDEX)
    wanted = j < w
    top, bottom = readers(i, h, H, num_h, off_h, den_h, CLAMP, INDEX)
    left, right = readers(j, w, W, num_w, off_w, den_w, CLAMP, INDEX)
    width = tl.max(tl.where(wanted, right - left, 0), 0)
    x += n * x_n + c.to(tl.int64) * x_c
    target += n * target_n + c.to(tl.int64) * target_c
    grad += n * grad_n + c.to(tl.int64) * grad_c
    factor = tl.full([1], 1, ACC)
    if WEIGHTED:
        factor *= tl.load(pos_weight + c)
    total = tl.zeros([BLOCK_W], ACC)
    for oy in range(top, bottom):
        row_weight = weight_of(oy, i, h, num_h, off_h, den_h, CLAMP, ACC)
        for k in range(0, width):
            ox = left + k
            weight = row_weight * weight_of(ox, j, w, num_w, off_w, den_w, CLAMP, ACC)
            read = wanted & (ox < right) & (weight != 0)
            z = sampled(x, oy, ox, read, h, num_h, off_h, den_h, w, num_w, off_w, den_w, x_h, x_w, CLAMP, ACC, INDEX)
            t = tl.load(target + (oy * target_h + ox * target_w), mask=read, other=0)
            t, kept, wrong = label(t, read, ignore_index, IGNORE, INTEGER, ACC)
            e = tl.exp(-tl.abs(z))
            near = 1 / (1 + e)  # p(|z|)
            far = e * near  # p(-|z|)
            g = (1 - t) * tl.where(z < 0, far, near) - factor * t * tl.where(z < 0, near, far)
            if PIXEL_GRAD:
                g *= tl.load(grad + (oy * grad_h + ox * grad_w), mask=kept, other=0).to(ACC)
            total += tl.where(kept, tl.where(wrong, float("nan"), weight * g), 0)
    dx += n * dx_n + c.to(tl.int64) * dx_c
    tl.store(dx + (i * dx_h + j * dx_w), total.to(dx.dtype.element_ty), mask=wanted)


def upsample_binary_cross_entropy(
    x: Tensor,
    target: Tensor,
    pos_weight: Tensor | None,
    sampling: Sequence[int],
    ignore_index: int | None,
    reduction: int,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, total weight and gradient; see fcn_kernels.reference.upsample_binary_cross_entropy."""
    _raise_on_the_cpu(target, ignore_index)
    n, c, h, w = x.shape
    _, H, num_h, off_h, den_h, _, W, num_w, off_w, den_w, _ = sampling
    new = {"dtype": arithmetic_dtype(x.dtype), "device": x.device}
    one, empty = torch.ones((), **new), torch.empty(0, **new)
    loss = torch.empty((n, c, H, W), **new) if reduction == NONE else None
    block_w = _block(W)
    programs = n * c * H * triton.cdiv(W, block_w)
    partial = torch.empty((0 if reduction == NONE else programs, 2), dtype=torch.float64, device=x.device)
    if programs:
        with device_of(x):
            binary_loss_kernel[(programs,)](
                x, _plain(target), x if pos_weight is None else pos_weight, x if loss is None else loss, partial,
                c, h, H, num_h, off_h, den_h, w, W, num_w, off_w, den_w, *x.stride(), *target.stride(),
                ignore_index or 0, PER_PIXEL=loss is not None, BLOCK_W=block_w,
                **_constants(x, target, pos_weight, sampling, ignore_index),
            )  # fmt: skip
    if loss is not None:
        return loss, one, empty
    value, total = reduced(partial, reduction, n * c * H * W, new["dtype"])
    gradient = empty
    if with_grad:
        gradient = _gradient(None, x, target, pos_weight, sampling, ignore_index, new["dtype"])
    return value, total, gradient


def upsample_binary_cross_entropy_backward(
    grad: Tensor,
    x: Tensor,
    target: Tensor,
    pos_weight: Tensor | None,
    sampling: Sequence[int],
    ignore_index: int | None,
) -> Tensor:
    """The gradient in x without reduction; see fcn_kernels.reference.upsample_binary_cross_entropy_backward."""
    _raise_on_the_cpu(target, ignore_index)
    return _gradient(grad, x, target, pos_weight, sampling, ignore_index, x.dtype)


def _gradient(
    grad: Tensor | None,
    x: Tensor,
    target: Tensor,
    pos_weight: Tensor | None,
    sampling: Sequence[int],
    ignore_index: int | None,
    dtype: torch.dtype,
) -> Tensor:
    n, c, h, w = x.shape
    _, H, num_h, off_h, den_h, _, W, num_w, off_w, den_w, _ = sampling
    dx = empty_image(x, h, w, dtype)
    if dx.numel() == 0:
        return dx
    incoming = x if grad is None else grad
    block_w = _block(w)
    with device_of(x):
        binary_gradient_kernel[(n * c * h * triton.cdiv(w, block_w),)](
            x, _plain(target), x if pos_weight is None else pos_weight, incoming, dx,
            c, h, H, num_h, off_h, den_h, w, W, num_w, off_w, den_w,
            *x.stride(), *target.stride(), *incoming.stride(), *dx.stride(), ignore_index or 0,
            PIXEL_GRAD=grad is not None, BLOCK_W=block_w, num_warps=1,
            **_constants(x, target, pos_weight, sampling, ignore_index, incoming, dx),
        )  # fmt: skip
    return dx


def _constants(
    x: Tensor,
    target: Tensor,
    pos_weight: Tensor | None,
    sampling: Sequence[int],
    ignore_index: int | None,
    *tensors: Tensor,
) -> dict:
    """What both kernels are specialised for."""
    return {
        "WEIGHTED": pos_weight is not None,
        "IGNORE": ignore_index is not None,
        "INTEGER": not target.is_floating_point(),
        "CLAMP": bool(sampling[10]),
        "ACC": accumulator(x),
        "INDEX": index_type(sampling, x, target, *tensors),
        "enable_fp_fusion": True,
    }


def _block(width: int) -> int:
    """Columns of a program."""
    return min(128, max(32, triton.next_power_of_2(width)))


def _plain(target: Tensor) -> Tensor:
    return target.view(torch.uint8) if target.dtype == torch.bool else target


def _raise_on_the_cpu(target: Tensor, ignore_index: int | None) -> None:
    if target.device.type == "cpu" and not target.is_floating_point():
        reference.split_labels("upsample_binary_cross_entropy", target, 2, ignore_index)
