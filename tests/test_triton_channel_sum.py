"""Triton's channel_sum, on the test body of the other backends."""

from __future__ import annotations

import pytest
import test_channel_sum
import torch
from cases import DTYPES, LAYOUTS
from conftest import Backend
from triton_cases import TRITON

pytestmark = TRITON


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(triton_backend: Backend, layout: str) -> None:
    for shape in ((2, 5, 3, 4), (1, 37, 40, 81), (0, 3, 2, 2)):
        test_channel_sum.test_equals_torch(triton_backend, shape, layout, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(triton_backend: Backend, dtype: torch.dtype) -> None:
    test_channel_sum.test_equals_torch(triton_backend, (2, 2, 60, 70), "contiguous", dtype)


@pytest.mark.parametrize("values", ["nan", "inf", "jumps"])
def test_values(triton_backend: Backend, values: str) -> None:
    test_channel_sum.test_values(triton_backend, values)


def test_same_bits(triton_backend: Backend) -> None:
    x = torch.randn(2, 3, 60, 70, device=triton_backend.device)
    assert test_channel_sum.SUM(x).equal(test_channel_sum.SUM(x))


def test_gradcheck(triton_backend: Backend) -> None:
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, device=triton_backend.device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: test_channel_sum.SUM(t * t), x, fast_mode=True)
