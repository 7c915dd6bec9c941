"""conv_transpose_concat on every backend."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from budget import check_budget
from cases import DTYPES, LAYOUTS, layout_rule
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import fcn_kernels as fk

OPERATOR = "conv_transpose_concat"
CONCAT = fk.conv_transpose_concat


def equivalent(
    x, weight, skip, bias=None, *, stride, groups=1, offset=(0, 0), output_size=None, skip_offset=(0, 0)
) -> Tensor:
    """The docstring, as code."""
    y = F.conv_transpose2d(x, weight, bias, stride=stride, groups=groups)[:, :, offset[0] :, offset[1] :]
    if output_size is not None:
        y = y[:, :, : output_size[0], : output_size[1]]
    (oy, ox), (height, width) = skip_offset, y.shape[2:]
    return torch.cat([skip[:, :, oy : oy + height, ox : ox + width], y], dim=1)


def compare(tensors: list[Tensor], layout: str = "contiguous", **options: object) -> None:
    """Value and all gradients against the equivalent PyTorch in float64, within the budget."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    same = [t.detach().requires_grad_() for t in tensors]
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    y, expected, oracle = CONCAT(*leaves, **options), equivalent(*same, **options), equivalent(*doubles, **options)
    assert y.is_contiguous(memory_format=layout_rule(leaves[0]))
    g = LAYOUTS[layout](torch.randn_like(oracle).to(y.dtype))
    ours = torch.autograd.grad(y, leaves, g)
    plain = torch.autograd.grad(expected, same, g)
    exact = torch.autograd.grad(oracle, doubles, g.double())
    for a, b, c in zip((y, *ours), (expected, *plain), (oracle, *exact), strict=True):
        check_budget(a, b, c, leaves[0], gain=max(c.abs().max().item(), 1.0))


# Input channels, kernel, options: few channels and many, kernels that are the stride and that are not.
OPTIONS = {
    "unet": (16, (2, 2), {"stride": 2, "skip_offset": (2, 1)}),
    "narrow": (4, (2, 2), {"stride": 2, "skip_offset": (2, 1)}),
    "crop": (17, (2, 2), {"stride": 2, "offset": (1, 3), "output_size": (6, 6)}),
    "groups": (32, (3, 2), {"stride": (3, 2), "groups": 2, "offset": (4, 0), "skip_offset": (0, 3)}),
    "four": (16, (1, 4), {"stride": (1, 4), "offset": (0, 1), "output_size": (3, 18)}),
    "overlapping": (4, (4, 4), {"stride": 2, "offset": (1, 1), "output_size": (8, 10)}),
    "depthwise": (4, (4, 3), {"stride": 2, "groups": 4, "skip_offset": (1, 1)}),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", OPTIONS)
def test_equals_torch(backend: Backend, options: str, layout: str, dtype: torch.dtype) -> None:
    inputs, kernel, options = OPTIONS[options]
    groups = options.get("groups", 1)
    x = LAYOUTS[layout](torch.randn(2, inputs, 4, 5, device=backend.device).to(dtype))
    weight = torch.randn(inputs, 8 // groups, *kernel, device=backend.device).to(dtype)
    skip = LAYOUTS[layout](torch.randn(2, 3, 14, 23, device=backend.device).to(dtype))
    compare([x, weight, skip, torch.randn(8, device=backend.device).to(dtype)], layout, **options)
    with torch.no_grad():
        y = CONCAT(x, weight, skip, **options)
        oracle = equivalent(x.double(), weight.double(), skip.double(), **options)
        check_budget(y, equivalent(x, weight, skip, **options), oracle, x, gain=oracle.abs().max().item())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("inputs", "outputs", "skips", "size"), [(33, 19, 5, (9, 37)), (150, 70, 1, (3, 5))])
def test_wide(backend: Backend, inputs: int, outputs: int, skips: int, size: tuple[int, int], layout: str) -> None:
    """Full blocks of channels and pixels, and rests of each."""
    h, w = size
    x = LAYOUTS[layout](torch.randn(2, inputs, h, w, device=backend.device))
    weight = torch.randn(inputs, outputs, 2, 2, device=backend.device) * inputs**-0.5
    skip = LAYOUTS[layout](torch.randn(2, skips, 2 * h + 3, 2 * w + 2, device=backend.device))
    bias = torch.randn(outputs, device=backend.device)
    compare([x, weight, skip, bias], layout, stride=2, skip_offset=(1, 1))
    compare([x, weight, skip, bias], layout, stride=2, offset=(1, 2), output_size=(2 * h - 2, 2 * w - 5))


sides = st.tuples(*[st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 7)) for _ in "yx"])  # h, s, k


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    axes=sides,
    patches=st.sampled_from([None, 1, 2, 4]),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), st.integers(1, 5)),
    layouts=st.tuples(*[st.sampled_from(["contiguous", "channels_last", "sliced", "transposed"])] * 3),
    data=st.data(),
)
def test_any_geometry(
    backend: Backend, axes: tuple, patches: int | None, channels: tuple, layouts: tuple, data: st.DataObject
) -> None:
    """Every side, stride, kernel, crop, group and layout, or wide ones whose kernel is the stride."""
    groups, inputs, outputs, skips = channels
    if patches is not None:
        (h, sy, _), (w, _, _) = axes
        axes, inputs = [(h, sy, sy), (w, patches, patches)], inputs + 15
    full = [(size - 1) * stride + kernel for size, stride, kernel in axes]
    offset = [data.draw(st.integers(0, f - 1)) for f in full]
    crop = [data.draw(st.integers(1, f - o)) for f, o in zip(full, offset, strict=True)]
    shapes = (
        (2, groups * inputs, *(size for size, _, _ in axes)),
        (groups * inputs, outputs, *(kernel for _, _, kernel in axes)),
        (2, skips, crop[0] + 2, crop[1] + 1),
    )
    tensors = [
        LAYOUTS[name](torch.randn(shape, device=backend.device)) for name, shape in zip(layouts, shapes, strict=True)
    ]
    tensors.append(torch.randn(groups * outputs, device=backend.device))
    where = {"stride": [s for _, s, _ in axes], "groups": groups, "offset": offset, "output_size": crop}
    compare(tensors, layouts[0], **where, skip_offset=(2, 0))


