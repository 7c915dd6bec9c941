"""The Inductor pass: what it finds, what it leaves alone, and that results and gradients stay what they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from budget import check_budget
from torch import Tensor, nn

import fcn_kernels as fk
from fcn_kernels.inductor import CompilePass


def compiled(function: Callable, inductor: bool = False, **options: Any) -> tuple[Callable, CompilePass]:
    """`function` compiled with a pass of its own; without Inductor's code generation unless it is asked for."""
    torch._dynamo.reset()
    fusing = CompilePass()
    if inductor:
        options["options"] = {"pre_grad_custom_pass": fusing, "fx_graph_cache": False}
        return torch.compile(function, fullgraph=True, **options), fusing

    def backend(gm: torch.fx.GraphModule, inputs: list) -> Callable:
        fusing(gm.graph)
        gm.recompile()
        return torch._dynamo.lookup_backend("aot_eager")(gm, inputs)

    return torch.compile(function, backend=backend, **options), fusing


def up(x: Tensor, size: tuple[int, int] = (24, 30), **options: Any) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", **options)


LABELS = torch.randint(0, 5, (2, 24, 30))
LABELS[:, :2] = 255
WEIGHT = torch.rand(5)
HEADS: dict[str, Callable[[Tensor], Tensor]] = {
    "cross-entropy": lambda x: F.cross_entropy(up(x), LABELS, ignore_index=255),
    "weights and smoothing": lambda x: F.cross_entropy(
        up(x, align_corners=True), LABELS, WEIGHT.to(x.dtype), ignore_index=255, label_smoothing=0.1, reduction="sum"
    ),
    "module": lambda x: nn.CrossEntropyLoss(ignore_index=255, reduction="none")(
        nn.Upsample((24, 30), mode="bilinear")(x), LABELS
    ),
    "softmax": lambda x: F.softmax(up(x), dim=1),
    "softmax, method": lambda x: up(x).softmax(-3),
    "log_softmax": lambda x: torch.log_softmax(up(x), 1),
    "scale factor": lambda x: F.interpolate(x, scale_factor=2.5, mode="bilinear").softmax(1),
    "recomputed scale factor": lambda x: F.interpolate(
        x, scale_factor=2.5, mode="bilinear", recompute_scale_factor=True
    ).log_softmax(1),
    "two readers": lambda x: (lambda z: F.cross_entropy(z, LABELS, ignore_index=255) + z.softmax(1).square().mean())(
        up(x)
    ),
}


