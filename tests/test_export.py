"""Exported programs: save, load and run; the operators put in and taken out; AOTInductor's packages."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import fcn_kernels as fk
from fcn_kernels import Sampling, models
from fcn_kernels._library import load_extension
from fcn_kernels.sampling import Axis


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable, **parameters: Tensor | nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value) if isinstance(value, Tensor) else value)

    def forward(self, *args: Tensor) -> Any:
        return self.function(self, *args)


def weight(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "upsample": lambda: Call(lambda m, x, t: fk.upsample(x, t.shape[1:])),
    "upsample_corners": lambda: Call(
        lambda m, x, t: fk.upsample(x, Sampling.interpolate(x.shape[2:], t.shape[1:], align_corners=True))
    ),
    "upsample_factor": lambda: Call(lambda m, x, t: fk.upsample(x, Sampling.interpolate(x.shape[2:], scale_factor=4))),
    "upsample_fraction": lambda: Call(
        lambda m, x, t: fk.upsample(x, Sampling.interpolate(x.shape[2:], scale_factor=(2.5, 1.25)))
    ),
    "upsample_tenths": lambda: Call(
        lambda m, x, t: fk.upsample(x, Sampling.interpolate(x.shape[2:], scale_factor=(1.7, 3.3)))
    ),
    "transposed_conv": lambda: Call(lambda m, x, t: fk.upsample(x, Sampling.transposed_conv(x.shape[2:], 8, offset=5))),
    "transposed_conv_odd": lambda: Call(
        lambda m, x, t: fk.upsample(x, Sampling.transposed_conv(x.shape[2:], (3, 5), offset=(1, 2)))
    ),
    "transposed_conv_crop": lambda: Call(
        lambda m, x, t: fk.upsample(x, Sampling.transposed_conv(x.shape[2:], 8, offset=31, output_size=t.shape[1:]))
    ),
    "upsample_add": lambda: Call(
        lambda m, x, t: fk.upsample_add(
            x, x.repeat(1, 1, 3, 3), Sampling.transposed_conv(x.shape[2:], 2), skip_offset=(1, 2), skip_scale=0.5
        )
    ),
    "upsample_softmax": lambda: Call(lambda m, x, t: fk.upsample_softmax(x, t.shape[1:])),
    "upsample_log_softmax": lambda: Call(lambda m, x, t: fk.upsample_log_softmax(x, t.shape[1:])),
    "upsample_argmax": lambda: Call(
        lambda m, x, t: fk.upsample_argmax(x, t.shape[1:], dtype=torch.uint8, return_confidence=True)
    ),
    "upsample_sigmoid": lambda: Call(lambda m, x, t: fk.upsample_sigmoid(x, t.shape[1:])),
    "conv_transpose_add": lambda: Call(
        lambda m, x, t: fk.conv_transpose_add(
            x, m.w, x.repeat(1, 1, 3, 3)[:, :4], stride=2, offset=(1, 0), skip_offset=(0, 1), skip_scale=2.0
        ),
        w=weight(5, 4, 4, 4),
    ),
    "conv_transpose_concat": lambda: Call(
        lambda m, x, t: fk.conv_transpose_concat(x, m.w, x.repeat(1, 1, 3, 3), m.b, stride=2, skip_offset=(1, 0)),
        w=weight(5, 4, 2, 2),
        b=weight(4),
    ),
    "score_softmax": lambda: Call(lambda m, x, t: fk.score_softmax(x, m.w, m.b), w=weight(7, 5), b=weight(7)),
    "score_log_softmax": lambda: Call(lambda m, x, t: fk.score_log_softmax(x, m.w), w=weight(7, 5)),
    "score_argmax": lambda: Call(lambda m, x, t: fk.score_argmax(x, m.w, m.b), w=weight(7, 5), b=weight(7)),
}
"""Every inference operator, with sizes that follow from x [N, 5, h, w] and t [N, H, W]."""


def inputs(n: int = 5, h: int = 13, w: int = 15, height: int = 37, width: int = 52) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 5, h, w), torch.zeros(n, height, width, dtype=torch.uint8)


def dynamic() -> tuple[dict[int, Dim], dict[int, Dim]]:
    n, h, w, height, width = (Dim(name, min=4, max=512) for name in ("n", "h", "w", "height", "width"))
    return {0: n, 2: h, 3: w}, {0: n, 1: height, 2: width}


def saved_and_loaded(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


def operators(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("sizes", ["fixed", "dynamic"])
@pytest.mark.parametrize("name", list(MODULES))
def test_save_load_run_and_decompose(name: str, sizes: str) -> None:
    module, args = MODULES[name](), inputs()
    with torch.no_grad():
        program = torch.export.export(module, args, dynamic_shapes=(dynamic(),) if sizes == "dynamic" else None)
        assert any(op.startswith("fcn_kernels.") for op in operators(program))
        loaded = saved_and_loaded(program)
        standard = fk.export.decompose(loaded)
        assert not any(op.startswith("fcn_kernels.") for op in operators(standard))
        standard = saved_and_loaded(standard)
        calls = [args] if sizes == "fixed" else [args, inputs(4, 16, 11, 40, 30)]
        for call in calls:
            expected = module(*call)
            torch.testing.assert_close(loaded.module()(*call), expected, rtol=0, atol=0)
            torch.testing.assert_close(standard.module()(*call), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_decomposed_in_every_dtype(dtype: torch.dtype) -> None:
    x, t = inputs()
    x = x.to(dtype)
    tolerance = {torch.float64: 1e-14, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for name in ("upsample_fraction", "transposed_conv", "upsample_add", "upsample_softmax", "upsample_sigmoid"):
        module = MODULES[name]()
        result = fk.export.decompose(torch.export.export(module, (x, t))).module()(x, t)
        torch.testing.assert_close(result, module(x, t), rtol=tolerance, atol=tolerance)


# What an upsampling becomes; "gather" where PyTorch has no operator for the sampling.
SAMPLINGS = {
    "size": (Sampling.interpolate((13, 15), (37, 51)), "interpolate"),
    "down": (Sampling.interpolate((13, 15), (5, 1)), "interpolate"),
    "corners": (Sampling.interpolate((13, 15), (37, 51), align_corners=True), "interpolate"),
    "corners, one pixel": (Sampling.interpolate((13, 15), (1, 51), align_corners=True), "interpolate"),
    "whole factor": (Sampling.interpolate((13, 15), scale_factor=8), "interpolate"),
    "factor": (Sampling.interpolate((13, 15), scale_factor=2.7), "interpolate"),
    "factor, a copied axis": (Sampling.interpolate((13, 15), scale_factor=(1.07, 2.7)), "interpolate"),
    "factor, no axis copied": (Sampling(Axis(13, 13, 40, -1, 42), Axis(15, 15, 40, -1, 42), "clamp"), "gather"),
    "transposed 2": (Sampling.transposed_conv((13, 15), 2), "transposed"),
    "transposed 8, crop": (Sampling.transposed_conv((13, 15), 8, offset=9, output_size=(80, 90)), "transposed"),
    "odd strides": (Sampling.transposed_conv((13, 15), (3, 5), kernel_size=(5, 9), offset=(0, 3)), "transposed"),
    "even kernel, odd stride": (Sampling.transposed_conv((13, 15), 3, kernel_size=6, offset=2), "transposed"),
    "odd kernel, even stride": (Sampling.transposed_conv((13, 15), 4, kernel_size=7), "transposed"),
    "any, clamped": (Sampling(Axis(13, 37, 3, -2, 7), Axis(15, 21, 5, 1, 6), "clamp"), "gather"),
    "any, zero": (Sampling(Axis(13, 37, 3, -2, 7), Axis(15, 21, 5, 1, 6), "zero"), "gather"),
    "shifted out": (Sampling(Axis(13, 37, 1, -9, 2), Axis(15, 21, 1, 40, 2), "zero"), "gather"),
}
KINDS = {
    "interpolate": "aten.upsample_bilinear2d",
    "transposed": "aten.conv_transpose2d",
    "gather": "aten.index_select",
}


@pytest.mark.parametrize("name", list(SAMPLINGS))
def test_each_sampling_in_standard_operators(name: str) -> None:
    sampling, kind = SAMPLINGS[name]
    module, x = Call(lambda m, x: fk.upsample(x, sampling)), torch.randn(2, 3, 13, 15, dtype=torch.float64)
    program = fk.export.decompose(torch.export.export(module, (x,)))
    found = {k for k, op in KINDS.items() if any(target.startswith(op) for target in operators(program))}
    assert found == {kind}
    torch.testing.assert_close(program.module()(x), module(x), rtol=0, atol=1e-14)


def fcn8s() -> nn.Module:
    torch.manual_seed(0)
    return models.FCN8s(num_classes=5, channels=(4, 8, 8, 8, 8), hidden=16).eval()


def test_fcn8s_of_any_size() -> None:
    """Labels and scores in one program for all batches and sizes (multiples of 32: PyTorch's pooling rounds up)."""
    module = Call(lambda m, image: (m.net.predict(image), m.net(image)), net=fcn8s()).eval()
    with torch.no_grad():
        shapes = {0: Dim("n", min=1, max=64), 2: 32 * Dim("h", min=1, max=64), 3: 32 * Dim("w", min=1, max=64)}
        program = torch.export.export(module, (torch.randn(2, 3, 64, 96),), dynamic_shapes=((shapes,),))
        standard = saved_and_loaded(fk.export.decompose(program)).module()
        program = saved_and_loaded(program)
        for size in ((2, 3, 64, 96), (1, 3, 128, 32)):
            image = torch.randn(size)
            labels, scores = module(image)
            ours = program.module()(image)
            assert ours[0].equal(labels)
            torch.testing.assert_close(ours[1], scores)
            theirs = standard(image)
            assert (theirs[0] != labels).float().mean() < 1e-3
            torch.testing.assert_close(theirs[1], scores)


def test_losses_are_no_inference_operators() -> None:
    module = Call(lambda m, x, t: fk.upsample_cross_entropy(x, t))
    program = torch.export.export(module, inputs())
    torch.testing.assert_close(program.module()(*(args := inputs())), module(*args))
    with pytest.raises(ValueError, match=r"contains fcn_kernels.upsample_cross_entropy.default; only inference"):
        fk.export.decompose(program)


@pytest.mark.parametrize("function", [fk.export.fuse, fk.export.decompose])
def test_what_is_no_program_is_refused(function: Callable) -> None:
    with pytest.raises(TypeError, match=r"what torch.export.export returns, an ExportedProgram, got Conv2d"):
        function(nn.Conv2d(1, 1, 1))


def up(x: Tensor, size: tuple[int, int], **options: Any) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", **options)


LABELS = torch.randint(0, 5, (2, 24, 30), generator=torch.Generator().manual_seed(1))
PLAIN: dict[str, tuple[Callable, int]] = {
    "argmax": (lambda m, x: up(x, (24, 30)).argmax(1), 1),
    "softmax": (lambda m, x: up(x, (24, 30), align_corners=True).softmax(1), 1),
    "log-softmax": (lambda m, x: F.log_softmax(F.interpolate(x, scale_factor=2.5, mode="bilinear"), dim=1), 1),
    "cross-entropy": (lambda m, x: F.cross_entropy(up(x, (24, 30)), LABELS.to(x.device), reduction="sum"), 1),
    "two": (lambda m, x: (up(x, (24, 30)).argmax(1), up(x * 2, (9, 9)).softmax(1)), 2),
    "transposed": (lambda m, x: F.conv_transpose2d(x, m.w, stride=8)[:, :, 3:45, 5:47] + x.repeat(1, 1, 7, 6), 1),
    "crop": (lambda m, x: F.conv_transpose2d(x, m.w, stride=8, padding=3)[..., 2:-2, 7:], 1),
    "scores": (lambda m, x: up(x, (24, 30)), 0),
    "in place": (lambda m, x: (lambda z: (z.argmax(1), x.add_(1)))(up(x, (24, 30))), 1),
    "in place in between": (lambda m, x: (lambda y: (lambda z: (y.add_(1), z.argmax(1))[1])(up(y, (9, 9))))(x + 1), 0),
}


@pytest.mark.parametrize("name", list(PLAIN))
def test_fuse_puts_the_operators_into_a_program(name: str) -> None:
    function, count = PLAIN[name]
    x = torch.randn(2, 5, 6, 7)
    module = Call(function, w=weight(5, 5, 16, 16)).eval()
    with torch.no_grad():
        expected = module(x.clone())
        program = torch.export.export(module, (x.clone(),))
        fusing = fk.export.fuse(program)
        assert len(fusing.matched) == count, str(fusing)
        assert sum(op.startswith("fcn_kernels.") for op in operators(program)) == count
        ours = saved_and_loaded(program).module()(x.clone())
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


def test_fuse_keeps_a_dynamic_batch() -> None:
    module = Call(lambda m, x: up(x, (24, 30)).argmax(1))
    program = torch.export.export(module, (torch.randn(2, 5, 6, 7),), dynamic_shapes=(({0: Dim("n", min=1, max=9)},),))
    assert len(fk.export.fuse(program).matched) == 1
    x = torch.randn(7, 5, 6, 7)
    assert program.module()(x).equal(module(x))
    heights = (({2: Dim("h", min=2, max=9)},),)
    program = torch.export.export(module, (torch.randn(2, 5, 6, 7),), dynamic_shapes=heights)
    assert any("dynamic" in reason for reason in fk.export.fuse(program).left)


def test_a_fused_model_exports_as_the_model_it_was() -> None:
    module = nn.Sequential(nn.ConvTranspose2d(5, 5, 4, 2, bias=False), nn.Upsample((24, 30), mode="bilinear")).eval()
    with torch.no_grad():
        module[0].weight.copy_(fk.nn.bilinear_weight(5, 4))
        x = torch.randn(2, 5, 6, 7)
        expected = module(x)
        assert fk.fuse(module)
        program = saved_and_loaded(torch.export.export(module, (x,)))
        torch.testing.assert_close(program.module()(x), expected)


IN_A_FRESH_PROCESS = """
    import sys, torch, fcn_kernels
    from fcn_kernels import backends

    def refuse(*args):
        raise AssertionError("the reference ran")

    library = torch.library.Library("fcn_kernels", "IMPL")
    for op in backends.operators():
        library.impl(op, refuse, "CompositeExplicitAutograd", allow_override=True)
    try:  # it does refuse
        torch.ops.fcn_kernels.upsample_sigmoid(torch.zeros(1, 1, 1, 1).to_sparse(), [1, 1, 2, 0, 2] * 2 + [1])
    except AssertionError:
        pass
    else:
        raise SystemExit("a sparse tensor found another kernel")
    data = torch.load(sys.argv[2])
    results = torch._inductor.aoti_load_package(sys.argv[1])(*data["inputs"])
    torch.save(results, sys.argv[3])
"""


def run_package(program: torch.export.ExportedProgram, args: tuple, folder: Path) -> Any:
    """The results of its AOTInductor package in a process where all but the compiled kernels refuse to run."""
    with torch.no_grad():
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "model.pt2"))
    torch.save({"inputs": args}, folder / "inputs.pt")
    script = textwrap.dedent(IN_A_FRESH_PROCESS)
    paths = [package, str(folder / "inputs.pt"), str(folder / "results.pt")]
    subprocess.run([sys.executable, "-c", script, *paths], check=True)
    return torch.load(folder / "results.pt")


@pytest.mark.skipif(load_extension() is None, reason="there are no compiled kernels here")
def test_package_of_aotinductor_runs_the_compiled_kernels(tmp_path: Path) -> None:
    parts = nn.ModuleDict({name: make() for name, make in MODULES.items()})
    module = Call(lambda m, x, t: [part(x, t) for part in m.parts.values()], parts=parts).eval()
    with torch.no_grad():
        n = Dim("n", min=2, max=64)
        program = torch.export.export(module, inputs(), dynamic_shapes=(({0: n}, {0: n}),))
        args = inputs(n=4)
        torch.testing.assert_close(run_package(program, args, tmp_path), module(*args))


@pytest.mark.skipif(load_extension() is None, reason="there are no compiled kernels here")
def test_package_of_a_plain_model_into_which_the_operators_were_put(tmp_path: Path) -> None:
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 5, 1))
    module = Call(lambda m, x: up(m.features(x), (64, 80)).argmax(1), features=features).eval()
    image = torch.randn(2, 3, 64, 80)
    with torch.no_grad():
        program = torch.export.export(module, (image,))
        assert len(fk.export.fuse(program).matched) == 1
        labels = run_package(program, (image,), tmp_path)
        assert (labels != module(image)).float().mean() < 1e-3
