"""Other people's models before and after `fcn_kernels.fuse`, in one run: times, peak memory, agreement of label maps.

    python -m benchmarks.drop_in --instruction-set avx2 --json benchmarks/results/drop-in.json    # about five minutes

It needs transformers and torchvision (`make integrations` installs them). The models have random weights, and the
library's own code runs before and after: SegFormer of B0's size with 150 classes at 512 x 512, and torchvision's FCN
class around two 1x1 convolutions, 21 classes, 65 x 65 to 520 x 520, two images. The latter is timed as a whole, with
the convolutions and their gradients, which fusing leaves to torch, and from given score maps on, which is the part that
it changes: interpolation, criterion, backward to the scores. With --device cuda, SegFormer and torchvision's DeepLabV3
on a ResNet50, whose memory is what torch allocates there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fcn_kernels
from fcn_kernels.benchmarking import gpu, measure, memory

METHODS = ("library", "fused")
Step = Callable[[], object]


def library(name: str) -> Any:
    """As the tests import it: torchvision beside a CPU torch needs help."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import libraries

    return libraries.library(name)


class Features(nn.Module):
    """Stands for a backbone, which is not to be measured here."""

    def __init__(self, out: Tensor, aux: Tensor) -> None:
        super().__init__()
        self.out, self.aux = out, aux

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"out": self.out, "aux": self.aux}


def labels(classes: int, *size: int, device: str = "cpu") -> Tensor:
    found = torch.randint(0, classes, size, device=device)
    found[:, :3] = 255
    return found


def segformer(fused: bool, device: str = "cpu") -> dict[str, Step]:
    hf = library("transformers")
    torch.manual_seed(0)
    model = hf.SegformerForSemanticSegmentation(hf.SegformerConfig(num_labels=150)).to(device)
    model.config.semantic_loss_ignore_index = 255
    processor = hf.SegformerImageProcessor()
    image, target = torch.randn(1, 3, 512, 512).to(device), labels(150, 1, 512, 512, device=device)
    with torch.inference_mode():
        small = model.eval()(image)
    if fused:
        fcn_kernels.fuse(model)
        fcn_kernels.fuse(processor)

    def after(outputs: Any) -> Tensor:
        return processor.post_process_semantic_segmentation(outputs, [(512, 512)])[0]

    @torch.inference_mode()
    def post_process() -> Tensor:
        return after(small)

    @torch.inference_mode()
    def evaluation() -> Tensor:
        return after(model.eval()(image))

    def training() -> Tensor:
        model.train().zero_grad()
        loss = model(image, labels=target).loss
        loss.backward()
        return loss.detach()

    @torch.inference_mode()
    def scores() -> Tensor:
        return F.interpolate(model.eval()(image).logits, size=(512, 512), mode="bilinear")

    return {"post-process": post_process, "evaluation": evaluation, "training": training, "scores": scores}


def heads(fused: bool, device: str = "cpu") -> dict[str, Step]:
    segmentation = library("torchvision").models.segmentation
    torch.manual_seed(0)
    x = torch.randn(2, 256, 65, 65).to(device)
    model = segmentation.FCN(Features(x, x), nn.Conv2d(256, 21, 1), nn.Conv2d(256, 21, 1)).to(device)
    return _torchvision(model, torch.zeros(2, 3, 520, 520), fused, device)  # of the image the size is read


def score_maps(fused: bool, device: str = "cpu") -> dict[str, Step]:
    """The heads without their convolutions: scores are parameters, so that a training step ends at their gradients."""
    segmentation = library("torchvision").models.segmentation
    torch.manual_seed(0)
    features = Features(*(nn.Parameter(torch.randn(2, 21, 65, 65)) for _ in range(2)))
    model = segmentation.FCN(features, nn.Identity(), nn.Identity()).to(device)
    steps = _torchvision(model, torch.zeros(2, 3, 520, 520), fused, device)
    return {step: steps[step] for step in ("training", "scores")}


