"""upsample_confusion_matrix on every backend, and composed of the fastest argmax."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, FEW_SAMPLINGS, LAYOUTS, parametrized
from conftest import Backend

import fcn_kernels as fk
from fcn_kernels import Sampling, reference

OPERATOR = "upsample_confusion_matrix"


def check(x: torch.Tensor, target: torch.Tensor, sampling: Sampling, ignore_index: int | None) -> None:
    ours = fk.upsample_confusion_matrix(x, target, sampling, ignore_index=ignore_index)
    labels = reference.upsample_argmax(x, sampling.encode(), torch.int64, False)[0]
    expected = torch.zeros(x.shape[1], x.shape[1], dtype=torch.int64)
    for t, p in zip(target.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if t != ignore_index:
            expected[t, p] += 1
    assert ours.cpu().equal(expected)


@pytest.mark.parametrize("ignore_index", [None, 255, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sampling", **parametrized(FEW_SAMPLINGS))
def test_counts(backend: Backend, sampling: Sampling, dtype: torch.dtype, ignore_index: int | None) -> None:
    x = torch.randn(2, 5, *sampling.input_size, device=backend.device).to(dtype)
    target = torch.randint(0, 5, (2, *sampling.output_size), device=backend.device)
    if ignore_index is not None:
        target[:, :2] = ignore_index
    check(x, target.to(torch.uint8), sampling, ignore_index)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_a_named_backend(layout: str) -> None:
    sampling = Sampling.interpolate((6, 7), (20, 31))
    x = LAYOUTS[layout](torch.randn(2, 5, 6, 7))
    check(x, torch.randint(0, 5, (2, 20, 31)), sampling, -100)


def test_default_size_and_empty(backend: Backend) -> None:
    x = torch.randn(2, 3, 4, 5, device=backend.device, requires_grad=True)
    target = torch.zeros(2, 8, 9, dtype=torch.int32, device=backend.device)
    counts = fk.upsample_confusion_matrix(x, target, ignore_index=None)
    assert counts.sum() == target.numel()
    assert not fk.upsample_confusion_matrix(x[:0], target[:0], ignore_index=None).any()
    assert not fk.upsample_confusion_matrix(x, target, ignore_index=0).any()


X, TARGET = torch.randn(2, 3, 5, 6), torch.zeros(2, 10, 12, dtype=torch.long)


@pytest.mark.parametrize(
    ("target", "ignore_index", "error", "message"),
    [
        (TARGET.float(), 255, TypeError, "soft targets are not supported"),
        (TARGET[:1], 255, ValueError, r"got shape \[1, 10, 12\]"),
        (
            TARGET - 1,
            255,
            RuntimeError,
            r"target\[0, 0, 0\] = -1 is neither a class \(0 to 2\) nor ignore_index \(255\)",
        ),
        (TARGET + 3, None, RuntimeError, r"target\[0, 0, 0\] = 3 is not a class \(0 to 2\)"),
        (TARGET, 1.0, TypeError, "ignore_index must be an int"),
        (TARGET.to("meta"), 255, ValueError, "target is on meta"),
    ],
)
def test_refused(target: torch.Tensor, ignore_index: int | None, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        fk.upsample_confusion_matrix(X, target, ignore_index=ignore_index)
    assert str(raised.value).startswith("upsample_confusion_matrix: ")
