"""Looks for cliffs: every operator over classes, sides and strides, as time per output value.

    python benchmarks/sweep.py --instruction-set avx2 --json benchmarks/results/sweep-avx2.json    # about ten minutes
    python benchmarks/sweep.py --only upsample_softmax score_softmax

One line per operator x axis x number of threads: the largest ratio between neighbouring sizes, and where it stands.
Sizes of one line are timed interleaved, and the fastest of many short calls counts: it varies least from run to run.
malloc keeps freed memory, or the fresh pages of outputs above 32 MB would be the one cliff to be seen.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import fcn_kernels as fk
from fcn_kernels.benchmarking import measure

CLASSES = [
    2,
    3,
    4,
    5,
    7,
    8,
    9,
    12,
    15,
    16,
    17,
    19,
    21,
    24,
    31,
    32,
    33,
    40,
    48,
    63,
    64,
    65,
    96,
    127,
    128,
    129,
    150,
    192,
    256,
    260,
]
SIDES = [7, 8, 9, 11, 13, 15, 16, 17, 20, 24, 31, 32, 33, 40, 48, 63, 64, 65, 80, 96, 127, 128, 129, 130]
STRIDES = [1, 1.25, 1.5, 5 / 3, 2, 2.5, 3, 3.7, 4, 5, 6, 7, 7.5, 8, 9, 11, 12, 15, 16, 17, 20, 24, 27, 31, 32]
LIMIT = 2.0  # of the time per output between neighbours
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
Call = Callable[[], object]


def image(layout: str, *shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=LAYOUTS[layout])


def gradient_of(loss: Callable[[], Tensor], *leaves: Tensor) -> Call:
    def call() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss().backward()

    return call


class Upsampled:
    """An operator on [1, C, side, side] logits, upsampled by `stride`."""

    axes = ("classes", "side", "stride")
    standard = {"classes": 21, "side": 48, "stride": 8}  # noqa: RUF012

    def __init__(self, make: Callable[[Tensor, fk.Sampling, Tensor], Call]) -> None:
        self.make = make

    def case(self, layout: str, classes: int, side: int, stride: float) -> tuple[Call, int]:
        size = int(side * stride)
        x = image(layout, 1, classes, side, side)
        target = torch.randint(0, classes, (1, size, size), dtype=torch.uint8 if classes <= 256 else torch.int16)
        return self.make(x, fk.Sampling.interpolate((side, side), (size, size)), target), classes * size * size


class Binary(Upsampled):
    axes = ("side", "stride")
    standard = {"classes": 1, "side": 96, "stride": 8}  # noqa: RUF012

    def case(self, layout: str, classes: int, side: int, stride: float) -> tuple[Call, int]:
        size = int(side * stride)
        x = image(layout, 1, classes, side, side)
        target = torch.randint(0, 2, (1, classes, size, size), dtype=torch.uint8)
        return self.make(x, fk.Sampling.interpolate((side, side), (size, size)), target), classes * size * size


class Score:
    """An operator on [1, 256, side, side] features."""

    axes = ("classes", "side")
    standard = {"classes": 21, "side": 64}  # noqa: RUF012
    features = 256

    def __init__(self, make: Callable[[Tensor, Tensor, Tensor, Tensor], Call]) -> None:
        self.make = make

    def case(self, layout: str, classes: int, side: int) -> tuple[Call, int]:
        x = image(layout, 1, self.features, side, side)
        weight, bias = torch.randn(classes, self.features) / 16, torch.randn(classes)
        target = torch.randint(0, classes, (1, side, side))
        return self.make(x, weight, bias, target), classes * side * side


class Deconvolution:
    """A learned transposed convolution with kernel 2 * stride of [1, C, side, side], forward and backward."""

    axes = ("classes", "side", "stride")

    def __init__(self, depthwise: bool) -> None:
        self.depthwise = depthwise
        self.standard = {"classes": 21, "side": 64, "stride": 4}

    def case(self, layout: str, classes: int, side: int, stride: float) -> tuple[Call, int]:
        if stride != int(stride):
            raise ValueError("a transposed convolution has an integer stride")
        stride, groups = int(stride), classes if self.depthwise else 1
        x = image(layout, 1, classes, side, side).requires_grad_()
        weight = torch.randn(classes, classes // groups, 2 * stride, 2 * stride, requires_grad=True)
        size = (side + 1) * stride
        grad = image(layout, 1, classes, size, size)

        def call() -> None:
            x.grad = weight.grad = None
            fk.conv_transpose_add(x, weight, stride=stride, groups=groups).backward(grad)

        return call, classes * size * size


class UpConvolution:
    """U-Net's 2x2 up-convolution of [1, C, side, side] beside as many channels, forward and backward."""

    axes = ("classes", "side")
    standard = {"classes": 32, "side": 64}  # noqa: RUF012

    def case(self, layout: str, classes: int, side: int) -> tuple[Call, int]:
        x = image(layout, 1, 2 * classes, side, side).requires_grad_()
        skip = image(layout, 1, classes, 2 * side, 2 * side).requires_grad_()
        weight = torch.randn(2 * classes, classes, 2, 2, requires_grad=True)
        grad = image(layout, 1, 2 * classes, 2 * side, 2 * side)

        def call() -> None:
            x.grad = skip.grad = weight.grad = None
            fk.conv_transpose_concat(x, weight, skip, stride=2).backward(grad)

        return call, 2 * classes * 4 * side * side


