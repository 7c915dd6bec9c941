"""score_softmax, score_log_softmax and their backward in Triton; see score.py for the counts of the forward.

Backward, from the output p: the gradient in the scores is p (g - sum_c p g), for the logarithm g - exp(p) sum_c g. It
is written once, C / K of the size of x, by a kernel that reads g and p twice, and enters two matrix products
(matmul.py) and a sum over the pixels. The gradient in the weight is a sum over all pixels, in parts added in order.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ...reference import arithmetic_dtype
from .launch import accumulator, device_of, empty_image, index_type
from .score import gradients, launch


@triton.jit
def softmax_gradient_kernel(
    grad, output, result, C, P, grad_n, grad_c, grad_p, output_n, output_c, output_p, result_n, result_c, result_p,
    LOG: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P pixels of one image, all classes."""
    tiles = tl.cdiv(P, BLOCK_P)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    p = (tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P))[None, :].to(INDEX)
    grad += n * grad_n + p * grad_p
    output += n * output_n + p * output_p
    sums = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    for c0 in range(0, C, BLOCK_C):
        c = (c0 + tl.arange(0, BLOCK_C))[:, None].to(INDEX)
        read = (c < C) & (p < P)
        g = tl.load(grad + c * grad_c, mask=read, other=0).to(ACC)
        if not LOG:
            g *= tl.load(output + c * output_c, mask=read, other=0).to(ACC)
        sums += g
    total = tl.sum(sums, 0)[None, :]
    for c0 in range(0, C, BLOCK_C):
        c = (c0 + tl.arange(0, BLOCK_C))[:, None].to(INDEX)
        read = (c < C) & (p < P)
        g = tl.load(grad + c * grad_c, mask=read, other=0).to(ACC)
        value = tl.load(output + c * output_c, mask=read, other=0).to(ACC)
        if LOG:
            value = g - tl.exp(value) * total
        else:
            value = value * (g - total)
        tl.store(result + n * result_n + (c * result_c + p * result_p), value, mask=read)


def score_softmax(x: Tensor, weight: Tensor, bias: Tensor | None, log: bool) -> Tensor:
    """Probabilities of a 1x1 score convolution, or their logarithms; see fcn_kernels.reference.score_softmax."""
    y = empty_image(x, *x.shape[2:], channels=weight.shape[0])
    launch("log_softmax" if log else "softmax", x, weight, bias, y.flatten(2))
    return y


def score_softmax_backward(
    grad: Tensor, x: Tensor, weight: Tensor, output: Tensor, log: bool, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients in x, weight and bias; see fcn_kernels.reference.score_softmax_backward."""
    result = empty_image(output, *output.shape[2:], dtype=arithmetic_dtype(x.dtype))
    tensors = [t.flatten(2) for t in (grad, output, result)]
    n, c, pixels = tensors[0].shape
    block_c, block_p = (32, 32) if output.stride(1) == 1 and c > 1 else (4, 256)
    if result.numel():
        with device_of(x):
            softmax_gradient_kernel[(n * triton.cdiv(pixels, block_p),)](
                *tensors, c, pixels, *(s for t in tensors for s in t.stride()),
                LOG=log, ACC=accumulator(x), INDEX=index_type((), *tensors), BLOCK_C=block_c, BLOCK_P=block_p,
                enable_fp_fusion=True,
            )  # fmt: skip
    return gradients(result, x, weight, need_x, need_weight)
