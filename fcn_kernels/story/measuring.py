"""What the story measures: a heatmap against sliding the classifier, and training steps, fused and eager."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import models
from ..benchmarking import eager_fcn, measure, memory
from .networks import Settings, batches, tensor_of, untrained
from .scenes import Scenes


def large_scene(settings: Settings) -> Tensor:
    """[3, H, W] in uint8: held out, with few digits, so that windows without any are among those of the heatmap."""
    return Scenes("test", 1, settings.large_scene, 2_003, trials=14)[0][0]


def heatmap(classifier: models.VGG, settings: Settings) -> tuple[Tensor, Tensor]:
    """The large scene [3, H, W] in uint8, and the convolutionalized classifier's probabilities [C, h, w]."""
    image = large_scene(settings)
    dense = models.convolutionalize(classifier, settings.window)
    with torch.inference_mode():
        return image, dense.probabilities(tensor_of(image[None]))[0]


def sliding(classifier: models.VGG, settings: Settings) -> dict[str, float | list[int]]:
    """Milliseconds of the heatmap, and of the classifier on the same grid of windows, one by one and in one batch."""
    side = settings.window
    image = tensor_of(large_scene(settings)[None])
    dense = models.convolutionalize(classifier, side)
    windows = image.unfold(2, side, 32).unfold(3, side, 32).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    windows = windows.contiguous(memory_format=torch.channels_last)
    calls = {
        "heatmap": lambda: dense(image),
        "one by one": lambda: [classifier(window[None]) for window in windows],
        "one batch": lambda: classifier(windows),
    }
    with torch.inference_mode():
        grid = list(dense(image).shape[2:])
        if grid[0] * grid[1] != len(windows):
            raise RuntimeError(f"the heatmap has {grid[0]} x {grid[1]} pixels, but there are {len(windows)} windows")
        found = {name: t.median for name, t in measure.interleaved(calls, settings.seconds).items()}
    return found | {"grid": grid, "ratio": min(found["one by one"], found["one batch"]) / found["heatmap"]}


def _step(model: models.FCN, kind: str, image: Tensor, labels: Tensor) -> Tensor:
    """Forward and backward; eagerly as one writes it in PyTorch, with dense transposed convolutions."""
    if kind == "fused":
        loss = model.loss(image, labels)
    else:
        loss = F.cross_entropy(eager_fcn.logits(model, image, (*model.skip_crops, model.crop)), labels.long())
    model.zero_grad()
    loss.backward()
    return loss.detach()


def _batch(settings: Settings) -> tuple[Tensor, Tensor]:
    return next(batches(Scenes("train", settings.batch, settings.scene, 0), settings.batch))


def _network(name: str, settings: Settings) -> models.FCN:
    torch.manual_seed(0)
    return untrained(name, settings).to(memory_format=torch.channels_last)


def step_times(name: str, settings: Settings) -> dict[str, float]:
    """Milliseconds of a training step, without the optimizer, which is the same; after checking that both agree."""
    model, (image, labels) = _network(name, settings), _batch(settings)
    calls: dict[str, Callable[[], Tensor]] = {
        kind: lambda kind=kind: _step(model, kind, image, labels) for kind in ("fused", "eager")
    }
    torch.testing.assert_close(calls["fused"](), calls["eager"](), atol=1e-4, rtol=1e-4)
    return {kind: t.median for kind, t in measure.interleaved(calls, settings.seconds).items()}


def _peak(name: str, settings: Settings, kind: str) -> int:
    model, (image, labels) = _network(name, settings), _batch(settings)
    corner = (image[:1, :, :96, :96], labels[:1, :96, :96])
    _step(model, kind, *corner)  # threads, code, and the weights' gradients
    return memory.peak_of(lambda: _step(model, kind, image, labels))


def step_memory(name: str, settings: Settings) -> dict[str, float] | None:
    """Megabytes that a training step takes at most, beyond the weights and the images; None where it is unknown."""
    if not memory.can_measure():
        return None
    before = {key: os.environ.get(key) for key in measure.REGIMES["exact"]}
    os.environ.update(measure.REGIMES["exact"])  # for the processes to come: resident memory is what is allocated
    try:
        return {k: memory.in_fresh_process(_peak, name, settings, k) / 1e6 for k in ("fused", "eager")}
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
