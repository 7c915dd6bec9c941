"""Every operator as a citizen of torch: opcheck, vmap, torch.compile, export, and kernels registered in any order."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

import fcn_kernels as fk
from fcn_kernels import Sampling, backends, reference

OPS = torch.ops.fcn_kernels
RESIZE = Sampling.interpolate((3, 4), (7, 9)).encode()
CROP = Sampling.transposed_conv((3, 4), 2, offset=1, output_size=(5, 6)).encode()


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def labels(classes: int, *shape: int) -> Tensor:
    return torch.randint(0, classes, shape)


def arguments(x: Tensor) -> dict[str, list[tuple]]:
    """Arguments of every operator, for x of [2, 5, 3, 4]."""
    target, weight = labels(5, 2, 7, 9), torch.rand(5)
    up = torch.randn(2, 5, 7, 9)
    scored = (torch.rand(2, 3, 4), x.detach(), torch.randn(3, 5), None, labels(3, 2, 3, 4), None)
    codes = range(4)
    return {
        "upsample": [(x, RESIZE), (x, CROP)],
        "upsample_backward": [(image(2, 5, 7, 9), RESIZE), (image(2, 5, 5, 6), CROP)],
        "upsample_add": [(x, image(2, 5, 9, 9), RESIZE, [1, 0], 0.5), (x, image(2, 5, 5, 6), CROP, [0, 0], 1.0)],
        "upsample_softmax": [(x, RESIZE, False), (x, CROP, True)],
        "upsample_softmax_backward": [(up, up.softmax(1), RESIZE, False), (up, up.log_softmax(1), RESIZE, True)],
        "upsample_argmax": [(x, RESIZE, torch.uint8, True), (x, CROP, torch.int64, False)],
        "upsample_cross_entropy": [
            (x, target, w, RESIZE, -100, r, e, g)
            for r in codes
            for w, e, g in ((weight, 0.1, True), (None, 0.0, True), (None, 0.0, False))
        ],
        "upsample_cross_entropy_backward": [
            (torch.rand(2, 7, 9), x.detach(), target, weight, torch.rand(2, 7, 9), RESIZE, -100, 0.1)
        ],
        "upsample_confusion_matrix": [(x, target, RESIZE, None), (x, target, RESIZE, 2)],
        "upsample_sigmoid": [(x, RESIZE)],
        "upsample_sigmoid_backward": [(up, up.sigmoid(), RESIZE)],
        "upsample_binary_cross_entropy": [(x, torch.rand(2, 5, 7, 9), weight, RESIZE, None, r, True) for r in codes],
        "upsample_binary_cross_entropy_backward": [
            (up, x.detach(), labels(2, 2, 5, 7, 9), None, RESIZE, 0),
        ],
        "conv_transpose_add": [
            (x, image(5, 2, 4, 4), image(2, 2, 9, 9), [2, 2], 1, [1, 1], [6, 6], [1, 0], 0.5),
            (x, image(5, 1, 3, 3), None, [2, 2], 5, [0, 0], [7, 9], [0, 0], 1.0),
        ],
        "conv_transpose_add_backward": [
            (image(2, 2, 6, 6), x, image(5, 2, 4, 4), [2, 2], 1, [1, 1], True, True),
            (image(2, 5, 7, 9), x, image(5, 1, 3, 3), [2, 2], 5, [0, 0], True, False),
            (image(2, 5, 7, 9), x, image(5, 1, 3, 3), [2, 2], 5, [0, 0], False, True),
        ],
        "conv_transpose_concat": [
            (x, image(5, 2, 2, 2), image(2, 3, 9, 9), image(2), [2, 2], 1, [0, 0], [6, 8], [1, 0]),
            (x, image(5, 1, 3, 3), image(2, 1, 6, 6), None, [2, 2], 5, [1, 1], [6, 6], [0, 0]),
        ],
        "channel_sum": [(x,)],
        "score_softmax": [(x, image(3, 5), image(3), False), (x, image(3, 5), None, True)],
        "score_softmax_backward": [
            (torch.randn(2, 3, 3, 4), x.detach(), torch.randn(3, 5), torch.randn(2, 3, 3, 4).softmax(1), log, a, b)
            for log, a, b in ((False, True, True), (True, False, True), (True, True, False))
        ],
        "score_argmax": [(x, image(3, 5), image(3), torch.uint8)],
        "score_cross_entropy": [
            (x, image(3, 5), image(3), labels(3, 2, 3, 4), torch.rand(3), -100, r, 0.1, a, b)
            for r in codes
            for a, b in ((False, False), (True, False), (True, True))
        ],
        "score_cross_entropy_backward": [
            (*scored, torch.rand(2, 3, 4), -100, 0.1, a, b) for a, b in ((True, True), (False, True), (True, False))
        ],
    }


NAMES = list(arguments(torch.zeros(2, 5, 3, 4)))


def test_no_operator_is_forgotten() -> None:
    assert sorted(NAMES) == backends.operators()
    assert all(hasattr(reference, name) for name in NAMES)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str, layout: str) -> None:
    x = torch.randn(2, 5, 3, 4)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "transposed":
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    for args in arguments(x.requires_grad_())[name]:
        opcheck(getattr(OPS, name).default, args)


@pytest.mark.parametrize("name", NAMES)
def test_vmap_is_a_loop(name: str) -> None:
    """Over the first tensor and over all that hold one entry per sample, mapped at two places."""
    op = getattr(OPS, name).default
    for args in arguments(torch.randn(2, 5, 3, 4))[name]:
        args = [a.detach() if isinstance(a, Tensor) else a for a in args]
        first = [torch.stack([a, a.flip(0), a * 0.5]) if i == 0 else a for i, a in enumerate(args)]
        per_sample = [isinstance(a, Tensor) and a.dim() > 1 and a.shape[0] == 2 for a in args]
        every = [torch.stack([a, a.flip(0), a]) if p else a for a, p in zip(args, per_sample, strict=True)]
        for mapped, which in ((first, [i == 0 for i in range(len(args))]), (every, per_sample)):
            loop = [op(*(a[b] if w else a for a, w in zip(mapped, which, strict=True))) for b in range(3)]
            for at in (0, 1):
                moved = [a.movedim(0, at) if w else a for a, w in zip(mapped, which, strict=True)]
                result = torch.vmap(op, in_dims=tuple(at if w else None for w in which))(*moved)
                results = result if isinstance(result, tuple) else (result,)
                for i, r in enumerate(results):
                    expected = torch.stack([c[i] if isinstance(c, tuple) else c for c in loop])
                    torch.testing.assert_close(r, expected, equal_nan=True)


def test_per_sample_gradients() -> None:
    """vmap over grad, the way of differential privacy, against one backward pass per sample."""
    x, target = torch.randn(3, 5, 4, 4), labels(5, 3, 9, 9)

    def loss(x: Tensor, target: Tensor) -> Tensor:
        return fk.upsample_cross_entropy(x[None], target[None], label_smoothing=0.1)

    ours = torch.vmap(torch.func.grad(loss))(x, target)
    for i in range(3):
        torch.testing.assert_close(ours[i], torch.func.grad(loss)(x[i], target[i]))
    y = x[0].clone().requires_grad_()
    loss(y, target[0]).backward()
    torch.testing.assert_close(ours[0], y.grad)


def test_func_transforms_of_a_linear_operator() -> None:
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    f = lambda x: fk.upsample(x, (5, 5))  # noqa: E731
    jacobian = torch.func.jacrev(f)(x).flatten(4).flatten(0, 3)
    torch.testing.assert_close(jacobian @ x.flatten(), f(x).flatten())


def test_inference_mode() -> None:
    with torch.inference_mode():
        for f in COMPILED.values():
            y = f(torch.randn(2, 3, 5, 6), labels(3, 2, 11, 13))
            assert y.is_inference()


COMPILED: dict[str, Callable[..., Tensor]] = {
    "upsample-size": lambda x, t: fk.upsample(x, (x.shape[2] * 2 + 1, x.shape[3] * 3)),
    "upsample-transposed": lambda x, t: fk.upsample(x, Sampling.transposed_conv(x.shape[2:], 2, offset=1)),
    "upsample-corners": lambda x, t: fk.upsample(x, Sampling.interpolate(x.shape[2:], t.shape[1:], align_corners=True)),
    "upsample-factor": lambda x, t: fk.upsample(x, Sampling.interpolate(x.shape[2:], scale_factor=2.0)),
    "upsample-fraction": lambda x, t: fk.upsample(x, Sampling.interpolate(x.shape[2:], scale_factor=2.5)),
    "upsample-some-copied": lambda x, t: fk.upsample(x, Sampling.interpolate(x.shape[2:], scale_factor=(1.15, 2.5))),
    "add": lambda x, t: fk.upsample_add(x, x.repeat(1, 1, 3, 3), [2 * s for s in x.shape[2:]], skip_offset=(1, 2)),
    "softmax": lambda x, t: fk.upsample_softmax(x, t.shape[1:]),
    "log-softmax": lambda x, t: fk.upsample_log_softmax(x, t.shape[1:]),
    "argmax": lambda x, t: fk.upsample_argmax(x, t.shape[1:]) + t,
    "cross-entropy": lambda x, t: fk.upsample_cross_entropy(2 * x, t, label_smoothing=0.1),
    "cross-entropy-none": lambda x, t: fk.upsample_cross_entropy(x, t, reduction="none"),
    "cross-entropy-extras": lambda x, t: (
        fk.upsample_cross_entropy(x, t, pixel_weight=(t + 1).float(), return_extras=True, ignore_index=0).loss
    ),
    "confusion": lambda x, t: fk.upsample_confusion_matrix(x, t, ignore_index=None),
    "sigmoid": lambda x, t: fk.upsample_sigmoid(x, t.shape[1:]),
    "binary": lambda x, t: fk.upsample_binary_cross_entropy(x[:, :1], (t > 1).long()),
    "conv-transpose": lambda x, t: fk.conv_transpose_add(x, x.new_ones(3, 2, 4, 4), stride=2, offset=(1, 0)),
    "conv-transpose-concat": lambda x, t: fk.conv_transpose_concat(
        x, x.new_ones(3, 2, 2, 2), x.repeat(1, 2, 2, 2), x.new_ones(2), stride=2
    ),
    "score": lambda x, t: fk.score_softmax(x, x.new_ones(4, 3)),
    "score-cross-entropy": lambda x, t: fk.score_cross_entropy(x, x.new_ones(4, 3), None, x.detach().argmax(1)),
}


def run(f: Callable[..., Tensor], x: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
    x = x.clone().requires_grad_()
    y = f(x, target)
    if not y.requires_grad:
        return y, None
    y.square().sum().backward()
    return y.detach(), x.grad


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_whole_with_dynamic_shapes(name: str) -> None:
    """fullgraph, one graph for all sizes, same results forward and backward."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(COMPILED[name], fullgraph=True, dynamic=True, backend=counter)
    for n, h, w, height, width in ((2, 5, 6, 11, 13), (3, 7, 4, 20, 9), (4, 8, 9, 12, 19)):
        x, target = torch.randn(n, 3, h, w), labels(3, n, height, width)
        torch.testing.assert_close(run(compiled, x, target), run(COMPILED[name], x, target))
    assert counter.frame_count <= 2


