"""channel_sum, the gradient of a bias, on every backend."""

from __future__ import annotations

import pytest
import torch
from budget import check_budget
from cases import ADVERSARIAL, DTYPES, LAYOUTS
from conftest import Backend

OPERATOR = "channel_sum"
SUM = torch.ops.fcn_kernels.channel_sum


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (1, 37, 40, 81), (3, 1, 1, 1), (0, 3, 2, 2), (2, 2, 300, 150)])
def test_equals_torch(backend: Backend, shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
    x = LAYOUTS[layout](torch.randn(shape, device=backend.device).to(dtype))
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    oracle = x.double().sum((0, 2, 3))
    check_budget(SUM(x), oracle.to(kind), oracle, x, gain=x[:, 0].numel() ** 0.5)


@pytest.mark.parametrize("values", ["nan", "inf", "minus-inf", "jumps", "offset"])
def test_values(backend: Backend, values: str) -> None:
    x = ADVERSARIAL[values](torch.randn(1, 3, 9, 21, device=backend.device))
    check_budget(SUM(x), x.sum((0, 2, 3)), x.double().sum((0, 2, 3)), x, gain=9.0)


def test_gradients_of_all_orders(backend: Backend) -> None:
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, device=backend.device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: SUM(t * t), x)
    assert torch.autograd.gradgradcheck(lambda t: SUM(t * t), x)
