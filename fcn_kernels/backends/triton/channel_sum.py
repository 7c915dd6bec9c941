"""channel_sum in Triton, the gradient of a bias.

x is read once, each program adds a part of an image, and the parts are added in a fixed order, with no atomics.
Bandwidth bound: 64 channels of 512 x 512 pixels in float32 are 67 MB, 16 us at an H200's 4.3 TB/s. This is a count: no
GPU has run it yet.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...reference import arithmetic_dtype
from .launch import accumulator, device_of, image_blocks, index_type
from .matmul import splits_of


@triton.jit
def channel_sum_kernel(
    x, parts,
    C, P, splits, chunk, x_n, x_c, x_p,
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_C channels, `chunk` pixels of one image."""
    pid = tl.program_id(0)
    n, start = (pid // splits).to(tl.int64), pid % splits * chunk
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    x += n * x_n
    total = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    for first in range(start, tl.minimum(start + chunk, P), BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        at = (c.to(INDEX) * x_c)[:, None] + (p.to(INDEX) * x_p)[None, :]
        total += tl.load(x + at, mask=(c < C)[:, None] & (p < P)[None, :], other=0).to(ACC)
    tl.store(parts + pid.to(tl.int64) * C + c, tl.sum(total, 1), mask=c < C)


def channel_sum(x: Tensor) -> Tensor:
    """The sum over batch and pixels; see fcn_kernels.reference.channel_sum."""
    flat = x.flatten(2)  # a copy only where rows do not follow each other
    n, c, pixels = flat.shape
    block_c, block_p = image_blocks(flat, flat)
    blocks = triton.cdiv(c, block_c)
    splits, chunk = splits_of(n * blocks, pixels, 16 * block_p, block_p) if x.numel() else (0, 0)
    parts = torch.empty((n * splits, c), dtype=arithmetic_dtype(x.dtype), device=x.device)
    if parts.numel():
        with device_of(x):
            channel_sum_kernel[n * splits, blocks](
                flat, parts, c, pixels, splits, chunk, *flat.stride(),
                ACC=accumulator(x), INDEX=index_type((), flat), BLOCK_C=block_c, BLOCK_P=block_p,
            )  # fmt: skip
    return parts.sum(0)
