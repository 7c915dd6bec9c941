"""upsample_confusion_matrix: evaluation counts of a segmentation head, without logits at full resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from .._checks import check_image, check_index, check_same_device, check_target, encode_sampling, target_size
from .._library import batched_by_loop, define, non_differentiable
from ..sampling import Sampling


def _fallback(x: Tensor, target: Tensor, sampling: Sequence[int], ignore_index: int | None) -> Tensor:
    """Counts the labels that the fastest `upsample_argmax` of the device gives."""
    labels, _ = torch.ops.fcn_kernels.upsample_argmax(x, sampling, torch.int32, False)
    return reference.count_labels(labels, target, x.shape[1], ignore_index)


define(
    "upsample_confusion_matrix(Tensor x, Tensor target, SymInt[] sampling, SymInt? ignore_index) -> Tensor",
    _fallback,
    lambda x, target, sampling, ignore_index: x.new_empty((x.shape[1], x.shape[1]), dtype=torch.int64),
)
_upsample_confusion_matrix = non_differentiable("upsample_confusion_matrix")
batched_by_loop("upsample_confusion_matrix")


def upsample_confusion_matrix(
    x: Tensor,  # [N, C, h, w]
    target: Tensor,  # [N, H, W]
    sampling: Sampling | Sequence[int] | None = None,
    *,
    ignore_index: int | None,
) -> Tensor:  # [C, C]
    """How often each class is labelled as each class; accuracies and IU follow from it.

    Equivalent PyTorch::

        kept = target != ignore_index
        pairs = target[kept] * C + upsample(x, sampling).argmax(dim=1)[kept]
        torch.bincount(pairs, minlength=C * C).view(C, C)

    Args:
        x: [N, C, h, w] logits in float32, float64, float16 or bfloat16.
        target: [N, H, W] labels in uint8, int16, int32 or int64: 0 to C - 1, or `ignore_index`.
        sampling: a `Sampling` made for (h, w), or the output size (H, W); None means the target's size.
        ignore_index: the label of pixels that do not count; None when all count.

    Returns:
        [C, C] in int64, rows are classes of the target, columns those predicted. Not differentiable.

    Raises:
        TypeError: x is not floating, or target does not hold integers.
        ValueError: wrong rank or shape, other devices, a sampling made for another size.
        RuntimeError: a label that is neither a class nor ignore_index.
    """
    op = "upsample_confusion_matrix"
    check_image(op, "x", x)
    encoded = encode_sampling(op, x, target_size(op, target) if sampling is None else sampling)
    check_target(op, target, (x.shape[0], encoded[1], encoded[6]))
    check_same_device(op, x, target=target)
    if ignore_index is not None:
        ignore_index = check_index(op, "ignore_index", ignore_index)
    return _upsample_confusion_matrix(x.detach() if x.requires_grad else x, target, encoded, ignore_index)
