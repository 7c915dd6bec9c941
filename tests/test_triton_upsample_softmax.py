"""Triton's upsample_softmax and upsample_log_softmax, on the test body of the other backends."""

from __future__ import annotations

import pytest
import torch
from cases import ADVERSARIAL, DTYPES, LAYOUTS, parametrized
from conftest import Backend
from test_upsample_softmax import check
from triton_cases import FEW, TINY, TRITON, check_truncated

import fcn_kernels as fk
from fcn_kernels import Sampling

pytestmark = TRITON


@pytest.mark.parametrize("sampling", **parametrized(TINY))
def test_samplings(triton_backend: Backend, sampling: Sampling) -> None:
    for log in (False, True):
        check(triton_backend, 3 * torch.randn(1, 3, *sampling.input_size), sampling, log)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(triton_backend: Backend, dtype: torch.dtype) -> None:
    x, sampling = torch.randn(1, 5, *FEW[0][1].input_size).to(dtype), FEW[0][1]
    for log in (False, True):
        if dtype == torch.bfloat16 and triton_backend.interpreted:
            check_truncated(
                lambda y, log=log: (fk.upsample_log_softmax if log else fk.upsample_softmax)(y, sampling), x
            )
        else:
            check(triton_backend, x, sampling, log)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(triton_backend: Backend, layout: str) -> None:
    sampling = FEW[0][1]
    check(triton_backend, LAYOUTS[layout](torch.randn(2, 3, *sampling.input_size)), sampling, False)


@pytest.mark.parametrize("values", ADVERSARIAL)
def test_adversarial(triton_backend: Backend, values: str) -> None:
    sampling = FEW[0][1]
    x = ADVERSARIAL[values](torch.randn(1, 4, *sampling.input_size))
    check(triton_backend, x, sampling, False)


def test_many_classes(triton_backend: Backend) -> None:
    check(triton_backend, torch.randn(1, 37, 1, 2), Sampling.interpolate((1, 2), (2, 5)), False)


def test_largest_logits_do_not_overflow(triton_backend: Backend) -> None:
    x = torch.randn(1, 4, 2, 3, device=triton_backend.device).sign() * 3e38
    p = fk.upsample_softmax(x, (3, 5))
    assert p.isfinite().all()
    torch.testing.assert_close(p.sum(1), torch.ones_like(p[:, 0]))


def test_a_large_common_offset_costs_no_digits(triton_backend: Backend) -> None:
    """Neighbouring numbers lie 0.06 apart there; the differences of these logits are exact."""
    x = torch.randint(-32, 32, (1, 4, 2, 3), device=triton_backend.device) / 8.0
    torch.testing.assert_close(fk.upsample_softmax(x + 1e6, (5, 7)), fk.upsample_softmax(x, (5, 7)))


def test_empty_batch(triton_backend: Backend) -> None:
    x = torch.randn(0, 3, 4, 5, device=triton_backend.device, requires_grad=True)
    p = fk.upsample_softmax(x, (8, 9))
    p.sum().backward()
    assert p.shape == (0, 3, 8, 9)
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
def test_gradcheck(triton_backend: Backend, log: bool) -> None:
    f = fk.upsample_log_softmax if log else fk.upsample_softmax
    x = torch.randn(1, 2, 1, 2, dtype=torch.float64, device=triton_backend.device, requires_grad=True)
    sampling = Sampling.transposed_conv((1, 2), 2, offset=1)
    assert torch.autograd.gradcheck(lambda x: f(x, sampling), x, fast_mode=True)
