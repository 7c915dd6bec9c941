"""check_labels: the exception that a GPU cannot raise without waiting."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from .._checks import LABELS, check_index


def check_labels(target: Tensor, classes: int, ignore_index: int | None = -100) -> None:
    """Raise if a label is neither a class nor `ignore_index`.

    On the CPU the losses do this by themselves. On other devices looking would make the host wait, so that their loss
    becomes NaN instead; this function waits, and names the first offender.

    Args:
        target: labels of any shape in uint8, int16, int32 or int64.
        classes: labels from 0 to classes - 1 are right.
        ignore_index: so is this one; None when all pixels count.

    Raises:
        TypeError: target does not hold integers.
        RuntimeError: with the first wrong label and where it stands.
    """
    op = "check_labels"
    if not isinstance(target, Tensor) or target.dtype not in LABELS:
        kind = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise TypeError(f"{op}: target must be a tensor of uint8, int16, int32 or int64, got {kind}")
    classes = check_index(op, "classes", classes)
    if ignore_index is not None:
        ignore_index = check_index(op, "ignore_index", ignore_index)
    with torch.no_grad():
        labels = target.long()
        bad = (labels < 0) | (labels >= classes)
        if ignore_index is not None:
            bad &= labels != ignore_index
        reference.raise_on_bad_label(op, labels, bad, classes, ignore_index)