def test_compiles_with_inductor_and_a_sampling_from_outside() -> None:
    torch._dynamo.reset()
    sampling = Sampling.transposed_conv((5, 6), 2)

    def f(x: Tensor, target: Tensor) -> Tensor:
        fused = fk.upsample_add(x * 2, x.repeat(1, 1, 3, 3), sampling, skip_offset=(1, 2))
        return fk.upsample_cross_entropy(fused, target).exp()

    x, target = torch.randn(2, 3, 5, 6).to(memory_format=torch.channels_last), labels(3, 2, 24, 28)
    torch.testing.assert_close(run(torch.compile(f, fullgraph=True), x, target), run(f, x, target))


def test_compiled_autograd() -> None:
    x, target = torch.randn(1, 5, 8, 8, requires_grad=True), torch.randint(0, 5, (1, 32, 32))

    def gradient() -> Tensor:
        x.grad = None
        fk.upsample_cross_entropy(fk.upsample(x, Sampling.interpolate((8, 8), size=(16, 16))), target).backward()
        return x.grad

    expected = gradient()
    with torch._dynamo.config.patch(compiled_autograd=True):
        torch._dynamo.reset()
        assert torch.compile(gradient, backend="eager")().equal(expected)


def test_exports_with_dynamic_shapes() -> None:
    model = fk.nn.UpsampleArgmax((64, 48))
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (torch.randn(2, 5, 16, 12),), dynamic_shapes=({0: batch},))
    x = torch.randn(4, 5, 16, 12)
    assert program.module()(x).equal(model(x))


