"""The 1x1 score convolution with an epilogue that keeps all classes of a pixel in registers.

A program computes the scores of BLOCK_P pixels for BLOCK_C classes, a matrix product over the K channels of x, and
ends with what the operator wants of them: nothing of the scores is written. More classes than a tile holds (256, 64 in
float64) are taken in blocks through an online softmax: the running maximum m and s = sum exp(z - m), which is scaled
down when m grows; probabilities then take a second sweep that computes the scores again. Where pixels are few and K is
long, K is split among programs (matmul.py), and the same epilogue adds the parts in a fixed order.

Work per pixel: 2 K C operations, C exponentials, K reads and, for probabilities, C writes. FCN's score convolution
(K = 4096, C = 21, 16 x 16 pixels, N = 1) multiplies 44 MFLOP, 0.7 us at 67 TFLOP/s in float32 and 5376 exponentials,
and reads 4.5 MB of x and weight, 1.0 us at 4.3 TB/s: launches decide. At N = 8, K = 512, C = 150, 128 x 128 there are
20 GFLOP: 300 us in exact float32, on tensor cores 268 MB of x, 62 us, and 79 MB of probabilities, 18 us; 2.0e7
exponentials take 5 us. These are counts: no GPU has run it yet.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...reference import arithmetic_dtype
from .configurations import SCORE
from .launch import accumulator, device_of, empty_image, index_type, registers
from .matmul import (
    arithmetic,
    element,
    matmul,
    matmul_parts,
    matmul_sum,
    pipelined,
    precision,
    product,
    splits_of,
)


@triton.jit
def scores(
    x, weight, bias, parts, block, p, C, K, P, images, splits, x_k, x_p, weight_c, weight_k,
    BIASED: tl.constexpr, SPLIT: tl.constexpr, DTYPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The scores of a block of classes, -inf beyond the last class."""
    c = (block * BLOCK_C + tl.arange(0, BLOCK_C)).to(INDEX)
    z = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    if SPLIT:
        at = (p * C)[:, None] + c[None, :]
        for split in range(0, splits):
            start = tl.cast(split, tl.int64) * images * P * C
            z += tl.load(parts + start + at, mask=(p < P)[:, None] & (c < C)[None, :], other=0)
    else:
        z = product(
            z, x, weight, p * x_p, c * weight_c, p < P, c < C, 0, K, x_k, weight_k,
            DTYPE, ACC, PRECISION, INDEX, BLOCK_K,
        )  # fmt: skip
    if BIASED:
        z += tl.load(bias + c, mask=c < C, other=0).to(ACC)[None, :]
    return tl.where((c < C)[None, :], z, float("-inf"))


