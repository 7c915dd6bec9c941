"""Matrix products of strided tensors: what the score convolutions and the learned upsampling compute in tiles.

Half types and float64 multiply as they are. float32 is multiplied exactly ("ieee": multiply-adds, no tensor cores)
unless torch.backends.cuda.matmul allows TF32. Gradients of half types are multiplied in TF32: the mantissas of half
types pass unchanged, and the incoming gradient keeps the range of float32, which float16 would not hold.
Long sums over few results are split among programs and added in a second pass, in a fixed order: no atomics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...reference import arithmetic_dtype
from .configurations import MATMUL
from .launch import accumulator, device_of, index_type, registers

ENOUGH = 264  # programs: two for each multiprocessor of an H200. A constant, so that all devices add alike.


@triton.jit
def product(
    total, a, b, row, column, row_ok, column_ok, k_begin, k_end, a_k, b_k,
    DTYPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """total + sum_k a[row + k a_k] b[k b_k + column] for offsets of rows and columns, k from k_begin to k_end."""
    for k0 in range(k_begin, k_end, BLOCK_K):
        k = (k0 + tl.arange(0, BLOCK_K)).to(INDEX)
        left = tl.load(a + (row[:, None] + (k * a_k)[None, :]), mask=row_ok[:, None] & (k < k_end)[None, :], other=0)
        right = tl.load(
            b + ((k * b_k)[:, None] + column[None, :]), mask=(k < k_end)[:, None] & column_ok[None, :], other=0
        )
        total = tl.dot(left.to(DTYPE), right.to(DTYPE), total, input_precision=PRECISION, out_dtype=ACC)
    return total


@triton.jit
def matmul_kernel(
    a, b, out,
    M, N, K, batches, images, chunk,
    a_b, a_m, a_k, b_b, b_k, b_n, out_s, out_b, out_m, out_n,
    DTYPE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: a tile of one result, summed over `images` batches and `chunk` of the inner dimension."""
    tiles = tl.cdiv(N, BLOCK_N)
    m = (tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)).to(INDEX)
    n = (tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)).to(INDEX)
    group = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    k_begin = split * chunk
    k_end = tl.minimum(k_begin + chunk, K)
    total = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for batch in range(tl.program_id(1) * images, tl.minimum((tl.program_id(1) + 1) * images, batches)):
        total = product(
            total, a + tl.cast(batch, tl.int64) * a_b, b + tl.cast(batch, tl.int64) * b_b,
            m * a_m, n * b_n, m < M, n < N, k_begin, k_end, a_k, b_k, DTYPE, ACC, PRECISION, INDEX, BLOCK_K,
        )  # fmt: skip
    out += split.to(tl.int64) * out_s + group * out_b
    tl.store(
        out + ((m * out_m)[:, None] + (n * out_n)[None, :]),
        total.to(out.dtype.element_ty),
        mask=(m < M)[:, None] & (n < N)[None, :],
    )


def precision(dtype: torch.dtype, gradient: bool = False) -> str:
    """How tl.dot multiplies float32, and what `gradient` makes of half types."""
    if torch.version.hip is not None:
        return "ieee"
    if gradient and dtype in (torch.float16, torch.bfloat16):
        return "tf32"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def splits_of(programs: int, length: int, at_least: int, block: int) -> tuple[int, int]:
    """Into how many parts a sum is split so that programs are enough, and the length of a part."""
    splits = max(1, min(ENOUGH // max(programs, 1), length // at_least))
    chunk = triton.cdiv(triton.cdiv(length, splits), block) * block
    return triton.cdiv(length, chunk), chunk


def matmul(a: Tensor, b: Tensor, out: Tensor, operand: torch.dtype, fp32: str) -> None:
    """out[i] = a[i] @ b[i] for [B, M, K] and [B, K, N] in any strides, multiplied in the dtype `operand`."""
    _launch(a, b, out[None], 1, a.shape[2], operand, fp32)


def matmul_sum(a: Tensor, b: Tensor, operand: torch.dtype, fp32: str) -> Tensor:
    """sum_i a[i] @ b[i], split where the sum is long, in the dtype of the arithmetic."""
    batches, m, k = a.shape
    n = b.shape[2]
    block_m, block_n, block_k, _, _ = tile(m, n, operand, fp32)
    tiles = triton.cdiv(m, block_m) * triton.cdiv(n, block_n)
    images = max(1, batches * tiles // (2 * ENOUGH))
    groups = triton.cdiv(batches, images)
    splits, chunk = splits_of(tiles * groups, k, 256, block_k)
    dtype = arithmetic_dtype(operand)
    parts = torch.empty((splits, groups, m, n), dtype=dtype, device=a.device)
    if parts.numel() and k:
        _launch(a, b, parts, images, chunk, operand, fp32)
    else:
        parts.zero_()
    return parts.flatten(0, 1).sum(0)


def matmul_parts(a: Tensor, b: Tensor, splits: int, chunk: int, operand: torch.dtype, fp32: str) -> Tensor:
    """The parts of a @ b that each chunk of the inner dimension gives: [splits, B, M, N]."""
    dtype = arithmetic_dtype(operand)
    parts = torch.empty((splits, a.shape[0], a.shape[1], b.shape[2]), dtype=dtype, device=a.device)
    _launch(a, b, parts, 1, chunk, operand, fp32)
    return parts


def arithmetic(operand: torch.dtype, fp32: str) -> str:
    """The row of the tables in configurations.py."""
    return {2: "half", 4: fp32, 8: "double"}[operand.itemsize]


def pipelined(stages: int) -> int:
    """Stages of the loads: AMD's 64 KB of local memory hold two."""
    return stages if torch.version.hip is None else min(stages, 2)


def tile(m: int, n: int, operand: torch.dtype, fp32: str, table: dict = MATMUL) -> Sequence[int]:
    """Rows, columns and depth of a tile, warps, stages."""
    rows, columns = (16 if size <= 16 else 32 if size <= 32 else 64 for size in (m, n))
    return rows, columns, *table[arithmetic(operand, fp32)][rows * columns]


def _launch(a: Tensor, b: Tensor, out: Tensor, images: int, chunk: int, operand: torch.dtype, fp32: str) -> None:
    batches, m, k = a.shape
    n = b.shape[2]
    block_m, block_n, block_k, warps, stages = tile(m, n, operand, fp32)
    grid = (triton.cdiv(m, block_m) * triton.cdiv(n, block_n), out.shape[1], out.shape[0])
    with device_of(a):
        matmul_kernel[grid](
            a, b, out, m, n, k, batches, images, chunk, *a.stride(), *b.stride(), *out.stride(),
            DTYPE=element(operand, a), ACC=accumulator(out), PRECISION=fp32, INDEX=index_type((), a, b, out[0]),
            BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, num_warps=warps, num_stages=pipelined(stages),
            enable_fp_fusion=True, **({} if arithmetic(operand, fp32) in ("half", "tf32") else registers(8)),
        )  # fmt: skip


def element(operand: torch.dtype, x: Tensor) -> tl.dtype:
    """Triton's name of a dtype. The interpreter cannot multiply bfloat16; float32 holds its values and products."""
    if operand == torch.bfloat16:
        return tl.float32 if x.device.type == "cpu" and interpreted() else tl.bfloat16
    return {torch.float32: tl.float32, torch.float64: tl.float64, torch.float16: tl.float16}[operand]


def interpreted() -> bool:
    return not isinstance(matmul_kernel, triton.JITFunction)
