"""score_argmax in Triton: the labels are all that is written; see score.py for the counts."""

from __future__ import annotations

import torch
from torch import Tensor

from .score import launch


def score_argmax(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Labels of a 1x1 score convolution; see fcn_kernels.reference.score_argmax."""
    labels = torch.empty((x.shape[0], *x.shape[2:]), dtype=dtype, device=x.device)
    launch("argmax", x, weight, bias, labels.flatten(1))
    return labels