@triton.jit
def score_kernel(
    x, weight, bias, parts, y, lse, target, class_weight, weight_sum, grad, partial,
    C, K, P, images, splits, x_n, x_k, x_p, weight_c, weight_k, y_n, y_c, y_p, target_n, target_p, grad_n, grad_p,
    ignore_index, smoothing: tl.float64,
    EPILOGUE: tl.constexpr, BIASED: tl.constexpr, SPLIT: tl.constexpr, WEIGHTED: tl.constexpr, SMOOTH: tl.constexpr,
    PER_PIXEL: tl.constexpr, BLOCKS: tl.constexpr, DTYPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P pixels of one image, all classes.

    "softmax" and "log_softmax" write y [N, C, P], "argmax" y [N, P], "cross_entropy" the loss y [N, P], or the sums of
    loss and weight, and lse; "gradient" reads lse and writes d loss / d z, y [N, C, P].
    """
    tiles = tl.cdiv(P, BLOCK_P)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    p = (tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)).to(INDEX)
    inside = p < P
    x += n * x_n
    parts += n * P * C
    y += n * y_n
    label = tl.zeros([BLOCK_P], tl.int32)
    kept = inside
    known = inside
    e = tl.cast(smoothing, ACC)
    own_weight = tl.full([BLOCK_P], 1, ACC)
    all_weights = tl.full([1], C, ACC)
    if EPILOGUE == "cross_entropy" or EPILOGUE == "gradient":
        t = tl.load(target + n * target_n + p * target_p, mask=inside, other=0).to(tl.int64)
        kept = inside & (t != ignore_index)
        known = (t >= 0) & (t < C)
        label = tl.where(kept & known, t, 0).to(tl.int32)
        if WEIGHTED:
            own_weight = tl.load(class_weight + label)
            all_weights = tl.load(weight_sum + tl.arange(0, 1))
    if EPILOGUE == "gradient":
        level = tl.load(lse + n * P + p, mask=inside, other=0)
        g = tl.load(grad + n * grad_n + p * grad_p, mask=inside, other=0).to(ACC)
        g = tl.where(kept, tl.where(known, g, float("nan")), 0)
        own = (1 - e) * own_weight
        both = own + e / C * all_weights
        for block in range(BLOCKS):
            z = scores(
                x, weight, bias, parts, block, p, C, K, P, images, splits, x_k, x_p, weight_c, weight_k,
                BIASED, SPLIT, DTYPE, ACC, PRECISION, INDEX, BLOCK_P, BLOCK_C, BLOCK_K,
            )  # fmt: skip
            c = block * BLOCK_C + tl.arange(0, BLOCK_C)
            value = both[:, None] * tl.exp(z - level[:, None]) - tl.where(label[:, None] == c[None, :], own[:, None], 0)
            if SMOOTH:
                if WEIGHTED:
                    value -= (e / C * tl.load(class_weight + c, mask=c < C, other=0))[None, :]
                else:
                    value -= e / C
            value = tl.where(kept[:, None], value * g[:, None], 0)
            at = (p * y_p)[:, None] + (c.to(INDEX) * y_c)[None, :]
            tl.store(y + at, value, mask=inside[:, None] & (c < C)[None, :])
    elif EPILOGUE == "argmax":
        best = tl.full([BLOCK_P], float("-inf"), ACC)
        for block in range(BLOCKS):
            z = scores(
                x, weight, bias, parts, block, p, C, K, P, images, splits, x_k, x_p, weight_c, weight_k,
                BIASED, SPLIT, DTYPE, ACC, PRECISION, INDEX, BLOCK_P, BLOCK_C, BLOCK_K,
            )  # fmt: skip
            c = block * BLOCK_C + tl.arange(0, BLOCK_C)
            # NaN wins over everything, then the largest, of equals the first.
            nan = tl.max((z != z).to(tl.int32), 1) > 0
            largest = tl.max(tl.where(z == z, z, float("-inf")), 1)
            first = tl.where(nan[:, None], z != z, z == largest[:, None])
            winner = tl.min(tl.where(first, c[None, :], C), 1)
            better = (best == best) & (nan | (largest > best))
            label = tl.where(better, winner, label)
            best = tl.where(better, tl.where(nan, float("nan"), largest), best)
        tl.store(y + p * y_p, label.to(y.dtype.element_ty), mask=inside)
    else:
        most = tl.full([BLOCK_P], float("-inf"), ACC)
        total = tl.zeros([BLOCK_P], ACC)
        picked = tl.zeros([BLOCK_P], ACC)
        linear = tl.zeros([BLOCK_P], ACC)
        origin = tl.zeros([BLOCK_P], ACC)
        for block in range(BLOCKS):
            z = scores(
                x, weight, bias, parts, block, p, C, K, P, images, splits, x_k, x_p, weight_c, weight_k,
                BIASED, SPLIT, DTYPE, ACC, PRECISION, INDEX, BLOCK_P, BLOCK_C, BLOCK_K,
            )  # fmt: skip
            c = block * BLOCK_C + tl.arange(0, BLOCK_C)
            larger = tl.maximum(most, tl.max(z, 1))
            base = tl.where(larger == float("-inf"), 0, larger)
            total = total * tl.exp(most - base) + tl.sum(tl.exp(z - base[:, None]), 1)
            most = larger
            if EPILOGUE == "cross_entropy":
                picked += tl.sum(tl.where(label[:, None] == c[None, :], z, 0), 1)
                if SMOOTH:
                    if block == 0:
                        origin = base
                    share = z - origin[:, None]
                    if WEIGHTED:
                        share *= tl.load(class_weight + c, mask=c < C, other=0)[None, :]
                    linear += tl.sum(tl.where((c < C)[None, :], share, 0), 1)
            elif BLOCKS == 1:
                value = z - most[:, None]
                if EPILOGUE == "log_softmax":
                    value -= tl.log(total)[:, None]
                else:
                    value = tl.exp(value) / total[:, None]
                at = (p * y_p)[:, None] + (c.to(INDEX) * y_c)[None, :]
                tl.store(y + at, value.to(y.dtype.element_ty), mask=inside[:, None] & (c < C)[None, :])
        if EPILOGUE == "cross_entropy":
            log_total = tl.log(total)
            level = most + log_total
            tl.store(lse + n * P + p, tl.where(tl.abs(level) == float("inf"), float("nan"), level), mask=inside)
            value = (1 - e) * own_weight * ((most - picked) + log_total)
            if SMOOTH:
                value += e / C * (all_weights * ((most - origin) + log_total) - linear)
            value = tl.where(kept, tl.where(known, value, float("nan")), 0)
            if PER_PIXEL:
                tl.store(y + p * y_p, value, mask=inside)
            else:
                partial += tl.program_id(0).to(tl.int64) * 2
                tl.store(partial, tl.sum(value.to(tl.float64), 0))
                tl.store(partial + 1, tl.sum(tl.where(kept, own_weight, 0).to(tl.float64), 0))
        elif BLOCKS > 1:
            for block in range(BLOCKS):
                z = scores(
                    x, weight, bias, parts, block, p, C, K, P, images, splits, x_k, x_p, weight_c, weight_k,
                    BIASED, SPLIT, DTYPE, ACC, PRECISION, INDEX, BLOCK_P, BLOCK_C, BLOCK_K,
                )  # fmt: skip
                value = z - most[:, None]
                if EPILOGUE == "log_softmax":
                    value -= tl.log(total)[:, None]
                else:
                    value = tl.exp(value) / total[:, None]
                c = (block * BLOCK_C + tl.arange(0, BLOCK_C)).to(INDEX)
                at = (p * y_p)[:, None] + (c * y_c)[None, :]
                tl.store(y + at, value.to(y.dtype.element_ty), mask=inside[:, None] & (c < C)[None, :])


def launch(
    epilogue: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor | None,
    lse: Tensor | None = None,
    target: Tensor | None = None,
    class_weight: Tensor | None = None,
    grad: Tensor | None = None,
    ignore_index: int = 0,
    smoothing: float = 0.0,
) -> Tensor:
    """Scores and epilogue; y is [N, C, P] or [N, P], all other images [N, P]. Returns the programs' sums."""
    flat = x.flatten(2)  # a copy only where rows do not follow each other
    n, k, pixels = flat.shape
    classes = weight.shape[0]
    fp32 = precision(x.dtype)
    tiles = SCORE[arithmetic(x.dtype, fp32)]
    block_c = min(max(tiles), max(16, triton.next_power_of_2(classes)))
    block_p, block_k, warps, stages = tiles[block_c]
    programs = n * triton.cdiv(pixels, block_p)
    partial = torch.empty((programs, 2), dtype=torch.float64, device=x.device)
    if programs == 0:
        return partial
    splits, chunk = splits_of(programs, k, 256, block_k)
    blocks = triton.cdiv(classes, block_c)
    beside = x.dtype.itemsize == 4 and blocks > 1  # the tile stands in registers beside the running maxima
    parts = x
    if splits > 1:
        parts = matmul_parts(flat.mT, weight.t().expand(n, -1, -1), splits, chunk, x.dtype, fp32)
    image = partial if y is None else y
    strides = [*image.stride()] if image.dim() == 3 else [image.stride(0), 0, image.stride(1)]
    labels, incoming = (x.new_empty(0, 0) if t is None else t for t in (target, grad))
    with device_of(x):
        score_kernel[(programs,)](
            flat, weight, x if bias is None else bias, parts, image, x if lse is None else lse, labels,
            x if class_weight is None else class_weight, x if class_weight is None else class_weight.sum(),
            incoming, partial, classes, k, pixels, n, splits,
            *flat.stride(), *weight.stride(), *strides, *labels.stride(), *incoming.stride(), ignore_index,
            float(smoothing),
            EPILOGUE=epilogue, BIASED=bias is not None, SPLIT=splits > 1, WEIGHTED=class_weight is not None,
            SMOOTH=smoothing > 0, PER_PIXEL=y is not None, BLOCKS=blocks,
            DTYPE=element(x.dtype, x), ACC=accumulator(x), PRECISION=fp32,
            INDEX=index_type((), flat, image, parts[0] if splits > 1 else flat), BLOCK_P=block_p, BLOCK_C=block_c,
            BLOCK_K=block_k, num_warps=warps, num_stages=pipelined(stages), enable_fp_fusion=True,
            **(registers(8) if beside or x.dtype == torch.float64 else {}),
        )  # fmt: skip
    return partial


def gradients(g: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Of the scores in x, weight and bias, from g [N, C, H, W], that in the scores, in the dtype of the arithmetic."""
    grad_x, grad_weight = x.new_empty(0), weight.new_empty(0)
    flat, operand, fp32 = g.flatten(2), arithmetic_dtype(x.dtype), precision(x.dtype, gradient=True)
    if need_x:
        grad_x = empty_image(x, *x.shape[2:])
        if grad_x.numel():
            out = grad_x.flatten(2).mT
            matmul(flat.mT, weight.expand(x.shape[0], -1, -1), out, operand, fp32)
    if need_weight:
        grad_weight = matmul_sum(flat, x.flatten(2).mT, operand, fp32).to(weight.dtype)
    return grad_x, grad_weight, g.sum((0, 2, 3)).to(weight.dtype)
