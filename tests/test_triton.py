"""Every operator with Triton kernels, as torch.library sees it; their results have a file per operator."""

from __future__ import annotations

import pytest
import test_library
import torch
from conftest import Backend
from torch.library import opcheck
from triton_cases import TRITON

pytestmark = TRITON


@pytest.mark.parametrize("name", test_library.NAMES)
def test_opcheck(triton_backend: Backend, name: str) -> None:
    """Schema, autograd and fake kernels; tracing is in test_library.py, as the interpreter reads memory of its own."""
    x = torch.randn(2, 5, 3, 4).requires_grad_()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(getattr(test_library.OPS, name).default, test_library.arguments(x)[name][0], test_utils=checks)
