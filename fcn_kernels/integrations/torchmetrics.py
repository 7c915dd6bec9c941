"""torchmetrics: mean IU from running counts, without label maps or full-resolution scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from ..evaluation import IGNORE, Metrics, count


class MeanIoU(Metric):
    """Mean intersection over union of scores of any size, in the manner of `torchmetrics.Metric`.

    The state is one confusion matrix [C, C], summed over processes. `update` takes scores [N, C, h, w], upsampled to
    the labels without being written, or label maps [N, H, W]; `metrics()` has the other metrics of the FCN paper.

    Args:
        num_classes: C.
        ignore_index: the label of pixels that do not count; None when all count.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int, *, ignore_index: int | None = IGNORE, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.num_classes, self.ignore_index = num_classes, ignore_index
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", default=zeros, dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        found = count(preds, target, self.num_classes, ignore_index=self.ignore_index)
        self.confusion += found.to(self.confusion.device)

    def compute(self) -> Tensor:
        return torch.tensor(self.metrics().mean_iu, device=self.confusion.device)

    def metrics(self) -> Metrics:
        return Metrics.of(self.confusion)
