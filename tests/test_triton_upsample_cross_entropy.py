"""Triton's upsample_cross_entropy, loss and gradient; most options come together, since the tests of the other backends
take them one by one.
"""

from __future__ import annotations

import pytest
import test_upsample_cross_entropy
import torch
from cases import ADVERSARIAL, LAYOUTS, parametrized
from conftest import Backend
from triton_cases import FEW, TINY, TRITON

import fcn_kernels as fk
from fcn_kernels import Sampling
from fcn_kernels.backends.triton import logsumexp, upsample_cross_entropy
from fcn_kernels.sampling import Axis

pytestmark = TRITON


def check(backend: Backend, x: torch.Tensor, sampling: Sampling, **options: object) -> None:
    target = test_upsample_cross_entropy.labels_for(x, sampling, options.get("ignore_index", -100))
    test_upsample_cross_entropy.check(backend, x, target, sampling, **options)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("sampling", **parametrized(TINY))
def test_samplings(triton_backend: Backend, sampling: Sampling, reduction: str) -> None:
    check(triton_backend, 3 * torch.randn(2, 3, *sampling.input_size), sampling, reduction=reduction)


@pytest.mark.parametrize("reduction", test_upsample_cross_entropy.REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
def test_options(triton_backend: Backend, weighted: bool, smoothing: float, reduction: str) -> None:
    weight = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0]) if weighted else None
    x, sampling = torch.randn(1, 5, 2, 2), FEW[0][1]
    check(triton_backend, x, sampling, weight=weight, label_smoothing=smoothing, reduction=reduction)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_dtypes(triton_backend: Backend, dtype: torch.dtype) -> None:
    for reduction in ("sum", "none"):
        x = torch.randn(1, 3, 2, 3).to(dtype)
        # The interpreter passes numbers in float32: one that float32 holds exactly.
        check(triton_backend, x, FEW[1][1], reduction=reduction, label_smoothing=0.125)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(triton_backend: Backend, layout: str) -> None:
    check(triton_backend, LAYOUTS[layout](torch.randn(2, 9, 2, 2)), FEW[0][1])


@pytest.mark.parametrize("values", ADVERSARIAL)
def test_adversarial(triton_backend: Backend, values: str) -> None:
    for reduction in ("none", "mean"):
        x = ADVERSARIAL[values](torch.randn(1, 4, 2, 2))
        check(triton_backend, x, FEW[0][1], reduction=reduction, label_smoothing=0.1)


@pytest.mark.parametrize("sampling", **parametrized(FEW))
def test_blocking_of_large_images(triton_backend: Backend, sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several rows to a program of logsumexp, several input rows to one of the gradient."""
    monkeypatch.setattr(logsumexp, "UNITS", 1)
    monkeypatch.setattr(upsample_cross_entropy, "ENOUGH_WARPS", 1)
    check(triton_backend, torch.randn(1, 5, *sampling.input_size), sampling)


def test_tiles_and_strips_meet(triton_backend: Backend) -> None:
    """More columns than a tile has lanes, more classes than a thread takes, labels of small types."""
    sampling = Sampling.interpolate((3, 33), (6, 66))
    x, target = torch.randn(1, 6, 3, 33), torch.randint(0, 6, (1, 6, 66), dtype=torch.uint8)
    target[:, 2] = 255
    test_upsample_cross_entropy.check(triton_backend, x, target, sampling, ignore_index=255)


@pytest.mark.parametrize("boundary", ["zero", "clamp"])
def test_far_outside_the_input(triton_backend: Backend, boundary: str) -> None:
    sampling = Sampling(Axis(2, 7, 1, -8, 3), Axis(3, 9, 1, -7, 2), boundary)
    check(triton_backend, torch.randn(1, 3, 2, 3), sampling)


def test_gradscaler(triton_backend: Backend) -> None:
    """Large incoming gradients meet classes that start 80 below the maximum."""
    x = torch.full((1, 2, 1, 4), -65.8, device=triton_backend.device)
    x[:, 1, :, 0::2], x[:, 1, :, 1::2] = -79.0, 0.0
    target = torch.zeros(1, 2, 32, dtype=torch.long, device=triton_backend.device)
    gradients = []
    for y in (x, x.double()):
        y = y.requires_grad_()
        loss = 65536 * fk.upsample_cross_entropy(y, target, reduction="none")
        gradients.append(torch.autograd.grad(loss.sum(), y)[0].double())
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5 * gradients[1].abs().max().item())


def test_a_label_outside_the_classes(triton_backend: Backend) -> None:
    x = torch.randn(1, 3, 2, 2, device=triton_backend.device)
    target = torch.full((1, 4, 4), 3, device=triton_backend.device)
    if triton_backend.interpreted:
        with pytest.raises(RuntimeError, match="target\\[0, 0, 0\\] = 3 is neither a class"):
            fk.upsample_cross_entropy(x, target)
    else:
        assert fk.upsample_cross_entropy(x, target).isnan()


def test_pixel_weight_and_extras(triton_backend: Backend) -> None:
    x, target = torch.randn(1, 3, 2, 2, device=triton_backend.device), torch.randint(0, 3, (1, 3, 5))
    x, target = x.requires_grad_(), target.to(triton_backend.device)
    options = {"pixel_weight": torch.rand(1, 3, 5, device=triton_backend.device), "return_extras": True}
    results = []
    for backend in ("triton", "reference"):
        with fk.use_backend(backend):
            extras = fk.upsample_cross_entropy(x, target, label_smoothing=0.125, **options)
            results.append((*extras, torch.autograd.grad(extras.loss, x)[0]))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_empty_and_all_ignored(triton_backend: Backend) -> None:
    x = torch.randn(1, 3, 2, 2, device=triton_backend.device, requires_grad=True)
    target = torch.full((1, 4, 4), -100, device=triton_backend.device)
    loss = fk.upsample_cross_entropy(x, target)
    loss.backward()
    assert loss.isnan()
    assert x.grad.equal(torch.zeros_like(x))
    assert fk.upsample_cross_entropy(x[:0], target[:0], reduction="sum") == 0


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(triton_backend: Backend, reduction: str) -> None:
    x = torch.randn(1, 2, 1, 2, dtype=torch.float64, device=triton_backend.device, requires_grad=True)
    target = torch.randint(0, 2, (1, 2, 4), device=triton_backend.device)
    f = lambda x: fk.upsample_cross_entropy(x, target, reduction=reduction, label_smoothing=0.2)  # noqa: E731
    assert torch.autograd.gradcheck(f, x, fast_mode=True)
