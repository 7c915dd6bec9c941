"""The log-sum-exp of bilinear logits, which softmax, confidence and cross-entropy share, as geometric progressions.

Between two neighbouring input columns a logit is linear in the output column, so that its exponential is a geometric
progression, exp(a + d f_k) = e_0 r^k: two exponentials per class and segment (geometry.py) serve up to 8 outputs. Every
output row starts its own progressions; the rows of a program share their four corners.

1. `class_statistics` looks at the small logits once. A softmax does not change when all classes of an *input pixel*
   move by the same amount, since bilinear sampling is linear: so `shift`, [N, h, w], is their maximum, the logits used
   are x - shift <= 0, no exponential can overflow, and a large common offset costs no digits. `spread`, [N, h, w], is
   how far the least class lies below the maximum, infinite where a class is not finite.
2. `logsumexp` writes L = log sum_c exp(z_c), [N, H, W], where z is x - shift upsampled. All that follows needs x, shift
   and L only: probabilities are exp(z - L), losses L - z_y. Where z itself may be large, next to jumps, L would round
   the logarithm away: who needs it gets L - peak and the image `peak`, the largest z, or 0 where L is small anyway.

Underflow: where no corner of a program's segments lies further than SPAN below its pixel's maximum, every e_0 r^k is
above exp(-SPAN), a normal number, and the chains are as good as their rounding (docs/geometric-softmax.md). Elsewhere
the program evaluates its outputs directly, each with its own maximum and an exponential per class, from taps in the
weighted form: that overflows nowhere, keeps infinities, and does not read a tap of weight zero.

Work, per class and output, with K outputs in a segment and R rows in a program (a multiply-add is one):
    exponentials        2 / K              1 for K = 1, and where evaluated directly
    arithmetic          (5 + 2 K) / K + 11 / (R K)
    bytes               x is read twice, from DRAM and from L2; L is written: 4 bytes per output, not per class
On an H200 (132 multiprocessors at 1.75 GHz, 16 exponentials and 128 instructions per clock each: 3.7e12 and 3.0e13 a
second) N = 8, C = 150, 128 x 128 to 512 x 512 has 3.1e8 class-outputs: K = R = 4 takes 1.6e8 exponentials, 42 us, and
1.2e9 instructions, 42 us on other units; `class_statistics` reads 79 MB, 18 us at 4.3 TB/s. Eager PyTorch moves more
than 5 GB for upsampling and log-softmax, 1.2 ms.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...reference import arithmetic_dtype
from .geometry import Segments, corners, segment, segments
from .launch import accumulator, device_of, index_type, registers

LOG2E = tl.constexpr(1.4426950408889634)
SPAN = tl.constexpr(80.0)  # exp(-80) = 1.8e-35 is a normal number in float32
LARGEST_SPREAD = tl.constexpr(1e30)  # logits further apart are not shifted: their differences might overflow


@triton.jit
def class_statistics_kernel(
    x, weight, shift, spread, linear,
    C, w, pixels, x_n, x_c, x_h, x_w,
    FLAT: tl.constexpr, LINEAR: tl.constexpr, WEIGHTED: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P input pixels of one image, all classes. `linear` is sum_c weight[c] (x[c] - shift)."""
    tiles = tl.cdiv(pixels, BLOCK_P)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    p = (tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)).to(INDEX)
    inside = p < pixels
    if FLAT:
        x += n * x_n + p[None, :] * x_w
    else:
        x += n * x_n + (p // w * x_h + p % w * x_w)[None, :]
    most = tl.full([BLOCK_C, BLOCK_P], float("-inf"), ACC)
    least = tl.full([BLOCK_C, BLOCK_P], float("inf"), ACC)
    check = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    for c0 in range(0, C, BLOCK_C):
        c = (c0 + tl.arange(0, BLOCK_C))[:, None].to(INDEX)
        read = (c < C) & inside[None, :]
        v = tl.load(x + c * x_c, mask=read, other=0).to(ACC)
        most = tl.maximum(most, tl.where(c < C, v, float("-inf")))
        least = tl.minimum(least, tl.where(c < C, v, float("inf")))
        check += v * 0
    top = tl.max(most, 0)
    extent = top - tl.min(least, 0)
    usual = (tl.sum(check, 0) == 0) & (extent <= LARGEST_SPREAD)
    top = tl.where(usual, top, 0)
    out = n * pixels + p
    tl.store(shift + out, top, mask=inside)
    tl.store(spread + out, tl.where(usual, extent, float("inf")), mask=inside)
    if LINEAR:
        total = tl.zeros([BLOCK_C, BLOCK_P], ACC)
        for c0 in range(0, C, BLOCK_C):
            c = (c0 + tl.arange(0, BLOCK_C))[:, None].to(INDEX)
            read = (c < C) & inside[None, :]
            v = tl.where(c < C, tl.load(x + c * x_c, mask=read, other=0).to(ACC) - top[None, :], 0)
            if WEIGHTED:
                v *= tl.load(weight + c, mask=c < C, other=0)
            total += v
        tl.store(linear + out, tl.sum(total, 0), mask=inside)


@triton.jit
def logsumexp_kernel(
    x, shift, spread, result, peak,
    C, h, H, num_h, off_h, den_h, w, W, num_w, off_w, den_w,
    low_h, chunks, low_w, count, total,
    x_n, x_c, x_h, x_w,
    PEAK: tl.constexpr, CLAMP: tl.constexpr,
    PIECES_H: tl.constexpr, ROWS: tl.constexpr, PIECES_W: tl.constexpr, STEPS: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr, UNIT: tl.constexpr, MASKED: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_S units, numbered through all images: up to ROWS rows of a segment of up to STEPS outputs.

    A thread owns a unit and, where BLOCK_C > 1, some of the classes.
    """
    unit = tl.program_id(0).to(UNIT) * BLOCK_S + tl.arange(0, BLOCK_S)
    wanted = unit < total
    unit = tl.where(wanted, unit, 0)
    n = (unit // count // chunks).to(tl.int64)
    oy, end_y, iy = segment((unit // count % chunks).to(INDEX), low_h, H, num_h, off_h, den_h, PIECES_H, ROWS, INDEX)
    ox, end_x, ix = segment((unit % count).to(INDEX), low_w, W, num_w, off_w, den_w, PIECES_W, STEPS, INDEX)
    end_y = tl.where(wanted, end_y, oy)
    top, bottom, has_top, has_bottom = corners(iy, h, CLAMP)
    left, right, has_left, has_right = corners(ix, w, CLAMP)
    tl_ok = wanted & has_top & has_left
    tr_ok = wanted & has_top & has_right
    bl_ok = wanted & has_bottom & has_left
    br_ok = wanted & has_bottom & has_right
    small = n * h * w
    top_left, top_right = small + top * w + left, small + top * w + right
    bottom_left, bottom_right = small + bottom * w + left, small + bottom * w + right
    shift_tl = tl.load(shift + top_left, mask=tl_ok, other=0)[None, :]
    shift_tr = tl.load(shift + top_right, mask=tr_ok, other=0)[None, :]
    shift_bl = tl.load(shift + bottom_left, mask=bl_ok, other=0)[None, :]
    shift_br = tl.load(shift + bottom_right, mask=br_ok, other=0)[None, :]
    widest = tl.maximum(
        tl.maximum(tl.load(spread + top_left, mask=tl_ok, other=0), tl.load(spread + top_right, mask=tr_ok, other=0)),
        tl.maximum(
            tl.load(spread + bottom_left, mask=bl_ok, other=0), tl.load(spread + bottom_right, mask=br_ok, other=0)
        ),
    )
    x += (n * x_n)[None, :]
    x_tl, x_tr = x + (top * x_h + left * x_w)[None, :], x + (top * x_h + right * x_w)[None, :]
    x_bl, x_br = x + (bottom * x_h + left * x_w)[None, :], x + (bottom * x_h + right * x_w)[None, :]
    tl_ok, tr_ok, bl_ok, br_ok = tl_ok[None, :], tr_ok[None, :], bl_ok[None, :], br_ok[None, :]
    rest_y = oy * num_h + off_h - iy * den_h
    rest_x = ox * num_w + off_w - ix * den_w
    result += n * H * W
    peak += n * H * W
    if tl.max(widest, 0) <= SPAN:
        f0 = (rest_x.to(ACC) / den_w)[None, :]
        step = tl.full([1, 1], num_w, ACC) / den_w
        sums = ()
        for _ in tl.static_range(ROWS * STEPS):
            sums = sums + (tl.zeros([BLOCK_C, BLOCK_S], ACC),)  # noqa: RUF005
        for c0 in range(0, C, BLOCK_C):
            c = (c0 + tl.arange(0, BLOCK_C))[:, None].to(INDEX)
            offset = c * x_c
            known = c < C
            v = (tl.load(x_tl + offset, mask=known & tl_ok, other=0).to(ACC) - shift_tl) * LOG2E
            d = (tl.load(x_tr + offset, mask=known & tr_ok, other=0).to(ACC) - shift_tr) * LOG2E - v
            dv = (tl.load(x_bl + offset, mask=known & bl_ok, other=0).to(ACC) - shift_bl) * LOG2E - v
            dd = (tl.load(x_br + offset, mask=known & br_ok, other=0).to(ACC) - shift_br) * LOG2E - v - dv - d
            next_sums = ()
            for row in tl.static_range(ROWS):
                fy = ((rest_y + row * num_h).to(ACC) / den_h)[None, :]
                rise = d + fy * dd
                e = tl.exp2(v + fy * dv + f0 * rise)
                if MASKED:
                    e = tl.where(known, e, 0)
                r = tl.exp2(rise * step)
                for k in tl.static_range(STEPS):
                    next_sums = next_sums + (sums[row * STEPS + k] + e,)  # noqa: RUF005
                    if k + 1 < STEPS:
                        e = e * r
            sums = next_sums
        for row in tl.static_range(ROWS):
            for k in tl.static_range(STEPS):
                value = tl.log(tl.sum(sums[row * STEPS + k], 0))
                at, store = (oy + row) * W + ox + k, (oy + row < end_y) & (ox + k < end_x)
                tl.store(result + at, value, mask=store)
                if PEAK:
                    tl.store(peak + at, tl.zeros([BLOCK_S], ACC), mask=store)
    else:
        for row in range(ROWS):
            for k in range(STEPS):
                store = (oy + row < end_y) & (ox + k < end_x)
                fy = (tl.where(store, rest_y + row * num_h, 0).to(ACC) / den_h)[None, :]
                fx = (tl.where(store, rest_x + k * num_w, 0).to(ACC) / den_w)[None, :]
                read_tr = tr_ok & (fx > 0)
                read_bl = bl_ok & (fy > 0)
                read_br = br_ok & (fx > 0) & (fy > 0)
                most = tl.full([BLOCK_C, BLOCK_S], float("-inf"), ACC)
                for c0 in range(0, C, BLOCK_C):
                    c = (c0 + tl.arange(0, BLOCK_C))[:, None].to(INDEX)
                    known = c < C
                    a = tl.load(x_tl + c * x_c, mask=known & tl_ok, other=0).to(ACC) - shift_tl
                    b = tl.load(x_tr + c * x_c, mask=known & read_tr, other=0).to(ACC) - shift_tr
                    p = tl.load(x_bl + c * x_c, mask=known & read_bl, other=0).to(ACC) - shift_bl
                    q = tl.load(x_br + c * x_c, mask=known & read_br, other=0).to(ACC) - shift_br
                    z = (1 - fy) * ((1 - fx) * a + fx * b) + fy * ((1 - fx) * p + fx * q)
                    most = tl.maximum(most, tl.where(known, z, float("-inf")))
                best = tl.max(most, 0)
                total_e = tl.zeros([BLOCK_C, BLOCK_S], ACC)
                for c0 in range(0, C, BLOCK_C):
                    c = (c0 + tl.arange(0, BLOCK_C))[:, None].to(INDEX)
                    known = c < C
                    a = tl.load(x_tl + c * x_c, mask=known & tl_ok, other=0).to(ACC) - shift_tl
                    b = tl.load(x_tr + c * x_c, mask=known & read_tr, other=0).to(ACC) - shift_tr
                    p = tl.load(x_bl + c * x_c, mask=known & read_bl, other=0).to(ACC) - shift_bl
                    q = tl.load(x_br + c * x_c, mask=known & read_br, other=0).to(ACC) - shift_br
                    z = (1 - fy) * ((1 - fx) * a + fx * b) + fy * ((1 - fx) * p + fx * q)
                    total_e += tl.where(known, tl.exp(z - best[None, :]), 0)
                at, value = (oy + row) * W + ox + k, tl.log(tl.sum(total_e, 0))
                if PEAK:
                    tl.store(peak + at, best, mask=store)
                else:
                    value += best
                tl.store(result + at, value, mask=store)


def class_statistics(
    x: Tensor, weight: Tensor | None = None, linear: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`shift` and `spread` of the input pixels, [N, h, w], and with `linear` sum_c weight[c] (x[c] - shift)."""
    n, c, h, w = x.shape
    new = {"dtype": arithmetic_dtype(x.dtype), "device": x.device}
    shift, spread = torch.empty((n, h, w), **new), torch.empty((n, h, w), **new)
    sums = torch.empty((n, h, w), **new) if linear else None
    block_c, block_p = statistics_blocks(x)
    with device_of(x):
        class_statistics_kernel[(n * triton.cdiv(h * w, block_p),)](
            x, x if weight is None else weight, shift, spread, x if sums is None else sums,
            c, w, h * w, *x.stride(),
            FLAT=x.stride(2) == w * x.stride(3), LINEAR=linear, WEIGHTED=weight is not None,
            ACC=accumulator(x), INDEX=index_type((), x), BLOCK_C=block_c, BLOCK_P=block_p, enable_fp_fusion=True,
        )  # fmt: skip
    return shift, spread, sums


def statistics_blocks(x: Tensor) -> tuple[int, int]:
    """Classes and pixels of a tile: lanes run along the innermost dimension."""
    return (32, 32) if x.stride(1) == 1 and x.shape[1] > 1 else (16, 64)


def chain_blocks(x: Tensor) -> tuple[int, int]:
    """Classes and units of a program of `logsumexp`."""
    return (8, 32) if x.stride(1) == 1 and x.shape[1] > 1 else (1, 128)


UNITS = 1 << 17  # threads that fill a large GPU twice


def work_list(images: int, sampling: Sequence[int]) -> tuple[Segments, Segments]:
    """Rows and columns as segments: up to 8 outputs of up to 4 rows to a thread, fewer rows where threads are few."""
    columns = segments(sampling[5:10], 8)
    rows_at_most = 4
    while rows_at_most > 1 and images * columns.count * segments(sampling[:5], rows_at_most).count < UNITS:
        rows_at_most //= 2
    return segments(sampling[:5], rows_at_most), columns


def unit_type(total: int) -> tl.dtype:
    """The type that numbers the units."""
    return tl.int32 if total < 2**31 - 1024 else tl.int64


def logsumexp(
    x: Tensor, shift: Tensor, spread: Tensor, sampling: Sequence[int], peaks: bool = False
) -> tuple[Tensor, Tensor | None]:
    """L, or L - peak and peak, of z = upsample(x - shift): [N, H, W] in the dtype of the arithmetic."""
    n, c, h, w = x.shape
    _, H, num_h, off_h, den_h, _, W, num_w, off_w, den_w, clamp = sampling
    result = torch.empty((n, H, W), dtype=shift.dtype, device=x.device)
    peak = torch.empty_like(result) if peaks else None
    rows, columns = work_list(n, sampling)
    total = n * rows.count * columns.count
    block_c, block_s = chain_blocks(x)
    with device_of(x):
        logsumexp_kernel[(triton.cdiv(total, block_s),)](
            x, shift, spread, result, result if peak is None else peak,
            c, h, H, num_h, off_h, den_h, w, W, num_w, off_w, den_w,
            rows.low, rows.count, columns.low, columns.count, total, *x.stride(),
            PEAK=peaks, CLAMP=bool(clamp), PIECES_H=rows.pieces, ROWS=rows.steps, PIECES_W=columns.pieces,
            STEPS=columns.steps,
            ACC=accumulator(x), INDEX=index_type(sampling, x), UNIT=unit_type(total),
            MASKED=c % block_c != 0, BLOCK_C=block_c, BLOCK_S=block_s, enable_fp_fusion=True, **registers(16),
        )  # fmt: skip
    return result, peak
