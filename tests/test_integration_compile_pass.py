"""The Inductor pass on unmodified models of other people's libraries: what it matches, and the numbers that remain."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from libraries import library
from test_compile_pass import compiled
from torch import Tensor, nn

hf = library("transformers")
segmentation = library("torchvision").models.segmentation
smp = library("segmentation_models_pytorch")

TARGET = torch.randint(0, 7, (2, 64, 64))
TARGET[:, :3] = 255


def segformer() -> tuple[nn.Module, Callable]:
    sizes = {"hidden_sizes": [8, 16, 24, 32], "decoder_hidden_size": 32, "depths": [1] * 4, "num_labels": 7}
    model = hf.SegformerForSemanticSegmentation(hf.SegformerConfig(**sizes))
    return model, lambda model, image: model(image, labels=TARGET).loss


def torchvision() -> tuple[nn.Module, Callable]:
    options = {"weights": None, "weights_backbone": None, "num_classes": 7, "aux_loss": True}
    model = segmentation.deeplabv3_mobilenet_v3_large(**options)

    def step(model: nn.Module, image: Tensor) -> Tensor:
        losses = [F.cross_entropy(x, TARGET, ignore_index=255) for x in model(image).values()]
        return losses[0] + 0.5 * losses[1]

    return model, step


def fpn() -> tuple[nn.Module, Callable]:
    model = smp.FPN("resnet18", encoder_weights=None, classes=7, decoder_segmentation_channels=32)
    criterion = nn.CrossEntropyLoss(ignore_index=255)
    return model, lambda model, image: criterion(model(image), TARGET)


@pytest.mark.parametrize(("make", "count"), [(segformer, 1), (torchvision, 2), (fpn, 1)])
def test_training_step(make: Callable, count: int) -> None:
    torch.manual_seed(0)
    model, step = make()
    model = model.double().eval()  # batch norms and dropout at rest: only the head's numbers may move
    image = torch.randn(2, 3, 64, 64).double()
    plain = copy.deepcopy(model)
    expected = step(plain, image)
    expected.backward()
    run, fusing = compiled(lambda image: step(model, image), dynamic=False)
    loss = run(image)
    loss.backward()
    matched = [text for text in fusing.matched if "cross_entropy" in text]
    assert len(matched) == count, str(fusing)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    largest = max(p.grad.abs().max().item() for p in plain.parameters() if p.grad is not None)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-10 * largest)


def test_labels_of_torchvision() -> None:
    torch.manual_seed(0)
    model, _ = torchvision()
    image = torch.randn(1, 3, 64, 64)
    run, fusing = compiled(lambda image: model.eval()(image)["out"].argmax(1), dynamic=False)
    with torch.no_grad():
        labels = run(image)
        assert any("argmax" in text for text in fusing.matched), str(fusing)
        assert (labels != model(image)["out"].argmax(1)).float().mean() < 1e-3
