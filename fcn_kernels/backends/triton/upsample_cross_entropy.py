"""upsample_cross_entropy in Triton: loss and gradient of upsampled logits, with nothing of size H x W x C.

1. `class_statistics` and `logsumexp` (logsumexp.py): shift of the input pixels and L of the outputs, by progressions.
2. `pixel_kernel`: the loss of every output from L and the four corners of its label, L - z_y, and its coefficient
   a + b = (1 - e) w_y + e / C sum_c w_c (times the incoming gradient); losses are summed per program, in a fixed order.
3. `gradient_kernel`: d loss / d x. Once L is known the classes are independent, so that a thread takes a few classes
   and an input interval and walks down the rows. With q_k = (a + b) exp(-L_k), shared by all classes, the softmax part
   of an interval in a row is a polynomial in r, and its right half that polynomial's derivative:
       sum_k (a + b) p_k     = e_0 (q_0 + q_1 r + q_2 r^2 + ...)  = e_0 P(r)
       sum_k (a + b) p_k f_k = e_0 (f_0 P(r) + step r P'(r))
   which Horner's rule evaluates together. What goes to the lower input row stays in registers for the next band, what
   goes to the right column moves by one lane at the end of a row: a gather, without atomics, side buffers or a second
   evaluation. Tiles overlap by one lane of 32, strips of rows by one band. Rows whose tile holds no label of the
   thread's classes skip the one-hot part.

The alternatives: an owner of an input pixel who evaluates all outputs around it takes each exponential four times; a
buffer of corner sums is four times the size of x, 315 MB at N = 8, C = 150, 128 x 128, where 18 MB are allocated here
beside the gradient.

Work per class and output, K outputs to an interval (a multiply-add is one):
    exponentials    2 / K in L and 2 / K in the gradient, and 1 / 4 for q, which the four classes of a thread share
    arithmetic      about 3 in L and 5 in the gradient at K = 4
    bytes           per output: the label twice or more, L and the coefficient written and read; per input and class:
                    x read three times, the gradient written once
On an H200 N = 8, C = 150, 128 x 128 to 512 x 512 (3.1e8 class-outputs) takes 3.9e8 exponentials, 106 us at 16 per clock
and multiprocessor, 2.5e9 other instructions, 83 us beside them, and at least 79 MB of x and of gradient, 37 us.
No GPU has run it yet: these are counts, not measurements.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import reference
from ...reference import NONE
from .geometry import first_output, taps
from .launch import accumulator, device_of, empty_image, index_type, reduced, registers
from .logsumexp import LOG2E, SPAN, class_statistics, logsumexp

DOWN = tl.constexpr(2.0**-40)  # keeps Horner's sums, up to 8 exp(SPAN) times the coefficient, in range
UP = tl.constexpr(2.0**40)


@triton.jit
def pixel_kernel(
    x, shift, linear, lse, target, weight, weight_sum, grad, loss, coefficient, relative, partial,
    C, h, H, num_h, off_h, den_h, w, W, num_w, off_w, den_w,
    x_n, x_c, x_h, x_w, target_n, target_h, target_w, grad_n, grad_h, grad_w, ignore_index, smoothing: tl.float64,
    BACKWARD: tl.constexpr, PER_PIXEL: tl.constexpr, ABSOLUTE: tl.constexpr, COEFFICIENT: tl.constexpr,
    WEIGHTED: tl.constexpr, SMOOTH: tl.constexpr,
    CLAMP: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_W outputs of a row. Forward: losses, or their sum, and weights; BACKWARD: coefficients only.

    In the forward lse is L, and ABSOLUTE adds the upsampled shift to what is kept in `relative`; in the backward lse is
    absolute, and L goes to `relative`.
    """
    tiles = tl.cdiv(W, BLOCK_W)
    pid = tl.program_id(0)
    n = (pid // (tiles * H)).to(tl.int64)
    oy = (pid // tiles % H).to(INDEX)
    ox = (pid % tiles * BLOCK_W + tl.arange(0, BLOCK_W)).to(INDEX)
    inside = ox < W
    top, bottom, has_top, has_bottom, fy = taps(oy, h, num_h, off_h, den_h, CLAMP, INDEX, ACC)
    left, right, has_left, has_right, fx = taps(ox, w, num_w, off_w, den_w, CLAMP, INDEX, ACC)
    read_top = ox < tl.where(has_top, W, 0)
    read_bottom = ox < tl.where(has_bottom, W, 0)
    tl_ok = has_left & read_top & inside
    tr_ok = has_right & read_top & inside
    bl_ok = has_left & read_bottom & inside
    br_ok = has_right & read_bottom & inside
    w_tl, w_tr, w_bl, w_br = (1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx
    small = n * h * w
    s_tl = tl.load(shift + small + top * w + left, mask=tl_ok, other=0)
    s_tr = tl.load(shift + small + top * w + right, mask=tr_ok, other=0)
    s_bl = tl.load(shift + small + bottom * w + left, mask=bl_ok, other=0)
    s_br = tl.load(shift + small + bottom * w + right, mask=br_ok, other=0)
    pixel = n * H * W + oy * W + ox
    y = tl.load(target + n * target_n + (oy * target_h + ox * target_w), mask=inside, other=0).to(tl.int64)
    kept = inside & (y != ignore_index)
    known = (y >= 0) & (y < C)
    y = tl.where(kept & known, y, 0)
    e = tl.cast(smoothing, ACC)
    class_weight = tl.full([BLOCK_W], 1, ACC)
    all_weights = tl.full([1], C, ACC)
    if WEIGHTED:
        class_weight = tl.load(weight + y)
        all_weights = tl.load(weight_sum + tl.arange(0, 1))
    log_sum = tl.load(lse + pixel, mask=inside, other=0)
    if BACKWARD or ABSOLUTE:
        up = w_tl * s_tl + w_tr * s_tr + w_bl * s_bl + w_br * s_br
        if BACKWARD:
            log_sum = log_sum - up
            tl.store(relative + pixel, log_sum, mask=inside)
        else:
            absolute = log_sum + up
            absolute = tl.where(tl.abs(absolute) == float("inf"), float("nan"), absolute)
            tl.store(relative + pixel, absolute, mask=inside)
    if COEFFICIENT:
        a = (1 - e) * class_weight
        if SMOOTH:
            a += e / C * all_weights
        if BACKWARD:
            g = tl.load(grad + n * grad_n + (oy * grad_h + ox * grad_w), mask=inside, other=0).to(ACC)
            a *= g
        finite = log_sum - log_sum == 0  # else the gradient is NaN, whatever the weight
        a = tl.where(kept, tl.where(known & finite, a, float("nan")), 0)
        tl.store(coefficient + pixel, a, mask=inside)
    if not BACKWARD:
        x += n * x_n + y * x_c
        a = tl.load(x + (top * x_h + left * x_w), mask=tl_ok, other=0).to(ACC) - s_tl
        b = tl.load(x + (top * x_h + right * x_w), mask=tr_ok, other=0).to(ACC) - s_tr
        c = tl.load(x + (bottom * x_h + left * x_w), mask=bl_ok, other=0).to(ACC) - s_bl
        d = tl.load(x + (bottom * x_h + right * x_w), mask=br_ok, other=0).to(ACC) - s_br
        z = (1 - fy) * ((1 - fx) * a + fx * b) + fy * ((1 - fx) * c + fx * d)
        value = (1 - e) * class_weight * (log_sum - z)
        if SMOOTH:
            a = tl.load(linear + small + top * w + left, mask=tl_ok, other=0)
            b = tl.load(linear + small + top * w + right, mask=tr_ok, other=0)
            c = tl.load(linear + small + bottom * w + left, mask=bl_ok, other=0)
            d = tl.load(linear + small + bottom * w + right, mask=br_ok, other=0)
            sums = (1 - fy) * ((1 - fx) * a + fx * b) + fy * ((1 - fx) * c + fx * d)
            value += e / C * (all_weights * log_sum - sums)
        value = tl.where(kept, tl.where(known, value, float("nan")), 0)
        if PER_PIXEL:
            tl.store(loss + pixel, value, mask=inside)
        else:
            partial += pid.to(tl.int64) * 2
            tl.store(partial, tl.sum(value.to(tl.float64), 0))
            tl.store(partial + 1, tl.sum(tl.where(kept, class_weight, 0).to(tl.float64), 0))


@triton.jit
def gradient_kernel(
    x, shift, spread, lse, coefficient, target, weight, grad, dx,
    C, h, H, num_h, off_h, den_h, w, W, num_w, off_w, den_w, strips, tiles, strip,
    x_n, x_c, x_h, x_w, target_n, target_h, target_w, grad_n, grad_h, grad_w, dx_n, dx_c, dx_h, dx_w,
    ignore_index, smoothing: tl.float64,
    PIXEL_GRAD: tl.constexpr, WEIGHTED: tl.constexpr, SMOOTH: tl.constexpr, CLAMP: tl.constexpr,
    PIECES: tl.constexpr, STEPS: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_C: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """One program: `strip` input rows of one image, LANES slots of BLOCK_C classes each.

    Slots are numbered through the blocks of classes; slot s of a block is the interval between columns s - 1 and s, and
    owns column s - 1. The first lane of a tile only provides what its interval gives to the right.
    """
    pid = tl.program_id(0)
    n = (pid // (strips * tiles)).to(tl.int64)
    row_begin = (pid // tiles % strips * strip).to(INDEX)
    row_end = tl.minimum(row_begin + strip, h).to(INDEX)
    lane = tl.arange(0, LANES)
    slot = (pid % tiles * (LANES - 1) + lane).to(INDEX)
    block, i = slot // (w + 1), slot % (w + 1) - 1
    c = block[None, :] * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    known = c < C
    begin = first_output(i, W, num_w, off_w, den_w, INDEX)
    end = first_output(i + 1, W, num_w, off_w, den_w, INDEX)
    end = tl.where(block * BLOCK_C < C, end, begin)
    left, right = i, i + 1
    if CLAMP:
        left = tl.maximum(left, 0)
        right = tl.minimum(right, w - 1)
    has_left = left >= 0
    has_right = right < w
    rest_x = begin * num_w + off_w - i * den_w
    step = tl.full([1, 1], num_w, ACC) / den_w
    x += n * x_n
    dx += n * dx_n
    small = n * h * w
    pixels = n * H * W
    target += n * target_n
    grad += n * grad_n
    e = tl.cast(smoothing, ACC)
    class_weight = tl.full([BLOCK_C, LANES], 1, ACC)
    if WEIGHTED:
        class_weight = tl.load(weight + c, mask=known, other=0)
    # The band above the first row gives only what goes down.
    carry_sum = tl.zeros([BLOCK_C, LANES], ACC)
    carry_right = tl.zeros([BLOCK_C, LANES], ACC)
    for iy in range(row_begin - 1, row_end):
        first = first_output(iy, H, num_h, off_h, den_h, INDEX)
        last = first_output(iy + 1, H, num_h, off_h, den_h, INDEX)
        top, bottom = iy, iy + 1
        if CLAMP:
            first = tl.where(iy < 0, 0, first)
            last = tl.where(iy >= h - 1, H, last)
            top = tl.maximum(top, 0)
            bottom = tl.minimum(bottom, h - 1)
        read_top = lane < tl.where(top >= 0, LANES, 0)
        read_bottom = lane < tl.where(bottom < h, LANES, 0)
        tl_ok, tr_ok = has_left & read_top, has_right & read_top
        bl_ok, br_ok = has_left & read_bottom, has_right & read_bottom
        at_tl, at_tr = small + top * w + left, small + top * w + right
        at_bl, at_br = small + bottom * w + left, small + bottom * w + right
        s_tl = tl.load(shift + at_tl, mask=tl_ok, other=0)[None, :]
        s_tr = tl.load(shift + at_tr, mask=tr_ok, other=0)[None, :]
        s_bl = tl.load(shift + at_bl, mask=bl_ok, other=0)[None, :]
        s_br = tl.load(shift + at_br, mask=br_ok, other=0)[None, :]
        widest = tl.maximum(
            tl.maximum(tl.load(spread + at_tl, mask=tl_ok, other=0), tl.load(spread + at_tr, mask=tr_ok, other=0)),
            tl.maximum(tl.load(spread + at_bl, mask=bl_ok, other=0), tl.load(spread + at_br, mask=br_ok, other=0)),
        )
        at = c * x_c + (top * x_h + left * x_w)[None, :]
        v_tl = tl.load(x + at, mask=known & tl_ok[None, :], other=0).to(ACC) - s_tl
        at = c * x_c + (top * x_h + right * x_w)[None, :]
        v_tr = tl.load(x + at, mask=known & tr_ok[None, :], other=0).to(ACC) - s_tr
        at = c * x_c + (bottom * x_h + left * x_w)[None, :]
        v_bl = tl.load(x + at, mask=known & bl_ok[None, :], other=0).to(ACC) - s_bl
        at = c * x_c + (bottom * x_h + right * x_w)[None, :]
        v_br = tl.load(x + at, mask=known & br_ok[None, :], other=0).to(ACC) - s_br
        bounded = tl.max(widest, 0) <= SPAN
        top_sum = carry_sum
        top_right = carry_right
        carry_sum = tl.zeros([BLOCK_C, LANES], ACC)
        carry_right = tl.zeros([BLOCK_C, LANES], ACC)
        for oy in range(first, last):
            rest_y = oy * num_h + off_h - iy * den_h
            fy = tl.full([1, 1], 0, ACC) + rest_y.to(ACC) / den_h
            down = fy
            if CLAMP:
                down = tl.where(iy < 0, 1, tl.where(iy >= h - 1, 0, fy))
            row_sum = tl.zeros([BLOCK_C, LANES], ACC)
            row_right = tl.zeros([BLOCK_C, LANES], ACC)
            row_coefficient = coefficient + pixels + oy * W
            row_lse = lse + pixels + oy * W
            for piece in range(PIECES):
                start = begin + piece * STEPS
                f0 = tl.where(start < end, (rest_x + piece * STEPS * num_w).to(ACC) / den_w, 0)[None, :]
                if bounded:
                    a = v_tl + fy * (v_bl - v_tl)
                    rise = (v_tr + fy * (v_br - v_tr)) - a
                    e0 = tl.exp2((a + f0 * rise) * LOG2E) * UP
                    r = tl.exp2(rise * step * LOG2E)
                    p = tl.zeros([BLOCK_C, LANES], ACC)
                    derivative = tl.zeros([BLOCK_C, LANES], ACC)
                    for j in tl.static_range(STEPS):
                        ox = start + (STEPS - 1 - j)
                        read = ox < end
                        ab = tl.load(row_coefficient + ox, mask=read, other=0)
                        log_sum = tl.load(row_lse + ox, mask=read, other=0)
                        q = (ab * tl.exp2(-log_sum * LOG2E) * DOWN)[None, :]
                        derivative = derivative * r + p
                        p = p * r + q
                    row_sum += p * e0
                    row_right += (f0 * p + step * (r * derivative)) * e0
                else:
                    for output in range(STEPS):
                        ox = start + output
                        read = ox < end
                        f = f0 + output * step
                        f = tl.where(read[None, :], f, 0)
                        factor = tl.load(row_coefficient + ox, mask=read, other=0)[None, :]
                        level = tl.load(row_lse + ox, mask=read, other=0)[None, :]
                        upper = tl.where(f > 0, (1 - f) * v_tl + f * v_tr, v_tl)
                        lower = tl.where(f > 0, (1 - f) * v_bl + f * v_br, v_bl)
                        z = tl.where(fy > 0, (1 - fy) * upper + fy * lower, upper)
                        p = tl.where(factor != 0, factor * tl.exp(z - level), 0)
                        row_sum += p
                        row_right += tl.where(f > 0, f * p, 0)
                for k in tl.static_range(STEPS):
                    ox = start + k
                    read = ox < end
                    y = tl.load(target + (oy * target_h + ox * target_w), mask=read, other=-1).to(tl.int64)
                    hit = read & (y >= block * BLOCK_C) & (y < block * BLOCK_C + BLOCK_C)
                    if SMOOTH or tl.max(hit.to(tl.int32), 0) > 0:
                        counts = read & (y != ignore_index) & (y >= 0) & (y < C)
                        g = counts.to(ACC)[None, :]
                        if PIXEL_GRAD:
                            g *= tl.load(grad + (oy * grad_h + ox * grad_w), mask=counts, other=0).to(ACC)[None, :]
                        # A pixel's own label counts (1 - e) w_y, with smoothing every class e / C w_c.
                        own = tl.where(y[None, :] == c, 1 - e, 0)
                        if SMOOTH:
                            own += e / C
                        own *= g * class_weight
                        row_sum -= own
                        row_right -= (f0 + k * step) * own
            top_sum += tl.where(down < 1, (1 - down) * row_sum, 0)
            top_right += tl.where(down < 1, (1 - down) * row_right, 0)
            carry_sum += tl.where(down > 0, down * row_sum, 0)
            carry_right += tl.where(down > 0, down * row_right, 0)
        if CLAMP:
            top_right = tl.where((i < 0)[None, :], top_sum, tl.where((i >= w - 1)[None, :], 0, top_right))
        previous = tl.maximum(lane - 1, 0)[None, :] + tl.zeros([BLOCK_C, 1], tl.int32)
        total = (top_sum - top_right) + tl.gather(top_right, previous, 1)
        mine = known & ((lane > 0) & (i >= 0))[None, :]
        wanted = mine & (lane < tl.where(iy >= row_begin, LANES, 0))[None, :]
        tl.store(dx + (c * dx_c + (iy * dx_h + i * dx_w)[None, :]), total.to(dx.dtype.element_ty), mask=wanted)


def upsample_cross_entropy(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sampling: Sequence[int],
    ignore_index: int,
    reduction: int,
    label_smoothing: float,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, total weight, gradient and log-sum-exp; see fcn_kernels.reference.upsample_cross_entropy."""
    _raise_on_the_cpu(x, target, ignore_index)
    n, H, W = x.shape[0], sampling[1], sampling[6]
    smooth, per_pixel = label_smoothing > 0, reduction == NONE
    shift, spread, linear = class_statistics(x, weight, smooth)
    lse = logsumexp(x, shift, spread, sampling)[0] if n else shift.new_empty((0, H, W))
    loss = torch.empty_like(lse) if per_pixel else None
    coefficient = torch.empty_like(lse) if with_grad and not per_pixel else None
    absolute = torch.empty_like(lse) if with_grad and per_pixel else None
    partial = _pixels(
        x, shift, linear, lse, target, weight, None, loss, coefficient, absolute, sampling, ignore_index,
        label_smoothing,
    )  # fmt: skip
    one, empty = shift.new_ones(()), shift.new_empty(0)
    if per_pixel:
        return loss, one, empty, empty if absolute is None else absolute
    value, total = reduced(partial, reduction, n * H * W, shift.dtype)
    gradient = empty
    if with_grad:
        gradient = empty_image(x, *x.shape[2:], dtype=shift.dtype)
        _gradient(
            x, shift, spread, lse, coefficient, target, weight, None, gradient, sampling, ignore_index, label_smoothing
        )
    return value, total, gradient, empty


def upsample_cross_entropy_backward(
    grad: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    sampling: Sequence[int],
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """The gradient in x without reduction; see fcn_kernels.reference.upsample_cross_entropy_backward."""
    _raise_on_the_cpu(x, target, ignore_index)
    shift, spread, _ = class_statistics(x)
    relative, coefficient = torch.empty_like(lse), torch.empty_like(lse)
    _pixels(
        x, shift, None, lse, target, weight, grad, None, coefficient, relative, sampling, ignore_index,
        label_smoothing,
    )  # fmt: skip
    dx = empty_image(x, *x.shape[2:])
    _gradient(
        x, shift, spread, relative, coefficient, target, weight, grad, dx, sampling, ignore_index, label_smoothing
    )
    return dx


def _raise_on_the_cpu(x: Tensor, target: Tensor, ignore_index: int) -> None:
    if x.device.type == "cpu":
        reference.split_labels("upsample_cross_entropy", target, x.shape[1], ignore_index)


def _pixels(
    x: Tensor,
    shift: Tensor,
    linear: Tensor | None,
    lse: Tensor,
    target: Tensor,
    weight: Tensor | None,
    grad: Tensor | None,
    loss: Tensor | None,
    coefficient: Tensor | None,
    relative: Tensor | None,
    sampling: Sequence[int],
    ignore_index: int,
    smoothing: float,
) -> Tensor:
    """Launches pixel_kernel, forward without `grad`; returns the sums of loss and weight of its programs."""
    n, c, h, w = x.shape
    _, H, num_h, off_h, den_h, _, W, num_w, off_w, den_w, clamp = sampling
    block_w = 128
    programs = n * H * triton.cdiv(W, block_w)
    partial = torch.empty((programs, 2), dtype=torch.float64, device=x.device)
    if programs == 0:
        return partial
    backward = grad is not None
    incoming = lse if grad is None else grad
    with device_of(x):
        pixel_kernel[(programs,)](
            x, shift, _or(linear, x), lse, target, _or(weight, x), x if weight is None else weight.sum(), incoming,
            _or(loss, x), _or(coefficient, x), _or(relative, x), partial,
            c, h, H, num_h, off_h, den_h, w, W, num_w, off_w, den_w,
            *x.stride(), *target.stride(), *incoming.stride(), ignore_index, float(smoothing),
            BACKWARD=backward, PER_PIXEL=loss is not None, ABSOLUTE=not backward and relative is not None,
            COEFFICIENT=coefficient is not None, WEIGHTED=weight is not None, SMOOTH=smoothing > 0, CLAMP=bool(clamp),
            ACC=accumulator(x), INDEX=index_type(sampling, x, target[:, None]), BLOCK_W=block_w, enable_fp_fusion=True,
        )  # fmt: skip
    return partial


def _or(tensor: Tensor | None, placeholder: Tensor) -> Tensor:
    return placeholder if tensor is None else tensor


def _gradient(
    x: Tensor,
    shift: Tensor,
    spread: Tensor,
    lse: Tensor,
    coefficient: Tensor,
    target: Tensor,
    weight: Tensor | None,
    grad: Tensor | None,
    dx: Tensor,
    sampling: Sequence[int],
    ignore_index: int,
    smoothing: float,
) -> None:
    """Launches gradient_kernel, or composes the gradient where a clamped sampling reads far outside the input."""
    n, c, h, w = x.shape
    _, H, num_h, off_h, den_h, _, W, num_w, off_w, den_w, clamp = sampling
    if n == 0:
        return
    # From here on the columns beyond the border have intervals of their own, which the kernel does not count.
    if clamp and (off_w < -den_w or num_w * (W - 1) + off_w >= w * den_w):
        options = (sampling, ignore_index, smoothing)
        _, _, _, absolute = reference.upsample_cross_entropy(
            x, target, weight, sampling, ignore_index, NONE, smoothing, True
        )
        incoming = torch.ones_like(absolute) if grad is None else grad
        dx.copy_(
            reference.upsample_cross_entropy_backward(incoming, x.to(dx.dtype), target, weight, absolute, *options)
        )
        return
    run = W if num_w == 0 else min(-(-den_w // num_w), W)
    pieces = -(-run // 8)
    block_c, lanes = gradient_blocks(x)
    tiles = triton.cdiv(triton.cdiv(c, block_c) * (w + 1) - 1, lanes - 1)
    strip = 16
    while strip > 1 and n * tiles * triton.cdiv(h, strip) < ENOUGH_WARPS:
        strip //= 2
    strips = triton.cdiv(h, strip)
    incoming = lse if grad is None else grad
    with device_of(x):
        gradient_kernel[(n * strips * tiles,)](
            x, shift, spread, lse, coefficient, target, _or(weight, x), incoming, dx,
            c, h, H, num_h, off_h, den_h, w, W, num_w, off_w, den_w, strips, tiles, strip,
            *x.stride(), *target.stride(), *incoming.stride(), *dx.stride(), ignore_index, float(smoothing),
            PIXEL_GRAD=grad is not None, WEIGHTED=weight is not None, SMOOTH=smoothing > 0, CLAMP=bool(clamp),
            PIECES=pieces, STEPS=-(-run // pieces), ACC=accumulator(x),
            INDEX=index_type(sampling, x, target[:, None], dx), BLOCK_C=block_c, LANES=lanes, num_warps=1,
            enable_fp_fusion=True, **registers(8),
        )  # fmt: skip


ENOUGH_WARPS = 8192


def gradient_blocks(x: Tensor) -> tuple[int, int]:
    """Classes of a thread, and lanes. Numbers in float64 take two registers."""
    return min(2 if x.dtype == torch.float64 else 4, triton.next_power_of_2(x.shape[1])), 32
