"""The networks of the story and how they learn: a VGG that classifies digits, then FCN-32s, 16s and 8s, each from the
one before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import models, training
from .scenes import CLASSES, Scenes, Windows

Report = Callable[[str, int, int, float], None]  # what is trained, step, of how many, loss


@dataclass(frozen=True)
class Settings:
    """How wide the networks are, and how long they learn."""

    classifier_steps: int
    stage_steps: tuple[int, int, int]  # FCN-32s, 16s, 8s
    test_scenes: int
    test_windows: int = 512
    blocks: tuple[int, ...] = (1, 1, 2, 2, 2)  # of VGG11
    channels: tuple[int, ...] = (16, 32, 48, 64, 96)
    hidden: int = 128
    window: int = 96  # what the classifier sees: 3 x 3 features
    padding: int = 24  # enough for fc6's 3 x 3 window, where VGG16's 7 x 7 needs 100
    scene: tuple[int, int] = (256, 256)
    large_scene: tuple[int, int] = (448, 704)  # of the heatmap: 12 x 20 windows
    batch: int = 4  # scenes; eight times as many windows
    lr: float = 1e-3
    unet_steps: int = 0  # 0: no U-Net
    unet_width: int = 16  # of the first convolution, doubled at each pool
    unet_depth: int = 3  # pools: its reach of 51 pixels is about a digit, and the borders are half of those of depth 4
    unet_batch: int = 2
    unet_lr: float = 2e-3
    seconds: float = 2.0  # for each of the measurements


QUICK = Settings(classifier_steps=250, stage_steps=(150, 100, 100), test_scenes=24)
LONG = Settings(classifier_steps=600, stage_steps=(300, 300, 300), test_scenes=100, unet_steps=1200, seconds=6.0)
_VALIDATION = 1_000  # seeds of what is tested, beyond those of training


def tensor_of(images: Tensor) -> Tensor:
    """uint8 images as the networks read them."""
    return models.torchvision_transform(images).contiguous(memory_format=torch.channels_last)


def batches(dataset: torch.utils.data.Dataset, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The samples in their order, `size` at a time."""
    for start in range(0, len(dataset), size):
        images, targets = zip(*(dataset[i] for i in range(start, min(start + size, len(dataset)))), strict=True)
        yield tensor_of(torch.stack(images)), torch.stack([torch.as_tensor(t) for t in targets])


def train_classifier(settings: Settings, seed: int, report: Report) -> models.VGG:
    """A narrow VGG with batch normalisation, trained to name the digit in a window."""
    torch.manual_seed(seed)
    classifier = models.VGG(
        settings.blocks,
        len(CLASSES),
        batch_norm=True,
        channels=settings.channels,
        hidden=settings.hidden,
        grid=settings.window // 32,
        dropout=0.0,
    )
    for layer in classifier.classifier:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)  # VGG's deviation of 0.01 is meant for 4096 inputs
    data = Windows("train", 8 * settings.batch * settings.classifier_steps, settings.window, seed)
    _learn(
        classifier,
        batches(data, 8 * settings.batch),
        lambda image, category: F.cross_entropy(classifier(image), category),
        settings.classifier_steps,
        settings.lr,
        lambda step, loss: report("classifier", step, settings.classifier_steps, loss),
    )
    return classifier.eval()


def classifier_accuracy(classifier: models.VGG, settings: Settings) -> float:
    """The share of held-out windows that are named rightly."""
    data, right = Windows("test", settings.test_windows, settings.window, _VALIDATION), 0
    with torch.no_grad():
        for image, category in batches(data, 64):
            right += int((classifier(image).argmax(1) == category).sum())
    return right / len(data)


def train_stages(classifier: models.VGG, settings: Settings, seed: int, report: Report) -> dict[str, models.FCN]:
    """FCN-32s from the classifier, 16s from 32s, 8s from 16s; by their names."""
    trained: dict[str, models.FCN] = {}
    before = None
    for number, (name, steps) in enumerate(zip(("fcn32s", "fcn16s", "fcn8s"), settings.stage_steps, strict=True), 1):
        model = untrained(name, settings)
        if before is None:
            models.copy_from_classifier(model, classifier)
        else:
            models.copy_from_coarser(model, before)
        data = Scenes("train", settings.batch * steps, settings.scene, 10 * seed + number)
        _learn(
            model,
            batches(data, settings.batch),
            model.loss,
            steps,
            settings.lr,
            lambda step, loss, name=name, steps=steps: report(name, step, steps, loss),
        )
        trained[name] = before = model.eval()
    return trained


def train_unet(settings: Settings, seed: int, report: Report) -> models.UNet:
    """The heir, from random weights: it has no classifier before it, and learns the same scenes directly.

    Without batch normalisation it takes hundreds of steps more until it tells one digit from another.
    """
    torch.manual_seed(seed)
    model = models.UNet(
        len(CLASSES),
        in_channels=3,
        width=settings.unet_width,
        depth=settings.unet_depth,
        dropout=0.0,
        batch_norm=True,
        borders="mirror",
    )
    data = Scenes("train", settings.unet_batch * settings.unet_steps, settings.scene, 10 * seed + 4)
    _learn(
        model,
        batches(data, settings.unet_batch),
        model.loss,
        settings.unet_steps,
        settings.unet_lr,
        lambda step, loss: report("unet", step, settings.unet_steps, loss),
    )
    return model.eval()


def untrained(name: str, settings: Settings) -> models.FCN:
    """The network of that name in the story's widths; dropout is left out, as narrow layers do not learn with it."""
    return models.NETWORKS[name](
        len(CLASSES),
        blocks=settings.blocks,
        channels=settings.channels,
        hidden=settings.hidden,
        fc6_kernel=settings.window // 32,
        padding=settings.padding,
        dropout=0.0,
    )


def held_out(settings: Settings) -> Scenes:
    """The scenes of the tests: of other digits, on other photographs."""
    return Scenes("test", settings.test_scenes, settings.scene, _VALIDATION)


def metrics(model: models.FCN | models.UNet, settings: Settings) -> training.Metrics:
    """On held-out scenes, through the fused confusion matrix."""
    counts = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.int64)
    for image, labels in batches(held_out(settings), settings.batch):
        counts += model.confusion_matrix(image, labels)
    return training.Metrics.of(counts)


def _learn(
    model: nn.Module,
    samples: Iterator[tuple[Tensor, Tensor]],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    lr: float,
    report: Callable[[int, float], None],
) -> None:
    """Adam, as plain gradient descent needs many more steps than a demonstration has; warm-up, then linear decay."""
    model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters(), lr)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / 10, 1 - 0.95 * i / steps))
    for step, (image, target) in enumerate(samples, 1):
        loss = loss_of(image, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        report(step, loss.item())
