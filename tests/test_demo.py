"""The story: its scenes, its networks, what it measures, and the command, with tiny networks and few steps."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from fcn_kernels import story
from fcn_kernels.benchmarking import memory
from fcn_kernels.cli import bench, demo, main
from fcn_kernels.story import measuring, networks, scenes

for library in ("sklearn", "skimage", "matplotlib", "PIL"):
    pytest.importorskip(library)

TINY = networks.Settings(
    classifier_steps=2,
    stage_steps=(2, 2, 2),
    test_scenes=2,
    test_windows=32,
    blocks=(1, 1, 1, 1, 1),
    channels=(4, 4, 6, 6, 8),
    hidden=8,
    scene=(128, 96),
    large_scene=(160, 192),
    batch=2,
    seconds=0.05,
)


def silent(what: str, step: int, steps: int, loss: float) -> None:
    assert loss == loss


def test_scenes_follow_from_seed_and_index() -> None:
    image, labels = story.Scenes("train", 4, (160, 200), seed=5)[2]
    again, labels_again = story.Scenes("train", 9, (160, 200), seed=5)[2]
    assert image.shape == (3, 160, 200)
    assert labels.shape == (160, 200)
    assert image.dtype == labels.dtype == torch.uint8
    assert torch.equal(image, again)
    assert torch.equal(labels, labels_again)
    assert not torch.equal(image, story.Scenes("train", 4, (160, 200), seed=6)[2][0])
    found = labels.unique().tolist()
    assert found[0] == 0
    assert len(found) >= 3
    assert found[-1] <= 10
    # The ink is lighter than any photograph; it lies within the outlines and makes a good part of them.
    bright = (image > 0.75 * 255).any(0)
    assert (bright & (labels > 0)).sum() > 0.15 * (labels > 0).sum()
    assert not (bright & (labels == 0)).any()


def test_what_is_tested_was_not_trained_on() -> None:
    assert not set(scenes.PHOTOGRAPHS["train"]) & set(scenes.PHOTOGRAPHS["test"])
    (train, values), (test, test_values) = (scenes._digits(split) for split in ("train", "test"))
    assert len(train) + len(test) == len(values) + len(test_values) == 1797
    assert values.unique().tolist() == test_values.unique().tolist() == list(range(10))
    common = (train.flatten(1)[:, None] == test.flatten(1)[None]).all(-1)
    assert not common.any()


def test_windows_hold_one_digit_or_none() -> None:
    data = story.Windows("test", 60, 96, seed=1)
    samples = [data[i] for i in range(len(data))]
    classes = {category for _, category in samples}
    assert classes == set(range(11))
    for image, category in samples:
        bright = (image > 0.75 * 255).any(0)
        assert bool(bright.any()) == (category > 0)


@pytest.fixture(scope="module")
def trained() -> tuple[torch.nn.Module, dict[str, torch.nn.Module]]:
    classifier = story.train_classifier(TINY, 3, silent)
    return classifier, story.train_stages(classifier, TINY, 3, silent)


def test_the_same_seed_gives_the_same_networks(trained: tuple) -> None:
    classifier = story.train_classifier(TINY, 3, silent)
    again = story.train_stages(classifier, TINY, 3, silent)
    for name, model in trained[1].items():
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, again[name].state_dict()[key]), (name, key)
    other = story.train_classifier(TINY, 4, silent)
    assert not torch.equal(other.classifier[0].weight, classifier.classifier[0].weight)


def test_each_network_starts_from_the_one_before() -> None:
    still = dataclasses.replace(TINY, lr=0.0)
    classifier = story.train_classifier(still, 0, silent)
    stages = story.train_stages(classifier, still, 0, silent)
    linear = classifier.classifier[0].weight
    for model in stages.values():
        assert torch.equal(model.fc6.weight.flatten(1), linear)
    assert [stages[n].skips for n in stages] == [(), ("pool4",), ("pool4", "pool3")]


def test_unet_is_that_of_the_settings() -> None:
    settings = dataclasses.replace(TINY, unet_steps=2, unet_width=3, unet_depth=1, unet_batch=1)
    steps: list[int] = []
    unet = story.train_unet(settings, 3, lambda what, step, of, loss: steps.append(step))
    again = story.train_unet(settings, 3, silent)
    assert steps == [1, 2]
    assert (unet.depth, unet.down[0].conv1.out_channels, unet.borders, unet.training) == (1, 3, "mirror", False)
    assert unet.down[0].norm1.num_batches_tracked == 2
    for key, tensor in unet.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    still = story.train_unet(dataclasses.replace(settings, unet_lr=0.0), 3, silent)
    assert not torch.equal(still.score.weight, unet.score.weight)


@pytest.mark.parametrize("name", ["fcn32s", "fcn16s", "fcn8s"])
def test_fused_and_eager_steps_agree(name: str) -> None:
    model = networks.untrained(name, TINY)
    for p in model.parameters():
        torch.nn.init.normal_(p, 0, 0.1 if p.dim() < 2 else 1.4 * p[0].numel() ** -0.5)
    image, labels = measuring._batch(TINY)
    found = []
    for kind in ("fused", "eager"):
        loss = measuring._step(model, kind, image, labels)
        found.append([loss, *(p.grad.clone() for p in model.parameters())])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.skipif(not memory.can_measure(), reason="this system does not let a process reset its high-water mark")
def test_a_fused_step_takes_less_memory() -> None:
    peaks = measuring.step_memory("fcn8s", dataclasses.replace(TINY, scene=(256, 256)))
    assert 1 < peaks["fused"] < peaks["eager"]


def test_heatmap_is_the_classifier_on_every_window(trained: tuple) -> None:
    image, probabilities = measuring.heatmap(trained[0], TINY)
    assert probabilities.shape == (11, 3, 4)
    torch.testing.assert_close(probabilities.sum(0), torch.ones(3, 4))
    alone = trained[0](networks.tensor_of(image[None, :, :96, :96])).softmax(1)[0]
    # The classifier pads its window with zeros where the heatmap sees neighbours: alike, not equal.
    assert (alone - probabilities[:, 0, 0]).abs().max() < 0.2


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(story, "QUICK", TINY)
    monkeypatch.setattr(memory, "can_measure", lambda: False)
    asked: list[argparse.Namespace] = []
    monkeypatch.setattr(bench, "run", lambda args: asked.append(args) or 0)
    out = tmp_path / "new" / "demo"
    assert main(["demo", "--out", str(out), "--seeds", "0", "7"]) == 0
    assert asked[0].quick
    printed = capsys.readouterr()
    assert "FCN-8s: step 2 of 2" in printed.err
    assert "FCN-16s" in printed.out
    results = json.loads((out / "results.json").read_text())
    assert list(results["seeds"]) == ["0", "7"]
    assert 0 <= results["seeds"]["7"]["fcn8s"]["mean_iu"] <= 1
    assert results["sliding"]["grid"] == [3, 4]
    assert set(results["steps"]["fcn32s"]["milliseconds"]) == {"fused", "eager"}
    assert (out / "labels.png").stat().st_size > 10_000
    assert (out / "heatmap.png").stat().st_size > 10_000

    # The last network is of use at once.
    segmented = tmp_path / "segmented"
    arguments = [str(out / "scene.png"), "--weights", str(out / "fcn8s.pt"), "--out", str(segmented)]
    assert main(["segment", *arguments]) == 0
    assert (segmented / "scene.png").exists()
    assert "background" in capsys.readouterr().out


def test_goals() -> None:
    def seed(*ius: float) -> dict:  # of FCN-32s, 16s, 8s, and perhaps U-Net
        return {name: {"mean_iu": iu} for name, iu in zip(demo.NAMES, ius, strict=False)}

    def complaints(ratio: float, *seeds: dict) -> list[str]:
        return demo.missed({"seeds": dict(enumerate(seeds)), "sliding": {"ratio": ratio}})

    assert complaints(5.5, seed(0.3, 0.5, 0.7), seed(0.4, 0.59, 0.6)) == []
    assert "does not rise" in complaints(5.5, seed(0.5, 0.4, 0.7))[0]
    assert "must reach 60" in complaints(5.5, seed(0.3, 0.4, 0.59))[0]
    assert "10 more" in complaints(5.5, seed(0.61, 0.62, 0.7))[0]
    assert "4.9x" in complaints(4.9, seed(0.3, 0.5, 0.7))[0]
    assert complaints(5.5, seed(0.3, 0.5, 0.7, 0.51)) == []
    assert "U-Net must reach 50, has 49.0" in complaints(5.5, seed(0.3, 0.5, 0.7, 0.49))[0]


def test_the_committed_results_reach_the_goals_and_are_those_of_the_text() -> None:
    root = Path(__file__).parent.parent
    results = json.loads((root / "benchmarks" / "results" / "story.json").read_text())
    assert len(results["seeds"]) == 3
    assert demo.missed(results) == []
    for page in ("README.md", "docs/fcn.md"):
        text = (root / page).read_text(encoding="utf-8")
        for name, title in demo.TITLES.items():
            scores = ", ".join(f"{100 * seed[name]['mean_iu']:.1f}" for seed in results["seeds"].values())
            assert f"| {title} | {scores} |" in text
    unet = 100 * next(iter(results["seeds"].values()))["unet"]["mean_iu"]
    assert f"**{unet:.1f} % mean IU**" in text


def test_a_missed_goal_is_the_exit_status_of_the_long_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(story, "LONG", dataclasses.replace(TINY, unet_steps=3, unet_width=2, unet_depth=2))
    monkeypatch.setattr(memory, "can_measure", lambda: False)
    assert main(["demo", "--long", "--no-bench", "--out", str(tmp_path), "--seeds", "0", "1"]) == 1
    printed = capsys.readouterr()
    assert "MISSED: seed 0" in printed.out
    assert "U-Net: step 3 of 3" in printed.err
    assert "U-Net, 3 steps from random weights, seed 0: mean IU" in printed.out
    assert "seed 1: mean IU of U-Net" not in printed.out  # the first seed's alone
    assert json.loads((tmp_path / "results.json").read_text())["steps"]["fcn8s"]["megabytes"] is None


@pytest.mark.parametrize("missing", ["matplotlib", "sklearn.datasets"])
def test_a_missing_library_is_a_sentence(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    scenes._digits.cache_clear()
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "not installed: pip install 'fcn_kernels[demo]'" in capsys.readouterr().err
