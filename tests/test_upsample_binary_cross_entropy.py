"""upsample_binary_cross_entropy on every backend."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from budget import check_budget
from cases import ADVERSARIAL, DTYPES, FEW_SAMPLINGS, LAYOUTS, layout_rule, parametrized
from conftest import Backend

import fcn_kernels as fk
from fcn_kernels import Sampling, reference

OPERATOR = "upsample_binary_cross_entropy"
REDUCTIONS = {"none": reference.NONE, "mean": reference.MEAN, "sum": reference.SUM, "mean_all": reference.MEAN_ALL}
BCE = fk.upsample_binary_cross_entropy


def check(
    backend: Backend,
    x: torch.Tensor,
    target: torch.Tensor,
    sampling: Sampling,
    *,
    pos_weight: torch.Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> None:
    x, target = x.to(backend.device).requires_grad_(), target.to(backend.device)
    pos_weight = None if pos_weight is None else pos_weight.to(backend.device, reference.arithmetic_dtype(x.dtype))
    loss = BCE(x, target, sampling, pos_weight=pos_weight, ignore_index=ignore_index, reduction=reduction)
    g = torch.randn_like(loss)
    (dx,) = torch.autograd.grad(loss, x, g)

    def specified(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        y, code = x.detach().to(dtype), sampling.encode()
        q = None if pos_weight is None else pos_weight.to(reference.arithmetic_dtype(dtype))
        value, total, gradient = reference.upsample_binary_cross_entropy(
            y, target, q, code, ignore_index, REDUCTIONS[reduction], True
        )
        if reduction == "none":
            up = g.to(value.dtype)
            return value, reference.upsample_binary_cross_entropy_backward(up, y, target, q, code, ignore_index)
        return value, (gradient * torch.where(total == 0, 0, g.to(total.dtype) / total)).to(dtype)

    (expected, expected_dx), (oracle, oracle_dx) = specified(x.dtype), specified(torch.float64)
    most = 1 if pos_weight is None else pos_weight.max().item()
    check_budget(loss, expected, oracle, x, gain=most * (target.numel() if reduction == "sum" else 1))
    assert dx.is_contiguous(memory_format=layout_rule(x))
    many = most * max(1.0, target.numel() / x.numel()) * g.abs().max().item()
    if "mean" in reduction:
        many /= max(1, target.numel())
    check_budget(dx, expected_dx, oracle_dx, x, gain=many)


def labels_for(x: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    target = torch.randint(0, 2, (*x.shape[:2], *sampling.output_size))
    target[torch.rand(target.shape) < 0.2] = 255
    return target


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sampling", **parametrized(FEW_SAMPLINGS))
def test_samplings(backend: Backend, sampling: Sampling, dtype: torch.dtype, reduction: str) -> None:
    x = torch.randn(2, 3, *sampling.input_size).to(dtype)
    target, q = labels_for(x, sampling), torch.tensor([1.0, 4.0, 0.5])
    check(backend, x, target, sampling, ignore_index=255, reduction=reduction)
    check(backend, x, target, sampling, ignore_index=255, reduction=reduction, pos_weight=q)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: Backend, layout: str, reduction: str) -> None:
    sampling = Sampling.interpolate((5, 7), (13, 20))
    x = LAYOUTS[layout](torch.randn(2, 3, 5, 7, device=backend.device))
    check(backend, x, LAYOUTS[layout](labels_for(x, sampling)), sampling, ignore_index=255, reduction=reduction)


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("values", ADVERSARIAL)
def test_adversarial(backend: Backend, values: str, reduction: str) -> None:
    sampling = Sampling.transposed_conv((5, 7), 4)
    x = ADVERSARIAL[values](torch.randn(1, 2, 5, 7))
    check(backend, x, labels_for(x, sampling), sampling, ignore_index=255, reduction=reduction)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64, torch.float32])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_equals_torch(backend: Backend, reduction: str, dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64, device=backend.device, requires_grad=True)
    target = torch.rand(2, 3, 30, 20, device=backend.device)
    target = target if dtype.is_floating_point else (target < 0.3).to(dtype)
    q = torch.tensor([1.0, 4.0, 0.5], dtype=torch.float64, device=backend.device)
    ours = BCE(x, target, pos_weight=q, reduction=reduction)
    z = F.interpolate(x, size=(30, 20), mode="bilinear")
    theirs = F.binary_cross_entropy_with_logits(z, target.double(), pos_weight=q.view(3, 1, 1), reduction=reduction)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    g = torch.randn_like(ours)
    expected = torch.autograd.grad(theirs, x, g)
    torch.testing.assert_close(torch.autograd.grad(ours, x, g), expected, rtol=1e-10, atol=1e-12)


def test_one_channel_takes_label_images(backend: Backend) -> None:
    x = torch.randn(2, 1, 4, 5, device=backend.device)
    target = torch.randint(0, 2, (2, 9, 11), dtype=torch.uint8, device=backend.device)
    assert BCE(x, target).equal(BCE(x, target[:, None]))
    per_pixel = BCE(x, target, reduction="none")
    assert per_pixel.shape == target.shape
    assert per_pixel.equal(BCE(x, target[:, None], reduction="none").squeeze(1))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_ignored(backend: Backend, reduction: str) -> None:
    x = torch.randn(2, 1, 3, 4, device=backend.device, requires_grad=True)
    target = torch.full((2, 6, 8), 255, dtype=torch.uint8, device=backend.device)
    loss = BCE(x, target, ignore_index=255, reduction=reduction)
    loss.sum().backward()
    assert loss.isnan() if reduction == "mean" else not loss.any()
    assert x.grad.equal(torch.zeros_like(x))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(backend: Backend, reduction: str) -> None:
    x = torch.randn(2, 2, 3, 2, dtype=torch.float64, device=backend.device, requires_grad=True)
    target = torch.rand(2, 2, 6, 5, dtype=torch.float64, device=backend.device)
    assert torch.autograd.gradcheck(lambda x: BCE(x, target, reduction=reduction), x)
    (dx,) = torch.autograd.grad(BCE(x, target, reduction=reduction).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="upsample_binary_cross_entropy cannot be differentiated twice"):
        (dx.square().sum() + x.sum()).backward()


def test_empty_batch(backend: Backend) -> None:
    x = torch.randn(0, 1, 3, 4, device=backend.device, requires_grad=True)
    BCE(x, torch.zeros(0, 6, 8, dtype=torch.long, device=backend.device), reduction="sum").backward()
    assert x.grad.shape == x.shape


X, TARGET = torch.randn(2, 1, 5, 6), torch.zeros(2, 10, 12, dtype=torch.long)
X3 = torch.randn(2, 3, 5, 6)
BAD = [
    (lambda: BCE(X, TARGET + 2), RuntimeError, r"target\[0, 0, 0, 0\] = 2 is not a class \(0 to 1\)"),
    (
        lambda: BCE(X, TARGET - 1, ignore_index=255),
        RuntimeError,
        r"= -1 is neither a class \(0 to 1\) nor ignore_index \(255\)",
    ),
    (lambda: BCE(X3, TARGET), ValueError, r"target must be \[N, C, H, W\] = \[2, 3, 10, 12\], got shape \[2, 10, 12\]"),
    (lambda: BCE(X, TARGET[:1]), ValueError, r"target must be \[N, H, W\] = \[2, 10, 12\] or \[N, C, H, W\]"),
    (lambda: BCE(X, TARGET.to(torch.complex64)), TypeError, "target must be bool, uint8"),
    (lambda: BCE(X, TARGET.tolist()), TypeError, "target must be a tensor"),
    (lambda: BCE(X, TARGET.float().requires_grad_()), ValueError, "target requires a gradient"),
    (lambda: BCE(X, TARGET, pos_weight=torch.ones(2)), ValueError, r"pos_weight must be \[1\]"),
    (lambda: BCE(X, TARGET, reduction="max"), ValueError, "reduction must be one of"),
    (lambda: BCE(X, TARGET, ignore_index=0.5), TypeError, "ignore_index must be an int"),
    (lambda: BCE(X.long(), TARGET), TypeError, "x must be float32"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        call()
    assert str(raised.value).startswith("upsample_binary_cross_entropy: ")