def value_and_gradient(function: Callable, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    return y.detach(), gradient


@pytest.mark.parametrize("name", list(HEADS))
def test_heads(name: str) -> None:
    x, head = torch.randn(2, 5, 6, 7), HEADS[name]
    run, fusing = compiled(head)
    ours = value_and_gradient(run, x)
    assert len(fusing.matched) == 1, str(fusing)
    assert not fusing.left
    plain = value_and_gradient(head, x)
    oracle = value_and_gradient(head, x.double())
    for got, eager, exact in zip(ours, plain, oracle, strict=True):
        check_budget(got, eager, exact, x, gain=LABELS.numel())


@pytest.mark.parametrize("inference", [True, False])
def test_labels(inference: bool) -> None:
    x = torch.randn(2, 5, 6, 7, requires_grad=not inference)
    run, fusing = compiled(lambda x: (up(x).argmax(1), torch.argmax(up(x * 2), dim=1)))
    with torch.set_grad_enabled(not inference):
        labels = run(x)
    assert len(fusing.matched) == 2
    assert all(found.equal(fk.upsample_argmax(x, (24, 30))) for found in labels)


@pytest.mark.parametrize("groups", [1, 5])
def test_transposed_convolution_crop_and_sum(groups: int) -> None:
    x, skip = torch.randn(2, 5, 6, 7), torch.randn(2, 5, 60, 60)
    weight = torch.randn(5, 5 // groups, 16, 16, requires_grad=True)

    def stage(x: Tensor) -> Tensor:
        y = F.conv_transpose2d(x, weight, stride=8, groups=groups)
        return y[:, :, 3:43, 5:47] + skip[..., 9:49, 9:51]

    def padded(x: Tensor) -> Tensor:
        y = F.conv_transpose2d(x, weight, stride=8, padding=4, groups=groups)
        return skip[..., :48, :56] + y

    def cropped(x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, weight, stride=8, groups=groups)[..., 2:-2, 7:].relu()

    for function in (stage, padded, cropped):
        run, fusing = compiled(function)
        ours = value_and_gradient(run, x)
        assert len(fusing.matched) == 1, str(fusing)
        for got, eager in zip(ours, value_and_gradient(function, x), strict=True):
            torch.testing.assert_close(got, eager, rtol=1e-4, atol=1e-3)


FILTERS = torch.randn(5, 5, 4, 4)
BIAS = torch.randn(5)
LEFT: dict[str, tuple[Callable[[Tensor], Any], str | None]] = {
    "read elsewhere too": (lambda x: (lambda z: (z.argmax(1), z + 1))(up(x)), "which has no fused operator"),
    "another dimension": (lambda x: up(x).softmax(2), "does not run over the classes"),
    "keepdim": (lambda x: up(x).argmax(1, keepdim=True), "keeps the dimension"),
    "dtype": (lambda x: up(x).softmax(1, dtype=torch.float64), "has a dtype"),
    "antialias": (lambda x: up(x, antialias=True).argmax(1), "antialiased"),
    "soft targets": (lambda x: F.cross_entropy(up(x), up(x).detach().softmax(2)), "not an image of labels"),
    "in place": (lambda x: (lambda y: (lambda z: (y.add_(1), z.softmax(1))[1])(up(y)))(x * 1), "in place"),
    "nearest": (lambda x: F.interpolate(x, size=(24, 30)).softmax(1), None),
    "returned": (lambda x: up(x), "no fused operator"),
    "bias": (lambda x: F.conv_transpose2d(x, FILTERS, BIAS, stride=2)[..., 1:-1, 1:-1], "bias"),
    "small stride": (lambda x: F.conv_transpose2d(x, FILTERS, stride=2)[..., 1:-1, 1:-1], "so small a stride"),
    "no crop": (lambda x: F.conv_transpose2d(x, FILTERS, stride=2).relu(), None),
    "nothing": (lambda x: x * 2, None),
}


@pytest.mark.parametrize("name", list(LEFT))
def test_what_is_left_alone(name: str) -> None:
    function, reason = LEFT[name]
    x = torch.randn(2, 5, 6, 7)
    run, fusing = compiled(function)
    expected, result = function(x.clone()), run(x.clone())
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert not fusing.matched
    assert (not fusing.left) if reason is None else any(reason in text for text in fusing.left), str(fusing)


def test_a_factor_with_an_axis_that_keeps_its_size_is_left_alone() -> None:
    """Torch's own decomposition does not copy the axis as its CPU kernel does: only who decides is looked at."""
    run, fusing = compiled(lambda x: F.interpolate(x, scale_factor=1.15, mode="bilinear").argmax(1))
    assert run(torch.randn(2, 5, 6, 7)).shape == (2, 6, 8)
    assert any("depends on the device" in text for text in fusing.left)


def test_dynamic_shapes_are_left_alone() -> None:
    run, fusing = compiled(lambda x: F.interpolate(x, scale_factor=4, mode="bilinear").argmax(1), dynamic=True)
    x = torch.randn(2, 5, 6, 7)
    assert run(x).equal(F.interpolate(x, scale_factor=4, mode="bilinear").argmax(1))
    assert any("dynamic" in text for text in fusing.left)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_and_autocast_keep_their_result_types(dtype: torch.dtype) -> None:
    x = torch.randn(2, 5, 6, 7).to(dtype)
    for name in ("cross-entropy", "softmax"):
        run, fusing = compiled(HEADS[name])
        assert run(x).dtype == HEADS[name](x).dtype == dtype
        assert fusing.matched
    convolution = nn.Conv2d(5, 5, 1)

    def head(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.cross_entropy(up(convolution(x)), LABELS, ignore_index=255)

    run, fusing = compiled(head)
    x = torch.randn(2, 5, 6, 7)
    result, expected = run(x), head(x)
    assert fusing.matched
    assert result.dtype == expected.dtype
    torch.testing.assert_close(result, expected, rtol=2e-2, atol=0)


def test_option_of_inductor() -> None:
    """The one option that switches it on, through Inductor itself; a wrong label still raises."""
    assert fk.compile_pass is fk.compile_pass
    assert isinstance(fk.compile_pass.uuid(), str)
    model, x = nn.Conv2d(3, 5, 1), torch.randn(2, 3, 6, 7)

    def step(x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(up(model(x)), labels, ignore_index=255)

    run, fusing = compiled(step, inductor=True)
    loss = run(x, LABELS)
    loss.backward()
    gradient = model.weight.grad.clone()
    assert "with cross_entropy" in str(fusing)
    model.zero_grad()
    expected = step(x, LABELS)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, model.weight.grad, rtol=1e-4, atol=1e-6)
    with pytest.raises(RuntimeError, match="is neither a class"):
        run(x, LABELS + 5)
