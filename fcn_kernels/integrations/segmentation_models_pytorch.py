"""segmentation_models_pytorch: its soft cross-entropy. Its models, heads and activations need no code of their own."""

from __future__ import annotations

from typing import Any

from segmentation_models_pytorch.losses import SoftCrossEntropyLoss
from torch import Tensor, nn

from ..deferred import cross_entropy_of
from ..fusion import Entry, Fused, Report, fused_class
from . import untested_version

__all__: list[str] = []

TESTED = ("0.6",)
NO_LABEL = -(2**62)
REDUCTIONS = {"mean": "mean_all", "sum": "sum", "none": "none"}


def untested() -> str | None:
    """A warning, if this version of the library was not tested."""
    return untested_version("segmentation_models_pytorch", TESTED)


class FusedSoftCrossEntropyLoss(Fused):
    """Reads deferred logits where they are small. The library's mean divides by all pixels, ignored ones included."""

    def forward(self: Any, y_pred: Tensor, y_true: Tensor) -> Tensor:
        loss = None
        labels = y_true.squeeze(1) if y_true.dim() == 4 and y_true.shape[1] == 1 else y_true
        if self.dim in (1, -3) and self.smooth_factor is not None and self.reduction in REDUCTIONS:
            loss = cross_entropy_of(
                y_pred,
                labels,
                ignore_index=NO_LABEL if self.ignore_index is None else self.ignore_index,
                reduction=REDUCTIONS[self.reduction],
                label_smoothing=self.smooth_factor,
            )
        if loss is None:
            return super().forward(y_pred, y_true)
        # Without a reduction the library keeps the axis of the classes where it masks pixels.
        return loss.unsqueeze(1) if self.reduction == "none" and self.ignore_index is not None else loss


def fuse_module(name: str, module: nn.Module, report: Report) -> None:
    """The soft cross-entropy."""
    if type(module) is SoftCrossEntropyLoss:
        module.__class__ = fused_class(FusedSoftCrossEntropyLoss, SoftCrossEntropyLoss)
        report.fused.append(
            Entry(name, "SoftCrossEntropyLoss", "reads deferred logits without their log-probabilities")
        )


def fuse_object(thing: Any, report: Report) -> bool:
    """Nothing but modules."""
    return False
