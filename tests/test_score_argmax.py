"""score_argmax on every backend; what is refused stands in test_score_softmax.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, LAYOUTS
from conftest import Backend

import fcn_kernels as fk

OPERATOR = "score_argmax"


@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels(backend: Backend, layout: str, dtype: torch.dtype, biased: bool) -> None:
    x = LAYOUTS[layout](torch.randn(2, 9, 4, 5, device=backend.device).to(dtype))
    weight = torch.randn(6, 9, device=backend.device).to(dtype)
    bias = torch.randn(6, device=backend.device).to(dtype) if biased else None
    labels = fk.score_argmax(x, weight, bias)
    z = F.conv2d(x.double(), weight.double()[:, :, None, None], None if bias is None else bias.double())
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    band = 16 * torch.finfo(arithmetic).eps * z.abs().max()
    assert labels.dtype == torch.int64
    assert (z.gather(1, labels[:, None]) >= z.amax(1, keepdim=True) - band).all()


def test_ties_and_nan(backend: Backend) -> None:
    x = torch.ones(1, 2, 2, 2, device=backend.device)
    assert (fk.score_argmax(x, torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]], device=backend.device)) == 1).all()
    x[0, 0, 0, 0] = torch.nan
    assert fk.score_argmax(x, torch.eye(2, device=backend.device))[0, 0, 0] == 0


def test_not_differentiable(backend: Backend) -> None:
    x = torch.randn(1, 3, 4, 5, device=backend.device, requires_grad=True)
    assert not fk.score_argmax(x, torch.randn(2, 3, device=backend.device, requires_grad=True)).requires_grad
    assert fk.score_argmax(x[:0], torch.randn(2, 3, device=backend.device)).shape == (0, 4, 5)
