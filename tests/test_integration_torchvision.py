"""torchvision's segmentation models with the criterion and the evaluation of its reference script."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from budget import check_budget
from libraries import library
from peaks import training_peaks
from torch import Tensor, nn

import fcn_kernels as fk
from fcn_kernels.integrations import torchvision as integration

segmentation = library("torchvision").models.segmentation

MODELS = {"fcn_resnet50": 2, "deeplabv3_mobilenet_v3_large": 2, "lraspp_mobilenet_v3_large": 1}


def small(name: str, classes: int = 21) -> nn.Module:
    torch.manual_seed(0)
    options: dict[str, Any] = {"aux_loss": True} if MODELS[name] == 2 else {}
    return getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=classes, **options)


def criterion(inputs: dict[str, Tensor], target: Tensor) -> Tensor:
    losses = {name: F.cross_entropy(x, target, ignore_index=255) for name, x in inputs.items()}
    return losses["out"] if len(losses) == 1 else losses["out"] + 0.5 * losses["aux"]


def batch() -> tuple[Tensor, Tensor]:
    target = torch.randint(0, 21, (2, 64, 64))
    target[:, :5] = 255
    return torch.randn(2, 3, 64, 64), target


def step(model: nn.Module, image: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.train()
    model.zero_grad()
    torch.manual_seed(2)  # dropout
    loss = criterion(model(image), target)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_loss_every_gradient_and_label_maps(name: str) -> None:
    model = small(name).double()
    image, target = batch()
    image = image.double()
    state = copy.deepcopy(model.state_dict())
    reference = step(model, image, target)
    with torch.inference_mode():
        labels = model.eval()(image)["out"].argmax(1)
    model.load_state_dict(state)
    report = fk.fuse(model)
    ours = step(model, image, target)
    torch.testing.assert_close(ours[0], reference[0], atol=1e-12, rtol=1e-12)
    largest = max(g.abs().max().item() for g in reference[1].values())
    for key, grad in reference[1].items():
        torch.testing.assert_close(ours[1][key], grad, atol=1e-10 * largest, rtol=1e-9)
    with torch.inference_mode():
        assert torch.equal(model.eval()(image)["out"].argmax(1), labels)
    fused = [consumer for _, consumer in report.seen]
    assert fused.count("cross_entropy") == MODELS[name]
    if name.startswith("lraspp"):  # its classifier of low features moves before the upsampling
        assert {"1x1 convolution", "add"} <= set(fused)


def test_float32_within_the_budget() -> None:
    model = small("lraspp_mobilenet_v3_large")
    image, target = batch()
    state = copy.deepcopy(model.state_dict())
    exact = step(copy.deepcopy(model).double(), image.double(), target)
    reference = step(model, image, target)
    model.load_state_dict(state)
    fk.fuse(model)
    ours = step(model, image, target)
    check_budget(ours[0], reference[0], exact[0], image)
    largest = max(g.abs().max().item() for g in exact[1].values())
    for key, grad in ours[1].items():
        check_budget(grad, reference[1][key], exact[1][key], image, floor=1e-5 * largest)


@pytest.mark.parametrize("name", MODELS)
def test_peak_memory_of_loss_and_its_gradient(name: str) -> None:
    """Down to the last convolution: the backbone's gradients take more, with and without."""
    model, (image, target) = small(name, 400).train(), batch()
    last = list(model.classifier.parameters())[-1:]

    def one() -> None:
        torch.autograd.grad(criterion(model(image), target), last)

    before, after = training_peaks(one, lambda: fk.fuse(model))
    assert before - after > 4 * 400 * target.numel()  # logits at full resolution, and more


def test_an_untested_version_gives_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("lraspp_mobilenet_v3_large")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fk.fuse(model)
    monkeypatch.setattr(integration, "TESTED", ("0.1",))
    with pytest.warns(UserWarning, match=r"was tested with torchvision 0.1, and this is 0") as caught:
        fk.fuse(model)
    assert len(caught) == 1