def deeplab(fused: bool, device: str = "cpu") -> dict[str, Step]:
    segmentation = library("torchvision").models.segmentation
    torch.manual_seed(0)
    options = {"weights": None, "weights_backbone": None, "num_classes": 21, "aux_loss": True}
    model = segmentation.deeplabv3_resnet50(**options).to(device)
    return _torchvision(model, torch.randn(2, 3, 520, 520), fused, device)


def _torchvision(model: nn.Module, image: Tensor, fused: bool, device: str) -> dict[str, Step]:
    image, target = image.to(device), labels(21, len(image), *image.shape[2:], device=device)
    if fused:
        fcn_kernels.fuse(model)

    def training() -> Tensor:
        model.train().zero_grad()
        found = {name: F.cross_entropy(y, target, ignore_index=255) for name, y in model(image).items()}
        loss = found["out"] + 0.5 * found["aux"]
        loss.backward()
        return loss.detach()

    @torch.inference_mode()
    def evaluation() -> Tensor:
        return model.eval()(image)["out"].argmax(1)

    @torch.inference_mode()
    def scores() -> Tensor:
        return model.eval()(image)["out"]

    return {"training": training, "evaluation": evaluation, "scores": scores}


MODELS: dict[str, Callable[..., dict[str, Step]]] = {
    "segformer-b0": segformer,
    "torchvision-heads": heads,
    "torchvision-scores": score_maps,
    "deeplabv3-resnet50": deeplab,
}
SHOWN = {
    "cpu": ("segformer-b0", "torchvision-heads", "torchvision-scores"),
    "cuda": ("segformer-b0", "deeplabv3-resnet50"),
}

TITLES = {
    ("segformer-b0", "evaluation"): "SegFormer, evaluation: forward and post-process",
    ("segformer-b0", "post-process"): "SegFormer, `post_process_semantic_segmentation`",
    ("segformer-b0", "training"): "SegFormer, training step: forward with loss, and backward",
    ("torchvision-heads", "training"): "torchvision heads, `out` and `aux`: forward, criterion, backward",
    ("torchvision-scores", "training"): "torchvision heads, `out` and `aux`, from the scores on: loss and backward",
    ("torchvision-heads", "evaluation"): "torchvision heads: forward and `argmax`",
    ("deeplabv3-resnet50", "training"): "DeepLabV3-ResNet50, `out` and `aux`: forward, criterion, backward",
    ("deeplabv3-resnet50", "evaluation"): "DeepLabV3-ResNet50: forward and `argmax`",
}
GOALS = {  # speed-up at least; memory at most, as a share of the library's
    ("segformer-b0", "evaluation"): (3.0, None),
    ("segformer-b0", "post-process"): (15.0, None),
    ("segformer-b0", "training"): (2.0, 0.5),
    ("torchvision-scores", "training"): (20.0, None),
}


def _peak(model: str, step: str, fused: bool, threads: int) -> int:
    torch.set_num_threads(threads)
    call = MODELS[model](fused)[step]
    return memory.peak_of(call)


def measured(seconds: float, names: Sequence[str], device: str = "cpu") -> list[dict[str, Any]]:
    """Times of all steps of both methods, interleaved, and how far the label maps agree."""
    rows, timer = [], gpu.clock(device)
    for model in names:
        steps = {method: MODELS[model](method == "fused", device) for method in METHODS}
        top = steps["library"]["scores"]().topk(2, 1).values
        lead = (top[:, 0] - top[:, 1]) / top.abs().max()
        for step in [name for name in steps["library"] if name != "scores"]:
            results = {method: steps[method][step]() for method in METHODS}
            timings = timer.interleaved({method: steps[method][step] for method in METHODS}, seconds)
            row = {"model": model, "step": step, "milliseconds": {m: t.as_dict() for m, t in timings.items()}}
            a, b = (results[method] for method in METHODS)
            if a.is_floating_point():
                row["loss"] = {method: float(results[method]) for method in METHODS}
            else:
                different = (a != b).view(lead.shape)
                row["labels"], row["labels_that_differ"] = a.numel(), int(different.sum())
                row["their_lead"] = float(lead[different].max()) if different.any() else 0.0
            if device != "cpu":
                row["peak_bytes"] = {method: gpu.peak(steps[method][step], device) for method in METHODS}
            row["speed_up"] = timings["library"].median / timings["fused"].median
            rows.append(row)
            print(f"{model} {step}: {row['speed_up']:.3g}x", file=sys.stderr, flush=True)
    return rows


