"""Evaluation from running counts: a confusion matrix grows batch by batch, and no scores or label maps are kept.

The metrics are the four of Long, Shelhamer & Darrell (2015), section 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from . import reference
from ._checks import LABELS, check_count, check_target
from .deferred import Deferred
from .models.fcn import FCN
from .models.unet import UNet
from .ops.check_labels import check_labels
from .ops.upsample_confusion_matrix import upsample_confusion_matrix
from .sampling import Sampling

__all__ = ["ConfusionMatrix", "Metrics", "count", "evaluate"]

IGNORE = 255


@dataclass(frozen=True)
class Metrics:
    """Shares from 0 to 1. With n[i, j] the pixels of class i that are labelled j and t[i] = sum_j n[i, j], means run
    over the classes that occur (t[i] > 0)."""

    pixel_accuracy: float  # sum_i n[i, i] / sum_i t[i]
    mean_accuracy: float  # mean_i n[i, i] / t[i]
    mean_iu: float  # mean_i n[i, i] / (t[i] + sum_j n[j, i] - n[i, i])
    frequency_weighted_iu: float  # sum_i t[i] IU[i] / sum_i t[i]
    iu: tuple[float, ...]  # per class; NaN where it does not occur

    @classmethod
    def of(cls, confusion: Tensor) -> Metrics:
        """From [C, C] counts, rows = truth. All are NaN when nothing was counted."""
        if confusion.dim() != 2 or confusion.shape[0] != confusion.shape[1]:
            raise ValueError(f"Metrics: the confusion matrix must be [C, C], got shape {list(confusion.shape)}")
        n = confusion.double().cpu()
        right, truth = n.diagonal(), n.sum(1)
        occurs = truth > 0
        iu = right / (truth + n.sum(0) - right)
        iu = torch.where(occurs, iu, torch.nan)
        return cls(
            (right.sum() / truth.sum()).item(),
            (right / truth)[occurs].mean().item(),
            iu[occurs].mean().item(),
            ((truth * iu)[occurs].sum() / truth.sum()).item(),
            tuple(iu.tolist()),
        )

    def __str__(self) -> str:
        return (
            f"pixel accuracy {self.pixel_accuracy:.3f}, mean accuracy {self.mean_accuracy:.3f}, "
            f"mean IU {self.mean_iu:.3f}, frequency weighted IU {self.frequency_weighted_iu:.3f}"
        )


def count(
    prediction: Tensor, target: Tensor, num_classes: int, *, sampling: Sampling | None = None, ignore_index: int | None
) -> Tensor:
    """The confusion matrix [C, C] of one batch: rows are classes of the target, columns those predicted.

    Args:
        prediction: scores [N, C, h, w] of any size, upsampled to the target's without being written; or labels
            [N, H, W] in uint8, int16, int32 or int64. Scores that `fcn_kernels.fuse` deferred stay deferred.
        target: [N, H, W] labels, 0 to C - 1, or `ignore_index`.
        num_classes: C.
        sampling: of the scores; None means bilinear interpolation to the target's size.
        ignore_index: the label of pixels that do not count; None when all count.

    Raises:
        TypeError: the prediction holds neither scores nor labels, or target does not hold integers.
        ValueError: shapes that do not fit each other or the classes, or a sampling of labels.
        RuntimeError: a label of the target or of the prediction that is no class.
    """
    op = "evaluation.count"
    if not isinstance(prediction, Tensor):
        raise TypeError(f"{op}: the prediction must be a tensor of scores or labels, got {type(prediction).__name__}")
    if prediction.is_floating_point():
        if prediction.dim() != 4 or prediction.shape[1] != num_classes:
            raise ValueError(
                f"{op}: scores must be [N, {num_classes}, h, w], one channel per class, got {list(prediction.shape)}"
            )
        deferred = isinstance(prediction, Deferred) and prediction.shape[2:] == target.shape[1:]
        if not deferred or sampling is not None:
            return upsample_confusion_matrix(prediction.detach(), target, sampling, ignore_index=ignore_index)
        prediction = prediction.argmax(1)
    elif prediction.dtype not in LABELS:
        raise TypeError(f"{op}: the prediction must hold floating scores or integer labels, got {prediction.dtype}")
    elif sampling is not None:
        raise ValueError(
            f"{op}: sampling= is of scores, but the prediction holds labels, which are counted as they are"
        )
    check_target(op, target, prediction.shape)
    check_labels(prediction, num_classes, ignore_index=None)
    return reference.count_labels(prediction.long(), target, num_classes, ignore_index)


class ConfusionMatrix:
    """Counts that grow batch by batch: [C, C] int64 is all that is kept.

    >>> counts = ConfusionMatrix(21)
    >>> for image, target in loader: counts.update(model(image), target)
    >>> counts.compute().mean_iu

    Args:
        num_classes: C.
        ignore_index: the label of pixels that do not count; None when all count.
        device: of the counts; by default that of the first batch.

    Raises:
        TypeError: num_classes is no integer.
        ValueError: num_classes is below 1.
    """

    def __init__(
        self, num_classes: int, *, ignore_index: int | None = IGNORE, device: torch.device | str | None = None
    ) -> None:
        self.num_classes = check_count("ConfusionMatrix", "num_classes", num_classes)
        self.ignore_index, self.device = ignore_index, device
        self.reset()

    def reset(self) -> None:
        self.counts = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64, device=self.device)

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor, sampling: Sampling | None = None) -> None:
        """Adds a batch; see `count`."""
        options = {"sampling": sampling, "ignore_index": self.ignore_index}
        found = count(prediction, target, self.num_classes, **options)
        self.counts = self.counts.to(self.device or found.device) + found.to(self.device or found.device)

    def add(self, counts: Tensor) -> None:
        """Adds counts [C, C] that were made elsewhere, as by a network's `confusion_matrix`."""
        if counts.shape != self.counts.shape or counts.dtype != torch.int64:
            raise ValueError(
                f"ConfusionMatrix: counts must be int64 {list(self.counts.shape)}, "
                f"got {counts.dtype} {list(counts.shape)}"
            )
        self.counts = self.counts.to(self.device or counts.device) + counts.to(self.device or counts.device)

    def all_reduce(self) -> None:
        """Sums the counts over all processes of torch.distributed; nothing to do where there is one."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.counts)

    def compute(self) -> Metrics:
        return Metrics.of(self.counts)


def _scores(output: Any) -> Tensor:
    """What libraries return: a tensor, a dict with "out" (torchvision), or something with `logits` (transformers)."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and "out" in output:
        return output["out"]
    found = getattr(output, "logits", None)
    if isinstance(found, Tensor):
        return found
    raise TypeError(
        f'evaluate: the model returned {type(output).__name__}, in which there is no tensor, "out" or logits; '
        "pass scores=, a function from what it returns to scores or labels"
    )


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Any, Tensor]],
    num_classes: int,
    *,
    ignore_index: int | None = IGNORE,
    scores: Callable[[Any], Tensor] = _scores,
    device: torch.device | str | None = None,
    across_processes: bool = False,
) -> Metrics:
    """The metrics of a model over batches (input, target), as a DataLoader yields them.

    Neither logits nor label maps are kept, and full-resolution logits are never made where the model returns small
    ones (transformers), was fused (torchvision, segmentation_models_pytorch), or is one of `fcn_kernels.models`.

    Args:
        model: called with the input, a tensor or a mapping (whose items become keyword arguments), in eval mode; the
            mode of every module is kept. Its parameters' device takes the batches.
        batches: pairs of inputs and labels [N, H, W].
        num_classes: C.
        ignore_index: the label of pixels that do not count; None when all count.
        scores: from what the model returns to scores [N, C, h, w] or labels [N, H, W].
        device: of the batches; by default that of the model's first parameter.
        across_processes: each process of torch.distributed has its share of the batches, and all get the metrics of
            all. Every process must call.

    Raises:
        TypeError: nothing in the model's output is known to be scores. Besides, what `count` raises.
    """
    counts = ConfusionMatrix(num_classes, ignore_index=ignore_index)
    if device is None:
        device = next((p.device for p in model.parameters()), None)
    own = model.confusion_matrix if isinstance(model, (FCN, UNet)) and scores is _scores else None
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        for inputs, target in batches:
            target = target.to(device)
            if isinstance(inputs, Mapping):
                inputs = {name: t.to(device) if isinstance(t, Tensor) else t for name, t in inputs.items()}
                counts.update(scores(model(**inputs)), target)
            elif own is not None:
                counts.add(own(inputs.to(device), target, ignore_index=ignore_index))
            else:
                counts.update(scores(model(inputs.to(device))), target)
    finally:
        for m, training in modes:
            m.training = training
    if across_processes:
        counts.all_reduce()
    return counts.compute()
