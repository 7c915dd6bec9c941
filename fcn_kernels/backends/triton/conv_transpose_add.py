"""conv_transpose_add and its backward in Triton: a learned transposed convolution, gathered by the outputs.

Per axis an output o takes, with q = o + offset, the inputs q // s - t through the weights q % s + s t, t = 0, 1, ...:
all outputs of a phase q % s share their weights. Dense weights make a small matrix product of every phase and tap,
pixels of the phase by output channels, over the input channels. Depthwise weights stream: as many multiply-adds per
output as taps, four for kernel 2 s, one write, the window of skip read once. The window is added before rounding.

Backward, with no atomics: an input gathers the outputs of its kernel (its products run over the output channels); the
weight of one tap is the product of x and the gradient shifted by it, over all pixels. Where programs are too few, the
rows of the kernel, or the pixels, are split among programs, and the parts are added in a fixed order.

Bytes decide for depthwise weights: N = 8, C = 150, 128 x 128 to 256 x 256 in float32 reads 79 MB and a skip of 315 MB,
writes 315 MB, 165 us at an H200's 4.3 TB/s, where 3.1e8 multiply-adds take 10 us. Dense, C = 21, kernel 4: 84
multiply-adds per output and 1344 per input. There are no special functions. These are counts: no GPU has run it yet.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...reference import arithmetic_dtype
from .configurations import CONV_TRANSPOSE
from .launch import accumulator, device_of, empty_image, image_blocks, index_type, registers
from .matmul import ENOUGH, element, pipelined, precision, product, tile

# --- dense: products of channels -----------------------------------------------------------------------------------


@triton.jit
def dense_kernel(
    x, weight, skip, y,
    groups, inputs, outputs, h, w, H, W, kh, kw, sy, sx, offset_y, offset_x,
    x_n, x_c, x_h, x_w, weight_y, weight_x, weight_i, skip_n, skip_c, skip_h, skip_w, y_n, y_c, y_h, y_w,
    scale: tl.float64,
    SKIP: tl.constexpr, DTYPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M outputs of one phase of one image, BLOCK_N output channels of one group."""
    columns = tl.cdiv(W, sx)
    tiles_m, tiles_n = tl.cdiv(tl.cdiv(H, sy) * columns, BLOCK_M), tl.cdiv(outputs, BLOCK_N)
    pid = tl.program_id(0)
    tile_n = pid % tiles_n
    p = pid // tiles_n % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    pid = pid // tiles_n // tiles_m
    oy, ox = pid % sy, pid // sy % sx  # the first outputs of the phase
    group = pid // sy // sx % groups
    n = (pid // sy // sx // groups).to(tl.int64)
    ky, kx = (oy + offset_y) % sy, (ox + offset_x) % sx
    iy = (oy + offset_y) // sy + p // columns
    ix = (ox + offset_x) // sx + p % columns
    row, column = oy + p // columns * sy, ox + p % columns * sx
    inside = (row < H) & (column < W)
    c = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    x += n * x_n + (group * inputs).to(tl.int64) * x_c
    weight += (group * inputs).to(tl.int64) * weight_i
    total = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    across = tl.cdiv(tl.maximum(kw - kx, 0), sx)
    for t in range(0, tl.cdiv(tl.maximum(kh - ky, 0), sy) * across):
        ty, tx = t // across, t % across
        read = inside & (iy >= ty) & (iy - ty < h) & (ix >= tx) & (ix - tx < w)
        at = (iy - ty).to(INDEX) * x_h + (ix - tx).to(INDEX) * x_w
        tap = weight + ((ky + ty * sy) * weight_y + (kx + tx * sx) * weight_x)
        total = product(
            total, x, tap, tl.where(read, at, 0), c, read, c < outputs, 0, inputs, x_c, weight_i,
            DTYPE, ACC, PRECISION, INDEX, BLOCK_K,
        )  # fmt: skip
    c = (group * outputs + c).to(INDEX)[None, :]
    row, column = row.to(INDEX)[:, None], column.to(INDEX)[:, None]
    wanted = inside[:, None] & (c < (group + 1) * outputs)
    if SKIP:
        other = tl.load(skip + n * skip_n + (c * skip_c + row * skip_h + column * skip_w), mask=wanted, other=0)
        total += tl.cast(scale, ACC) * other.to(ACC)
    tl.store(y + n * y_n + (c * y_c + row * y_h + column * y_w), total.to(y.dtype.element_ty), mask=wanted)


@triton.jit
def dense_input_kernel(
    grad, weight, dx,
    groups, inputs, outputs, h, w, H, W, kh, kw, sy, sx, offset_y, offset_x, chunk,
    grad_n, grad_c, grad_h, grad_w, weight_y, weight_x, weight_i, dx_s, dx_n, dx_c, dx_h, dx_w,
    DTYPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M inputs of one image, BLOCK_N input channels of one group, `chunk` rows of the kernel."""
    tiles_m, tiles_n = tl.cdiv(h * w, BLOCK_M), tl.cdiv(inputs, BLOCK_N)
    pid = tl.program_id(0)
    p = pid // tiles_n % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    c = pid % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    group = pid // tiles_n // tiles_m % groups
    n = (pid // tiles_n // tiles_m // groups).to(tl.int64)
    split = tl.program_id(1)
    iy, ix = p // w, p % w
    grad += n * grad_n + (group * outputs).to(tl.int64) * grad_c
    weight += (group * inputs).to(tl.int64) * weight_i
    total = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for t in range(split * chunk * kw, tl.minimum((split + 1) * chunk, kh) * kw):
        ky, kx = t // kw, t % kw
        oy, ox = iy * sy + ky - offset_y, ix * sx + kx - offset_x
        read = (iy < h) & (oy >= 0) & (oy < H) & (ox >= 0) & (ox < W)
        at = oy.to(INDEX) * grad_h + ox.to(INDEX) * grad_w
        total = product(
            total, grad, weight + (ky * weight_y + kx * weight_x), tl.where(read, at, 0), c * weight_i, read,
            c < inputs, 0, outputs, grad_c, 1, DTYPE, ACC, PRECISION, INDEX, BLOCK_K,
        )  # fmt: skip
    c = (group * inputs + c).to(INDEX)[None, :]
    wanted = (iy < h)[:, None] & (c < (group + 1) * inputs)
    dx += split.to(tl.int64) * dx_s + n * dx_n
    at = c * dx_c + iy.to(INDEX)[:, None] * dx_h + ix.to(INDEX)[:, None] * dx_w
    tl.store(dx + at, total.to(dx.dtype.element_ty), mask=wanted)


@triton.jit
def dense_weight_kernel(
    grad, x, dw,
    groups, inputs, outputs, rows, h, w, H, W, kh, kw, sy, sx, offset_y, offset_x, chunk,
    grad_n, grad_c, grad_h, grad_w, x_n, x_c, x_h, x_w,
    DTYPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: the weights of one tap between BLOCK_M inputs and BLOCK_N outputs of a group, from `chunk` rows."""
    tiles_m, tiles_n = tl.cdiv(inputs, BLOCK_M), tl.cdiv(outputs, BLOCK_N)
    pid = tl.program_id(0)
    i = pid // tiles_n % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    c = pid % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    pid = pid // tiles_n // tiles_m
    kx, ky, group = pid % kw, pid // kw % kh, pid // kw // kh
    split = tl.program_id(1)
    # The columns ix whose output ix sx + kx - offset_x lies inside.
    begin = tl.cdiv(tl.maximum(offset_x - kx, 0), sx)
    end = tl.minimum(tl.cdiv(tl.maximum(W + offset_x - kx, 0), sx), w)
    total = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for row in range(split * chunk, tl.minimum((split + 1) * chunk, rows)):
        n, iy = tl.cast(row // h, tl.int64), row % h
        oy = iy * sy + ky - offset_y
        if (oy >= 0) & (oy < H):
            left = x + n * x_n + (tl.cast(group * inputs, tl.int64) * x_c + tl.cast(iy, tl.int64) * x_h)
            right = grad + n * grad_n + (tl.cast(group * outputs, tl.int64) * grad_c + tl.cast(oy, tl.int64) * grad_h)
            total = product(
                total, left, right + tl.cast(kx - offset_x, tl.int64) * grad_w, i.to(INDEX) * x_c,
                c.to(INDEX) * grad_c, i < inputs, c < outputs, begin, end, x_w, sx * grad_w,
                DTYPE, ACC, PRECISION, INDEX, BLOCK_K,
            )  # fmt: skip
    # [split, ky, kx, input, output]
    start = ((tl.cast(split, tl.int64) * kh + ky) * kw + kx) * groups * inputs + group * inputs
    at = (start + i)[:, None] * outputs + c[None, :]
    tl.store(dw + at, total, mask=(i < inputs)[:, None] & (c < outputs)[None, :])


# --- depthwise: streams --------------------------------------------------------------------------------------------


@triton.jit
def depthwise_kernel(
    x, weight, skip, y,
    C, h, w, H, W, kh, kw, sy, sx, offset_y, offset_x,
    x_n, x_c, x_h, x_w, weight_c, weight_y, weight_x, skip_n, skip_c, skip_h, skip_w, y_n, y_c, y_h, y_w,
    scale: tl.float64,
    SKIP: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One program: one output row of one image, BLOCK_W columns, BLOCK_C channels."""
    tiles = tl.cdiv(W, BLOCK_W)
    pid = tl.program_id(0)
    n = (pid // (tiles * H)).to(tl.int64)
    oy = pid // tiles % H
    ox = (pid % tiles * BLOCK_W + tl.arange(0, BLOCK_W))[None, :]
    c = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C))[:, None].to(INDEX)
    wanted = (c < C) & (ox < W)
    iy, ky = (oy + offset_y) // sy, (oy + offset_y) % sy
    ix, kx = (ox + offset_x) // sx, (ox + offset_x) % sx
    x += n * x_n
    total = tl.zeros([BLOCK_C, BLOCK_W], ACC)
    for ty in range(tl.maximum(iy - h + 1, 0), tl.minimum(tl.cdiv(tl.maximum(kh - ky, 0), sy), iy + 1)):
        for tx in range(0, tl.cdiv(kw, sx)):
            read = wanted & (kx + tx * sx < kw) & (ix >= tx) & (ix - tx < w)
            at = c * x_c + (tl.cast(iy - ty, INDEX) * x_h + (ix - tx).to(INDEX) * x_w)
            value = tl.load(x + at, mask=read, other=0).to(ACC)
            factor = tl.load(
                weight + (c * weight_c + ((ky + ty * sy) * weight_y + (kx + tx * sx) * weight_x)), mask=read, other=0
            )
            total += tl.where(read, value * factor.to(ACC), 0)
    oy, ox = tl.cast(oy, INDEX), ox.to(INDEX)
    if SKIP:
        other = tl.load(skip + n * skip_n + (c * skip_c + oy * skip_h + ox * skip_w), mask=wanted, other=0)
        total += tl.cast(scale, ACC) * other.to(ACC)
    tl.store(y + n * y_n + (c * y_c + oy * y_h + ox * y_w), total.to(y.dtype.element_ty), mask=wanted)


@triton.jit
def depthwise_input_kernel(
    grad, weight, dx,
    C, h, w, H, W, kh, kw, sy, sx, offset_y, offset_x,
    grad_n, grad_c, grad_h, grad_w, weight_c, weight_y, weight_x, dx_n, dx_c, dx_h, dx_w,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One program: one input row of one image, BLOCK_W columns, BLOCK_C channels."""
    tiles = tl.cdiv(w, BLOCK_W)
    pid = tl.program_id(0)
    n = (pid // (tiles * h)).to(tl.int64)
    iy = pid // tiles % h
    ix = (pid % tiles * BLOCK_W + tl.arange(0, BLOCK_W))[None, :]
    c = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C))[:, None].to(INDEX)
    wanted = (c < C) & (ix < w)
    top = iy * sy - offset_y
    grad += n * grad_n
    total = tl.zeros([BLOCK_C, BLOCK_W], ACC)
    for ky in range(tl.maximum(-top, 0), tl.minimum(kh, H - top)):
        for kx in range(0, kw):
            ox = ix * sx + kx - offset_x
            read = wanted & (ox >= 0) & (ox < W)
            at = c * grad_c + (tl.cast(top + ky, INDEX) * grad_h + ox.to(INDEX) * grad_w)
            value = tl.load(grad + at, mask=read, other=0).to(ACC)
            factor = tl.load(weight + (c * weight_c + (ky * weight_y + kx * weight_x)), mask=c < C, other=0)
            total += tl.where(read, value * factor.to(ACC), 0)
    at = c * dx_c + (tl.cast(iy, INDEX) * dx_h + ix.to(INDEX) * dx_w)
    tl.store(dx + n * dx_n + at, total.to(dx.dtype.element_ty), mask=wanted)


@triton.jit
def depthwise_weight_kernel(
    grad, x, dw,
    C, rows, h, w, H, W, kh, kw, sy, sx, offset_y, offset_x, chunk,
    grad_n, grad_c, grad_h, grad_w, x_n, x_c, x_h, x_w,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_K weights of one row of one channel's kernel, from `chunk` rows of all images."""
    tiles = tl.cdiv(kw, BLOCK_K)
    pid = tl.program_id(0)
    kx = (pid % tiles * BLOCK_K + tl.arange(0, BLOCK_K))[:, None]
    ky = pid // tiles % kh
    c = (pid // tiles // kh).to(tl.int64)
    split = tl.program_id(1)
    x += c * x_c
    grad += c * grad_c
    total = tl.zeros([BLOCK_K, BLOCK_W], ACC)
    for row in range(split * chunk, tl.minimum((split + 1) * chunk, rows)):
        n, iy = tl.cast(row // h, tl.int64), row % h
        oy = iy * sy + ky - offset_y
        if (oy >= 0) & (oy < H):
            left, right = x + n * x_n + tl.cast(iy, tl.int64) * x_h, grad + n * grad_n + tl.cast(oy, tl.int64) * grad_h
            for start in range(0, w, BLOCK_W):
                ix = (start + tl.arange(0, BLOCK_W))[None, :]
                ox = ix * sx + kx - offset_x
                read = (ix < w) & (kx < kw) & (ox >= 0) & (ox < W)
                value = tl.load(left + ix.to(INDEX) * x_w, mask=ix < w, other=0).to(ACC)
                g = tl.load(right + ox.to(INDEX) * grad_w, mask=read, other=0).to(ACC)
                total += tl.where(read, value * g, 0)
    kx = pid % tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    at = ((tl.cast(split, tl.int64) * C + c) * kh + ky) * kw + kx
    tl.store(dw + at, tl.sum(total, 1), mask=kx < kw)


# --- launches ------------------------------------------------------------------------------------------------------


def conv_transpose_add(
    x: Tensor,
    weight: Tensor,
    skip: Tensor | None,
    stride: Sequence[int],
    groups: int,
    offset: Sequence[int],
    output_size: Sequence[int],
    skip_offset: Sequence[int],
    skip_scale: float,
) -> Tensor:
    """Transposed convolution, crop and skip; see fcn_kernels.reference.conv_transpose_add."""
    (H, W), (top, left) = output_size, skip_offset
    y = empty_image(x, H, W, channels=weight.shape[1] * groups)
    window = None if skip is None else skip[:, :, top : top + H, left : left + W]
    transposed(x, weight, window, y, stride, groups, offset, skip_scale)
    return y


def transposed(
    x: Tensor,
    weight: Tensor,
    window: Tensor | None,
    y: Tensor,
    stride: Sequence[int],
    groups: int,
    offset: Sequence[int],
    scale: float = 1.0,
) -> None:
    """y = the crop of the transposed convolution + scale * window; y and window in any strides."""
    if y.numel() == 0:
        return
    n, inputs, outputs = x.shape[0], x.shape[1] // groups, weight.shape[1]
    H, W = y.shape[2:]
    other = y if window is None else window
    sizes = (*x.shape[2:], H, W, *weight.shape[2:], *stride, *offset)
    tail = (*other.stride(), *y.stride(), float(scale))
    common = {"SKIP": window is not None, "ACC": accumulator(x), "enable_fp_fusion": True}
    common["INDEX"] = index_type((), x, weight, other, y)
    if _depthwise(inputs, outputs):
        block_c, block_w = image_blocks(x, y)
        grid = (n * H * triton.cdiv(W, block_w), triton.cdiv(groups, block_c))
        with device_of(x):
            depthwise_kernel[grid](
                x, weight, other, y, groups, *sizes, *x.stride(), weight.stride(0), *weight.stride()[2:], *tail,
                BLOCK_C=block_c, BLOCK_W=block_w, **common,
            )  # fmt: skip
        return
    taps = weight.permute(2, 3, 0, 1).contiguous()
    pixels = triton.cdiv(H, stride[0]) * triton.cdiv(W, stride[1])
    blocks = _blocks(pixels, outputs, x)
    programs = triton.cdiv(pixels, blocks["BLOCK_M"]) * triton.cdiv(outputs, blocks["BLOCK_N"])
    with device_of(x):
        dense_kernel[(programs * stride[0] * stride[1] * groups * n,)](
            x, taps, other, y, groups, inputs, outputs, *sizes, *x.stride(), *taps.stride()[:3], *tail,
            **blocks, **common, **registers(8),
        )  # fmt: skip


def conv_transpose_add_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    groups: int,
    offset: Sequence[int],
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients in x and weight; see fcn_kernels.reference.conv_transpose_add_backward."""
    dx, dw = x.new_empty(0), weight.new_empty(0)
    sizes = (*x.shape[2:], *grad.shape[2:], *weight.shape[2:], *stride, *offset)
    if need_x:
        dx = _input_gradient(grad, x, weight, groups, sizes)
    if need_weight:
        dw = _weight_gradient(grad, x, weight, groups, sizes)
    return dx, dw


def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor, groups: int, sizes: Sequence[int]) -> Tensor:
    n, h, w = x.shape[0], *x.shape[2:]
    inputs, outputs, kh = x.shape[1] // groups, weight.shape[1], weight.shape[2]
    dx = empty_image(x, h, w)
    if dx.numel() == 0:
        return dx
    common = {"ACC": accumulator(x), "INDEX": index_type((), grad, weight, dx), "enable_fp_fusion": True}
    if _depthwise(inputs, outputs):
        block_c, block_w = image_blocks(grad, dx)
        block_w = min(block_w, max(16, triton.next_power_of_2(w)))
        with device_of(x):
            depthwise_input_kernel[n * h * triton.cdiv(w, block_w), triton.cdiv(groups, block_c)](
                grad, weight, dx, groups, *sizes, *grad.stride(), weight.stride(0), *weight.stride()[2:],
                *dx.stride(), BLOCK_C=block_c, BLOCK_W=block_w, **common,
            )  # fmt: skip
        return dx
    taps = weight.permute(2, 3, 0, 1).contiguous()
    blocks = _blocks(h * w, inputs, x)
    programs = triton.cdiv(h * w, blocks["BLOCK_M"]) * triton.cdiv(inputs, blocks["BLOCK_N"]) * groups * n
    chunk = triton.cdiv(kh, max(1, min(ENOUGH // programs, kh)))
    splits = triton.cdiv(kh, chunk)
    parts = dx[None] if splits == 1 else dx.new_empty((splits, *dx.shape), dtype=arithmetic_dtype(x.dtype))
    with device_of(x):
        dense_input_kernel[programs, splits](
            grad, taps, parts, groups, inputs, outputs, *sizes, chunk, *grad.stride(), *taps.stride()[:3],
            *parts.stride(), **blocks, **common, **registers(8),
        )  # fmt: skip
    return dx if splits == 1 else dx.copy_(parts.sum(0))


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, groups: int, sizes: Sequence[int]) -> Tensor:
    n, h, w = x.shape[0], *x.shape[2:]
    inputs, outputs, (kh, kw) = x.shape[1] // groups, weight.shape[1], weight.shape[2:]
    common = {"ACC": accumulator(x), "INDEX": index_type((), grad, x), "enable_fp_fusion": True}
    depthwise = _depthwise(inputs, outputs)
    if depthwise:
        block_k, block_w = min(64, triton.next_power_of_2(kw)), min(128, max(16, triton.next_power_of_2(w)))
        programs = groups * kh * triton.cdiv(kw, block_k)
    else:
        blocks = _blocks(inputs, outputs, x)
        programs = triton.cdiv(inputs, blocks["BLOCK_M"]) * triton.cdiv(outputs, blocks["BLOCK_N"]) * kh * kw * groups
    chunk = triton.cdiv(n * h, max(1, min(ENOUGH // programs, n * h // 4))) if n else 1
    splits = triton.cdiv(n * h, chunk)
    shape = weight.shape if depthwise else (kh, kw, *weight.shape[:2])
    parts = torch.empty((splits, *shape), dtype=arithmetic_dtype(x.dtype), device=x.device)
    if splits:
        with device_of(x):
            if depthwise:
                depthwise_weight_kernel[programs, splits](
                    grad, x, parts, groups, n * h, *sizes, chunk, *grad.stride(), *x.stride(),
                    BLOCK_K=block_k, BLOCK_W=block_w, **common,
                )  # fmt: skip
            else:
                dense_weight_kernel[programs, splits](
                    grad, x, parts, groups, inputs, outputs, n * h, *sizes, chunk, *grad.stride(), *x.stride(),
                    **blocks, **common, **registers(8),
                )  # fmt: skip
    total = parts.sum(0).to(weight.dtype)
    return total if depthwise else total.permute(2, 3, 0, 1).contiguous()


def _depthwise(inputs: int, outputs: int) -> bool:
    """Channels of a group, in and out."""
    return inputs == outputs == 1


def _blocks(m: int, n: int, x: Tensor) -> dict:
    """The tile of a product and how it multiplies."""
    fp32 = precision(x.dtype)
    block_m, block_n, block_k, warps, stages = tile(m, n, x.dtype, fp32, CONV_TRANSPOSE)
    return {
        "DTYPE": element(x.dtype, x),
        "PRECISION": fp32,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
        "num_warps": warps,
        "num_stages": pipelined(stages),
    }