def test_gradients_of_all_orders(backend: Backend) -> None:
    options = {"dtype": torch.float64, "device": backend.device, "requires_grad": True}
    tensors = (
        torch.randn(1, 2, 2, 3, **options),
        torch.randn(2, 1, 2, 2, **options),
        torch.randn(1, 2, 6, 7, **options),
        torch.randn(2, **options),
    )

    def f(*tensors: Tensor) -> Tensor:
        where = {"offset": (1, 0), "output_size": (3, 5), "skip_offset": (1, 2)}
        return CONCAT(*tensors, stride=2, groups=2, **where)

    assert torch.autograd.gradcheck(f, tensors)
    assert torch.autograd.gradgradcheck(f, tensors)


def test_only_the_gradients_that_are_asked_for(backend: Backend) -> None:
    tensors = [torch.randn(s, device=backend.device) for s in ((1, 2, 3, 3), (2, 3, 2, 2), (1, 2, 6, 6), (3,))]
    every = [t.clone().requires_grad_() for t in tensors]
    y = CONCAT(*every, stride=2)
    g = torch.randn_like(y)
    all_of_them = torch.autograd.grad(y, every, g)
    for i, expected in enumerate(all_of_them):
        leaves = [t.clone().requires_grad_(i == j) for j, t in enumerate(tensors)]
        CONCAT(*leaves, stride=2).backward(g)
        assert leaves[i].grad.equal(expected)
        assert [t.grad is None for t in leaves] == [i != j for j in range(4)]


def test_the_gradient_of_a_whole_skip_is_no_copy(backend: Backend) -> None:
    x, skip = torch.randn(1, 2, 3, 3, device=backend.device), torch.randn(1, 5, 6, 6, device=backend.device)
    y = CONCAT(x, torch.randn(2, 3, 2, 2, device=backend.device), skip.requires_grad_(), stride=2)
    g = torch.randn_like(y)
    (grad,) = torch.autograd.grad(y, skip, g)
    assert grad.untyped_storage().data_ptr() == g.untyped_storage().data_ptr()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(("channels", "kernel", "stride"), [(16, 2, 2), (16, 4, 4), (4, 4, 2), (4, 3, 3)])
def test_values_that_are_not_finite(backend: Backend, channels: int, kernel: int, stride: int, value: float) -> None:
    """They reach what they are multiplied with, also by a weight of zero, and nothing else."""
    x, skip = torch.randn(2, channels, 5, 21), torch.randn(2, 2, 64, 84)
    x[0, 1, 0, 0] = x[0, 2, 3, 7] = x[1, 3, -1, -1] = value
    skip[0, 1, 3, 5] = value
    weight = torch.randn(channels, 3, kernel, kernel)
    weight[:, :, 1, 0] = 0
    tensors = [t.to(backend.device).requires_grad_() for t in (x, weight, skip, torch.tensor([0.0, 1.0, -value]))]
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    y, oracle = CONCAT(*tensors, stride=stride), equivalent(*doubles, stride=stride)
    g = torch.randn_like(y)
    g[0, 0, 0, 0] = g[1, 3, -1, -1] = g[1, 1, 4, 11] = value
    ours = torch.autograd.grad(y, tensors, g)
    theirs = torch.autograd.grad(oracle, doubles, g.double())
    for a, b in zip((y, *ours), (oracle, *theirs), strict=True):
        assert a.isfinite().equal(b.isfinite())
        assert a.isnan().equal(b.isnan())


