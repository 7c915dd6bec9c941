"""Triton's upsample_binary_cross_entropy, on the test body of the other backends."""

from __future__ import annotations

import pytest
import test_upsample_binary_cross_entropy
import torch
from cases import ADVERSARIAL, LAYOUTS, parametrized
from conftest import Backend
from triton_cases import FEW, TINY, TRITON

import fcn_kernels as fk
from fcn_kernels import Sampling

pytestmark = TRITON


def check(backend: Backend, x: torch.Tensor, sampling: Sampling, **options: object) -> None:
    target = test_upsample_binary_cross_entropy.labels_for(x, sampling)
    test_upsample_binary_cross_entropy.check(backend, x, target, sampling, ignore_index=255, **options)


# The gradient visits outputs one by one: small factors only.
@pytest.mark.parametrize("sampling", **parametrized([case for case in TINY if case[1].output_size[1] < 10]))
def test_samplings(triton_backend: Backend, sampling: Sampling) -> None:
    check(triton_backend, 3 * torch.randn(2, 1, *sampling.input_size), sampling)


@pytest.mark.parametrize("reduction", test_upsample_binary_cross_entropy.REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_options(triton_backend: Backend, dtype: torch.dtype, reduction: str) -> None:
    x, q = torch.randn(1, 2, 2, 2).to(dtype), torch.tensor([4.0, 0.5])
    check(triton_backend, x, FEW[0][1], reduction=reduction, pos_weight=q)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(triton_backend: Backend, layout: str) -> None:
    check(triton_backend, LAYOUTS[layout](torch.randn(2, 2, 2, 2)), FEW[0][1])


@pytest.mark.parametrize("values", ADVERSARIAL)
def test_adversarial(triton_backend: Backend, values: str) -> None:
    check(triton_backend, ADVERSARIAL[values](torch.randn(1, 2, 2, 2)), FEW[0][1], reduction="none")


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32], ids=str)
def test_targets(triton_backend: Backend, dtype: torch.dtype) -> None:
    """Two dtypes of labels, and soft ones, of which one is ignored."""
    target = torch.rand(1, 1, 3, 5) if dtype.is_floating_point else torch.rand(1, 1, 3, 5) < 0.3
    options = {}
    if dtype.is_floating_point:
        target[0, 0, 1, 1], options = -1, {"ignore_index": -1}
    x = torch.randn(1, 1, 2, 2)
    test_upsample_binary_cross_entropy.check(triton_backend, x, target.to(dtype), FEW[0][1], **options)


def test_wrong_labels_and_empty(triton_backend: Backend) -> None:
    x = torch.randn(1, 1, 2, 2, device=triton_backend.device)
    target = torch.full((1, 3, 3), 2, device=triton_backend.device)
    if triton_backend.interpreted:
        with pytest.raises(RuntimeError, match=r"= 2 is not a class \(0 to 1\)"):
            fk.upsample_binary_cross_entropy(x, target)
    else:
        assert fk.upsample_binary_cross_entropy(x, target).isnan()
    assert fk.upsample_binary_cross_entropy(x[:0], target[:0], reduction="sum") == 0
