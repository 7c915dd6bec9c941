"""upsample_add: FCN's skip fusion on every backend."""

from __future__ import annotations

import pytest
import torch
from budget import check_budget
from cases import DTYPES, FEW_SAMPLINGS, LAYOUTS, layout_rule, parametrized
from conftest import Backend

import fcn_kernels as fk
from fcn_kernels import Sampling, reference

OPERATOR = "upsample_add"


def skip_for(x: torch.Tensor, sampling: Sampling, margin: int = 3) -> torch.Tensor:
    height, width = sampling.output_size
    return torch.randn(*x.shape[:2], height + margin, width + margin, device=x.device).to(x.dtype)


def check(backend: Backend, x: torch.Tensor, skip: torch.Tensor, sampling: Sampling, offset=(2, 1), scale=0.5) -> None:
    x, skip = x.to(backend.device).requires_grad_(), skip.to(backend.device).requires_grad_()
    y = fk.upsample_add(x, skip, sampling, skip_offset=offset, skip_scale=scale)
    code = sampling.encode()
    expected = reference.upsample_add(x.detach(), skip.detach(), code, offset, scale)
    oracle = reference.upsample_add(x.detach().double(), skip.detach().double(), code, offset, scale)
    # The interpreter truncates to bfloat16 where devices round to nearest.
    ulp = torch.finfo(x.dtype).eps if backend.interpreted else 0.0
    check_budget(y, expected, oracle, x, floor=ulp * oracle.abs().max().item())
    assert y.is_contiguous(memory_format=layout_rule(x))
    g = torch.randn_like(y)
    dx, dskip = torch.autograd.grad(y, (x, skip), g)
    expected, oracle = reference.upsample_backward(g, code), reference.upsample_backward(g.double(), code)
    gain = y[0].numel() / x[0].numel()
    check_budget(dx, expected, oracle, g, gain=gain, floor=ulp * oracle.abs().max().item())
    window = torch.zeros_like(skip)
    window[:, :, offset[0] : offset[0] + y.shape[2], offset[1] : offset[1] + y.shape[3]] = g * scale
    assert dskip.equal(window)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sampling", **parametrized(FEW_SAMPLINGS))
def test_samplings(backend: Backend, sampling: Sampling, dtype: torch.dtype) -> None:
    x = torch.randn(2, 5, *sampling.input_size).to(dtype)
    check(backend, x, skip_for(x, sampling), sampling)


