"""upsample, upsample_add and upsample_backward in Triton: any device that Triton compiles for.

Per axis an output index o reads pos(o) = (num * o + off) / den, in integers: i = floor(pos), f = pos - i,
y[o] = (1 - f) x[i] + f x[i + 1]. The forward reads x (from cache after the first time) and skip once and writes y once.
The backward is a gather over the outputs that read an input pixel: no atomics, the same bits on every run. What it
gathers is the incoming gradient, or the derivative of an activation that is applied to each output on the way.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .geometry import readers, taps, weight_of
from .launch import accumulator, device_of, empty_image, image_blocks, index_type


@triton.jit
def upsample_add_kernel(
    x, skip, y,
    C, h, H, num_h, off_h, den_h, w, W, num_w, off_w, den_w,
    x_n, x_c, x_h, x_w, skip_n, skip_c, skip_h, skip_w, y_n, y_c, y_h, y_w,
    scale: tl.float64,
    CLAMP: tl.constexpr, SKIP: tl.constexpr, SIGMOID: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """One program: one output row of one image, BLOCK_W columns, CHUNKS * BLOCK_C channels that share the geometry."""
    tiles = tl.cdiv(W, BLOCK_W)
    pid = tl.program_id(0)
    n = (pid // (tiles * H)).to(tl.int64)
    oy = (pid // tiles % H).to(INDEX)
    ox = (pid % tiles * BLOCK_W + tl.arange(0, BLOCK_W)).to(INDEX)
    inside = ox < W
    top, bottom, read_top, read_bottom, fy = taps(oy, h, num_h, off_h, den_h, CLAMP, INDEX, ACC)
    left, right, read_left, read_right, fx = taps(ox, w, num_w, off_w, den_w, CLAMP, INDEX, ACC)
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
        if SIGMOID:
            value = 1 / (1 + tl.exp(-value))
        tl.store(y + (c * y_c + oy * y_h + ox * y_w), value.to(y.dtype.element_ty), mask=valid & inside)


@triton.jit
def upsample_backward_kernel(
    grad, output, pixel, dx,
    C, h, H, num_h, off_h, den_h, w, W, num_w, off_w, den_w,
    grad_n, grad_c, grad_h, grad_w, output_n, output_c, output_h, output_w, dx_n, dx_c, dx_h, dx_w,
    DERIVATIVE: tl.constexpr, CLAMP: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One program: one input row of one image, BLOCK_W columns, BLOCK_C channels.

    Gathers, from the output p and the pixel's t, g ("identity"), p (1 - p) g ("sigmoid"), p (g - t) ("softmax") or
    g - exp(p) t ("log_softmax").
    """
    tiles = tl.cdiv(w, BLOCK_W)
    pid = tl.program_id(0)
    n = (pid // (tiles * h)).to(tl.int64)
    i = (pid // tiles % h).to(INDEX)
    j = (pid % tiles * BLOCK_W + tl.arange(0, BLOCK_W)).to(INDEX)
    c = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C))[:, None].to(INDEX)
    wanted = (c < C) & (j < w)
    top, bottom = readers(i, h, H, num_h, off_h, den_h, CLAMP, INDEX)
    left, right = readers(j, w, W, num_w, off_w, den_w, CLAMP, INDEX)
    width = tl.max(tl.where(j < w, right - left, 0), 0)
    grad += n * grad_n
    output += n * output_n
    total = tl.zeros([BLOCK_C, BLOCK_W], ACC)
    for oy in range(top, bottom):
        row = tl.zeros([BLOCK_C, BLOCK_W], ACC)
        for k in range(0, width):
            ox = left + k
            weight = weight_of(ox, j, w, num_w, off_w, den_w, CLAMP, ACC)
            read = wanted & (ox < right) & (weight != 0)
            g = tl.load(grad + (c * grad_c + oy * grad_h + ox * grad_w), mask=read, other=0).to(ACC)
            if DERIVATIVE != "identity":
                at = c * output_c + oy * output_h + ox * output_w
                p = tl.load(output + at, mask=read, other=0).to(ACC)
                if DERIVATIVE == "sigmoid":
                    g = g * p * (1 - p)
                else:
                    t = tl.load(pixel + n * H * W + oy * W + ox, mask=read, other=0)
                    if DERIVATIVE == "softmax":
                        g = p * (g - t)
                    else:
                        g = g - tl.exp(p) * t
            row += tl.where(read, weight * g, 0)
        row_weight = weight_of(oy, i, h, num_h, off_h, den_h, CLAMP, ACC)
        total += tl.where(row_weight != 0, row_weight * row, 0)
    dx += n * dx_n
    tl.store(dx + (c * dx_c + i * dx_h + j * dx_w), total.to(dx.dtype.element_ty), mask=wanted)


def _constants(x: Tensor, y: Tensor, sampling: Sequence[int], *tensors: Tensor) -> dict:
    """What both kernels are specialised for."""
    block_c, block_w = image_blocks(x, y)
    return {
        "CLAMP": bool(sampling[10]),
        "enable_fp_fusion": True,
        "ACC": accumulator(x),
        "INDEX": index_type(sampling, x, y, *tensors),
        "BLOCK_C": block_c,
        "BLOCK_W": block_w,
    }


def upsample(x: Tensor, sampling: Sequence[int]) -> Tensor:
    """Bilinear sampling of x; see fcn_kernels.reference.upsample."""
    return sample(x, sampling)


def upsample_add(
    x: Tensor, skip: Tensor, sampling: Sequence[int], skip_offset: Sequence[int], skip_scale: float
) -> Tensor:
    """upsample(x) + skip_scale * (window of skip); see fcn_kernels.reference.upsample_add."""
    top, left = skip_offset
    return sample(x, sampling, skip[:, :, top : top + sampling[1], left : left + sampling[6]], skip_scale)


def sample(
    x: Tensor, sampling: Sequence[int], skip: Tensor | None = None, scale: float = 0.0, sigmoid: bool = False
) -> Tensor:
    """upsample(x) + scale * skip, and its sigmoid if asked for."""
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
            SKIP=skip is not None, SIGMOID=sigmoid, CHUNKS=chunks, **constants,
        )  # fmt: skip
    return y


def upsample_backward(grad: Tensor, sampling: Sequence[int]) -> Tensor:
    """The adjoint of upsample; see fcn_kernels.reference.upsample_backward."""
    return gather(grad, sampling)


def gather(
    grad: Tensor,
    sampling: Sequence[int],
    derivative: str = "identity",
    output: Tensor | None = None,
    pixel: Tensor | None = None,
) -> Tensor:
    """The adjoint of upsample of the derivative that the kernel names, in the layout of `output`, or of `grad`."""
    n, c, H, W = grad.shape
    h, _, num_h, off_h, den_h, w, _, num_w, off_w, den_w, _ = sampling
    like = grad if output is None else output
    dx = empty_image(like, h, w)
    if dx.numel() == 0:
        return dx
    constants = _constants(grad, dx, sampling, like)
    constants["BLOCK_W"] = min(constants["BLOCK_W"], max(16, triton.next_power_of_2(w)))
    grid = (n * h * triton.cdiv(w, constants["BLOCK_W"]), triton.cdiv(c, constants["BLOCK_C"]))
    with device_of(grad):
        upsample_backward_kernel[grid](
            grad, like, grad if pixel is None else pixel, dx, c, h, H, num_h, off_h, den_h, w, W, num_w, off_w, den_w,
            *grad.stride(), *like.stride(), *dx.stride(), DERIVATIVE=derivative, **constants,
        )  # fmt: skip
    return dx
