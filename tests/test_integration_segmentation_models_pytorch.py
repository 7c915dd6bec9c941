"""segmentation_models_pytorch: models with align_corners=True heads, and the losses that people train them with."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from libraries import library
from peaks import training_peaks
from torch import Tensor, nn

import fcn_kernels as fk

smp = library("segmentation_models_pytorch")

ARCHITECTURES = {
    "FPN": {"decoder_segmentation_channels": 32, "decoder_pyramid_channels": 16},
    "PSPNet": {"psp_out_channels": 16},
    "DeepLabV3Plus": {"decoder_channels": 16},
    "Linknet": {},
}


def small(name: str, classes: int, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    make = getattr(smp, name)
    return make("resnet18", encoder_weights=None, classes=classes, **ARCHITECTURES[name], **options).double()


def step(model: nn.Module, loss: Any, image: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.train()
    model.zero_grad()
    torch.manual_seed(2)
    value = loss(model(image), target)
    value.sum().backward()
    return value.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compare(model: nn.Module, loss: Any, image: Tensor, target: Tensor) -> list[str]:
    """Loss and gradients before and after; what was fused."""
    state = copy.deepcopy(model.state_dict())
    reference = step(model, loss, image, target)
    model.load_state_dict(state)
    report = fk.fuse(model)
    fk.fuse(loss)
    ours = step(model, loss, image, target)
    torch.testing.assert_close(ours[0], reference[0], atol=1e-12, rtol=1e-10)
    for key, grad in reference[1].items():
        torch.testing.assert_close(ours[1][key], grad, atol=1e-11, rtol=1e-8)
    return [consumer for _, consumer in report.seen]


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n != "Linknet"])
def test_cross_entropy(name: str) -> None:
    target = torch.randint(0, 7, (2, 64, 64))
    fused = compare(small(name, 7), nn.CrossEntropyLoss(), torch.randn(2, 3, 64, 64).double(), target)
    assert "cross_entropy" in fused


@pytest.mark.parametrize("name", ["FPN", "PSPNet"])
@pytest.mark.parametrize("loss", ["CrossEntropyLoss", "SoftCrossEntropyLoss"])
def test_peak_memory_of_a_training_step(name: str, loss: str) -> None:
    model = small(name, 400).float().train()
    criterion = (
        nn.CrossEntropyLoss() if loss == "CrossEntropyLoss" else smp.losses.SoftCrossEntropyLoss(smooth_factor=0)
    )
    image, target = torch.randn(2, 3, 64, 64), torch.randint(0, 400, (2, 64, 64))

    def one() -> None:
        model.zero_grad(set_to_none=False)
        criterion(model(image), target).backward()

    before, after = training_peaks(one, lambda: (fk.fuse(model), fk.fuse(criterion)))
    assert before - after > 4 * 400 * target.numel()  # logits at full resolution, and more


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [None, 255])
def test_soft_cross_entropy_with_its_own_mean(reduction: str, ignore_index: int | None) -> None:
    loss = smp.losses.SoftCrossEntropyLoss(reduction, smooth_factor=0.1, ignore_index=ignore_index)
    target = torch.randint(0, 7, (2, 64, 64))
    if ignore_index is not None:
        target[:, :9] = 255
    head = smp.base.SegmentationHead(8, 7, upsampling=4).double()
    features = torch.randn(2, 8, 16, 16).double()
    for labels in (target, target[:, None]):
        assert "cross_entropy" in compare(head, loss, features, labels)
        fk.unfuse(loss)


def test_the_soft_cross_entropy_of_plain_logits_is_the_librarys() -> None:
    loss = smp.losses.SoftCrossEntropyLoss(smooth_factor=0.1)
    logits, target = torch.randn(1, 7, 8, 8), torch.randint(0, 7, (1, 8, 8))
    expected = loss(logits, target)
    assert fk.fuse(loss)
    assert torch.equal(loss(logits, target), expected)


@pytest.mark.parametrize("loss", ["SoftBCEWithLogitsLoss", "BCEWithLogitsLoss", "DiceLoss", "FocalLoss", "JaccardLoss"])
def test_binary_losses(loss: str) -> None:
    if loss == "BCEWithLogitsLoss":
        criterion = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0]).double())
    elif loss == "SoftBCEWithLogitsLoss":
        criterion = smp.losses.SoftBCEWithLogitsLoss()
    else:
        criterion = getattr(smp.losses, loss)("binary")
    target = torch.randint(0, 2, (2, 1, 64, 64)).double()
    fused = compare(small("FPN", 1), criterion, torch.randn(2, 3, 64, 64).double(), target)
    assert ("binary_cross_entropy_with_logits" in fused) == loss.endswith("BCEWithLogitsLoss")


@pytest.mark.parametrize(("activation", "classes"), [("softmax2d", 7), ("sigmoid", 1)])
def test_activations_in_the_head(activation: str, classes: int) -> None:
    model = small("FPN", classes, activation=activation).eval()
    image = torch.randn(1, 3, 64, 64).double()
    with torch.no_grad():
        expected = model(image)
        report = fk.fuse(model)
        torch.testing.assert_close(model(image), expected)
        torch.testing.assert_close(model.predict(image), expected)
    assert activation.removesuffix("2d") in {consumer for _, consumer in report.seen}


def test_a_model_without_bilinear_upsampling_is_left_as_it_is() -> None:
    model = small("Linknet", 7).eval()
    image = torch.randn(1, 3, 64, 64).double()
    with torch.no_grad():
        expected = model(image)
        fk.fuse(model)
        assert torch.equal(model(image), expected)
