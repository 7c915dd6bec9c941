"""check_labels: names the first wrong label."""

from __future__ import annotations

import pytest
import torch

from fcn_kernels import check_labels


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_right_labels_pass(dtype: torch.dtype) -> None:
    check_labels(torch.tensor([[0, 1, 2, 255]]).to(dtype), 3, 255)
    check_labels(torch.tensor([], dtype=dtype), 3)
    check_labels(torch.tensor([[0, 1, 2]]).to(dtype), 3, None)


def test_wrong_labels_are_named() -> None:
    target = torch.zeros(2, 3, 4, dtype=torch.long)
    target[1, 2, 0] = 7
    with pytest.raises(
        RuntimeError,
        match=r"^check_labels: target\[1, 2, 0\] = 7 is neither a class \(0 to 2\) nor ignore_index \(-100\)",
    ):
        check_labels(target, 3)
    with pytest.raises(
        RuntimeError, match=r"^check_labels: target\[1, 2, 0\] = 7 is not a class \(0 to 2\); ignore_index="
    ):
        check_labels(target, 3, None)
    check_labels(target, 3, 7)
    with pytest.raises(RuntimeError, match="= 156 is neither"):  # as a byte -100 would be 156
        check_labels(torch.tensor([156], dtype=torch.uint8), 3)


def test_refused() -> None:
    with pytest.raises(TypeError, match=r"got torch\.float32"):
        check_labels(torch.zeros(2), 3)
    with pytest.raises(TypeError, match="got list"):
        check_labels([1], 3)
    with pytest.raises(TypeError, match="classes must be an int"):
        check_labels(torch.zeros(2, dtype=torch.long), 3.0)
