"""Exported models of other people's libraries: operators put in, saved, loaded, packaged, and in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from libraries import library
from test_export import Call, run_package, saved_and_loaded
from torch import nn
from torch.export import Dim

import fcn_kernels as fk
from fcn_kernels._library import load_extension

hf = library("transformers")
segmentation = library("torchvision").models.segmentation
smp = library("segmentation_models_pytorch")


def segformer() -> nn.Module:
    sizes = {"hidden_sizes": [8, 16, 24, 32], "decoder_hidden_size": 32, "depths": [1] * 4, "num_labels": 7}
    model = hf.SegformerForSemanticSegmentation(hf.SegformerConfig(**sizes))
    return Call(
        lambda m, image: F.interpolate(m.model(image).logits, size=image.shape[2:], mode="bilinear").argmax(1),
        model=model,
    )


def torchvision() -> nn.Module:
    model = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=7)
    return Call(lambda m, image: m.model(image)["out"].argmax(1), model=model)


def fpn() -> nn.Module:
    model = smp.FPN("resnet18", encoder_weights=None, classes=7, decoder_segmentation_channels=32)
    return Call(lambda m, image: m.model(image).softmax(1), model=model)


@pytest.mark.parametrize("make", [segformer, torchvision, fpn])
def test_exported_fused_saved_and_loaded(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module, image = make().eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        program = torch.export.export(module, (image,), dynamic_shapes=(({0: Dim("n", min=1, max=64)},),))
        fusing = fk.export.fuse(program)
        assert len(fusing.matched) == 1, str(fusing)
        program = saved_and_loaded(program)
        for n in (1, 3):
            image = torch.randn(n, 3, 64, 64)
            ours, theirs = program.module()(image), module(image)
            if theirs.is_floating_point():
                torch.testing.assert_close(ours, theirs)
            else:
                assert ours.dtype == theirs.dtype
                assert (ours != theirs).float().mean() < 1e-3


def test_a_fused_model_exports_too() -> None:
    """torch.export sees the model that it was: the same program, with the same numbers."""
    module, image = segformer().eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = module(image)
        assert fk.fuse(module)
        program = torch.export.export(module, (image,))
        assert program.module()(image).equal(expected)


@pytest.mark.skipif(load_extension() is None, reason="there are no compiled kernels here")
def test_package_of_aotinductor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, image = segformer().eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        program = torch.export.export(module, (image,))
        assert fk.export.fuse(program).matched
        labels = run_package(program, (image,), tmp_path)
        assert (labels != module(image)).float().mean() < 1e-3
