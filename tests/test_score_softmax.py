"""score_softmax and score_log_softmax on every backend."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from budget import check_budget
from cases import DTYPES, LAYOUTS, layout_rule
from conftest import Backend

import fcn_kernels as fk
from fcn_kernels import reference

OPERATOR = "score_softmax"


@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_value_and_gradients(backend: Backend, layout: str, dtype: torch.dtype, biased: bool, log: bool) -> None:
    x = LAYOUTS[layout](torch.randn(2, 9, 4, 5, device=backend.device).to(dtype)).requires_grad_()
    weight = torch.randn(6, 9, 1, 1, device=backend.device).to(dtype).requires_grad_()
    tensors = [x, weight] + [torch.randn(6, device=backend.device).to(dtype).requires_grad_()] * biased
    y = (fk.score_log_softmax if log else fk.score_softmax)(*tensors)
    plain = [t.detach().flatten(1) if t.dim() == 4 and t is weight else t.detach() for t in tensors] + [None] * (
        not biased
    )
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    z = F.conv2d(*doubles)
    oracle = z.log_softmax(1) if log else z.softmax(1)
    check_budget(y, reference.score_softmax(*plain, log), oracle, x, gain=9)
    assert y.is_contiguous(memory_format=layout_rule(x))
    g = torch.randn_like(y)
    theirs = torch.autograd.grad(oracle, doubles, g.double())
    # Derived from the rounded output: within a few of its roundings.
    ulp = {torch.float32: 1e-5, torch.float64: 1e-13, torch.float16: 1e-2, torch.bfloat16: 8e-2}[dtype]
    for ours, exact in zip(torch.autograd.grad(y, tensors, g), theirs, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), exact, rtol=ulp, atol=ulp * exact.abs().max().item())


def test_flat_weight_is_the_same(backend: Backend) -> None:
    x, weight = torch.randn(2, 9, 4, 5, device=backend.device), torch.randn(6, 9, device=backend.device)
    assert fk.score_softmax(x, weight).equal(fk.score_softmax(x, weight[:, :, None, None]))


def test_gradients_of_all_orders(backend: Backend) -> None:
    options = {"dtype": torch.float64, "device": backend.device, "requires_grad": True}
    tensors = (torch.randn(1, 3, 2, 2, **options), torch.randn(4, 3, **options), torch.randn(4, **options))
    for f in (fk.score_softmax, fk.score_log_softmax):
        assert torch.autograd.gradcheck(f, tensors)
        assert torch.autograd.gradgradcheck(f, tensors)


def test_autocast(backend: Backend) -> None:
    x, weight = torch.randn(2, 9, 4, 5, device=backend.device), torch.randn(6, 9, device=backend.device)
    with torch.autocast(backend.device, torch.bfloat16):
        assert fk.score_softmax(x, weight).dtype == torch.bfloat16
        assert fk.score_softmax(x.bfloat16(), weight, torch.zeros(6, device=backend.device)).dtype == torch.bfloat16


def test_one_class_one_channel_and_empty(backend: Backend) -> None:
    x = torch.randn(2, 1, 1, 1, device=backend.device)
    assert fk.score_softmax(x, torch.randn(1, 1, device=backend.device)).equal(torch.ones_like(x))
    assert fk.score_softmax(x[:0], torch.randn(3, 1, device=backend.device)).shape == (0, 3, 1, 1)


X, W, B = torch.randn(2, 9, 4, 5), torch.randn(6, 9), torch.randn(6)


@pytest.mark.parametrize("f", [fk.score_softmax, fk.score_log_softmax, fk.score_argmax])
@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ((X[0], W), ValueError, r"x must be \[N, C, H, W\]"),
        ((X.long(), W), TypeError, "x must be float32"),
        (
            (X, W[:, :8]),
            ValueError,
            r"weight must be \[C, 9\] or \[C, 9, 1, 1\] for x with 9 channels, got shape \[6, 8\]",
        ),
        ((X, torch.randn(6, 9, 3, 3)), ValueError, r"got shape \[6, 9, 3, 3\]"),
        ((X, W[:0]), ValueError, r"got shape \[0, 9\]"),
        ((X, W.double()), TypeError, "weight is torch.float64, but x is torch.float32"),
        ((X, W.long()), TypeError, "weight must be float32"),
        ((X, [1.0]), TypeError, "weight must be a tensor, got list"),
        ((X, W, B[:5]), ValueError, r"bias must be \[6\], one per class, got shape \[5\]"),
        ((X, W, B.half()), TypeError, "bias is torch.float16"),
        ((X, W.to("meta")), ValueError, "weight is on meta, but x is on cpu"),
    ],
)
def test_refused(f, tensors: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        f(*tensors)
    assert str(raised.value).startswith(f"{f.__name__}: ")
