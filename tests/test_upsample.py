"""upsample: values, gradients and layouts on every backend; that it equals torch is shown in test_sampling.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from budget import check_budget
from cases import DTYPES, FEW_SAMPLINGS, LAYOUTS, SAMPLINGS, layout_rule, parametrized
from conftest import Backend

import fcn_kernels as fk
from fcn_kernels import Sampling, reference

OPERATOR = "upsample"


def check(backend: Backend, x: torch.Tensor, sampling: Sampling) -> None:
    """Value and gradient against the oracle, dtype and layout against the rule."""
    x = x.to(backend.device).requires_grad_()
    y = fk.upsample(x, sampling)
    code = sampling.encode()
    check_budget(y, reference.upsample(x.detach(), code), reference.upsample(x.detach().double(), code), x)
    assert y.is_contiguous(memory_format=layout_rule(x))
    g = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, g)
    many = max(1.0, y.shape[2] * y.shape[3] / (x.shape[2] * x.shape[3]))  # outputs that an input collects
    oracle = reference.upsample_backward(g.double(), code)
    check_budget(dx, reference.upsample_backward(g, code), oracle, g, gain=many)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sampling", **parametrized(SAMPLINGS))
def test_samplings(backend: Backend, sampling: Sampling, dtype: torch.dtype) -> None:
    check(backend, torch.randn(2, 5, *sampling.input_size).to(dtype), sampling)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sampling", **parametrized(FEW_SAMPLINGS))
def test_layouts(backend: Backend, sampling: Sampling, layout: str) -> None:
    check(backend, LAYOUTS[layout](torch.randn(2, 5, *sampling.input_size, device=backend.device)), sampling)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_incoming_gradient(backend: Backend, layout: str) -> None:
    x = torch.randn(2, 5, 6, 7, device=backend.device, requires_grad=True)
    sampling = Sampling.transposed_conv((6, 7), 2)
    g = LAYOUTS[layout](torch.randn(2, 5, *sampling.output_size, device=backend.device))
    (dx,) = torch.autograd.grad(fk.upsample(x, sampling), x, g)
    code = sampling.encode()
    check_budget(dx, reference.upsample_backward(g, code), reference.upsample_backward(g.double(), code), g, gain=4)


@pytest.mark.parametrize("channels", [1, 3, 7, 12, 16, 21, 65])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_channels(backend: Backend, channels: int, layout: str) -> None:
    check(backend, LAYOUTS[layout](torch.randn(1, channels, 4, 5)), Sampling.interpolate((4, 5), (11, 23)))


def test_empty_batch(backend: Backend) -> None:
    x = torch.randn(0, 3, 4, 5, device=backend.device, requires_grad=True)
    y = fk.upsample(x, (8, 9))
    assert y.shape == (0, 3, 8, 9)
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_plain_size_is_interpolate(backend: Backend) -> None:
    x = torch.randn(2, 3, 6, 7, device=backend.device)
    expected = F.interpolate(x, size=(15, 20), mode="bilinear", align_corners=False)
    torch.testing.assert_close(fk.upsample(x, (15, 20)), expected)
    assert fk.upsample(x, [15, 20]).equal(fk.upsample(x, Sampling.interpolate((6, 7), (15, 20))))
    assert fk.upsample(x, 9).shape == (2, 3, 9, 9)


def test_weight_zero_is_not_read(backend: Backend) -> None:
    """A NaN reaches exactly the outputs whose weight for it is not zero."""
    x = torch.zeros(1, 1, 5, 5, device=backend.device)
    x[0, 0, 2, 2] = torch.nan
    for sampling in (Sampling.interpolate(5, 5), Sampling.interpolate(5, 9, align_corners=True)):
        touched = reference.upsample(x.double().isnan().double(), sampling.encode()) > 0
        assert fk.upsample(x, sampling).isnan().equal(touched)
    assert fk.upsample(x, (5, 5)).isnan().sum() == 1


@pytest.mark.parametrize("width", [5, 70])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_infinity_is_not_multiplied_by_zero(backend: Backend, layout: str, width: int) -> None:
    """Where an output lies on an input row or column it is that input, infinities included."""
    x = torch.randn(1, 2, 4, width, device=backend.device)
    x[0, 0, 1, 2], x[0, 1, 3, 0] = torch.inf, -torch.inf
    x = LAYOUTS[layout](x)
    assert fk.upsample(x, (4, width)).equal(x)
    assert fk.upsample_sigmoid(x, (4, width)).isfinite().all()
    assert fk.upsample_add(x, torch.ones_like(x), (4, width)).equal(x + 1)
    doubled = fk.upsample(x, Sampling.interpolate((4, width), (7, 2 * width - 1), align_corners=True))
    assert doubled[:, :, ::2, ::2].equal(x)
    assert not doubled.isnan().any()


@pytest.mark.parametrize("sampling", **parametrized(FEW_SAMPLINGS))
def test_adjoint_identity(backend: Backend, sampling: Sampling) -> None:
    x = torch.randn(2, 3, *sampling.input_size, dtype=torch.float64, device=backend.device, requires_grad=True)
    y = fk.upsample(x, sampling)
    g = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, g)
    torch.testing.assert_close((y * g).sum(), (x * dx).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "sampling", [Sampling.interpolate((3, 4), (5, 7)), Sampling.transposed_conv((3, 2), 2, offset=1)]
)
def test_gradients_of_all_orders(backend: Backend, sampling: Sampling) -> None:
    x = torch.randn(1, 2, *sampling.input_size, dtype=torch.float64, device=backend.device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: fk.upsample(x, sampling), x)
    assert torch.autograd.gradgradcheck(lambda x: fk.upsample(x, sampling), x)


def test_crop_of_full_is_direct(backend: Backend) -> None:
    x = torch.randn(1, 3, 9, 8, device=backend.device)
    full = fk.upsample(x, Sampling.transposed_conv((9, 8), 8))
    crop = fk.upsample(x, Sampling.transposed_conv((9, 8), 8, offset=(31, 5), output_size=(20, 30)))
    assert full[:, :, 31:51, 5:35].equal(crop)


BAD = [
    (lambda x: fk.upsample(x[0], (4, 4)), ValueError, r"x must be \[N, C, H, W\], got shape \[3, 5, 6\]"),
    (
        lambda x: fk.upsample(x.long(), (4, 4)),
        TypeError,
        "x must be float32, float64, float16 or bfloat16, got torch.int64",
    ),
    (lambda x: fk.upsample(x.to(torch.complex64), (4, 4)), TypeError, "got torch.complex64"),
    (lambda x: fk.upsample([1.0], (4, 4)), TypeError, "x must be a tensor, got list"),
    (lambda x: fk.upsample(x[:, :0], (4, 4)), ValueError, "at least one channel"),
    (lambda x: fk.upsample(x[:, :, :0], (4, 4)), ValueError, "one pixel"),
    (
        lambda x: fk.upsample(x, Sampling.interpolate(5, 9)),
        ValueError,
        "the sampling reads 5 x 5 pixels, but x has 5 x 6",
    ),
    (lambda x: fk.upsample(x, (0, 4)), ValueError, "size must be at least 1, got 0"),
    (lambda x: fk.upsample(x, (4, 2**60)), ValueError, "output size must be from 1"),
    (lambda x: fk.upsample(x, (4, 4, 4)), ValueError, "must be a Sampling or an output size"),
    (lambda x: fk.upsample(x, (4.5, 4)), TypeError, "must be a Sampling or an output size"),
    (lambda x: fk.upsample(x, None), (TypeError, ValueError), "must be a Sampling or an output size"),
    (lambda x: fk.upsample(x, "big"), TypeError, "must be a Sampling or an output size"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        call(torch.randn(2, 3, 5, 6))
    assert str(raised.value).startswith("upsample: ")
