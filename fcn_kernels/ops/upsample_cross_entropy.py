"""upsample_cross_entropy: the loss of a segmentation head, and its gradient, without the full-resolution logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._checks import (
    check_class_weight,
    check_image,
    check_index,
    check_same_device,
    check_smoothing,
    check_target,
    encode_sampling,
    reduction_code,
    target_size,
)
from .._library import batched_per_sample, define, differentiable, once_differentiable, refuse_double_backward
from ..sampling import Sampling
from ._fakes import empty_arithmetic, empty_image, input_size, output_size


def _fake(x, target, weight, sampling, ignore_index, reduction, label_smoothing, with_grad):
    pixels = (x.shape[0], *output_size(sampling))
    if reduction == reference.NONE:
        lse = empty_arithmetic(x, *(pixels if with_grad else (0,)))
        return empty_arithmetic(x, *pixels), empty_arithmetic(x), empty_arithmetic(x, 0), lse
    gradient = empty_arithmetic(x, 0)
    if with_grad:
        gradient = empty_image(x, x.shape[1], input_size(sampling), gradient.dtype)
    return empty_arithmetic(x), empty_arithmetic(x), gradient, empty_arithmetic(x, 0)


define(
    "upsample_cross_entropy(Tensor x, Tensor target, Tensor? weight, SymInt[] sampling, SymInt ignore_index,"
    " int reduction, float label_smoothing, bool with_grad)"
    " -> (Tensor loss, Tensor total_weight, Tensor gradient, Tensor lse)",
    reference.upsample_cross_entropy,
    _fake,
)
define(
    "upsample_cross_entropy_backward(Tensor grad, Tensor x, Tensor target, Tensor? weight, Tensor lse,"
    " SymInt[] sampling, SymInt ignore_index, float label_smoothing) -> Tensor",
    reference.upsample_cross_entropy_backward,
    lambda grad, x, target, weight, lse, sampling, ignore_index, label_smoothing: empty_image(
        x, x.shape[1], input_size(sampling)
    ),
)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, target, weight, ctx.sampling, ctx.ignore_index, ctx.reduction, ctx.label_smoothing, _ = inputs
    _, total, gradient, lse = output
    ctx.mark_non_differentiable(total, gradient, lse)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, target, weight, total, gradient, lse)


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple:
    if grad is None:
        return (None,) * 8
    x, target, weight, total, gradient, lse = ctx.saved_tensors
    missing = (lse if ctx.reduction == reference.NONE else gradient).dim() == 1  # with_grad was false
    if missing:
        options = (weight, ctx.sampling, ctx.ignore_index, ctx.reduction, ctx.label_smoothing, True)
        _, total, gradient, lse = torch.ops.fcn_kernels.upsample_cross_entropy(x.detach(), target, *options)
    if ctx.reduction == reference.NONE:
        grad_x = torch.ops.fcn_kernels.upsample_cross_entropy_backward(
            grad, x, target, weight, lse, ctx.sampling, ctx.ignore_index, ctx.label_smoothing
        )
    else:
        # The gradient is kept undivided in the arithmetic dtype and rounded once: that of one pixel is about
        # 1 / (N H W), which float16 cannot hold. Without a pixel that counts it is zero, as torch has it.
        factor = grad / total if ctx.reduction != reference.SUM else grad
        if ctx.reduction == reference.MEAN:
            factor = torch.where(total == 0, 0, factor)
        grad_x = refuse_double_backward("upsample_cross_entropy", (gradient * factor).to(x.dtype), x, grad)
    return grad_x, None, None, None, None, None, None, None


differentiable("upsample_cross_entropy", _backward, _setup_context)
once_differentiable("upsample_cross_entropy_backward", "upsample_cross_entropy")
batched_per_sample("upsample_cross_entropy", [0, 1], loop_if=lambda *args: args[5] != reference.NONE)
batched_per_sample("upsample_cross_entropy_backward", [0, 1, 2, 4])

_upsample_cross_entropy = torch.ops.fcn_kernels.upsample_cross_entropy.default


def upsample_cross_entropy(
    x: Tensor,  # [N, C, h, w]
    target: Tensor,  # [N, H, W]
    sampling: Sampling | Sequence[int] | None = None,
    *,
    weight: Tensor | None = None,  # [C]
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:  # [] or [N, H, W]
    """Cross-entropy of upsampled logits; the full-resolution logits are never written, forward or backward.

    Equivalent PyTorch::

        F.cross_entropy(upsample(x, sampling), target, weight=weight, ignore_index=ignore_index,
                        reduction=reduction, label_smoothing=label_smoothing)

    With ``p = softmax(upsample(x))`` and smoothing e, a pixel of class y costs
    ``-(1 - e) weight[y] log p[y] - e / C sum_c weight[c] log p[c]``, an ignored one nothing.

    Args:
        x: [N, C, h, w] logits in float32, float64, float16 or bfloat16; half types compute in float32.
        target: [N, H, W] labels in uint8, int16, int32 or int64: 0 to C - 1, or `ignore_index`.
        sampling: a `Sampling` made for (h, w), or the output size (H, W); None means the target's size.
        weight: [C] factors of the classes, constants in any floating dtype.
        ignore_index: the label of pixels that do not count, inside or outside the classes.
        reduction: "mean" divides by the weight of the pixels that count, "mean_all" by the number of all pixels,
            "sum" by nothing, "none" keeps the pixels.
        label_smoothing: in [0, 1].

    Returns:
        The loss, [] or [N, H, W], in float32 (float64 for float64 logits): also for half types, whose range a sum over
        pixels leaves. Where every pixel is ignored the mean is NaN with a gradient of zero, as in torch.
        Differentiable in x, once.

    Raises:
        TypeError: x is not floating, or target does not hold integers (soft targets are not supported).
        ValueError: wrong rank or shape, other devices, a sampling made for another size, an unknown reduction,
            smoothing outside [0, 1], class weights of another length.
        RuntimeError: on the CPU, a label that is neither a class nor ignore_index (elsewhere the loss becomes NaN; see
            `check_labels`). When its gradient is differentiated.
    """
    op = "upsample_cross_entropy"
    check_image(op, "x", x)
    encoded = encode_sampling(op, x, target_size(op, target) if sampling is None else sampling)
    check_target(op, target, (x.shape[0], encoded[1], encoded[6]))
    check_same_device(op, x, target=target)
    weight = check_class_weight(op, "weight", weight, x, x.shape[1])
    loss, _, _, _ = _upsample_cross_entropy(
        x,
        target,
        weight,
        encoded,
        check_index(op, "ignore_index", ignore_index),
        reduction_code(op, reduction),
        check_smoothing(op, label_smoothing),
        torch.is_grad_enabled() and x.requires_grad,
    )
    return loss
