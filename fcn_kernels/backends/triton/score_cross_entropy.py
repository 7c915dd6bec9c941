"""score_cross_entropy and its backward in Triton; see score.py for the counts of the forward.

The forward writes the log-sum-exp of every pixel, which the backward needs to compute the scores' gradient tile by tile
from the features. That gradient is written once, C / K of the size of x, and enters two matrix products (matmul.py) and
a sum over the pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ... import reference
from ...reference import NONE, arithmetic_dtype
from .launch import empty_image, reduced
from .score import gradients, launch


def score_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    reduction: int,
    label_smoothing: float,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, ...]:
    """Loss, total weight, log-sum-exp and gradients; see fcn_kernels.reference.score_cross_entropy."""
    _raise_on_the_cpu(target, weight, ignore_index)
    lse = torch.empty(target.shape, dtype=arithmetic_dtype(x.dtype), device=x.device)
    loss = torch.empty_like(lse) if reduction == NONE else None
    partial = launch(
        "cross_entropy", x, weight, bias, None if loss is None else loss.flatten(1), lse.flatten(1), target.flatten(1),
        class_weight, None, ignore_index, label_smoothing,
    )  # fmt: skip
    if loss is not None:
        return loss, lse.new_ones(()), lse, *(x.new_empty(0) for _ in range(3))
    loss, total = reduced(partial, reduction, target.numel(), lse.dtype)
    if x.dtype != lse.dtype or not (need_x or need_weight):
        return loss, total, lse, *(x.new_empty(0) for _ in range(3))
    grad = torch.where(total == 0, 0, 1 / total).expand(lse.shape)
    options = (class_weight, lse, ignore_index, label_smoothing, need_x, need_weight)
    return loss, total, lse.new_empty(0), *score_cross_entropy_backward(grad, x, weight, bias, target, *options)


def score_cross_entropy_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    lse: Tensor,
    ignore_index: int,
    label_smoothing: float,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients in x, weight and bias; see fcn_kernels.reference.score_cross_entropy_backward."""
    _raise_on_the_cpu(target, weight, ignore_index)
    g = empty_image(x, *x.shape[2:], lse.dtype, weight.shape[0])
    launch(
        "gradient", x, weight, bias, g.flatten(2), lse.flatten(1), target.flatten(1), class_weight, grad.flatten(1),
        ignore_index, label_smoothing,
    )  # fmt: skip
    return gradients(g, x, weight, need_x, need_weight)


def _raise_on_the_cpu(target: Tensor, weight: Tensor, ignore_index: int) -> None:
    if target.device.type == "cpu":
        reference.split_labels("score_cross_entropy", target, weight.shape[0], ignore_index)
