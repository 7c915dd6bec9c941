"""Heads on bfloat16, float16 and int8 against float32, on a CPU: what accuracy they keep, and where they pay.

    python -m benchmarks.low_precision --json benchmarks/results/low-precision.json        # a minute

Scores and features are those of photographs. Heads take what the network gives them: tensors in the dtype are there
before the clock starts, except int8 scores, which no operator reads: they are widened in each call. Accuracy is that
of the labels against a ground truth which they mostly agree with.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import fcn_kernels as fk
from fcn_kernels.benchmarking import formulations, measure, photographs

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SINGLE = "float32"
NEUTRAL = 1e-3  # how far the share of pixels that are right, or the loss, may move either way
PAYS = 0.95  # of the time with float32, at most
HEADS = {"C=21 64x64 -> 512x512": (21, 8), "C=150 128x128 -> 512x512": (150, 4)}
SCORES = {"K=512 C=21 64x64": (512, 21, 8), "K=256 C=150 128x128": (256, 150, 4)}
SIZE = (512, 512)
Call = Callable[[], Tensor]


def quantised(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Symmetric int8, one step for all that is reduced over `dims`."""
    step = x.abs().amax(dims, keepdim=True) / 127
    return (x / step).round().to(torch.int8), step


def in_precisions(x: Tensor, head: Callable[[Tensor], Tensor]) -> dict[str, Call]:
    """A head on scores in each precision."""
    calls = {SINGLE: lambda: head(x)}
    calls |= {name: partial(head, x.to(dtype)) for name, dtype in HALVES.items()}
    q, step = quantised(x, (1, 2, 3))
    calls["int8"] = lambda: head(q * step)
    return calls


def trained(head: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def step(x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        loss = head(leaf)
        loss.backward()
        return loss.detach()

    return step


def score_labels(features: int, classes: int, stride: int) -> tuple[dict[str, Call], Tensor]:
    """`score_argmax` in each precision: int8 with steps of the features and of each class's weights, as engines do it;
    and the labels of a ground truth."""
    pooled = F.avg_pool2d(photographs.features(photographs.photographs(1, SIZE)), stride)
    pooled = (pooled - pooled.mean((0, 2, 3), keepdim=True)) / pooled.std((0, 2, 3), keepdim=True)
    generator = torch.Generator().manual_seed(1)
    x = F.conv2d(pooled, torch.randn(features, pooled.shape[1], 1, 1, generator=generator)).relu()
    weight = torch.randn(classes, features, generator=generator) / features**0.5
    bias = -(F.conv2d(x, weight[:, :, None, None])).mean((0, 2, 3))
    calls = {SINGLE: lambda: fk.score_argmax(x, weight, bias)}
    for name, dtype in HALVES.items():
        half = [t.to(dtype) for t in (x, weight, bias)]
        calls[name] = partial(fk.score_argmax, *half)
    rows, step = quantised(x.permute(0, 2, 3, 1).flatten(0, 2), (0, 1))
    columns, steps = quantised(weight.t(), (0,))

    def product() -> Tensor:
        return ((torch._int_mm(rows, columns) * (step * steps) + bias).argmax(1)).view(1, *x.shape[2:])

    calls["int8"] = product
    return calls, photographs.labels(F.conv2d(x, weight[:, :, None, None], bias), formulations.IGNORE)


def cases() -> Iterator[tuple[str, dict[str, Call], Tensor | None]]:
    """Title, calls by precision, and the ground truth where they make labels."""
    for title, (classes, stride) in HEADS.items():
        x = photographs.head_scores(1, classes, SIZE, stride)
        target = photographs.labels(formulations.interpolate(x, SIZE), formulations.IGNORE)
        yield f"`upsample_argmax` {title}", in_precisions(x, lambda y: fk.upsample_argmax(y, SIZE)), target
        yield f"`upsample_softmax` {title}", in_precisions(x, lambda y: fk.upsample_softmax(y, SIZE)), target

        def loss(y: Tensor, target: Tensor = target) -> Tensor:
            return fk.upsample_cross_entropy(y, target, ignore_index=formulations.IGNORE)

        yield f"`upsample_cross_entropy` {title}", in_precisions(x, trained(loss)), None
    for title, shape in SCORES.items():
        yield f"`score_argmax` {title}", *score_labels(*shape)


def kept(result: Tensor, single: Tensor, target: Tensor | None) -> dict[str, float]:
    """How far a result agrees with that of float32, and how the loss or the accuracy changes."""
    if target is None:
        return {"change": (result / single - 1).item()}
    labels, expected = (t.argmax(1) if t.is_floating_point() else t for t in (result, single))
    valid = target != formulations.IGNORE
    right, before = ((t == target)[valid].double().mean().item() for t in (labels, expected))
    return {"labels that agree": (labels == expected).double().mean().item(), "change": right - before}


def rows(seconds: float) -> Iterator[dict]:
    for title, calls, target in cases():
        single = calls[SINGLE]()
        found = {name: kept(call(), single, target) for name, call in calls.items()}
        timings = measure.interleaved(calls, seconds)
        for name, timing in timings.items():
            ratio = timing.median / timings[SINGLE].median
            pays = name != SINGLE and ratio <= PAYS and abs(found[name]["change"]) <= NEUTRAL
            row = {"head": title, "precision": name, "milliseconds": timing.as_dict(), "pays": pays}
            yield row | found[name]


def table(data: dict) -> list[str]:
    """The rows as Markdown."""
    lines = ["| head | precision | ms | of float32 | labels that agree | change | pays |"]
    lines.append("|---|---|---|---|---|---|---|")
    single = {r["head"]: r["milliseconds"]["median"] for r in data["rows"] if r["precision"] == SINGLE}
    for row in data["rows"]:
        ms = row["milliseconds"]["median"]
        cells = [row["head"], row["precision"], f"{ms:.3g}", f"{ms / single[row['head']]:.2f}"]
        if row["precision"] == SINGLE:
            cells += ["", "", ""]
        else:
            agree = row.get("labels that agree")
            cells += ["" if agree is None else f"{100 * agree:.3f}%", f"{100 * row['change']:+.3f}%"]
            cells.append("yes" if row["pays"] else "no")
        lines.append("| " + " | ".join(cells) + " |")
    return [
        *lines,
        "",
        "Change: of the share of pixels whose label is right, in points, or of the loss. A precision pays where it is",
        f"at most {100 * NEUTRAL:g}% either way and the time at most {PAYS:g} of that with float32.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instruction-set", choices=measure.INSTRUCTION_SETS)
    parser.add_argument("--seconds", type=float, default=5.0, help="per head")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not measure.REGIMES["recycling"].items() <= os.environ.items():  # before the process starts
        env = measure.environment("recycling", None, args.instruction_set)
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.low_precision", *sys.argv[1:]], env)
    if args.instruction_set:
        measure.restrict(args.instruction_set)
    found = {"provenance": measure.provenance(), "rows": list(rows(args.seconds))}
    print(*table(found), sep="\n")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
