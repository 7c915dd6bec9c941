"""The four metrics of Long, Shelhamer & Darrell (2015), section 5, from a confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
