"""score_softmax and score_log_softmax: a 1x1 score convolution with the softmax as its epilogue."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from .._checks import check_score
from .._library import batched_per_sample, define, differentiable
from ._fakes import empty_image

define(
    "score_softmax(Tensor x, Tensor weight, Tensor? bias, bool log) -> Tensor",
    reference.score_softmax,
    lambda x, weight, bias, log: empty_image(x, weight.shape[0], x.shape[2:]),
)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, _, ctx.log = inputs
    ctx.save_for_backward(x, weight, output)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    """``g = p (grad - sum p grad)``, then the gradients of a matrix product. Plain PyTorch, to any order."""
    x, weight, output = ctx.saved_tensors
    dtype = reference.arithmetic_dtype(x.dtype)
    g, p = grad.to(dtype), output.to(dtype)
    if ctx.log:
        g = g - p.exp() * g.sum(1, keepdim=True)
    else:
        g = p * (g - (p * g).sum(1, keepdim=True))
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = F.conv2d(g, weight.to(dtype).t()[:, :, None, None]).to(x.dtype)
    if ctx.needs_input_grad[1]:
        grad_weight = torch.einsum("nchw,nkhw->ck", g, x.to(dtype)).to(weight.dtype)
    if ctx.needs_input_grad[2]:
        grad_bias = g.sum((0, 2, 3)).to(weight.dtype)
    return grad_x, grad_weight, grad_bias, None


differentiable("score_softmax", _backward, _setup_context)
batched_per_sample("score_softmax", [0])

_score_softmax = torch.ops.fcn_kernels.score_softmax.default


def score_softmax(
    x: Tensor,  # [N, K, H, W]
    weight: Tensor,  # [C, K] or [C, K, 1, 1]
    bias: Tensor | None = None,  # [C]
) -> Tensor:  # [N, C, H, W]
    """Class probabilities of a 1x1 score convolution.

    Equivalent PyTorch::

        F.conv2d(x, weight.view(C, K, 1, 1), bias).softmax(dim=1)

    Args:
        x: [N, K, H, W] features in float32, float64, float16 or bfloat16; half types compute in float32. Under
            autocast, x, weight and bias are cast as a convolution casts its arguments.
        weight: [C, K] or [C, K, 1, 1] in the dtype of x.
        bias: [C] in the dtype of x.

    Returns:
        [N, C, H, W] in the dtype of x, channels_last if x is. Differentiable in x, weight and bias, any number of
        times.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: wrong rank, channels or bias length, another device.
    """
    return _score_softmax(*check_score("score_softmax", x, weight, bias), False)


def score_log_softmax(
    x: Tensor,  # [N, K, H, W]
    weight: Tensor,  # [C, K] or [C, K, 1, 1]
    bias: Tensor | None = None,  # [C]
) -> Tensor:  # [N, C, H, W]
    """Logarithms of the class probabilities of a 1x1 score convolution.

    Equivalent PyTorch::

        F.conv2d(x, weight.view(C, K, 1, 1), bias).log_softmax(dim=1)

    Arguments, result and exceptions are those of `score_softmax`.
    """
    return _score_softmax(*check_score("score_log_softmax", x, weight, bias), True)
