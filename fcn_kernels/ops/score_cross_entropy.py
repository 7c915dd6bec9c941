"""score_cross_entropy: 1x1 score convolution + cross-entropy; no logits are kept for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._checks import (
    check_class_weight,
    check_index,
    check_same_device,
    check_score,
    check_smoothing,
    check_target,
    reduction_code,
)
from .._library import (
    batched_by_loop,
    batched_per_sample,
    define,
    differentiable,
    once_differentiable,
    plain,
    refuse_double_backward,
)
from ._fakes import empty_arithmetic, empty_score_gradients


def _fake(x, weight, bias, target, class_weight, ignore_index, reduction, label_smoothing, need_x, need_weight):
    pixels = (x.shape[0], *x.shape[2:])
    none = x.new_empty(0)
    total = empty_arithmetic(x)
    if reduction == reference.NONE or x.dtype != total.dtype or not (need_x or need_weight):
        loss = empty_arithmetic(x, *(pixels if reduction == reference.NONE else ()))
        return loss, total, empty_arithmetic(x, *pixels), none, none.clone(), none.clone()
    gradients = empty_score_gradients(x, weight, need_x, need_weight)
    return empty_arithmetic(x), total, empty_arithmetic(x, 0), *gradients


def _fake_backward(
    grad, x, weight, bias, target, class_weight, lse, ignore_index, label_smoothing, need_x, need_weight
):
    return empty_score_gradients(x, weight, need_x, need_weight)


define(
    "score_cross_entropy(Tensor x, Tensor weight, Tensor? bias, Tensor target, Tensor? class_weight,"
    " SymInt ignore_index, int reduction, float label_smoothing, bool need_x, bool need_weight)"
    " -> (Tensor loss, Tensor total_weight, Tensor lse, Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
    reference.score_cross_entropy,
    _fake,
)
define(
    "score_cross_entropy_backward(Tensor grad, Tensor x, Tensor weight, Tensor? bias, Tensor target,"
    " Tensor? class_weight, Tensor lse, SymInt ignore_index, float label_smoothing, bool need_x, bool need_weight)"
    " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
    reference.score_cross_entropy_backward,
    _fake_backward,
)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, bias, target, class_weight, ctx.ignore_index, ctx.reduction, ctx.label_smoothing, _, _ = inputs
    _, *others = output
    ctx.mark_non_differentiable(*others)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, target, class_weight, *others)


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple:
    if grad is None:
        return (None,) * 10
    x, weight, bias, target, class_weight, total, lse, *gradients = ctx.saved_tensors
    need = ctx.needs_input_grad[:3]
    options = (ctx.ignore_index, ctx.reduction, ctx.label_smoothing)
    if any(n and g.dim() == 1 and g.numel() == 0 for n, g in zip(need, gradients, strict=True)):
        if lse.dim() == 1:  # one that is needed now was not asked for in the forward pass
            lse = _score_cross_entropy(x, weight, bias, target, class_weight, *options, False, False)[2]
        if ctx.reduction in (reference.MEAN, reference.MEAN_ALL):
            grad = torch.where(total == 0, 0, grad / total)
        if ctx.reduction != reference.NONE:
            grad = grad.expand(lse.shape)
        gradients = _score_cross_entropy_backward(
            grad, x, weight, bias, target, class_weight, lse, ctx.ignore_index, ctx.label_smoothing, *need[:2]
        )
    else:
        parameters = [t for t in (x, weight, bias) if t is not None]
        gradients = [
            refuse_double_backward("score_cross_entropy", _times(g, grad), *parameters, grad) if n else g
            for n, g in zip(need, gradients, strict=True)
        ]
    return *(g if n else None for n, g in zip(need, gradients, strict=True)), *(None,) * 7


def _times(gradient: Tensor, factor: Tensor) -> Tensor:
    """`gradient * factor`; that a factor is 1, as that of a loss is, costs nothing to see where nobody traces."""
    seen = factor.device.type == "cpu" and not factor.requires_grad and plain(factor)
    return gradient if seen and factor == 1 else gradient * factor


_score_cross_entropy = differentiable("score_cross_entropy", _backward, _setup_context)
_score_cross_entropy_backward = once_differentiable("score_cross_entropy_backward", "score_cross_entropy")
batched_per_sample("score_cross_entropy", [0, 3], loop_if=lambda *args: args[6] != reference.NONE)
batched_by_loop("score_cross_entropy_backward")


def score_cross_entropy(
    x: Tensor,  # [N, K, H, W]
    weight: Tensor,  # [C, K] or [C, K, 1, 1]
    bias: Tensor | None,  # [C]
    target: Tensor,  # [N, H, W]
    *,
    class_weight: Tensor | None = None,  # [C]
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:  # [] or [N, H, W]
    """Cross-entropy of a 1x1 score convolution, whose scores are not kept for the backward pass.

    On the CPU the gradients come out of the same pass, elsewhere (and of half types, and without reduction) the
    backward pass computes the scores again.

    Equivalent PyTorch::

        F.cross_entropy(F.conv2d(x, weight.view(C, K, 1, 1), bias), target, weight=class_weight,
                        ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)

    Args:
        x: [N, K, H, W] features in float32, float64, float16 or bfloat16; half types compute in float32. Under
            autocast, x, weight and bias are cast as a convolution casts its arguments.
        weight: [C, K] or [C, K, 1, 1] in the dtype of x.
        bias: [C] in the dtype of x, or None.
        target: [N, H, W] labels in uint8, int16, int32 or int64: 0 to C - 1, or `ignore_index`.
        class_weight: [C] factors of the classes, constants in any floating dtype.
        ignore_index, reduction, label_smoothing: as in `upsample_cross_entropy`.

    Returns:
        The loss, [] or [N, H, W], in float32 (float64 for float64 features). Differentiable in x, weight and bias,
        once.

    Raises:
        TypeError: a tensor is not floating, the dtypes differ, or target does not hold integers.
        ValueError: wrong rank, shape or channels, other devices, an unknown reduction, smoothing outside [0, 1], class
            weights of another length.
        RuntimeError: on the CPU, a label that is neither a class nor ignore_index (elsewhere the loss becomes NaN).
            When its gradient is differentiated.
    """
    op = "score_cross_entropy"
    x, weight, bias = check_score(op, x, weight, bias)
    check_target(op, target, (x.shape[0], *x.shape[2:]))
    check_same_device(op, x, target=target)
    # On the CPU loss and gradients come out of one pass, divided already; the scores are not computed twice.
    one_pass = torch.is_grad_enabled() and x.device.type == "cpu"
    loss, *_ = _score_cross_entropy(
        x,
        weight,
        bias,
        target,
        check_class_weight(op, "class_weight", class_weight, x, weight.shape[0]),
        check_index(op, "ignore_index", ignore_index),
        reduction_code(op, reduction),
        check_smoothing(op, label_smoothing),
        one_pass and x.requires_grad,
        one_pass and weight.requires_grad,
    )
    return loss
