"""upsample, upsample_add and upsample_backward in Triton: any device that Triton compiles for.

Per axis an output index o reads pos(o) = (num * o + off) / den, in integers: i = floor(pos), f = pos - i,
y[o] = (1 - f) x[i] + f x[i + 1]. The forward reads x (from cache after the first time) and skip once and writes y once.
The backward is a gather over the outputs that read an input pixel: no atomics, the same bits on every run.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import device_of, empty_image, fits_int32


@triton.jit
def _position(o, num, off, den, INDEX: tl.constexpr):
    """floor(pos(o)) and the numerator of pos(o) - floor(pos(o))."""
    p = (o * num + off).to(INDEX)
    q = (p // den).to(INDEX)  # rounds towards zero
    q = tl.where(q * den > p, q - 1, q)
    return q, p - q * den


@triton.jit
def _taps(o, size, num, off, den, CLAMP: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr):
    """The two input indices that output o reads, whether each is read at all, and the weight f of the second."""
    i, rest = _position(o, num, off, den, INDEX)
    j = i + 1
    if CLAMP:
        i = tl.minimum(tl.maximum(i, 0), size - 1)
        j = tl.minimum(tl.maximum(j, 0), size - 1)
    first = (i >= 0) & (i < size)
    second = (rest > 0) & (j >= 0) & (j < size)
    return i, j, first, second, rest.to(ACC) / den


@triton.jit
def upsample_add_kernel(
    x, skip, y,
    C, h, H, num_h, off_h, den_h, w, W, num_w, off_w, den_w,
    x_n, x_c, x_h, x_w, skip_n, skip_c, skip_h, skip_w, y_n, y_c, y_h, y_w,
    scale: tl.float64,
    CLAMP: tl.constexpr, SKIP: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """One program: one output row of one image, BLOCK_W columns, CHUNKS * BLOCK_C channels that share the geometry."""
    tiles = tl.cdiv(W, BLOCK_W)
    pid = tl.program_id(0)
    n = (pid // (tiles * H)).to(tl.int64)
    oy = (pid // tiles % H).to(INDEX)
    ox = (pid % tiles * BLOCK_W + tl.arange(0, BLOCK_W)).to(INDEX)
    inside = ox < W
    top, bottom, read_top, read_bottom, fy = _taps(oy, h, num_h, off_h, den_h, CLAMP, INDEX, ACC)
    left, right, read_left, read_right, fx = _taps(ox, w, num_w, off_w, den_w, CLAMP, INDEX, ACC)
    read_left = inside & read_left
    read_right = inside & read_right
    x += n * x_n
    y += n * y_n
    if SKIP:
        skip += n * skip_n
    for chunk in tl.static_range(CHUNKS):
        c = ((tl.program_id(1) * CHUNKS + chunk) * BLOCK_C + tl.arange(0, BLOCK_C))[:, None].to(INDEX)
        valid = c < C
        in_top = c < tl.where(read_top, C, 0)
        in_bottom = c < tl.where(read_bottom, C, 0)
        above = x + (c * x_c + top * x_h)
        below = x + (c * x_c + bottom * x_h)
        a = tl.load(above + left * x_w, mask=in_top & read_left, other=0).to(ACC)
        b = tl.load(above + right * x_w, mask=in_top & read_right, other=0).to(ACC)
        d = tl.load(below + left * x_w, mask=in_bottom & read_left, other=0).to(ACC)
        e = tl.load(below + right * x_w, mask=in_bottom & read_right, other=0).to(ACC)
        value = (1 - fy) * ((1 - fx) * a + fx * b) + fy * ((1 - fx) * d + fx * e)
        if SKIP:
            other = tl.load(skip + (c * skip_c + oy * skip_h + ox * skip_w), mask=valid & inside, other=0)
            value += tl.cast(scale, ACC) * other.to(ACC)
        tl.store(y + (c * y_c + oy * y_h + ox * y_w), value.to(y.dtype.element_ty), mask=valid & inside)


@triton.jit
def _first_output(i, out, num, off, den, INDEX: tl.constexpr):
    """The first output o >= 0 with floor(pos(o)) >= i, or `out`."""
    p = (i * den - off).to(INDEX)  # num * o >= p
    step = tl.maximum(num, 1)
    o = tl.minimum((p + step - 1) // step, out)
    return tl.where(p <= 0, 0, tl.where(num == 0, out, o)).to(INDEX)


@triton.jit
def _readers(i, size, out, num, off, den, CLAMP: tl.constexpr, INDEX: tl.constexpr):
    """The range of outputs that can read input i."""
    begin = _first_output(i - 1, out, num, off, den, INDEX)
    end = _first_output(i + 1, out, num, off, den, INDEX)
    if CLAMP:
        begin = tl.where(i == 0, 0, begin)
        end = tl.where(i == size - 1, out, end)
    return begin, end


@triton.jit
def _weight(o, i, size, num, off, den, CLAMP: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr):
    """The weight with which output o reads input i."""
    a, b, first, second, f = _taps(o, size, num, off, den, CLAMP, INDEX, ACC)
    return tl.where(first & (a == i), 1 - f, 0) + tl.where(second & (b == i), f, 0)


@triton.jit
def upsample_backward_kernel(
    grad, dx,
    C, h, H, num_h, off_h, den_h, w, W, num_w, off_w, den_w,
    grad_n, grad_c, grad_h, grad_w, dx_n, dx_c, dx_h, dx_w,
    CLAMP: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One program: one input row of one image, BLOCK_W columns, BLOCK_C channels."""
    tiles = tl.cdiv(w, BLOCK_W)
    pid = tl.program_id(0)
    n = (pid // (tiles * h)).to(tl.int64)
    i = (pid // tiles % h).to(INDEX)
    j = (pid % tiles * BLOCK_W + tl.arange(0, BLOCK_W)).to(INDEX)
    c = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C))[:, None].to(INDEX)
    wanted = (c < C) & (j < w)
    top, bottom = _readers(i, h, H, num_h, off_h, den_h, CLAMP, INDEX)
    left, right = _readers(j, w, W, num_w, off_w, den_w, CLAMP, INDEX)
    width = tl.max(tl.where(j < w, right - left, 0), 0)
    grad += n * grad_n
    total = tl.zeros([BLOCK_C, BLOCK_W], ACC)
    for oy in range(top, bottom):
        row = tl.zeros([BLOCK_C, BLOCK_W], ACC)
        for k in range(0, width):
            ox = left + k
            weight = _weight(ox, j, w, num_w, off_w, den_w, CLAMP, INDEX, ACC)
            read = wanted & (ox < right) & (weight != 0)
            row += weight * tl.load(grad + (c * grad_c + oy * grad_h + ox * grad_w), mask=read, other=0).to(ACC)
        row_weight = _weight(oy, i, h, num_h, off_h, den_h, CLAMP, INDEX, ACC)
        total += tl.where(row_weight != 0, row_weight * row, 0)
    dx += n * dx_n
    tl.store(dx + (c * dx_c + i * dx_h + j * dx_w), total.to(dx.dtype.element_ty), mask=wanted)


