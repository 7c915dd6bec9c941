"""score_cross_entropy on every backend."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import LAYOUTS
from conftest import Backend

import fcn_kernels as fk

OPERATOR = "score_cross_entropy"


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "transposed"])
def test_equals_torch(
    backend: Backend, layout: str, dtype: torch.dtype, weighted: bool, smoothing: float, reduction
) -> None:
    x = LAYOUTS[layout](torch.randn(2, 9, 4, 5, device=backend.device).to(dtype)).requires_grad_()
    weight = torch.randn(6, 9, device=backend.device).to(dtype).requires_grad_()
    bias = torch.randn(6, device=backend.device).to(dtype).requires_grad_()
    target = torch.randint(0, 6, (2, 4, 5), device=backend.device)
    class_weight = torch.rand(6, device=backend.device) if weighted else None
    options = {"ignore_index": 2, "reduction": reduction, "label_smoothing": smoothing}
    ours = fk.score_cross_entropy(x, weight, bias, target, class_weight=class_weight, **options)
    doubles = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    z = F.conv2d(doubles[0], doubles[1][:, :, None, None], doubles[2])
    theirs = F.cross_entropy(z, target, None if class_weight is None else class_weight.double(), **options)
    eps = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(ours.double(), theirs, rtol=min(eps, 1e-5), atol=min(eps, 1e-5))
    g = torch.randn_like(ours)
    expected = torch.autograd.grad(theirs, doubles, g.double())
    for got, exact in zip(torch.autograd.grad(ours, (x, weight, bias), g), expected, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), exact, rtol=eps, atol=eps * exact.abs().max().item())


def test_only_what_needs_a_gradient_gets_one(backend: Backend) -> None:
    target = torch.randint(0, 4, (1, 2, 2), device=backend.device)
    for wanted in range(3):
        tensors = [torch.randn(s, device=backend.device) for s in ((1, 3, 2, 2), (4, 3), (4,))]
        tensors[wanted].requires_grad_()
        fk.score_cross_entropy(*tensors, target).backward()
        assert [t.grad is not None for t in tensors] == [i == wanted for i in range(3)]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "mean_all"])
def test_gradcheck(backend: Backend, reduction: str) -> None:
    options = {"dtype": torch.float64, "device": backend.device, "requires_grad": True}
    tensors = (torch.randn(1, 3, 2, 2, **options), torch.randn(4, 3, **options), torch.randn(4, **options))
    target = torch.tensor([[[0, 3], [-100, 1]]], device=backend.device)

    def f(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return fk.score_cross_entropy(x, weight, bias, target, reduction=reduction, label_smoothing=0.1)

    assert torch.autograd.gradcheck(f, tensors)
    (dx,) = torch.autograd.grad(f(*tensors).sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="score_cross_entropy cannot be differentiated twice"):
        dx.square().sum().backward()


def test_all_ignored_and_empty(backend: Backend) -> None:
    x = torch.randn(1, 3, 2, 2, device=backend.device, requires_grad=True)
    weight = torch.randn(4, 3, device=backend.device)
    target = torch.full((1, 2, 2), -100, device=backend.device)
    loss = fk.score_cross_entropy(x, weight, None, target)
    loss.backward()
    assert loss.isnan()
    assert x.grad.equal(torch.zeros_like(x))
    assert fk.score_cross_entropy(x[:0], weight, None, target[:0], reduction="sum") == 0


def test_autocast(backend: Backend) -> None:
    x, weight = (
        torch.randn(1, 3, 2, 2, device=backend.device),
        torch.randn(4, 3, device=backend.device, requires_grad=True),
    )
    target = torch.zeros(1, 2, 2, dtype=torch.long, device=backend.device)
    with torch.autocast(backend.device, torch.bfloat16):
        loss = fk.score_cross_entropy(x, weight, None, target)
    loss.backward()
    assert loss.dtype == weight.grad.dtype == torch.float32


X, W, TARGET = torch.randn(2, 3, 4, 5), torch.randn(6, 3), torch.zeros(2, 4, 5, dtype=torch.long)
CE = fk.score_cross_entropy
BAD = [
    (lambda: CE(X, W[:, :2], None, TARGET), ValueError, "weight must be"),
    (lambda: CE(X, W, torch.zeros(5), TARGET), ValueError, r"bias must be \[6\]"),
    (lambda: CE(X, W, None, TARGET[:1]), ValueError, "target must be"),
    (lambda: CE(X, W, None, TARGET.float()), TypeError, "soft targets are not supported"),
    (lambda: CE(X, W, None, TARGET + 6), RuntimeError, r"target\[0, 0, 0\] = 6 is neither a class \(0 to 5\)"),
    (lambda: CE(X, W, None, TARGET, class_weight=torch.ones(5)), ValueError, r"class_weight must be \[6\]"),
    (lambda: CE(X, W, None, TARGET, reduction="max"), ValueError, "reduction must be one of"),
    (lambda: CE(X, W, None, TARGET, label_smoothing=2.0), ValueError, "label_smoothing must lie in"),
    (lambda: CE(X, W, None, TARGET.to("meta")), ValueError, "target is on meta"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        call()
    assert str(raised.value).startswith("score_cross_entropy: ")