def cross_entropy(x: Tensor, sampling: fk.Sampling, target: Tensor) -> Call:
    x.requires_grad_()
    return gradient_of(lambda: fk.upsample_cross_entropy(x, target, sampling), x)


def binary_cross_entropy(x: Tensor, sampling: fk.Sampling, target: Tensor) -> Call:
    x.requires_grad_()
    return gradient_of(lambda: fk.upsample_binary_cross_entropy(x, target, sampling), x)


def score_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Call:
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    return gradient_of(lambda: fk.score_cross_entropy(x, weight, bias, target), *leaves)


def upsample_add(x: Tensor, sampling: fk.Sampling, target: Tensor) -> Call:
    layout = "contiguous" if x.is_contiguous() else "channels_last"
    skip = image(layout, 1, x.shape[1], *sampling.output_size)
    return lambda: fk.upsample_add(x, skip, sampling)


OPERATORS: dict[str, Upsampled | Score | Deconvolution | UpConvolution] = {
    "upsample": Upsampled(lambda x, s, _: lambda: fk.upsample(x, s)),
    "upsample_add": Upsampled(upsample_add),
    "upsample_softmax": Upsampled(lambda x, s, _: lambda: fk.upsample_softmax(x, s)),
    "upsample_log_softmax": Upsampled(lambda x, s, _: lambda: fk.upsample_log_softmax(x, s)),
    "upsample_argmax": Upsampled(lambda x, s, _: lambda: fk.upsample_argmax(x, s)),
    "upsample_cross_entropy": Upsampled(cross_entropy),
    "upsample_confusion_matrix": Upsampled(
        lambda x, s, t: lambda: fk.upsample_confusion_matrix(x, t, s, ignore_index=None)
    ),
    "upsample_sigmoid": Binary(lambda x, s, _: lambda: fk.upsample_sigmoid(x, s)),
    "upsample_binary_cross_entropy": Binary(binary_cross_entropy),
    "score_softmax": Score(lambda x, w, b, _: lambda: fk.score_softmax(x, w, b)),
    "score_log_softmax": Score(lambda x, w, b, _: lambda: fk.score_log_softmax(x, w, b)),
    "score_argmax": Score(lambda x, w, b, _: lambda: fk.score_argmax(x, w, b)),
    "score_cross_entropy": Score(score_cross_entropy),
    "conv_transpose_add, depthwise": Deconvolution(True),
    "conv_transpose_add, dense": Deconvolution(False),
    "conv_transpose_concat": UpConvolution(),
}
VALUES = {"classes": CLASSES, "side": SIDES, "stride": STRIDES}


def fastest(calls: list[Call], seconds: float) -> list[float]:
    """Seconds of the fastest call of each, taken in turns."""
    best = [float("inf")] * len(calls)
    batch, again = [], []
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        took = time.perf_counter() - start
        batch.append(max(1, int(1e-4 / took)))
        # The first finds another one's data in the cache, and the next ones memory that malloc has just moved.
        again.append(max(2, min(10, int(2e-3 / took))))
    end = time.perf_counter() + seconds
    turns = 0
    while turns < 5 or time.perf_counter() < end:
        for i, call in enumerate(calls):
            for _ in range(again[i]):
                start = time.perf_counter()
                for _ in range(batch[i]):
                    call()
                best[i] = min(best[i], (time.perf_counter() - start) / batch[i])
        turns += 1
    return best


def sweep(name: str, axis: str, threads: int, seconds: float, layout: str = "contiguous") -> dict:
    """Nanoseconds per output value along one axis."""
    operator = OPERATORS[name]
    values = VALUES[axis]
    if isinstance(operator, Deconvolution):
        values = [v for v in values if v == int(v) and (axis != "classes" or operator.depthwise or v <= 65)]
    torch.set_num_threads(threads)
    if isinstance(operator, UpConvolution) and axis == "classes":
        values = [v for v in values if v <= 65]
    cases = [operator.case(layout, **operator.standard | {axis: value}) for value in values]
    times = fastest([call for call, _ in cases], seconds)
    per_output = [1e9 * t / work for t, (_, work) in zip(times, cases, strict=True)]
    found = {"operator": name, "axis": axis, "threads": threads, "layout": layout}
    return found | {"values": values, "ns_per_output": per_output}


def worst_step(line: dict) -> tuple[float, float, float]:
    """The largest rise to a neighbour on either side, and the two sizes."""
    pairs = list(zip(line["values"], line["ns_per_output"], strict=True))
    steps = [(max(b / a, a / b), v, w) for (v, a), (w, b) in itertools.pairwise(pairs)]
    return max(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=OPERATORS, default=list(OPERATORS), metavar="OPERATOR")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--instruction-set", choices=measure.INSTRUCTION_SETS)
    parser.add_argument("--seconds", type=float, default=6, help="per line")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    regime = measure.REGIMES["recycling"]
    if not regime.items() <= os.environ.items():  # it must be there before the process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], measure.environment("recycling"))
    if args.instruction_set:
        measure.restrict(args.instruction_set)
    lines = []
    for name in args.only:
        for axis in OPERATORS[name].axes:
            for threads, layout in itertools.product(args.threads, args.layouts):
                line = sweep(name, axis, threads, args.seconds, layout)
                lines.append(line)
                ratio, a, b = worst_step(line)
                mark = "" if ratio <= LIMIT else "   <-- above the limit"
                what = f"{name:30} {axis:8} {layout:14} {threads} threads"
                print(f"{what}: {ratio:5.2f}x between {a:g} and {b:g}{mark}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"provenance": measure.provenance(), "lines": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
