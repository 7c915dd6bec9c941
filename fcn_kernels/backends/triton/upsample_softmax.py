"""upsample_softmax, upsample_log_softmax and their backward in Triton.

Forward: the log-sum-exp L of every output comes from geometric progressions (logsumexp.py), then one streaming kernel
writes exp(z - L), or z - L, in whole rows: stores are as wide as the alignment of y allows, which tiles that begin with
an input interval could not offer. Per class and output: 2 / K + 1 exponentials (2 / K for the logarithm), one write. On
an H200 fp32 output at 4.3 TB/s takes 0.93 ps an element, 1.5 exponentials (K = 4) 0.40 ps: bandwidth bound.

Backward: with the output p, dx = A'(p (g - sum_c p g)), for the logarithm A'(g - exp(p) sum_c g). One kernel makes the
sum of every pixel, reading g and p; the other gathers dx from the outputs that read an input, reading g and p again:
four reads per output in all, no full-resolution intermediate, no atomics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...reference import arithmetic_dtype
from .geometry import taps
from .launch import accumulator, device_of, empty_image, image_blocks, index_type, registers
from .logsumexp import class_statistics, logsumexp
from .upsample_add import gather


@triton.jit
def upsample_softmax_kernel(
    x, shift, lse, peak, y,
    C, h, H, num_h, off_h, den_h, w, W, num_w, off_w, den_w,
    x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w,
    LOG: tl.constexpr, CLAMP: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """One program: one output row of one image, BLOCK_W columns, CHUNKS * BLOCK_C classes."""
    tiles = tl.cdiv(W, BLOCK_W)
    pid = tl.program_id(0)
    n = (pid // (tiles * H)).to(tl.int64)
    oy = (pid // tiles % H).to(INDEX)
    ox = (pid % tiles * BLOCK_W + tl.arange(0, BLOCK_W)).to(INDEX)
    inside = ox < W
    top, bottom, has_top, has_bottom, fy = taps(oy, h, num_h, off_h, den_h, CLAMP, INDEX, ACC)
    left, right, has_left, has_right, fx = taps(ox, w, num_w, off_w, den_w, CLAMP, INDEX, ACC)
    has_left = inside & has_left
    has_right = inside & has_right
    read_top = ox < tl.where(has_top, W, 0)
    read_bottom = ox < tl.where(has_bottom, W, 0)
    shift += n * h * w
    s_tl = tl.load(shift + top * w + left, mask=has_left & read_top, other=0)
    s_tr = tl.load(shift + top * w + right, mask=has_right & read_top, other=0)
    s_bl = tl.load(shift + bottom * w + left, mask=has_left & read_bottom, other=0)
    s_br = tl.load(shift + bottom * w + right, mask=has_right & read_bottom, other=0)
    pixel = n * H * W + oy * W + ox
    normaliser = tl.load(lse + pixel, mask=inside, other=0)
    largest = tl.load(peak + pixel, mask=inside, other=0)
    x += n * x_n
    y += n * y_n
    for chunk in tl.static_range(CHUNKS):
        c = ((tl.program_id(1) * CHUNKS + chunk) * BLOCK_C + tl.arange(0, BLOCK_C))[:, None].to(INDEX)
        in_top = c < tl.where(has_top, C, 0)
        in_bottom = c < tl.where(has_bottom, C, 0)
        above = x + (c * x_c + top * x_h)
        below = x + (c * x_c + bottom * x_h)
        a = tl.load(above + left * x_w, mask=in_top & has_left, other=0).to(ACC) - s_tl
        b = tl.load(above + right * x_w, mask=in_top & has_right, other=0).to(ACC) - s_tr
        d = tl.load(below + left * x_w, mask=in_bottom & has_left, other=0).to(ACC) - s_bl
        e = tl.load(below + right * x_w, mask=in_bottom & has_right, other=0).to(ACC) - s_br
        value = (1 - fy) * ((1 - fx) * a + fx * b) + fy * ((1 - fx) * d + fx * e)
        value = value - largest - normaliser
        if not LOG:
            value = tl.exp(value)
        tl.store(y + (c * y_c + oy * y_h + ox * y_w), value.to(y.dtype.element_ty), mask=(c < C) & inside)


@triton.jit
def class_sum_kernel(
    grad, output, total,
    C, W, pixels, grad_n, grad_c, grad_h, grad_w, output_n, output_c, output_h, output_w,
    FLAT: tl.constexpr, LOG: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """sum_c p g, or sum_c g for the logarithm. One program: BLOCK_P pixels of one image, all classes."""
    tiles = tl.cdiv(pixels, BLOCK_P)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    p = (tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)).to(INDEX)
    inside = p < pixels
    if FLAT:
        grad += n * grad_n + p[None, :] * grad_w
        output += n * output_n + p[None, :] * output_w
    else:
        grad += n * grad_n + (p // W * grad_h + p % W * grad_w)[None, :]
        output += n * output_n + (p // W * output_h + p % W * output_w)[None, :]
    sums = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    for c0 in range(0, C, BLOCK_C):
        c = (c0 + tl.arange(0, BLOCK_C))[:, None].to(INDEX)
        read = (c < C) & inside[None, :]
        g = tl.load(grad + c * grad_c, mask=read, other=0).to(ACC)
        if not LOG:
            g *= tl.load(output + c * output_c, mask=read, other=0).to(ACC)
        sums += g
    tl.store(total + n * pixels + p, tl.sum(sums, 0), mask=inside)


def upsample_softmax(x: Tensor, sampling: Sequence[int], log: bool) -> Tensor:
    """Class probabilities of upsampled logits, or their logarithms; see fcn_kernels.reference.upsample_softmax."""
    n, c, h, w = x.shape
    _, H, num_h, off_h, den_h, _, W, num_w, off_w, den_w, clamp = sampling
    y = empty_image(x, H, W)
    if y.numel() == 0:
        return y
    shift, spread, _ = class_statistics(x)
    lse, peak = logsumexp(x, shift, spread, sampling, peaks=True)
    block_c, block_w = image_blocks(x, y)
    chunks = min(4, triton.cdiv(c, block_c))
    with device_of(x):
        upsample_softmax_kernel[n * H * triton.cdiv(W, block_w), triton.cdiv(c, block_c * chunks)](
            x, shift, lse, peak, y, c, h, H, num_h, off_h, den_h, w, W, num_w, off_w, den_w, *x.stride(), *y.stride(),
            LOG=log, CLAMP=bool(clamp), ACC=accumulator(x), INDEX=index_type(sampling, x, y),
            BLOCK_C=block_c, BLOCK_W=block_w, CHUNKS=chunks, enable_fp_fusion=True, **registers(16),
        )  # fmt: skip
    return y


def upsample_softmax_backward(grad: Tensor, output: Tensor, sampling: Sequence[int], log: bool) -> Tensor:
    """The gradient in x; see fcn_kernels.reference.upsample_softmax_backward."""
    n, c, H, W = output.shape
    h, w = sampling[0], sampling[5]
    if n == 0:
        return empty_image(output, h, w)
    total = torch.empty((n, H, W), dtype=arithmetic_dtype(output.dtype), device=output.device)
    flat = all(t.stride(2) == W * t.stride(3) for t in (grad, output))
    block_c, block_p = (32, 32) if output.stride(1) == 1 and c > 1 else (4, 256)
    with device_of(output):
        class_sum_kernel[(n * triton.cdiv(H * W, block_p),)](
            grad, output, total, c, W, H * W, *grad.stride(), *output.stride(),
            FLAT=flat, LOG=log, ACC=accumulator(output), INDEX=index_type((), grad, output),
            BLOCK_C=block_c, BLOCK_P=block_p, enable_fp_fusion=True,
        )  # fmt: skip
    return gather(grad, sampling, "log_softmax" if log else "softmax", output, total)
