"""`fcn-kernels demo`: a classifier of digits becomes FCN-32s, 16s and 8s; then the throughput of the heads."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from .. import images, models, story
from ..benchmarking import measure
from ..story import figures, measuring, networks

TITLES = {"fcn32s": "FCN-32s", "fcn16s": "FCN-16s", "fcn8s": "FCN-8s"}
NAMES = TITLES | {"unet": "U-Net"}
SHOWN = (0, 4, 6)  # held-out scenes in the figure, of both photographs
# What the long version must reach on held-out scenes, in points of mean IU; the ratio is that of the heatmap.
LEAST_8S, LEAST_GAIN, LEAST_RATIO, LEAST_UNET = 60, 10, 5, 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="for the results (default: demo)")
    parser.add_argument("--long", action="store_true", help="train for longer, and say whether the goals are reached")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="one story each (default: 0)")
    parser.add_argument("--no-bench", action="store_true", help="leave `fcn-kernels bench --quick` out")


def run(args: argparse.Namespace) -> int:
    """0: done; 1: a goal of the long version is missed, or the throughput table failed; 2: nothing was begun."""
    try:
        figures.check()
        story.Scenes("train", 1, (96, 96), 0)[0]
        args.out.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError) as error:
        print(f"fcn-kernels demo: {error}", file=sys.stderr)
        return 2
    settings = story.LONG if args.long else story.QUICK
    results: dict = {"provenance": measure.provenance(), "settings": vars(settings), "seeds": {}}
    for seed in args.seeds:
        classifier, stages = _train(settings, seed, results["seeds"])
        if seed == args.seeds[0]:
            _show(args.out, classifier, stages, settings, results["seeds"][seed])
            if settings.unet_steps:
                _train_unet(settings, seed, results["seeds"][seed])
            results |= _measure(classifier, settings)
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\n{table(results)}\n\nwritten to {args.out}: {', '.join(sorted(p.name for p in args.out.iterdir()))}")
    print(f"try: fcn-kernels segment {args.out}/scene.png --weights {args.out}/fcn8s.pt --out {args.out}/segmented")
    complaints = missed(results) if args.long else []
    print("\n".join(f"MISSED: {text}" for text in complaints) or ("all goals are reached" if args.long else ""))
    failed = bool(complaints)
    if not args.no_bench:
        failed |= _bench() != 0
    return int(failed)


def _train(settings: networks.Settings, seed: int, results: dict) -> tuple[models.VGG, dict[str, models.FCN]]:
    start = time.perf_counter()
    with _Progress(seed) as report:
        classifier = story.train_classifier(settings, seed, report)
        accuracy = story.classifier_accuracy(classifier, settings)
        report.say(f"the classifier names {100 * accuracy:.1f} % of held-out windows")
        stages = story.train_stages(classifier, settings, seed, report)
    found = {name: networks.metrics(model, settings) for name, model in stages.items()}
    seconds = time.perf_counter() - start
    scores = ", ".join(f"{TITLES[name]} {100 * m.mean_iu:.1f}" for name, m in found.items())
    print(f"seed {seed}: mean IU on {settings.test_scenes} held-out scenes: {scores} ({seconds:.0f} s)", flush=True)
    results[seed] = {"classifier accuracy": accuracy, "seconds": seconds} | {n: vars(m) for n, m in found.items()}
    return classifier, stages


def _train_unet(settings: networks.Settings, seed: int, results: dict) -> None:
    start = time.perf_counter()
    with _Progress(seed) as report:
        unet = story.train_unet(settings, seed, report)
    found, seconds = networks.metrics(unet, settings), time.perf_counter() - start
    score = f"{100 * found.mean_iu:.1f} ({seconds:.0f} s)"
    print(f"seed {seed}: mean IU of U-Net, from random weights: {score}", flush=True)
    results["unet"] = vars(found) | {"seconds": seconds}


def _show(
    out: Path, classifier: models.VGG, stages: dict[str, models.FCN], settings: networks.Settings, result: dict
) -> None:
    """The two figures; one scene and the last network as files, for `fcn-kernels segment`."""
    scenes = [networks.held_out(settings)[index] for index in SHOWN if index < settings.test_scenes]
    rows = []
    for image, truth in scenes:
        x = networks.tensor_of(image[None])
        rows.append((image, {name: model.predict(x)[0] for name, model in stages.items()}, truth))
    titles = {name: f"{TITLES[name]}: {100 * result[name]['mean_iu']:.1f}" for name in stages}
    figures.save_labels_figure(out / "labels.png", rows, titles)
    figures.save_heatmap_figure(out / "heatmap.png", *measuring.heatmap(classifier, settings), settings.window)
    images.save_image(scenes[0][0], out / "scene.png")
    last = stages["fcn8s"]
    about = models.describe(last, preprocessing="torchvision", class_names=story.CLASSES)
    state = {"model_state_dict": last.state_dict(), "network": about}
    models.save_checkpoint(state, out / "fcn8s.pt")


def _measure(classifier: models.VGG, settings: networks.Settings) -> dict:
    return {
        "sliding": measuring.sliding(classifier, settings),
        "steps": {
            name: {
                "milliseconds": measuring.step_times(name, settings),
                "megabytes": measuring.step_memory(name, settings),
            }
            for name in TITLES
        },
    }


def table(results: dict) -> str:
    """What a reader wants to know, as text."""
    settings, seeds, slide = results["settings"], results["seeds"].values(), results["sliding"]
    height, width = settings["scene"]
    lines = [
        f"a training step: {settings['batch']} scenes of {height} x {width}, forward and backward; "
        "fused: this package, eager: dense transposed convolutions and F.cross_entropy",
        f"{'':8}{'mean IU':>18}{'ms, fused':>11}{'eager':>8}{'ratio':>7}{'MB, fused':>11}{'eager':>8}{'ratio':>7}",
    ]
    for name, title in TITLES.items():
        ius = " ".join(f"{100 * seed[name]['mean_iu']:.1f}" for seed in seeds)
        cells = ""
        for kind, first in (("milliseconds", 11), ("megabytes", 11)):
            values = results["steps"][name][kind]
            if values is None:
                cells += f"{'-':>{first}}{'-':>8}{'-':>7}"
            else:
                ratio = values["eager"] / values["fused"]
                cells += f"{values['fused']:>{first}.0f}{values['eager']:>8.0f}{ratio:>6.1f}x"
        lines.append(f"{title:8}{ius:>18}{cells}")
    for seed, result in results["seeds"].items():
        if "unet" in result:
            lines.append(
                f"U-Net, {settings['unet_steps']} steps from random weights, seed {seed}: "
                f"mean IU {100 * result['unet']['mean_iu']:.1f}"
            )
    rows, columns = slide["grid"]
    lines.append(
        f"heatmap of {rows} x {columns} windows: {slide['heatmap']:.0f} ms; the classifier, slid over them: "
        f"{slide['one batch']:.0f} ms in one batch, {slide['one by one']:.0f} one by one: {slide['ratio']:.1f}x as fast"
    )
    return "\n".join(lines)


def missed(results: dict) -> list[str]:
    """The goals of the long version that are not reached."""
    texts = []
    for seed, result in results["seeds"].items():
        coarse, middle, fine = (100 * result[name]["mean_iu"] for name in TITLES)
        if not coarse < middle < fine:
            texts.append(f"seed {seed}: mean IU does not rise: {coarse:.1f}, {middle:.1f}, {fine:.1f}")
        if fine < LEAST_8S or fine - coarse < LEAST_GAIN:
            texts.append(
                f"seed {seed}: FCN-8s must reach {LEAST_8S} and {LEAST_GAIN} more than FCN-32s; "
                f"they have {fine:.1f} and {coarse:.1f}"
            )
        if "unet" in result and 100 * result["unet"]["mean_iu"] < LEAST_UNET:
            texts.append(f"seed {seed}: U-Net must reach {LEAST_UNET}, has {100 * result['unet']['mean_iu']:.1f}")
    if results["sliding"]["ratio"] < LEAST_RATIO:
        texts.append(f"the heatmap must be {LEAST_RATIO}x as fast as sliding, is {results['sliding']['ratio']:.1f}x")
    return texts


def _bench() -> int:
    from . import bench

    print("\nthe heads alone, as `fcn-kernels bench --quick` measures them:", flush=True)
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return bench.run(parser.parse_args(["--quick"]))


class _Progress:
    """A bar per network on a terminal, four lines each elsewhere, on standard error."""

    def __init__(self, seed: int) -> None:
        self._seed, self._bar, self._what = seed, None, None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def __call__(self, what: str, step: int, steps: int, loss: float) -> None:
        if what != self._what:
            self._close()
            self._what, self._losses = what, []
            self._bar = _bar(f"seed {self._seed}, {NAMES.get(what, what)}", steps)
        self._losses.append(loss)
        recent = statistics.fmean(self._losses[-20:])
        if self._bar is not None:
            self._bar.update(1)
            self._bar.set_postfix_str(f"loss {recent:.3f}", refresh=False)
        elif step * 4 // steps > (step - 1) * 4 // steps:
            self.say(f"{NAMES.get(what, what)}: step {step} of {steps}, loss {recent:.3f}")

    def say(self, text: str) -> None:
        self._close()
        print(f"seed {self._seed}: {text}", file=sys.stderr, flush=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _bar(text: str, steps: int):
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=steps, desc=text, file=sys.stderr)
