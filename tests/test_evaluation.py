"""Evaluation from running counts."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fcn_kernels as fk
from fcn_kernels import evaluation, models
from fcn_kernels.deferred import deferring
from fcn_kernels.evaluation import ConfusionMatrix, Metrics, evaluate


def batches(classes: int = 5, count: int = 3) -> list[tuple[Tensor, Tensor]]:
    found = []
    for i in range(count):
        target = torch.randint(0, classes, (2, 24 + i, 31))
        target[:, :3] = 255
        found.append((torch.randn(2, 3, 24 + i, 31), target))
    return found


def counted(labels: list[Tensor], targets: list[Tensor], classes: int) -> Tensor:
    """By a loop over all pixels."""
    matrix = torch.zeros(classes, classes, dtype=torch.int64)
    for label, target in zip(labels, targets, strict=True):
        for p, t in zip(label.flatten().tolist(), target.flatten().tolist(), strict=True):
            if t != 255:
                matrix[t, p] += 1
    return matrix


class Head(nn.Module):
    """A network that returns scores of a quarter of the image's size, as `wrap` presents them."""

    def __init__(self, wrap=lambda z: z) -> None:
        super().__init__()
        self.score = nn.Conv2d(3, 5, 3, stride=4, padding=1)
        self.wrap = wrap

    def forward(self, image: Tensor) -> object:
        return self.wrap(self.score(image))


@pytest.mark.parametrize(
    "wrap",
    [lambda z: z, lambda z: {"out": z, "aux": -z}, lambda z: types.SimpleNamespace(logits=z)],
    ids=["tensor", "torchvision", "transformers"],
)
def test_evaluate(wrap) -> None:
    model, data = Head(wrap).train(), batches()
    metrics = evaluate(model, data, 5)
    assert model.training
    labels = [fk.upsample(model.score(x), y.shape[1:]).argmax(1) for x, y in data]
    assert metrics == Metrics.of(counted(labels, [y for _, y in data], 5))
    assert not any(p.grad is not None for p in model.parameters())


def test_own_function_from_outputs_to_labels_and_inputs_by_name() -> None:
    model, data = Head(), batches()
    by_name = [({"image": x}, y) for x, y in data]
    labels = [F.interpolate(model(x), y.shape[1:], mode="bilinear").argmax(1) for x, y in data]
    size = iter([y.shape[1:] for _, y in data])

    def scores(z: Tensor) -> Tensor:
        return F.interpolate(z, next(size), mode="bilinear").argmax(1).to(torch.uint8)

    metrics = evaluate(model, by_name, 5, scores=scores)
    assert metrics == Metrics.of(counted(labels, [y for _, y in data], 5))


def test_the_mode_of_every_module_is_kept() -> None:
    model = nn.Sequential(Head(), nn.BatchNorm2d(5), nn.Sequential(nn.BatchNorm2d(5))).train()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    evaluate(model, batches(), 5)
    assert [m.training for m in model.modules()] == modes


def test_a_method_of_somebody_elses_model_is_not_called() -> None:
    class Other(Head):
        def confusion_matrix(self, *_: object) -> Tensor:
            raise AssertionError("it has another meaning here")

    model, data = Other(), batches()
    labels = [fk.upsample(model.score(x), y.shape[1:]).argmax(1) for x, y in data]
    assert evaluate(model, data, 5) == Metrics.of(counted(labels, [y for _, y in data], 5))


def test_sampling_is_for_scores() -> None:
    target = torch.randint(0, 5, (2, 24, 31))
    sampling = fk.Sampling.interpolate((24, 31), (24, 31), align_corners=True)
    with pytest.raises(ValueError, match="sampling= is of scores, but the prediction holds labels"):
        ConfusionMatrix(5).update(target, target, sampling)
    full, shifted = torch.randn(2, 5, 24, 31), fk.Sampling(fk.sampling.Axis(24, 24, 1, 2, 1), sampling.cols, "clamp")
    expected = evaluation.count(full, target, 5, sampling=shifted, ignore_index=255)
    assert not expected.equal(evaluation.count(full, target, 5, ignore_index=255))
    small = torch.randn(2, 5, 6, 8)
    with deferring({}):
        deferred = F.interpolate(small, size=(24, 31), mode="bilinear")
    found = evaluation.count(deferred, target, 5, sampling=shifted, ignore_index=255)
    full = F.interpolate(small, size=(24, 31), mode="bilinear")
    assert found.equal(evaluation.count(full, target, 5, sampling=shifted, ignore_index=255))