def _constants(x: Tensor, y: Tensor, sampling: Sequence[int], *tensors: Tensor) -> dict:
    """What both kernels are specialised for. Lanes run along the innermost dimension."""
    channels_last = x.stride(1) == 1 and y.stride(1) == 1 and x.shape[1] > 1
    block_c = min(64 if channels_last else 4, triton.next_power_of_2(x.shape[1]))
    return {
        "CLAMP": bool(sampling[10]),
        "enable_fp_fusion": True,
        "ACC": tl.float64 if x.dtype == torch.float64 else tl.float32,
        "INDEX": tl.int32 if fits_int32(sampling, x, y, *tensors) else tl.int64,
        "BLOCK_C": block_c,
        "BLOCK_W": max(8, 512 // block_c) if channels_last else 128,
    }


def upsample(x: Tensor, sampling: Sequence[int]) -> Tensor:
    """Bilinear sampling of x; see fcn_kernels.reference.upsample."""
    return _forward(x, None, sampling, 0.0)


def upsample_add(
    x: Tensor, skip: Tensor, sampling: Sequence[int], skip_offset: Sequence[int], skip_scale: float
) -> Tensor:
    """upsample(x) + skip_scale * (window of skip); see fcn_kernels.reference.upsample_add."""
    top, left = skip_offset
    return _forward(x, skip[:, :, top : top + sampling[1], left : left + sampling[6]], sampling, skip_scale)


def _forward(x: Tensor, skip: Tensor | None, sampling: Sequence[int], scale: float) -> Tensor:
    n, c, h, w = x.shape
    _, H, num_h, off_h, den_h, _, W, num_w, off_w, den_w, _ = sampling
    y = empty_image(x, H, W)
    if y.numel() == 0:
        return y
    constants = _constants(x, y, sampling, *([] if skip is None else [skip]))
    chunks = min(4, triton.cdiv(c, constants["BLOCK_C"]))
    grid = (n * H * triton.cdiv(W, constants["BLOCK_W"]), triton.cdiv(c, constants["BLOCK_C"] * chunks))
    other = x if skip is None else skip
    with device_of(x):
        upsample_add_kernel[grid](
            x, other, y, c, h, H, num_h, off_h, den_h, w, W, num_w, off_w, den_w,
            *x.stride(), *other.stride(), *y.stride(), float(scale),
            SKIP=skip is not None, CHUNKS=chunks, **constants,
        )  # fmt: skip
    return y


def upsample_backward(grad: Tensor, sampling: Sequence[int]) -> Tensor:
    """The adjoint of upsample; see fcn_kernels.reference.upsample_backward."""
    n, c, H, W = grad.shape
    h, _, num_h, off_h, den_h, w, _, num_w, off_w, den_w, _ = sampling
    dx = empty_image(grad, h, w)
    if dx.numel() == 0:
        return dx
    constants = _constants(grad, dx, sampling)
    constants["BLOCK_W"] = min(constants["BLOCK_W"], max(16, triton.next_power_of_2(w)))
    grid = (n * h * triton.cdiv(w, constants["BLOCK_W"]), triton.cdiv(c, constants["BLOCK_C"]))
    with device_of(grad):
        upsample_backward_kernel[grid](
            grad, dx, c, h, H, num_h, off_h, den_h, w, W, num_w, off_w, den_w,
            *grad.stride(), *dx.stride(), **constants,
        )  # fmt: skip
    return dx
