"""Triton's upsample_sigmoid, on the test body of the other backends."""

from __future__ import annotations

import pytest
import torch
from cases import parametrized
from conftest import Backend
from test_upsample_sigmoid import check
from triton_cases import FEW, TRITON

from fcn_kernels import Sampling

pytestmark = TRITON


@pytest.mark.parametrize("sampling", **parametrized(FEW))
def test_samplings(triton_backend: Backend, sampling: Sampling) -> None:
    for dtype in (torch.float32, torch.float16):
        check(triton_backend, torch.randn(1, 2, *sampling.input_size).to(dtype), sampling)
