"""score_softmax and score_log_softmax: a 1x1 score convolution with the softmax as its epilogue."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._checks import check_out, check_score
from .._library import batched_by_loop, batched_per_sample, define, define_out, differentiable, once_differentiable
from ._fakes import empty_image, empty_score_gradients

define(
    "score_softmax(Tensor x, Tensor weight, Tensor? bias, bool log) -> Tensor",
    reference.score_softmax,
    lambda x, weight, bias, log: empty_image(x, weight.shape[0], x.shape[2:]),
)
define(
    "score_softmax_backward(Tensor grad, Tensor x, Tensor weight, Tensor output, bool log, bool need_x,"
    " bool need_weight) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
    reference.score_softmax_backward,
    lambda grad, x, weight, output, log, need_x, need_weight: empty_score_gradients(x, weight, need_x, need_weight),
)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, _, ctx.log = inputs
    ctx.save_for_backward(x, weight, output)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    x, weight, output = ctx.saved_tensors
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    # What will be differentiated again is composed of PyTorch's operators, to any order.
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (grad, x, weight, output))
    f = reference.score_softmax_backward if recorded else _score_softmax_backward
    grad_x, grad_weight, grad_bias = f(grad, x, weight, output, ctx.log, need_x, need_weight)
    return (
        grad_x if need_x else None,
        grad_weight if need_weight else None,
        grad_bias if need_bias else None,
        None,
    )


_score_softmax = differentiable("score_softmax", _backward, _setup_context)
_score_softmax_backward = once_differentiable("score_softmax_backward", "score_softmax_backward")
batched_per_sample("score_softmax", [0])
batched_by_loop("score_softmax_backward")

_score_softmax_out = define_out("score_softmax")


def _run(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, log: bool, out: Tensor | None) -> Tensor:
    x, weight, bias = check_score(op, x, weight, bias)
    if out is None:
        return _score_softmax(x, weight, bias, log)
    check_out(op, out, x, (x.shape[0], weight.shape[0], *x.shape[2:]), x.dtype, weight, bias)
    _score_softmax_out(x, weight, bias, log, out=out)
    return out


def score_softmax(
    x: Tensor,  # [N, K, H, W]
    weight: Tensor,  # [C, K] or [C, K, 1, 1]
    bias: Tensor | None = None,  # [C]
    *,
    out: Tensor | None = None,
) -> Tensor:  # [N, C, H, W]
    """Class probabilities of a 1x1 score convolution.

    Equivalent PyTorch::

        F.conv2d(x, weight.view(C, K, 1, 1), bias).softmax(dim=1)

    Args:
        x: [N, K, H, W] features in float32, float64, float16 or bfloat16; half types compute in float32. Under
            autocast, x, weight and bias are cast as a convolution casts its arguments.
        weight: [C, K] or [C, K, 1, 1] in the dtype of x.
        bias: [C] in the dtype of x.
        out: a tensor for the result, of its shape, dtype and layout, apart from all inputs; no gradient is recorded.

    Returns:
        [N, C, H, W] in the dtype of x, channels_last if x is. Differentiable in x, weight and bias, any number of
        times.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: wrong rank, channels or bias length, another device.
        Of `out`: TypeError (dtype), ValueError (shape, layout, device, overlap), RuntimeError (a gradient is recorded).
    """
    return _run("score_softmax", x, weight, bias, False, out)


def score_log_softmax(
    x: Tensor,  # [N, K, H, W]
    weight: Tensor,  # [C, K] or [C, K, 1, 1]
    bias: Tensor | None = None,  # [C]
    *,
    out: Tensor | None = None,
) -> Tensor:  # [N, C, H, W]
    """Logarithms of the class probabilities of a 1x1 score convolution.

    Equivalent PyTorch::

        F.conv2d(x, weight.view(C, K, 1, 1), bias).log_softmax(dim=1)

    Arguments, result and exceptions are those of `score_softmax`.
    """
    return _run("score_log_softmax", x, weight, bias, True, out)