def peaks(threads: int) -> dict[str, dict[str, int]]:
    """Bytes beyond model and batch of one call, each in a process that has not run before."""
    found: dict[str, dict[str, int]] = {}
    for model, step in (
        ("segformer-b0", "training"),
        ("segformer-b0", "post-process"),
        ("torchvision-heads", "training"),
    ):
        for method in METHODS:
            peak = memory.in_fresh_process(_peak, model, step, method == "fused", threads)
            found.setdefault(f"{model} {step}", {})[method] = peak
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--instruction-set", choices=measure.INSTRUCTION_SETS)
    parser.add_argument("--seconds", type=float, default=20, help="per step")
    parser.add_argument("--device", choices=SHOWN, default="cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", choices=("times", "memory"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.models = args.models or SHOWN[args.device]
    if args.device != "cpu":
        with gpu.tf32(False):
            rows = measured(args.seconds, args.models, args.device)
        report({"provenance": provenance() | {"gpu": torch.cuda.get_device_name()}, "rows": rows}, args.json)
        return
    if args.part is None:  # malloc and torch's libraries read their settings when a process starts
        found: dict[str, Any] = {}
        for part, regime in (("times", "recycling"), ("memory", "exact")):
            env = measure.environment(regime, args.threads, args.instruction_set)
            command = [sys.executable, "-m", "benchmarks.drop_in", *sys.argv[1:], "--part", part]
            run = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
            found |= json.loads(run.stdout.splitlines()[-1])
        for row in found["rows"]:
            row["peak_bytes"] = found["peaks"].get(f"{row['model']} {row['step']}", {})
        del found["peaks"]
        report(found, args.json)
        return
    torch.set_num_threads(args.threads)
    if args.instruction_set:
        measure.restrict(args.instruction_set)
    if args.part == "memory":
        print(json.dumps({"peaks": peaks(args.threads)}))
    else:
        print(json.dumps({"provenance": provenance(), "rows": measured(args.seconds, args.models)}))


def provenance() -> dict[str, object]:
    return measure.provenance() | {name: library(name).__version__ for name in ("transformers", "torchvision")}


def report(found: dict[str, Any], file: Path | None) -> None:
    if file:
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(*table(found), sep="\n")


def versions(data: dict[str, Any]) -> str:
    return ", ".join(f"{name} {data['provenance'][name]}" for name in ("transformers", "torchvision"))


def table(data: dict[str, Any]) -> list[str]:
    """The rows as Markdown."""
    lines = ["| | library, ms | fused, ms | speed-up | peak MB, library | fused |", "|---|---|---|---|---|---|"]
    for row in data["rows"]:
        times = {method: row["milliseconds"][method]["median"] for method in METHODS}
        peak = [f"{row['peak_bytes'][m] / 1e6:.3g}" if row["peak_bytes"] else "" for m in METHODS]
        cells = [
            TITLES[row["model"], row["step"]],
            *(f"{times[m]:.3g}" for m in METHODS),
            f"**{row['speed_up']:.3g}x**",
        ]
        lines.append("| " + " | ".join([*cells, *peak]) + " |")
    differ = sum(row.get("labels_that_differ", 0) for row in data["rows"])
    of = sum(row.get("labels", 0) for row in data["rows"])
    lead = max(row.get("their_lead", 0.0) for row in data["rows"])
    agreement = f"Labels: {differ} of {of} differ"
    if differ:
        agreement += f", where the best two scores are within {lead:.1g} of the largest score"
    return [*lines, "", f"{agreement}. Peak memory is beyond model and batch."]


if __name__ == "__main__":
    main()
