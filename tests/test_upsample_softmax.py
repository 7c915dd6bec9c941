"""upsample_softmax and upsample_log_softmax on every backend."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from budget import check_budget
from cases import ADVERSARIAL, DTYPES, FEW_SAMPLINGS, LAYOUTS, SAMPLINGS, layout_rule, parametrized
from conftest import Backend

import fcn_kernels as fk
from fcn_kernels import Sampling, reference

OPERATOR = "upsample_softmax"


def check(backend: Backend, x: torch.Tensor, sampling: Sampling, log: bool) -> torch.Tensor:
    """Value and gradient against the oracle, dtype and layout against the rule."""
    x = x.to(backend.device).requires_grad_()
    y = (fk.upsample_log_softmax if log else fk.upsample_softmax)(x, sampling)
    code = sampling.encode()
    oracle = reference.upsample_softmax(x.detach().double(), code, log)
    check_budget(y, reference.upsample_softmax(x.detach(), code, log), oracle, x)
    assert y.is_contiguous(memory_format=layout_rule(x))
    g = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, g)
    # The gradient is a function of the rounded output, as in torch: both get the same one.
    out = y.detach()
    expected = reference.upsample_softmax_backward(g, out, code, log)
    oracle = reference.upsample_softmax_backward(g.double(), out.double(), code, log)
    many = max(1.0, y.shape[2] * y.shape[3] / (x.shape[2] * x.shape[3])) * x.shape[1]
    check_budget(dx, expected, oracle, g, gain=many)
    return y


@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sampling", **parametrized(SAMPLINGS))
def test_samplings(backend: Backend, sampling: Sampling, dtype: torch.dtype, log: bool) -> None:
    check(backend, 3 * torch.randn(2, 5, *sampling.input_size).to(dtype), sampling, log)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sampling", **parametrized(FEW_SAMPLINGS))
def test_layouts(backend: Backend, sampling: Sampling, layout: str) -> None:
    check(backend, LAYOUTS[layout](torch.randn(2, 5, *sampling.input_size, device=backend.device)), sampling, False)


@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
@pytest.mark.parametrize("channels", [1, 2, 19, 21, 64, 150])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_channels(backend: Backend, channels: int, layout: str, log: bool) -> None:
    check(backend, LAYOUTS[layout](torch.randn(1, channels, 4, 5)), Sampling.interpolate((4, 5), (23, 33)), log)


@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("values", ADVERSARIAL)
def test_adversarial(backend: Backend, values: str, dtype: torch.dtype, log: bool) -> None:
    for _, sampling in FEW_SAMPLINGS:
        check(backend, ADVERSARIAL[values](torch.randn(1, 5, *sampling.input_size, dtype=dtype)), sampling, log)


def test_largest_logits_do_not_overflow(backend: Backend) -> None:
    x = torch.randn(1, 4, 5, 6, device=backend.device).sign() * 3e38
    p = fk.upsample_softmax(x, (20, 24))
    assert p.isfinite().all()
    torch.testing.assert_close(p.sum(1), torch.ones_like(p[:, 0]))


@pytest.mark.parametrize("sampling", **parametrized(FEW_SAMPLINGS))
def test_invariants(backend: Backend, sampling: Sampling) -> None:
    """Probabilities sum to one; a common shift of the logits changes nothing where the border is clamped."""
    x = torch.randn(2, 7, *sampling.input_size, device=backend.device)
    p = fk.upsample_softmax(x, sampling)
    torch.testing.assert_close(p.sum(1), torch.ones_like(p[:, 0]))
    torch.testing.assert_close(fk.upsample_log_softmax(x, sampling).exp(), p)
    if sampling.boundary == "clamp":
        torch.testing.assert_close(fk.upsample_softmax(x + 4, sampling), p, rtol=1e-5, atol=1e-6)


def test_equals_torch(backend: Backend) -> None:
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64, device=backend.device, requires_grad=True)
    z = F.interpolate(x, size=(30, 20), mode="bilinear")
    for ours, theirs in (
        (fk.upsample_softmax(x, (30, 20)), z.softmax(1)),
        (fk.upsample_log_softmax(x, (30, 20)), z.log_softmax(1)),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        g = torch.randn_like(ours)
        expected = torch.autograd.grad(theirs, x, g, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(ours, x, g), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
def test_gradcheck(backend: Backend, log: bool) -> None:
    f = fk.upsample_log_softmax if log else fk.upsample_softmax
    x = torch.randn(1, 3, 3, 2, dtype=torch.float64, device=backend.device, requires_grad=True)
    sampling = Sampling.transposed_conv((3, 2), 2, offset=1)
    assert torch.autograd.gradcheck(lambda x: f(x, sampling), x)
    (dx,) = torch.autograd.grad(f(x, sampling).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="upsample_softmax cannot be differentiated twice"):
        dx.sum().backward()


def test_empty_batch(backend: Backend) -> None:
    x = torch.randn(0, 3, 4, 5, device=backend.device, requires_grad=True)
    p = fk.upsample_softmax(x, (8, 9))
    p.sum().backward()
    assert p.shape == (0, 3, 8, 9)
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("f", [fk.upsample_softmax, fk.upsample_log_softmax])
def test_refused(f) -> None:
    x = torch.randn(2, 3, 5, 6)
    for call, error in ((lambda: f(x[0], (4, 4)), ValueError), (lambda: f(x.int(), (4, 4)), TypeError)):
        with pytest.raises(error, match=f"^{f.__name__}: x must be"):
            call()
    with pytest.raises(ValueError, match=f"^{f.__name__}: the sampling reads 5 x 5"):
        f(x, Sampling.interpolate(5, 9))
