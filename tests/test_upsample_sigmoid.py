"""upsample_sigmoid on every backend."""

from __future__ import annotations

import pytest
import torch
from budget import check_budget
from cases import ADVERSARIAL, DTYPES, FEW_SAMPLINGS, LAYOUTS, layout_rule, parametrized
from conftest import Backend

import fcn_kernels as fk
from fcn_kernels import Sampling, reference

OPERATOR = "upsample_sigmoid"


def check(backend: Backend, x: torch.Tensor, sampling: Sampling) -> None:
    x = x.to(backend.device).requires_grad_()
    y, code = fk.upsample_sigmoid(x, sampling), sampling.encode()
    check_budget(
        y, reference.upsample_sigmoid(x.detach(), code), reference.upsample_sigmoid(x.detach().double(), code), x
    )
    assert y.is_contiguous(memory_format=layout_rule(x))
    g, out = torch.randn_like(y), y.detach()
    (dx,) = torch.autograd.grad(y, x, g)
    expected = reference.upsample_sigmoid_backward(g, out, code)
    oracle = reference.upsample_sigmoid_backward(g.double(), out.double(), code)
    check_budget(dx, expected, oracle, g, gain=max(1.0, y.numel() / x.numel()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sampling", **parametrized(FEW_SAMPLINGS))
def test_samplings(backend: Backend, sampling: Sampling, dtype: torch.dtype) -> None:
    for channels in (1, 3):
        check(backend, torch.randn(2, channels, *sampling.input_size).to(dtype), sampling)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: Backend, layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(2, 3, 5, 7, device=backend.device))
    check(backend, x, Sampling.interpolate((5, 7), (13, 20)))


@pytest.mark.parametrize("values", ADVERSARIAL)
def test_adversarial(backend: Backend, values: str) -> None:
    check(backend, ADVERSARIAL[values](torch.randn(1, 2, 5, 7)), Sampling.transposed_conv((5, 7), 4))


def test_gradcheck(backend: Backend) -> None:
    x = torch.randn(1, 2, 3, 2, dtype=torch.float64, device=backend.device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: fk.upsample_sigmoid(x, (5, 4)), x)
    (dx,) = torch.autograd.grad(fk.upsample_sigmoid(x, (5, 4)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="upsample_sigmoid cannot be differentiated twice"):
        dx.sum().backward()


def test_empty_batch(backend: Backend) -> None:
    assert fk.upsample_sigmoid(torch.randn(0, 1, 4, 5, device=backend.device), (8, 9)).shape == (0, 1, 8, 9)


def test_refused() -> None:
    with pytest.raises(TypeError, match=r"^upsample_sigmoid: x must be float32"):
        fk.upsample_sigmoid(torch.zeros(1, 1, 2, 2, dtype=torch.long), (4, 4))
    with pytest.raises(ValueError, match=r"^upsample_sigmoid: x must be "):
        fk.upsample_sigmoid(torch.zeros(1, 2, 2), (4, 4))
