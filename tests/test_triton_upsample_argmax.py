"""Triton's upsample_argmax, on the test body of the other backends."""

from __future__ import annotations

import pytest
import torch
from cases import ADVERSARIAL, DTYPES, LAYOUTS, parametrized
from conftest import Backend
from test_upsample_argmax import check
from triton_cases import FEW, TINY, TRITON

import fcn_kernels as fk
from fcn_kernels import Sampling
from fcn_kernels.backends.triton import logsumexp

pytestmark = TRITON


@pytest.mark.parametrize("sampling", **parametrized(TINY))
def test_samplings(triton_backend: Backend, sampling: Sampling) -> None:
    check(triton_backend, torch.randn(2, 3, *sampling.input_size), sampling)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(triton_backend: Backend, layout: str) -> None:
    check(triton_backend, LAYOUTS[layout](torch.randn(2, 9, 2, 2)), FEW[0][1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(triton_backend: Backend, dtype: torch.dtype) -> None:
    for labels in (torch.uint8, torch.int16, torch.int32):
        check(triton_backend, torch.randn(1, 5, 2, 2).to(dtype), FEW[0][1], labels)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("values", ADVERSARIAL)
def test_adversarial(triton_backend: Backend, values: str, layout: str) -> None:
    check(triton_backend, LAYOUTS[layout](ADVERSARIAL[values](torch.randn(1, 10, 2, 2))), FEW[0][1])


@pytest.mark.parametrize("sampling", **parametrized(FEW))
def test_blocking_of_large_images(triton_backend: Backend, sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logsumexp, "UNITS", 1)
    check(triton_backend, torch.randn(1, 5, *sampling.input_size), sampling)


def test_ties_and_largest_logits(triton_backend: Backend) -> None:
    x = torch.randn(1, 1, 2, 2, device=triton_backend.device).expand(1, 12, 2, 2)
    for layout in ("contiguous", "channels_last"):
        assert not fk.upsample_argmax(LAYOUTS[layout](x), (4, 6)).any()
    check(triton_backend, torch.randn(1, 4, 2, 2).sign() * 3e38, FEW[0][1])
