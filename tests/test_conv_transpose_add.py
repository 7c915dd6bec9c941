"""conv_transpose_add on every backend."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from budget import check_budget
from cases import DTYPES, LAYOUTS, layout_rule
from conftest import Backend

import fcn_kernels as fk
from fcn_kernels import Sampling, reference
from fcn_kernels.nn import bilinear_weight

OPERATOR = "conv_transpose_add"


def equivalent(
    x, weight, skip=None, *, stride, groups=1, offset=(0, 0), output_size=None, skip_offset=(0, 0), skip_scale=1.0
):
    """The docstring, as code."""
    y = F.conv_transpose2d(x, weight, stride=stride, groups=groups)[:, :, offset[0] :, offset[1] :]
    if output_size is not None:
        y = y[:, :, : output_size[0], : output_size[1]]
    if skip is None:
        return y
    (oy, ox), (height, width) = skip_offset, y.shape[2:]
    return y + skip_scale * skip[:, :, oy : oy + height, ox : ox + width]


OPTIONS = {
    "plain": {"stride": 2},
    "groups": {"stride": 2, "groups": 2},
    "depthwise": {"stride": 2, "groups": 4},
    "crop": {"stride": 2, "offset": (2, 1), "output_size": (7, 9)},
    "fused": {"stride": (3, 2), "offset": (1, 0), "output_size": (9, 8), "skip_offset": (2, 1), "skip_scale": 0.5},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", OPTIONS)
def test_equals_torch(backend: Backend, options: str, layout: str, dtype: torch.dtype) -> None:
    options = OPTIONS[options]
    groups = options.get("groups", 1)
    x = LAYOUTS[layout](torch.randn(2, 4, 4, 5, device=backend.device).to(dtype)).requires_grad_()
    weight = torch.randn(4, 8 // groups, 4, 4, device=backend.device).to(dtype).requires_grad_()
    tensors = [x, weight]
    if "skip_offset" in options:
        tensors.append(torch.randn(2, 8, 14, 13, device=backend.device).to(dtype).requires_grad_())
    y = fk.conv_transpose_add(*tensors, **options)
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    expected, oracle = equivalent(*tensors, **options), equivalent(*doubles, **options)
    gain = 16.0 * weight.detach().abs().max().item()  # taps per output
    check_budget(y, expected, oracle, x, gain=gain)
    assert y.is_contiguous(memory_format=layout_rule(x))
    g = torch.randn_like(y)
    theirs = torch.autograd.grad(oracle, doubles, g.double())
    same = torch.autograd.grad(expected, tensors, g)
    for ours, expect, exact in zip(torch.autograd.grad(y, tensors, g), same, theirs, strict=True):
        check_budget(ours, expect, exact, x, gain=40 * gain)


def test_bilinear_weight_is_upsample_add(backend: Backend) -> None:
    x = torch.randn(1, 3, 5, 6, dtype=torch.float64, device=backend.device)
    skip = torch.randn(1, 3, 20, 20, dtype=torch.float64, device=backend.device)
    weight = bilinear_weight(3, 4, dtype=torch.float64).to(backend.device)
    ours = fk.conv_transpose_add(x, weight, skip, stride=2, skip_offset=(5, 5))
    code = Sampling.transposed_conv((5, 6), 2).encode()
    torch.testing.assert_close(ours, reference.upsample_add(x, skip, code, (5, 5), 1.0))


def test_gradients_of_all_orders(backend: Backend) -> None:
    options = {"dtype": torch.float64, "device": backend.device, "requires_grad": True}
    tensors = (
        torch.randn(1, 2, 2, 3, **options),
        torch.randn(2, 1, 3, 3, **options),
        torch.randn(1, 2, 6, 7, **options),
    )

    def f(*tensors: torch.Tensor) -> torch.Tensor:
        where = {"offset": (1, 0), "output_size": (4, 5), "skip_offset": (1, 2)}
        return fk.conv_transpose_add(*tensors, stride=2, groups=2, skip_scale=0.5, **where)

    assert torch.autograd.gradcheck(f, tensors)
    assert torch.autograd.gradgradcheck(f, tensors)


def test_autocast(backend: Backend) -> None:
    x, weight = torch.randn(1, 3, 5, 6, device=backend.device), torch.randn(3, 2, 4, 4, device=backend.device)
    skip = torch.randn(1, 2, 20, 20, device=backend.device)
    with torch.autocast(backend.device, torch.bfloat16):
        assert fk.conv_transpose_add(x, weight, skip, stride=2).dtype == torch.bfloat16
        assert fk.conv_transpose_add(x.double(), weight.double(), stride=2).dtype == torch.float64


def test_empty_batch(backend: Backend) -> None:
    x, weight = torch.randn(0, 3, 5, 6, device=backend.device), torch.randn(3, 2, 4, 4, device=backend.device)
    assert fk.conv_transpose_add(x, weight, stride=2).shape == (0, 2, 12, 14)


X, W, SKIP = torch.randn(2, 4, 5, 6), torch.randn(4, 3, 4, 4), torch.randn(2, 3, 20, 20)
UP = fk.conv_transpose_add
BAD = [
    (lambda: UP(X[0], W, stride=2), ValueError, r"x must be \[N, C, H, W\]"),
    (lambda: UP(X, W[0], stride=2), ValueError, "weight must be"),
    (lambda: UP(X[:, :3], W, stride=2), ValueError, "with Cin = 3"),
    (lambda: UP(X, W, stride=2, groups=3), ValueError, "divisible by groups = 3"),
    (lambda: UP(X, W, stride=2, groups=0), ValueError, "groups must be at least 1, got 0"),
    (lambda: UP(X, W, stride=0), ValueError, "stride must be at least 1, got 0"),
    (lambda: UP(X, W, stride=(2, 2, 2)), ValueError, "stride must be an int or a pair"),
    (lambda: UP(X, W, stride=2.0), TypeError, "stride must be an int"),
    (lambda: UP(X, W, stride=2, offset=(-1, 0)), ValueError, "offset must be at least 0"),
    (lambda: UP(X, W, stride=2, offset=(12, 0)), ValueError, "leaves the transposed convolution, which has 12 x 14"),
    (lambda: UP(X, W, stride=2, output_size=(13, 3)), ValueError, r"crop of 13 x 3 pixels at \(0, 0\) leaves"),
    (lambda: UP(X, W, stride=2, output_size=(0, 3)), ValueError, "output_size must be at least 1"),
    (lambda: UP(X, W, SKIP[:, :2], stride=2), ValueError, "skip must have 2 images of 3 channels"),
    (lambda: UP(X, W, SKIP, stride=2, skip_offset=(9, 0)), ValueError, r"at \(9, 0\) leaves skip"),
    (lambda: UP(X, W, SKIP, stride=2, skip_scale=float("inf")), ValueError, "skip_scale must be finite"),
    (lambda: UP(X, W.double(), stride=2), TypeError, "weight is torch.float64, but x is torch.float32"),
    (lambda: UP(X, W, SKIP.half(), stride=2), TypeError, "skip is torch.float16"),
    (lambda: UP(X, W.to("meta"), stride=2), ValueError, "weight is on meta, but x is on cpu"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        call()
    assert str(raised.value).startswith("conv_transpose_add: ")