def test_kernels_may_register_before_the_schemas() -> None:
    """An extension may be loaded before or after the package: either way its kernel serves its device."""
    program = """
        import importlib, sys, torch
        if {first}:
            import fcn_kernels
        else:  # the compiled module alone: its kernels wait for the schemas
            sys.modules["fcn_kernels"] = importlib.util.module_from_spec(importlib.util.find_spec("fcn_kernels"))
            library = torch.library.Library("fcn_kernels", "IMPL")
            library.impl("score_argmax", lambda x, weight, bias, dtype: torch.full((1, 1, 1), 7), "SparseCPU")
            try:
                importlib.import_module("fcn_kernels._C")
            except ModuleNotFoundError:
                pass
            del sys.modules["fcn_kernels"]
            import fcn_kernels
            x = torch.zeros(1, 1, 1, 1).to_sparse()
            assert torch.ops.fcn_kernels.score_argmax(x, torch.zeros(1, 1), None, torch.int64).item() == 7
        x = torch.zeros(1, 3, 2, 2, requires_grad=True)
        target = torch.zeros(1, 4, 4, dtype=torch.long)
        fcn_kernels.upsample_cross_entropy(x, target).backward()
        with fcn_kernels.use_backend("reference"):
            fcn_kernels.upsample_cross_entropy(x, target).backward()
        assert x.grad.abs().sum() > 0
    """
    for first in (True, False):
        subprocess.run([sys.executable, "-c", textwrap.dedent(program.format(first=first))], check=True)


def test_the_names_of_the_package_are_listed() -> None:
    """Also those that are imported on demand."""
    assert set(fk.__all__) <= set(dir(fk))


@pytest.mark.parametrize("change", [Tensor.to_sparse, Tensor.to_mkldnn], ids=["sparse", "mkldnn"])
def test_other_layouts_are_refused(change: Callable[[Tensor], Tensor]) -> None:
    x = change(torch.ones(1, 2, 3, 4))
    for call in (lambda: fk.upsample(x, (6, 8)), lambda: fk.upsample_add(torch.ones(1, 2, 3, 4), x, (3, 4))):
        with pytest.raises(TypeError, match=r"must be a dense tensor, got one of layout torch\."):
            call()
