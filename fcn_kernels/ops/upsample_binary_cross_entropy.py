"""upsample_binary_cross_entropy: the loss of a binary head, and its gradient, without the full-resolution logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._checks import (
    check_binary_target,
    check_class_weight,
    check_image,
    check_index,
    check_same_device,
    encode_sampling,
    reduction_code,
    target_size,
)
from .._library import batched_per_sample, define, differentiable, once_differentiable
from ..sampling import Sampling
from ._fakes import empty_arithmetic, empty_image, input_size, output_size
from ._losses import reduced_gradient


def _fake(x, target, pos_weight, sampling, ignore_index, reduction, with_grad):
    gradient = empty_arithmetic(x, 0)
    if reduction == reference.NONE:
        return empty_arithmetic(x, *x.shape[:2], *output_size(sampling)), empty_arithmetic(x), gradient
    if with_grad:
        gradient = empty_image(x, x.shape[1], input_size(sampling), gradient.dtype)
    return empty_arithmetic(x), empty_arithmetic(x), gradient


define(
    "upsample_binary_cross_entropy(Tensor x, Tensor target, Tensor? pos_weight, SymInt[] sampling,"
    " SymInt? ignore_index, int reduction, bool with_grad) -> (Tensor loss, Tensor total_weight, Tensor gradient)",
    reference.upsample_binary_cross_entropy,
    _fake,
)
define(
    "upsample_binary_cross_entropy_backward(Tensor grad, Tensor x, Tensor target, Tensor? pos_weight,"
    " SymInt[] sampling, SymInt? ignore_index) -> Tensor",
    reference.upsample_binary_cross_entropy_backward,
    lambda grad, x, target, pos_weight, sampling, ignore_index: empty_image(x, x.shape[1], input_size(sampling)),
)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, target, pos_weight, *ctx.options, _ = inputs
    _, total, gradient = output
    ctx.mark_non_differentiable(total, gradient)
    ctx.set_materialize_grads(False)
    ctx.complete = gradient.dim() > 1  # but for a factor
    ctx.save_for_backward(x, *((total, gradient) if ctx.complete else (target, pos_weight)))


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple:
    if grad is None:
        return (None,) * 7
    sampling, ignore_index, reduction = ctx.options
    if ctx.complete:
        x, total, gradient = ctx.saved_tensors
    else:
        x, target, pos_weight = ctx.saved_tensors
        if reduction == reference.NONE:
            grad_x = _upsample_binary_cross_entropy_backward(grad, x, target, pos_weight, sampling, ignore_index)
            return grad_x, None, None, None, None, None, None
        # with_grad was false
        _, total, gradient = _upsample_binary_cross_entropy(x.detach(), target, pos_weight, *ctx.options, True)
    grad_x = reduced_gradient("upsample_binary_cross_entropy", gradient, grad, total, reduction, x)
    return grad_x, None, None, None, None, None, None


_upsample_binary_cross_entropy = differentiable("upsample_binary_cross_entropy", _backward, _setup_context)
_upsample_binary_cross_entropy_backward = once_differentiable(
    "upsample_binary_cross_entropy_backward", "upsample_binary_cross_entropy"
)
batched_per_sample("upsample_binary_cross_entropy", [0, 1], loop_if=lambda *args: args[5] != reference.NONE)
batched_per_sample("upsample_binary_cross_entropy_backward", [0, 1, 2])


def upsample_binary_cross_entropy(
    x: Tensor,  # [N, C, h, w]
    target: Tensor,  # [N, C, H, W], or [N, H, W] for C = 1
    sampling: Sampling | Sequence[int] | None = None,
    *,
    pos_weight: Tensor | None = None,  # [C]
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:  # [] or the shape of target
    """Binary cross-entropy of upsampled logits, per channel.

    Equivalent PyTorch, where no pixel is ignored::

        F.binary_cross_entropy_with_logits(upsample(x, sampling), target.to(x.dtype), reduction=reduction,
                                           pos_weight=pos_weight.view(1, C, 1, 1))

    A pixel with label t costs ``-q t log sigmoid(z) - (1 - t) log sigmoid(-z)``, an ignored one nothing.

    Args:
        x: [N, C, h, w] logits in float32, float64, float16 or bfloat16; half types compute in float32.
        target: [N, C, H, W], or [N, H, W] when C is 1: labels 0 and 1 in bool, uint8, int16, int32 or int64, or
            probabilities in a floating dtype.
        sampling: a `Sampling` made for (h, w), or the output size (H, W); None means the target's size.
        pos_weight: [C] factors q of the positive pixels, constants in any floating dtype.
        ignore_index: the label of pixels that do not count; None when all count.
        reduction: "mean" divides by the number of pixels that count, "mean_all" by the number of all pixels, "sum" by
            nothing, "none" keeps the pixels. The channels of a pixel count separately.

    Returns:
        The loss in float32 (float64 for float64 logits). Where every pixel is ignored the mean is NaN with a gradient
        of zero. Differentiable in x, once; not in target.

    Raises:
        TypeError: x is not floating, or target holds another type.
        ValueError: wrong rank or shape, other devices, a sampling made for another size, an unknown reduction,
            a pos_weight of another length, a target that requires a gradient.
        RuntimeError: on the CPU, an integer label that is neither 0, 1 nor ignore_index (elsewhere the loss becomes
            NaN). When its gradient is differentiated.
    """
    op = "upsample_binary_cross_entropy"
    check_image(op, "x", x)
    encoded = encode_sampling(op, x, target_size(op, target) if sampling is None else sampling)
    check_binary_target(op, target, (x.shape[0], x.shape[1], encoded[1], encoded[6]))
    check_same_device(op, x, target=target)
    pos_weight = check_class_weight(op, "pos_weight", pos_weight, x, x.shape[1])
    if ignore_index is not None:
        ignore_index = check_index(op, "ignore_index", ignore_index)
    code = reduction_code(op, reduction)
    flat = target.dim() == 3
    loss, _, _ = _upsample_binary_cross_entropy(
        x,
        target.unsqueeze(1) if flat else target,
        pos_weight,
        encoded,
        ignore_index,
        code,
        torch.is_grad_enabled() and x.requires_grad,
    )
    return loss.squeeze(1) if flat and code == reference.NONE else loss