def test_autocast(backend: Backend) -> None:
    x, weight = torch.randn(1, 3, 5, 6, device=backend.device), torch.randn(3, 2, 2, 2, device=backend.device)
    skip, bias = torch.randn(1, 2, 10, 12, device=backend.device), torch.randn(2, device=backend.device)
    with torch.autocast(backend.device, torch.bfloat16):
        assert CONCAT(x, weight, skip, bias, stride=2).dtype == torch.bfloat16
        doubles = [t.double() for t in (x, weight, skip, bias)]
        assert CONCAT(*doubles, stride=2).dtype == torch.float64


def test_empty_batch(backend: Backend) -> None:
    x, weight = torch.randn(0, 3, 5, 6, device=backend.device), torch.randn(3, 2, 2, 2, device=backend.device)
    skip = torch.randn(0, 4, 10, 12, device=backend.device)
    tensors = [t.requires_grad_() for t in (x, weight, skip, torch.randn(2, device=backend.device))]
    y = CONCAT(*tensors, stride=2)
    assert y.shape == (0, 6, 10, 12)
    grads = torch.autograd.grad(y.sum(), tensors)
    assert [g.shape for g in grads] == [t.shape for t in tensors]
    assert grads[1].count_nonzero() == grads[3].count_nonzero() == 0


X, W, SKIP, BIAS = torch.randn(2, 4, 5, 6), torch.randn(4, 3, 2, 2), torch.randn(2, 5, 20, 20), torch.randn(3)
BAD: list[tuple[Callable, type[Exception], str]] = [
    (lambda: CONCAT(X[0], W, SKIP, stride=2), ValueError, r"x must be \[N, C, H, W\]"),
    (lambda: CONCAT(X, W[0], SKIP, stride=2), ValueError, "weight must be"),
    (lambda: CONCAT(X, W, None, stride=2), TypeError, "skip must be a tensor, got NoneType"),
    (lambda: CONCAT(X[:, :3], W, SKIP, stride=2), ValueError, "with Cin = 3"),
    (lambda: CONCAT(X, W, SKIP, stride=2, groups=3), ValueError, "divisible by groups = 3"),
    (lambda: CONCAT(X, W, SKIP, stride=2, groups=0), ValueError, "groups must be at least 1, got 0"),
    (lambda: CONCAT(X, W, SKIP, stride=0), ValueError, "stride must be at least 1, got 0"),
    (lambda: CONCAT(X, W, SKIP, stride=2.0), TypeError, "stride must be an int"),
    (lambda: CONCAT(X, W, SKIP, stride=2, offset=(-1, 0)), ValueError, "offset must be at least 0"),
    (lambda: CONCAT(X, W, SKIP, stride=2, output_size=(13, 3)), ValueError, r"crop of 13 x 3 pixels at \(0, 0\)"),
    (lambda: CONCAT(X, W, SKIP[:1], stride=2), ValueError, "skip must have 2 images of 5 channels"),
    (lambda: CONCAT(X, W, SKIP, stride=2, skip_offset=(11, 0)), ValueError, r"at \(11, 0\) leaves skip"),
    (lambda: CONCAT(X, W, SKIP, stride=2, skip_offset="1"), TypeError, "skip_offset must be an int, got '1'"),
    (lambda: CONCAT(X, W, SKIP, [1.0] * 3, stride=2), TypeError, "bias must be a tensor, got list"),
    (lambda: CONCAT(X, W, SKIP, BIAS[:2], stride=2), ValueError, r"bias must be \[3\], one per output channel"),
    (lambda: CONCAT(X, W, SKIP, BIAS.long(), stride=2), TypeError, "bias must be float32"),
    (lambda: CONCAT(X, W, SKIP, BIAS.double(), stride=2), TypeError, "bias is torch.float64, but x is torch.float32"),
    (lambda: CONCAT(X, W.double(), SKIP, stride=2), TypeError, "weight is torch.float64, but x is torch.float32"),
    (lambda: CONCAT(X, W, SKIP.half(), stride=2), TypeError, "skip is torch.float16"),
    (lambda: CONCAT(X, W.to("meta"), SKIP, stride=2), ValueError, "weight is on meta, but x is on cpu"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_refused(call: Callable, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        call()
    assert str(raised.value).startswith("conv_transpose_concat: ")