def test_networks_of_this_package_count_themselves() -> None:
    model = models.FCN8s(5, padding=40, fc6_kernel=3, channels=(4, 4, 4, 4, 4), hidden=8).eval()
    torch.nn.init.normal_(model.score_fr.weight)
    data = batches(count=1)
    labels = [model.predict(x) for x, _ in data]
    assert evaluate(model, data, 5) == Metrics.of(counted(labels, [y for _, y in data], 5))


class Resizing(nn.Module):
    """Scores and their interpolation, in the way of torchvision."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(3, 5, 3, stride=4, padding=1)
        self.up = nn.Upsample(size=(24, 31), mode="bilinear")

    def forward(self, image: Tensor) -> Tensor:
        return self.up(self.score(image))


def test_deferred_scores_stay_deferred(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = Resizing(), batches(count=1)
    expected = evaluate(model, data, 5)
    fk.fuse(model)

    def value(self: object) -> Tensor:
        raise AssertionError("the scores were upsampled")

    monkeypatch.setattr(fk.deferred.recipes.Upsampled, "value", value)
    assert evaluate(model, data, 5) == expected
    with pytest.raises(AssertionError, match="upsampled"):
        model(data[0][0]) + 1


def test_counts_add_up_whatever_the_batches() -> None:
    x, y = torch.randn(4, 5, 6, 7), torch.randint(0, 5, (4, 12, 14), dtype=torch.uint8)
    whole, parts = ConfusionMatrix(5), ConfusionMatrix(5)
    whole.update(x, y)
    for i in range(4):
        parts.update(x[i : i + 1], y[i : i + 1])
    assert whole.counts.equal(parts.counts)
    assert int(whole.counts.sum()) == y.numel()
    parts.reset()
    assert not parts.counts.any()
    parts.add(whole.counts)
    assert parts.compute() == whole.compute()


def test_bad_input() -> None:
    counts = ConfusionMatrix(5)
    y = torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        ConfusionMatrix(0)
    with pytest.raises(TypeError, match=r"num_classes must be an int, got 2\.5"):
        ConfusionMatrix(2.5)
    assert ConfusionMatrix(np.int64(5)).num_classes == 5
    with pytest.raises(ValueError, match=r"scores must be \[N, 5, h, w\], one channel per class, got \[1, 4, 2, 2\]"):
        counts.update(torch.randn(1, 4, 2, 2), y)
    with pytest.raises(TypeError, match="the prediction must be a tensor of scores or labels, got list"):
        counts.update([1], y)
    with pytest.raises(TypeError, match=r"must hold floating scores or integer labels, got torch.bool"):
        counts.update(y.bool(), y)
    with pytest.raises(ValueError, match=r"target must be \[N, H, W\] = \[1, 4, 4\], got shape \[1, 4, 5\]"):
        counts.update(y, torch.zeros(1, 4, 5, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="7"):
        counts.update(y + 7, y)
    with pytest.raises(RuntimeError, match="7"):
        counts.update(y, y + 7)
    with pytest.raises(ValueError, match=r"counts must be int64 \[5, 5\]"):
        counts.add(torch.zeros(4, 4, dtype=torch.int64))
    assert not counts.counts.any()
    with pytest.raises(TypeError, match="the model returned list, in which there is no tensor"):
        evaluate(Head(lambda z: [z]), batches(count=1), 5)
    assert evaluation.count(y, y, 5, ignore_index=None)[0, 0] == 16
