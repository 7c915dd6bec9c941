"""Triton's conv_transpose_add, on the test body of the other backends."""

from __future__ import annotations

import pytest
import test_conv_transpose_add
import torch
from conftest import Backend
from triton_cases import TRITON, check_truncated

import fcn_kernels as fk
from fcn_kernels.backends.triton import conv_transpose_add

pytestmark = TRITON


@pytest.mark.parametrize("options", test_conv_transpose_add.OPTIONS)
def test_options(triton_backend: Backend, options: str) -> None:
    test_conv_transpose_add.test_equals_torch(triton_backend, options, "contiguous", torch.float32)


@pytest.mark.parametrize("options", ["fused", "depthwise"])
@pytest.mark.parametrize("layout", ["channels_last", "sliced", "batch-inside"])
def test_layouts(triton_backend: Backend, layout: str, options: str) -> None:
    test_conv_transpose_add.test_equals_torch(triton_backend, options, layout, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_dtypes(triton_backend: Backend, dtype: torch.dtype) -> None:
    for options in ("fused", "depthwise"):
        test_conv_transpose_add.test_equals_torch(triton_backend, options, "contiguous", dtype)


@pytest.mark.parametrize("groups", [1, 4])
def test_bfloat16(triton_backend: Backend, groups: int) -> None:
    weight = torch.randn(4, 4 // groups, 4, 4, device=triton_backend.device).bfloat16()
    x = torch.randn(1, 4, 2, 3, device=triton_backend.device).bfloat16()
    check_truncated(lambda x: fk.conv_transpose_add(x, weight, stride=2, groups=groups), x)


@pytest.mark.parametrize("options", ["plain", "depthwise", "holes", "partial"])
def test_values_that_are_not_finite(triton_backend: Backend, options: str) -> None:
    test_conv_transpose_add.test_values_that_are_not_finite(triton_backend, options, torch.inf)


def test_bilinear_weights_and_empty(triton_backend: Backend) -> None:
    test_conv_transpose_add.test_bilinear_weight_is_upsample_add(triton_backend)
    test_conv_transpose_add.test_empty_batch(triton_backend)


@pytest.mark.parametrize("enough", [1, 10**6])
@pytest.mark.parametrize("groups", [1, 3])
def test_splits_and_same_bits(
    triton_backend: Backend, groups: int, enough: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sums of the backward whole, and in as many parts as can be; kernels longer and shorter than strides."""
    monkeypatch.setattr(conv_transpose_add, "ENOUGH", enough)
    for kernel, stride, offset in ((3, 2, (1, 0)), (2, 3, (0, 1))):
        results = []
        tensors = [torch.randn(2, 3, 5, 4), torch.randn(3, 3 // groups, kernel, kernel)]
        for dtype, repeat in ((torch.float32, 0), (torch.float32, 1), (torch.float64, 0)):
            x, weight = (t.to(triton_backend.device, dtype).requires_grad_() for t in tensors)
            where = {"stride": stride, "groups": groups, "offset": offset, "output_size": (6, 5)}
            with fk.use_backend("triton" if dtype == torch.float32 or repeat else "reference"):
                y = fk.conv_transpose_add(x, weight, **where)
                g = torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape).to(dtype)
                results.append((y, *torch.autograd.grad(y, (x, weight), g)))
        for ours, again, oracle in zip(*results, strict=True):
            assert ours.equal(again)
            torch.testing.assert_close(ours.double(), oracle, rtol=1e-5, atol=1e-5)


def test_gradients_of_all_orders(triton_backend: Backend) -> None:
    options = {"dtype": torch.float64, "device": triton_backend.device, "requires_grad": True}
    tensors = (torch.randn(1, 2, 1, 2, **options), torch.randn(2, 1, 3, 3, **options))
    for groups in (1, 2):
        f = lambda *t, g=groups: fk.conv_transpose_add(*t, stride=2, groups=g, offset=(1, 0))  # noqa: E731
        assert torch.autograd.gradcheck(f, tensors, fast_mode=True)
        assert torch.autograd.gradgradcheck(f, tensors, fast_mode=True)
