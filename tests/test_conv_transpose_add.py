"""conv_transpose_add on every backend."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from budget import check_budget
from cases import DTYPES, LAYOUTS, layout_rule
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fcn_kernels as fk
from fcn_kernels import Sampling, reference
from fcn_kernels.nn import bilinear_weight

OPERATOR = "conv_transpose_add"
UP = fk.conv_transpose_add


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


def test_constant_bilinear_weights_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where they need no gradient, and nothing else is taken for them."""
    module = importlib.import_module("fcn_kernels.ops.conv_transpose_add")
    calls = []
    general = module._conv_transpose_add
    monkeypatch.setattr(module, "_conv_transpose_add", lambda *args: calls.append(1) or general(*args))

    def is_recognised(weight: torch.Tensor, stride: int | tuple[int, int] = 2, **options: object) -> bool:
        calls.clear()
        x = torch.randn(2, 3, 5, 6).to(weight.dtype).requires_grad_()
        y = UP(x, weight, stride=stride, groups=3, **options)
        recognised = not calls
        with fk.use_backend("reference"):
            expected = UP(x, weight, stride=stride, groups=3, **options)
        g = torch.randn_like(y)
        eps = {"rtol": 2 * torch.finfo(y.dtype).eps, "atol": 16 * torch.finfo(y.dtype).eps}
        torch.testing.assert_close(y, expected, **eps)
        theirs, ours = torch.autograd.grad(expected, x, g), torch.autograd.grad(y, x, g)
        torch.testing.assert_close(ours, theirs, rtol=4 * eps["rtol"], atol=32 * eps["atol"])
        return recognised

    for dtype in DTYPES:
        assert is_recognised(bilinear_weight(3, 4, groups=3, dtype=dtype))
    weight = bilinear_weight(3, 4, groups=3, dtype=torch.float32)
    assert is_recognised(weight, offset=(1, 2), output_size=(7, 8))
    assert is_recognised(bilinear_weight(3, 5, groups=3, dtype=torch.float32), 3)
    assert not is_recognised(bilinear_weight(3, 5, groups=3, dtype=torch.float32), 2)
    assert not is_recognised(weight.clone().requires_grad_())
    with torch.no_grad():
        calls.clear()
        UP(torch.randn(1, 3, 2, 2), weight.clone().requires_grad_(), stride=2, groups=3)
        assert not calls
    for at in ((0, 0, 0, 0), (2, 0, 3, 3), (1, 0, 2, 1)):
        changed = weight.clone()
        changed[at] += 1e-3
        assert not is_recognised(changed)
    calls.clear()
    torch.vmap(lambda x: UP(x, weight, stride=2, groups=3))(torch.randn(2, 1, 3, 4, 4))
    assert calls


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


sides = st.tuples(*[st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)) for _ in "yx"])  # h, s, k


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    axes=sides,
    channels=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    layouts=st.tuples(*[st.sampled_from(["contiguous", "channels_last", "sliced", "transposed"])] * 3),
    data=st.data(),
)
def test_any_geometry(backend: Backend, axes: tuple, channels: tuple, layouts: tuple, data: st.DataObject) -> None:
    """Every side, stride, kernel, crop, group and layout: the value and all gradients."""
    groups, inputs, outputs = channels
    full = [(size - 1) * stride + kernel for size, stride, kernel in axes]
    offset = [data.draw(st.integers(0, f - 1)) for f in full]
    crop = [data.draw(st.integers(1, f - o)) for f, o in zip(full, offset, strict=True)]
    shapes = (
        (2, groups * inputs, *(size for size, _, _ in axes)),
        (groups * inputs, outputs, *(kernel for _, _, kernel in axes)),
        (2, groups * outputs, crop[0] + 2, crop[1] + 1),
    )
    tensors = [
        LAYOUTS[name](torch.randn(shape, device=backend.device)) for name, shape in zip(layouts, shapes, strict=True)
    ]
    where = {"stride": [s for _, s, _ in axes], "groups": groups, "offset": offset, "output_size": crop}
    where |= {"skip_offset": (2, 0), "skip_scale": -1.5}
    g = LAYOUTS[layouts[0]](torch.randn(2, groups * outputs, *crop, device=backend.device))

    def evaluate(f: Callable, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        leaves = [t.to(dtype).requires_grad_() for t in tensors]
        y = f(*leaves, **where)
        return y, *torch.autograd.grad(y, leaves, g.to(dtype))

    results = [evaluate(*a) for a in ((UP, torch.float32), (equivalent, torch.float32), (equivalent, torch.float64))]
    for ours, plain, oracle in zip(*results, strict=True):
        check_budget(ours, plain, oracle, tensors[0], gain=oracle.detach().abs().max().item())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("options", ["plain", "depthwise", "holes", "partial"])
def test_values_that_are_not_finite(backend: Backend, options: str, value: float) -> None:
    """They reach what they are multiplied with, also by a weight of zero, and nothing else."""
    kernel, stride, groups = {"plain": (4, 2, 1), "depthwise": (4, 2, 4), "holes": (2, 3, 4), "partial": (7, 3, 1)}[
        options
    ]
    x = torch.randn(2, 4, 5, 21, device=backend.device)
    x[0, 1, 0, 0] = x[0, 2, 3, 7] = x[1, 3, -1, -1] = value
    weight = torch.randn(4, 4 // groups, kernel, kernel, device=backend.device)
    weight[:, :, 1, 0] = 0
    tensors = [x.requires_grad_(), weight.requires_grad_()]
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    y = UP(*tensors, stride=stride, groups=groups)
    oracle = equivalent(*doubles, stride=stride, groups=groups)
    g = torch.randn_like(y)
    g[0, 0, 0, 0] = g[1, 2, -1, -1] = g[1, 1, 4, 11] = value
    ours = torch.autograd.grad(y, tensors, g)
    theirs = torch.autograd.grad(oracle, doubles, g.double())
    for a, b in zip((y, *ours), (oracle, *theirs), strict=True):
        assert a.isfinite().equal(b.isfinite())
        assert a.isnan().equal(b.isnan())


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
BAD = [
    (lambda: UP(X[0], W, stride=2), ValueError, r"x must be \[N, C, H, W\]"),
    (lambda: UP(X, W[0], stride=2), ValueError, "weight must be"),
    (lambda: UP(X[:, :3], W, stride=2), ValueError, "with Cin = 3"),
    (lambda: UP(X, W, stride=2, groups=3), ValueError, "divisible by groups = 3"),
    (lambda: UP(X, W, stride=2, groups=0), ValueError, "groups must be at least 1, got 0"),
    (lambda: UP(X, W, stride=0), ValueError, "stride must be at least 1, got 0"),
    (lambda: UP(X, W, stride=(2, 2, 2)), ValueError, "stride must be an int or a pair"),
    (lambda: UP(X, W, stride=2.0), TypeError, "stride must be an int"),
    (lambda: UP(X, W[0], stride=2), ValueError, r"weight must be \[Cin, Cout / groups, ky, kx\], got shape"),
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