TINY = [
    ("fcn-2x", Sampling.transposed_conv((3, 4), 2)),
    ("fcn-8x", Sampling.transposed_conv((2, 3), 8, offset=(9, 7), output_size=(6, 9))),
    ("resize", Sampling.interpolate((2, 3), (7, 8))),
    ("corners", Sampling.interpolate((3, 2), (4, 9), align_corners=True)),
    ("down", Sampling.interpolate((7, 9), (3, 2))),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sampling", **parametrized(TINY))
def test_tiny(any_backend: Backend, sampling: Sampling, dtype: torch.dtype) -> None:
    x = torch.randn(1, 3, *sampling.input_size).to(dtype)
    check(any_backend, x, skip_for(x, sampling), sampling)


@pytest.mark.parametrize(
    ("layout", "skip_layout"),
    [
        ("channels_last", "contiguous"),
        ("contiguous", "channels_last"),
        ("sliced", "transposed"),
        ("expanded", "sliced"),
    ],
)
def test_tiny_layouts(any_backend: Backend, layout: str, skip_layout: str) -> None:
    sampling = Sampling.transposed_conv((3, 4), 2)
    x = LAYOUTS[layout](torch.randn(2, 3, 3, 4, device=any_backend.device))
    check(any_backend, x, LAYOUTS[skip_layout](skip_for(x, sampling)), sampling)


@pytest.mark.parametrize("skip_layout", ["contiguous", "channels_last", "sliced", "transposed"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: Backend, layout: str, skip_layout: str) -> None:
    sampling = Sampling.transposed_conv((5, 7), 2)
    x = LAYOUTS[layout](torch.randn(2, 5, 5, 7, device=backend.device))
    check(backend, x, LAYOUTS[skip_layout](skip_for(x, sampling)), sampling)


@pytest.mark.parametrize("channels", [1, 21, 65])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_fcn_stages(backend: Backend, channels: int, layout: str) -> None:
    """The two fusions of FCN-8s at their real offsets, on small maps: 5 on pool4, 9 on pool3, added whole."""
    for size, offset in (((6, 9), (5, 5)), ((12, 18), (9, 9))):
        sampling = Sampling.transposed_conv(size, 2)
        x = LAYOUTS[layout](torch.randn(1, channels, *size))
        check(backend, x, LAYOUTS[layout](skip_for(x, sampling, 14)), sampling, offset, 1.0)


def test_whole_skip_and_defaults(backend: Backend) -> None:
    x = torch.randn(2, 3, 4, 5, device=backend.device)
    skip = torch.randn(2, 3, 8, 10, device=backend.device, requires_grad=True)
    y = fk.upsample_add(x, skip, (8, 10))
    torch.testing.assert_close(y, fk.upsample(x, (8, 10)) + skip)
    y.backward(torch.ones_like(y))
    assert skip.grad.equal(torch.ones_like(skip))


def test_scale_zero_and_negative(backend: Backend) -> None:
    x, skip = torch.randn(1, 3, 4, 5, device=backend.device), torch.randn(1, 3, 8, 10, device=backend.device)
    torch.testing.assert_close(fk.upsample_add(x, skip, (8, 10), skip_scale=0.0), fk.upsample(x, (8, 10)))
    torch.testing.assert_close(fk.upsample_add(x, skip, (8, 10), skip_scale=-2), fk.upsample(x, (8, 10)) - 2 * skip)


def test_empty_batch(backend: Backend) -> None:
    x = torch.randn(0, 3, 4, 5, device=backend.device, requires_grad=True)
    y = fk.upsample_add(x, torch.randn(0, 3, 9, 9, device=backend.device), (8, 9))
    y.sum().backward()
    assert y.shape == (0, 3, 8, 9)
    assert x.grad.shape == x.shape


def test_only_what_needs_a_gradient_gets_one(backend: Backend) -> None:
    for wanted in (0, 1):
        tensors = [torch.randn(1, 2, 3, 3, device=backend.device), torch.randn(1, 2, 6, 6, device=backend.device)]
        tensors[wanted].requires_grad_()
        fk.upsample_add(*tensors, (6, 6)).sum().backward()
        assert [t.grad is not None for t in tensors] == [wanted == 0, wanted == 1]


def test_gradients_of_all_orders(backend: Backend) -> None:
    x = torch.randn(1, 2, 3, 2, dtype=torch.float64, device=backend.device, requires_grad=True)
    skip = torch.randn(1, 2, 6, 5, dtype=torch.float64, device=backend.device, requires_grad=True)
    sampling = Sampling.transposed_conv((3, 2), 2, offset=1, output_size=(5, 4))

    def f(x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return fk.upsample_add(x, skip, sampling, skip_offset=(1, 0), skip_scale=0.7)

    assert torch.autograd.gradcheck(f, (x, skip))
    assert torch.autograd.gradgradcheck(f, (x, skip))


def test_autocast_takes_the_wider_dtype(backend: Backend) -> None:
    x, skip = torch.randn(1, 2, 3, 3, device=backend.device), torch.randn(1, 2, 6, 6, device=backend.device)
    with torch.autocast(backend.device, torch.bfloat16):
        y = fk.upsample_add(x.bfloat16(), skip, (6, 6))
    assert y.dtype == torch.float32
    assert y.equal(fk.upsample_add(x.bfloat16().float(), skip, (6, 6)))


X, SKIP = torch.randn(2, 3, 5, 6), torch.randn(2, 3, 12, 14)
META = torch.empty(2, 3, 12, 14, device="meta")
BAD = [
    (lambda: fk.upsample_add(X, SKIP[0], (10, 12)), ValueError, r"skip must be \[N, C, H, W\]"),
    (lambda: fk.upsample_add(X, SKIP[:, :2], (10, 12)), ValueError, "skip must have 2 images of 3 channels"),
    (lambda: fk.upsample_add(X, SKIP[:1], (10, 12)), ValueError, r"got shape \[1, 3, 12, 14\]"),
    (lambda: fk.upsample_add(X, SKIP.double(), (10, 12)), TypeError, "skip is torch.float64, but x is torch.float32"),
    (lambda: fk.upsample_add(X, SKIP.long(), (10, 12)), TypeError, "skip must be float32"),
    (lambda: fk.upsample_add(X, META, (10, 12)), ValueError, "skip is on meta, but x is on cpu"),
    (
        lambda: fk.upsample_add(X, SKIP, (13, 12)),
        ValueError,
        r"13 x 12 pixels at \(0, 0\) leaves skip, which has 12 x 14",
    ),
    (lambda: fk.upsample_add(X, SKIP, (10, 12), skip_offset=(0, 3)), ValueError, r"at \(0, 3\) leaves skip"),
    (lambda: fk.upsample_add(X, SKIP, (10, 12), skip_offset=(-1, 0)), ValueError, r"at \(-1, 0\) leaves skip"),
    (lambda: fk.upsample_add(X, SKIP, (10, 12), skip_offset=3), ValueError, r"at \(3, 3\) leaves skip"),
    (lambda: fk.upsample_add(X, SKIP, (10, 12), skip_offset=(1, 2, 3)), ValueError, "must be an int or a pair"),
    (lambda: fk.upsample_add(X, SKIP, (10, 12), skip_offset=(1.5, 0)), TypeError, "skip_offset must be an int"),
    (
        lambda: fk.upsample_add(X, SKIP, (10, 12), skip_scale=float("nan")),
        ValueError,
        "skip_scale must be finite, got nan",
    ),
    (
        lambda: fk.upsample_add(X, SKIP, (10, 12), skip_scale=float("inf")),
        ValueError,
        "skip_scale must be finite, got inf",
    ),
    (
        lambda: fk.upsample_add(X, SKIP, (10, 12), skip_scale=torch.tensor(1.0)),
        TypeError,
        "skip_scale must be a number",
    ),
    (lambda: fk.upsample_add(X, SKIP, Sampling.interpolate(5, 9)), ValueError, "the sampling reads 5 x 5 pixels"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        call()
    assert str(raised.value).startswith("upsample_add: ")
