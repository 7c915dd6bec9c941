"""Triton's upsample_confusion_matrix, on the test body of the other backends."""

from __future__ import annotations

import pytest
import torch
from cases import parametrized
from conftest import Backend
from test_upsample_confusion_matrix import check
from triton_cases import FEW, TRITON

import fcn_kernels as fk
from fcn_kernels import Sampling

pytestmark = TRITON


@pytest.mark.parametrize("ignore_index", [None, 255, 1])
@pytest.mark.parametrize("sampling", **parametrized(FEW))
def test_counts(triton_backend: Backend, sampling: Sampling, ignore_index: int | None) -> None:
    x = torch.randn(2, 3, *sampling.input_size, device=triton_backend.device)
    target = torch.randint(0, 3, (2, *sampling.output_size), device=triton_backend.device, dtype=torch.uint8)
    if ignore_index is not None:
        target[:, :1] = ignore_index
    check(x, target, sampling, ignore_index)


def test_regions(triton_backend: Backend) -> None:
    """Programs whose pixels have one pair of classes, and one where every pixel is ignored."""
    x = torch.zeros(2, 3, 1, 1, device=triton_backend.device)
    x[0, 2], x[1, 1] = 1, 1
    target = torch.zeros(2, 20, 30, dtype=torch.int64, device=triton_backend.device)
    target[0], target[1, :18] = 1, -1
    counts = fk.upsample_confusion_matrix(x, target, ignore_index=-1)
    assert counts.cpu().equal(torch.tensor([[0, 60, 0], [0, 0, 600], [0, 0, 0]]))
    assert counts.cpu().equal(fk.upsample_confusion_matrix(x, target, ignore_index=-1).cpu())


def test_wrong_labels_and_empty(triton_backend: Backend) -> None:
    x = torch.randn(1, 3, 2, 2, device=triton_backend.device)
    target = torch.zeros(1, 3, 4, dtype=torch.int64, device=triton_backend.device)
    target[0, 1, 2] = -7
    with pytest.raises(RuntimeError, match=r"target\[0, 1, 2\] = -7 is not a class \(0 to 2\)"):
        fk.upsample_confusion_matrix(x, target, ignore_index=None)
    assert not fk.upsample_confusion_matrix(x[:0], target[:0], ignore_index=None).any()
