"""Triton's conv_transpose_concat: the convolution is conv_transpose_add's; here it is one part of the channels."""

from __future__ import annotations

import pytest
import test_conv_transpose_concat
import torch
from conftest import Backend
from triton_cases import TRITON, check_truncated

import fcn_kernels as fk

pytestmark = TRITON


@pytest.mark.parametrize("options", ["unet", "groups", "depthwise"])
def test_options(triton_backend: Backend, options: str) -> None:
    test_conv_transpose_concat.test_equals_torch(triton_backend, options, "contiguous", torch.float32)


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "batch-inside"])
def test_layouts(triton_backend: Backend, layout: str) -> None:
    test_conv_transpose_concat.test_equals_torch(triton_backend, "crop", layout, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_dtypes(triton_backend: Backend, dtype: torch.dtype) -> None:
    test_conv_transpose_concat.test_equals_torch(triton_backend, "narrow", "contiguous", dtype)


@pytest.mark.parametrize("groups", [1, 4])
def test_bfloat16(triton_backend: Backend, groups: int) -> None:
    tensors = [
        torch.randn(shape, device=triton_backend.device).bfloat16()
        for shape in ((1, 4, 2, 3), (4, 4 // groups, 2, 2), (1, 3, 4, 6), (4,))
    ]
    check_truncated(lambda x: fk.conv_transpose_concat(x, *tensors[1:], stride=2, groups=groups), tensors[0])


def test_values_that_are_not_finite(triton_backend: Backend) -> None:
    test_conv_transpose_concat.test_values_that_are_not_finite(triton_backend, 4, 3, 3, torch.inf)


def test_small_ones(triton_backend: Backend) -> None:
    test_conv_transpose_concat.test_only_the_gradients_that_are_asked_for(triton_backend)
    test_conv_transpose_concat.test_the_gradient_of_a_whole_skip_is_no_copy(triton_backend)
    test_conv_transpose_concat.test_empty_batch(triton_backend)


def test_gradients_of_all_orders(triton_backend: Backend) -> None:
    options = {"dtype": torch.float64, "device": triton_backend.device, "requires_grad": True}
    shapes = ((1, 2, 1, 2), (2, 1, 2, 2), (1, 1, 3, 5), (2,))
    tensors = tuple(torch.randn(shape, **options) for shape in shapes)
    f = lambda *t: fk.conv_transpose_concat(*t, stride=2, groups=2, skip_offset=(1, 0))  # noqa: E731
    assert torch.autograd.gradcheck(f, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, tensors, fast_mode=True)
