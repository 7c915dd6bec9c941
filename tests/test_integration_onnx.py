"""ONNX: what torch's exporter writes of each operator, in ONNX Runtime beside the operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from libraries import library
from test_export import MODULES, SAMPLINGS, Call, dynamic, fcn8s, inputs
from torch import Tensor, nn
from torch.export import Dim

import fcn_kernels as fk

onnxruntime = library("onnxruntime")
library("onnxscript")

# What the results of each module are made of; an upsampling, which all begin with, is checked below.
NODES = {
    "upsample_add": {"ConvTranspose", "Slice", "Add"},
    "upsample_softmax": {"Softmax"},
    "upsample_log_softmax": {"LogSoftmax"},
    "upsample_argmax": {"ArgMax"},
    "upsample_sigmoid": {"Sigmoid"},
    "conv_transpose_add": {"ConvTranspose", "Slice", "Add"},
    "conv_transpose_concat": {"ConvTranspose", "Slice", "Concat"},
    "score_softmax": {"Conv", "Softmax"},
    "score_log_softmax": {"Conv", "LogSoftmax"},
    "score_argmax": {"Conv", "ArgMax"},
    "upsample": {"Resize"},
    "upsample_corners": {"Resize"},
    "upsample_factor": {"Resize"},
    "upsample_fraction": {"Resize"},
    "upsample_tenths": {"Resize"},
    "transposed_conv": {"ConvTranspose", "Slice"},
    "transposed_conv_odd": {"ConvTranspose", "Slice"},
    "transposed_conv_crop": {"ConvTranspose", "Slice"},
}


def runtime(program: torch.onnx.ONNXProgram) -> tuple[set[str], Any]:
    """The kinds of nodes of an ONNX program, and a function that runs it."""
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def run(*args: Tensor) -> list[Tensor]:
        fed = {name: t.numpy() for name, t in zip(names, args, strict=False)}  # inputs that nothing reads are gone
        return [torch.from_numpy(np.asarray(y)) for y in session.run(None, fed)]

    return {node.op_type for node in program.model.graph}, run


def compare(module: nn.Module, run: Any, args: tuple[Tensor, ...]) -> None:
    expected = module(*args)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for ours, theirs in zip(run(*args), expected, strict=True):
        assert ours.dtype == theirs.dtype
        if theirs.is_floating_point():
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
        else:
            assert ours.shape == theirs.shape
            assert (ours != theirs).float().mean() < 2e-3  # ties within rounding


@pytest.mark.parametrize("sizes", ["fixed", "dynamic"])
@pytest.mark.parametrize("name", list(MODULES))
def test_every_operator_in_onnx_runtime(name: str, sizes: str) -> None:
    module, args = MODULES[name]().eval(), inputs()
    shapes = (dynamic(),) if sizes == "dynamic" else None
    nodes, run = runtime(fk.export.to_onnx(module, args, dynamic_shapes=shapes, verbose=False))
    if (name, sizes) != ("upsample_tenths", "dynamic"):  # float32 factors would round some sizes otherwise
        assert NODES[name] <= nodes
    with torch.no_grad():
        for call in [args] if sizes == "fixed" else [args, inputs(4, 16, 11, 40, 30)]:
            compare(module, run, call)


@pytest.mark.parametrize("name", list(SAMPLINGS))
def test_every_sampling_in_onnx_runtime(name: str) -> None:
    sampling, kind = SAMPLINGS[name]
    module, x = Call(lambda m, x: fk.upsample(x, sampling)), torch.randn(2, 3, 13, 15)
    nodes, run = runtime(fk.export.to_onnx(module, (x,), verbose=False))
    assert {"interpolate": "Resize", "transposed": "ConvTranspose", "gather": "Gather"}[kind] in nodes
    compare(module, run, (x,))


@pytest.mark.parametrize("name", ["transposed_conv", "upsample_fraction", "upsample_softmax"])
def test_half_precision(name: str) -> None:
    x, t = inputs()
    module, args = MODULES[name](), (x.half(), t)
    _, run = runtime(fk.export.to_onnx(module, args, verbose=False))
    torch.testing.assert_close(run(*args)[0], module(*args))


def test_fcn8s_labels_in_a_file(tmp_path: Path) -> None:
    module = Call(lambda m, image: m.net.predict(image, dtype=torch.uint8), net=fcn8s()).eval()
    path, image = tmp_path / "fcn8s.onnx", torch.randn(2, 3, 64, 96)
    shapes = (({0: Dim("n", min=1, max=64)},),)
    fk.export.to_onnx(module, (image,), path, dynamic_shapes=shapes, verbose=False, input_names=["image"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = torch.randn(3, 3, 64, 96)
    (labels,) = session.run(None, {"image": image.numpy()})
    assert labels.dtype == np.uint8
    assert (torch.from_numpy(labels) != module(image)).float().mean() < 1e-3


def test_losses_are_refused() -> None:
    with pytest.raises(ValueError, match="only inference operators can be decomposed"):
        fk.export.to_onnx(Call(lambda m, x, t: fk.upsample_cross_entropy(x, t)), inputs())
