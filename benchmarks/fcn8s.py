"""FCN-8s in full width against eager PyTorch with the same weights: agreement, the head's share, memory of a training
step; and a convolutionalized AlexNet against sliding the classifier.

    python benchmarks/fcn8s.py [agreement] [head] [memory] [sliding] [--json FILE]

Weights are random, with activations of unit scale. Times are CPU time on one thread, the fastest of a few runs.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fcn_kernels
from fcn_kernels import models
from fcn_kernels.benchmarking import eager_fcn, measure, memory
from fcn_kernels.benchmarking.photographs import photographs

SIZES = [(1, 1), (64, 64), (224, 224), (375, 500), (500, 500), (513, 513)]


def network(make: Callable[[], nn.Module] = models.FCN8s, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    with torch.device("meta"):
        model = make()
    model.to_empty(device="cpu")
    for p in model.parameters():
        nn.init.normal_(p, 0, 0.1 if p.dim() < 2 else 1.4 * p[0].numel() ** -0.5)
    for layer in model.modules():
        if isinstance(layer, models.Upscore):
            layer.weight.data.copy_(fcn_kernels.nn.bilinear_weight(layer.channels, layer.kernel_size))
    return model.eval()


def picture(size: tuple[int, int]) -> Tensor:  # [1, 3, H, W]
    return models.torchvision_transform((photographs(1, size) * 255).to(torch.uint8))


@torch.inference_mode()
def agreement() -> list[dict]:
    """Per size: the largest difference of the logits, relative to the largest logit; labels that differ, and how close
    their two best logits are there."""
    model, rows = network(), []
    for size in SIZES:
        image = picture(size)
        expected, ours = eager_fcn.logits(model, image), model(image)
        labels, top = model.predict(image), expected.topk(2, 1).values
        different = labels != expected.argmax(1)
        scale = expected.abs().max()
        margin = (top[:, 0] - top[:, 1])[different]
        rows.append(
            {
                "size": size,
                "error": ((ours - expected).abs().max() / scale).item(),
                "labels that differ": int(different.sum()),
                "their lead": (margin.max() / scale).item() if different.any() else 0.0,
            }
        )
    return rows


def fastest(call: Callable[[], object], runs: int) -> float:  # milliseconds of this thread
    times = []
    for _ in range(runs):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return 1e3 * min(times)


@torch.inference_mode()
def head() -> dict:
    """What follows the three score maps at 500 x 500, and the whole forward pass to labels."""
    model, image, size = network(), picture((500, 500)), (500, 500)
    x, pool4, pool3 = maps = eager_fcn.score_maps(model, image)
    low, high = model.skip_crops
    pool4 = pool4[:, :, low : low + 34, low : low + 34].contiguous()
    pool3 = pool3[:, :, high : high + 70, high : high + 70].contiguous()

    def fused() -> Tensor:
        y = model.upscore_pool4(model.upscore2(x, pool4), pool3)
        return fcn_kernels.upsample_argmax(y, model.last.sampling(y, model.crop, size))

    fused(), eager_fcn.head(model, maps, size)
    found = {
        "fused head": fastest(fused, 30),
        "eager head": fastest(lambda: eager_fcn.head(model, maps, size).argmax(1), 5),
        "fused forward": fastest(lambda: model.predict(image), 2),
        "eager forward": fastest(lambda: eager_fcn.predict(model, image), 2),
    }
    return found | {f"{k} share": found[f"{k} head"] / found[f"{k} forward"] for k in ("fused", "eager")}


def _step(kind: str, side: int, narrow: bool) -> int:
    torch.set_num_threads(1)
    small = {"channels": (8, 16, 32, 64, 64), "hidden": 128}
    model = network((lambda: models.FCN8s(**small)) if narrow else models.FCN8s)
    image, target = picture((side, side)), torch.randint(0, 21, (1, side, side))
    tiny = network(lambda: models.FCN8s(channels=(2,) * 5, hidden=2))
    for _ in range(2):
        tiny.loss(image[:, :, :32, :32], target[:, :32, :32]).backward()
        F.cross_entropy(eager_fcn.logits(tiny, image[:, :, :32, :32]), target[:, :32, :32]).backward()

    model.loss(image[:, :, :32, :32], target[:, :32, :32]).backward()  # the weights' gradients are there

    def call() -> Tensor:
        loss = model.loss(image, target) if kind == "fused" else F.cross_entropy(eager_fcn.logits(model, image), target)
        loss.backward()
        return loss

    return memory.peak_of(call)


def step_memory() -> list[dict]:
    """Peak memory of forward and backward, beyond the weights, their gradients and the image, beside four tensors
    [1, 21, H, W]. Once with narrow widths, where the backbone does not hide the head; once with the published ones."""
    os.environ.update(measure.REGIMES["exact"])  # for the processes to come: resident memory is what is allocated
    rows = []
    for narrow in (True, False):
        peaks = {k: memory.in_fresh_process(_step, k, 500, narrow) / 1e6 for k in ("fused", "eager")}
        rows.append(
            {"widths": "narrow" if narrow else "published"} | peaks | {"four tensors": 4 * 4 * 21 * 500 * 500 / 1e6}
        )
    return rows


@torch.inference_mode()
def sliding() -> dict:
    """AlexNet (torchvision's, on windows of 224) over a grid of 10 x 10 windows, 32 pixels apart."""
    classifier = network(models.alexnet)
    dense = models.convolutionalize(classifier, 224)
    side = 224 + 9 * 32
    image = picture((side, side))
    windows = image.unfold(2, 224, 32).unfold(3, 224, 32).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 224, 224)
    grid = dense(image).shape[2:]
    assert grid[0] * grid[1] == len(windows) == 100, (grid, windows.shape)
    found = {
        "heatmap": fastest(lambda: dense(image), 5),
        "windows, one by one": fastest(lambda: [classifier(w[None]) for w in windows], 2),
        "windows, one batch": fastest(lambda: classifier(windows), 2),
    }
    ratios = {f"ratio to {k}": found[f"windows, {k}"] / found["heatmap"] for k in ("one by one", "one batch")}
    return found | {"grid": list(grid)} | ratios


PARTS = {"agreement": agreement, "head": head, "memory": step_memory, "sliding": sliding}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; by default all")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict = {"provenance": measure.provenance()}
    for part in args.parts or PARTS:
        found[part] = PARTS[part]()
        for row in found[part] if isinstance(found[part], list) else [found[part]]:
            cells = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()]
            print(f"{part}: {', '.join(cells)}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
