"""upsample_cross_entropy: the loss of a segmentation head, and its gradient, without the full-resolution logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from .._checks import (
    check_class_weight,
    check_image,
    check_index,
    check_pixel_weight,
    check_same_device,
    check_smoothing,
    check_target,
    encode_sampling,
    reduction_code,
    target_size,
)
from .._library import batched_per_sample, define, differentiable, once_differentiable
from ..sampling import Sampling
from ._fakes import empty_arithmetic, empty_image, input_size, output_size
from ._losses import reduced_gradient


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
    x, target, weight, *ctx.options, _ = inputs
    _, total, gradient, lse = output
    ctx.mark_non_differentiable(total, gradient, lse)
    ctx.set_materialize_grads(False)
    ctx.complete = gradient.dim() > 1  # but for a factor
    ctx.save_for_backward(x, *((total, gradient) if ctx.complete else (target, weight, lse)))


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple:
    if grad is None:
        return (None,) * 8
    sampling, ignore_index, reduction, label_smoothing = ctx.options
    if ctx.complete:
        x, total, gradient = ctx.saved_tensors
    else:
        x, target, weight, lse = ctx.saved_tensors
        if reduction != reference.NONE or lse.dim() == 1:  # with_grad was false
            _, total, gradient, lse = _upsample_cross_entropy(x.detach(), target, weight, *ctx.options, True)
    if reduction == reference.NONE:
        grad_x = _upsample_cross_entropy_backward(grad, x, target, weight, lse, sampling, ignore_index, label_smoothing)
    else:
        grad_x = reduced_gradient("upsample_cross_entropy", gradient, grad, total, reduction, x)
    return grad_x, None, None, None, None, None, None, None


_upsample_cross_entropy = differentiable("upsample_cross_entropy", _backward, _setup_context)
_upsample_cross_entropy_backward = once_differentiable("upsample_cross_entropy_backward", "upsample_cross_entropy")
batched_per_sample("upsample_cross_entropy", [0, 1], loop_if=lambda *args: args[5] != reference.NONE)
batched_per_sample("upsample_cross_entropy_backward", [0, 1, 2, 4])


class CrossEntropyExtras(NamedTuple):
    """What `upsample_cross_entropy` returns with ``return_extras=True``. Only `loss` is differentiable."""

    loss: Tensor  # as without the extras
    pixel_loss: Tensor  # [N, H, W], what the reduction adds up
    logsumexp: Tensor  # [N, H, W], over the classes; NaN where a logit is infinite
    label_probability: Tensor  # [N, H, W], softmax at the label; zero for ignored pixels
    correct: Tensor  # [] int64, the pixels that count whose label is the argmax
    counted: Tensor  # [] int64, the pixels that count


def _mean(loss: Tensor, counts: Tensor) -> Tensor:
    """`reference.reduce` with a gradient of zero where nothing counts: it does not pass the quotient."""
    numerator, total = reference._sum(loss), reference._sum(counts)
    nothing = total == 0
    return torch.where(nothing, numerator.detach() / total, numerator / torch.where(nothing, 1, total))


def _per_pixel(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
    encoded: list[int],
    ignore_index: int,
    reduction: int,
    label_smoothing: float,
    return_extras: bool,
) -> Tensor | CrossEntropyExtras:
    """The loss by way of an image of pixel losses, which pixel weights and extras need."""
    loss, _, _, lse = _upsample_cross_entropy(
        x, target, weight, encoded, ignore_index, reference.NONE, label_smoothing, True
    )
    labels = target.long()  # first: a uint8 tensor compared with -100 would compare with 156
    kept = labels != ignore_index
    pixel_loss = loss if pixel_weight is None else loss * torch.where(kept, pixel_weight, 0)
    result = pixel_loss
    if reduction != reference.NONE:
        counts = kept.to(loss.dtype)
        if reduction == reference.MEAN and weight is not None:
            counts = torch.where(kept, weight[labels.clamp(0, x.shape[1] - 1)], 0)
        if reduction == reference.MEAN:
            result = _mean(pixel_loss, counts)
        else:
            result = reference.reduce(pixel_loss, counts, reduction)[0]
    if not return_extras:
        return result
    with torch.no_grad():
        x = x.detach()
        if weight is not None or label_smoothing > 0:
            loss, _, _, _ = _upsample_cross_entropy(x, target, None, encoded, ignore_index, reference.NONE, 0.0, False)
        winners, _ = torch.ops.fcn_kernels.upsample_argmax(x, encoded, torch.int32, False)
        return CrossEntropyExtras(
            result,
            pixel_loss.detach(),
            lse,
            torch.where(kept, (-loss.detach()).exp(), 0),
            ((winners == labels) & kept).sum(),
            kept.sum(),
        )


def upsample_cross_entropy(
    x: Tensor,  # [N, C, h, w]
    target: Tensor,  # [N, H, W]
    sampling: Sampling | Sequence[int] | None = None,
    *,
    weight: Tensor | None = None,  # [C]
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    pixel_weight: Tensor | None = None,  # [N, H, W]
    return_extras: bool = False,
) -> Tensor | CrossEntropyExtras:  # [] or [N, H, W]
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
        pixel_weight: [N, H, W] factors of the pixel losses, constants in any floating dtype. They do not enter the
            divisors: "mean" still divides by the class weights of the pixels that count.
        return_extras: return a `CrossEntropyExtras` with the loss, the pixels' losses, log-sum-exps and label
            probabilities, and the counts of a top-1 accuracy. This and pixel_weight take more passes over the small
            logits, and images [N, H, W].

    Returns:
        The loss, [] or [N, H, W], in float32 (float64 for float64 logits): also for half types, whose range a sum over
        pixels leaves. Where every pixel is ignored the mean is NaN with a gradient of zero, as in torch.
        Differentiable in x, once.

    Raises:
        TypeError: x is not floating, or target does not hold integers (soft targets are not supported).
        ValueError: wrong rank or shape, other devices, a sampling made for another size, an unknown reduction,
            smoothing outside [0, 1], class weights of another length, pixel weights of another shape.
        RuntimeError: on the CPU, a label that is neither a class nor ignore_index (elsewhere the loss becomes NaN; see
            `check_labels`). When its gradient is differentiated.
    """
    op = "upsample_cross_entropy"
    check_image(op, "x", x)
    encoded = encode_sampling(op, x, target_size(op, target) if sampling is None else sampling)
    check_target(op, target, (x.shape[0], encoded[1], encoded[6]))
    check_same_device(op, x, target=target)
    weight = check_class_weight(op, "weight", weight, x, x.shape[1])
    ignore_index = check_index(op, "ignore_index", ignore_index)
    code = reduction_code(op, reduction)
    label_smoothing = check_smoothing(op, label_smoothing)
    if pixel_weight is not None or return_extras:
        pixel_weight = check_pixel_weight(op, pixel_weight, x, target.shape)
        return _per_pixel(x, target, weight, pixel_weight, encoded, ignore_index, code, label_smoothing, return_extras)
    with_grad = torch.is_grad_enabled() and x.requires_grad
    loss, _, _, _ = _upsample_cross_entropy(x, target, weight, encoded, ignore_index, code, label_smoothing, with_grad)
    return loss
