"""upsample_confusion_matrix in Triton: labels by upsample_argmax.py, counted by integer atomics.

Integers add up to the same sum in any order, so that the atomics change no bit. Where all pixels of a program have the
same pair of classes, as inside regions, one atomic counts them; the programs share `copies` of the matrix, which are
added at the end. Labels are written and read once as 32 bits, targets read once: with upsampling by 4 the argmax
dominates.

A label that is wrong raises, as everywhere: this is the one operator that looks at a result on the host, since counts
cannot say NaN. While a CUDA graph is captured nobody may look, and a wrong label makes every count -1 instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import reference
from .launch import device_of, index_type
from .upsample_argmax import upsample_argmax

NAME = "upsample_confusion_matrix"


@triton.jit
def confusion_matrix_kernel(
    labels, target, counts,
    C, W, pixels, target_n, target_h, target_w, ignore_index, copies,
    IGNORE: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P pixels of one image. The last entry of a copy counts the wrong labels."""
    tiles = tl.cdiv(pixels, BLOCK_P)
    pid = tl.program_id(0)
    n = (pid // tiles).to(tl.int64)
    p = (pid % tiles * BLOCK_P + tl.arange(0, BLOCK_P)).to(INDEX)
    inside = p < pixels
    row = p // W
    y = tl.load(target + n * target_n + (row * target_h + (p - row * W) * target_w), mask=inside, other=0)
    y = y.to(tl.int64)
    kept = inside
    if IGNORE:
        kept = inside & (y != ignore_index)
    known = (y >= 0) & (y < C)
    winner = tl.load(labels + n * pixels + p, mask=inside, other=0)
    pair = tl.where(kept & known, y * C + winner, tl.cast(C, tl.int64) * C)
    counts += (pid % copies).to(tl.int64) * (tl.cast(C, tl.int64) * C + 1)
    kept_pixels = tl.sum(kept.to(tl.int32), 0)
    smallest = tl.min(tl.where(kept, pair, tl.cast(C, tl.int64) * C), 0)
    same = tl.sum((kept & (pair == smallest)).to(tl.int32), 0)
    if same == kept_pixels:
        if kept_pixels > 0:
            tl.atomic_add(counts + smallest, kept_pixels.to(tl.int64))
    else:
        tl.atomic_add(counts + pair, tl.full([BLOCK_P], 1, tl.int64), mask=kept)


def upsample_confusion_matrix(x: Tensor, target: Tensor, sampling: Sequence[int], ignore_index: int | None) -> Tensor:
    """Counts of (label, argmax); see fcn_kernels.reference.upsample_confusion_matrix."""
    n, c = x.shape[:2]
    H, W = sampling[1], sampling[6]
    labels, _ = upsample_argmax(x, sampling, torch.int32, False)
    copies = max(1, min(64, (1 << 20) // (c * c)))
    counts = torch.zeros((copies, c * c + 1), dtype=torch.int64, device=x.device)
    block = 256
    if n:
        with device_of(x):
            confusion_matrix_kernel[(n * triton.cdiv(H * W, block),)](
                labels, target, counts, c, W, H * W, *target.stride(), 0 if ignore_index is None else ignore_index,
                copies, IGNORE=ignore_index is not None, INDEX=index_type((), target[:, None]), BLOCK_P=block,
            )  # fmt: skip
    counts = counts.sum(0)
    matrix, wrong = counts[:-1].view(c, c), counts[-1]
    if x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.where(wrong == 0, matrix, -1)
    if wrong.item():
        _, _, bad = reference.split_labels(NAME, target, c, ignore_index)
        reference.raise_on_bad_label(NAME, target, bad, c, ignore_index)
    return matrix.clone()
