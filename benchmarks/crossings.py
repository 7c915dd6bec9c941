"""Looks for sizes where eager PyTorch is faster: operators over channels, sides, factors, layouts and dtypes.

    python -m benchmarks.crossings --instruction-set avx2 --json benchmarks/results/crossings-avx2.json   # ten minutes

One thread. Both are timed in turns and the fastest of many calls counts, with malloc that keeps freed memory, as in
sweep.py. Calls of a few microseconds compare what surrounds the kernels, which bench_overhead.py measures: the table
has those that take longer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import fcn_kernels as fk
from benchmarks.sweep import LAYOUTS, fastest
from benchmarks.tables import markdown
from fcn_kernels.benchmarking import measure

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CHANNELS, SIDES, FACTORS = (2, 21, 150, 512), (8, 32, 96), (1.5, 2, 4, 8)
KERNELS = ((2, 2), (3, 1), (3, 2), (4, 2), (7, 4), (8, 4), (15, 8), (16, 8))  # and strides, of depthwise convolutions
LARGEST = 40_000_000  # outputs
NOTED = 0.9  # ratios below it have lines of their own
SHORT_MS = 0.05  # below it overhead is what is measured
Pair = tuple[Callable[[], object], Callable[[], object]]  # eager, fused


def upsampled(x: Tensor, size: int) -> Tensor:
    return F.interpolate(x, size=(size, size), mode="bilinear")


def gradient(loss: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor | None = None) -> Callable[[], object]:
    return lambda: torch.autograd.grad(loss(x), x, grad)


def heads(x: Tensor, size: int) -> Iterator[tuple[str, Pair]]:
    """Inference, and the steps of training that upsample."""
    sampling = fk.Sampling.interpolate(x.shape[2:], size=(size, size))
    layout = torch.channels_last if not x.is_contiguous() else torch.contiguous_format
    skip = torch.randn(1, x.shape[1], size, size).to(x.dtype, memory_format=layout)
    target = torch.randint(0, x.shape[1], (1, size, size))
    yield "upsample", (lambda: upsampled(x, size), lambda: fk.upsample(x, sampling))
    yield "upsample_add", (lambda: upsampled(x, size) + skip, lambda: fk.upsample_add(x, skip, sampling))
    yield "upsample_argmax", (lambda: upsampled(x, size).max(1).indices, lambda: fk.upsample_argmax(x, sampling))
    yield "upsample_softmax", (lambda: upsampled(x, size).softmax(1), lambda: fk.upsample_softmax(x, sampling))
    yield "upsample_sigmoid", (lambda: upsampled(x, size).sigmoid(), lambda: fk.upsample_sigmoid(x, sampling))
    leaf = x.clone().requires_grad_()
    eager = gradient(lambda x: upsampled(x, size), leaf, skip)
    yield "upsample, a step", (eager, gradient(lambda x: fk.upsample(x, sampling), leaf, skip))
    eager = gradient(lambda x: F.cross_entropy(upsampled(x, size), target), leaf)
    fused = gradient(lambda x: fk.upsample_cross_entropy(x, target, sampling), leaf)
    yield "upsample_cross_entropy, a step", (eager, fused)


def depthwise(x: Tensor, kernel: int, stride: int) -> Iterator[tuple[str, Pair]]:
    weight = torch.randn(x.shape[1], 1, kernel, kernel, dtype=x.dtype)
    options = {"stride": stride, "groups": x.shape[1]}
    skip = torch.randn_like(F.conv_transpose2d(x, weight, **options))
    leaf, learned = x.clone().requires_grad_(), weight.clone().requires_grad_()

    def eager(x: Tensor, weight: Tensor, skip: Tensor | None) -> Tensor:
        y = F.conv_transpose2d(x, weight, **options)
        return y if skip is None else y + skip

    def fused(x: Tensor, weight: Tensor, skip: Tensor | None) -> Tensor:
        return fk.conv_transpose_add(x, weight, skip, **options)

    for name, added in (("without skip", None), ("", skip)):
        what = ", ".join(["conv_transpose_add, depthwise", *([name] if name else [])])
        yield what, tuple(lambda f=f, added=added: f(x, weight, added) for f in (eager, fused))
    step = tuple(lambda f=f: torch.autograd.grad(f(leaf, learned, skip), (leaf, learned), skip) for f in (eager, fused))
    yield "conv_transpose_add, depthwise, a step", step


def pairs() -> Iterator[tuple[dict, Iterator[tuple[str, Pair]]]]:
    for channels, side, (layout, form), (dtype, kind) in itertools.product(
        CHANNELS, SIDES, LAYOUTS.items(), DTYPES.items()
    ):
        where = {"channels": channels, "side": side, "layout": layout, "dtype": dtype}
        x = torch.randn(1, channels, side, side).to(kind, memory_format=form)
        for factor in FACTORS:
            size = int(side * factor)
            if channels * size * size <= LARGEST:
                yield where | {"factor": factor}, heads(x, size)
        if kind == torch.float32:
            for kernel, stride in KERNELS:
                if channels * (side * stride) ** 2 <= LARGEST / 4:
                    yield where | {"kernel": kernel, "stride": stride}, depthwise(x, kernel, stride)


def table(data: dict) -> list[str]:
    """A line for each operator, and one for each size where eager is faster by a tenth and a call takes long."""
    long = [case for case in data["cases"] if case["fused_ms"] >= SHORT_MS]
    summary = []
    for operator in dict.fromkeys(case["operator"] for case in long):
        ratios = [case["eager_ms"] / case["fused_ms"] for case in long if case["operator"] == operator]
        below = sum(ratio < 1 for ratio in ratios)
        cells = [f"{number:.2f}x" for number in (statistics.median(ratios), min(ratios))]
        summary.append([f"`{operator}`", str(len(ratios)), *cells, str(below)])
    lost = sorted((case for case in long if _ratio(case) < NOTED), key=_ratio)
    rows = [
        [
            f"`{case['operator']}`",
            f"{case['channels']} channels of {case['side']}x{case['side']}, {_what(case)}",
            f"{case['layout']}, {case['dtype']}",
            f"{case['eager_ms']:.3g}",
            f"{case['fused_ms']:.3g}",
            f"{_ratio(case):.2f}x",
        ]
        for case in lost
    ]
    lines = markdown(["operator", "sizes", "median", "lowest", "eager is faster in"], summary)
    return [*lines, "", *markdown(["operator", "size", "layout, dtype", "eager ms", "fused ms", "ratio"], rows)]


def _ratio(case: dict) -> float:
    return case["eager_ms"] / case["fused_ms"]


def _what(case: dict) -> str:
    if "factor" in case:
        return f"factor {case['factor']:g}"
    return f"kernel {case['kernel']}, stride {case['stride']}"


def check(name: str, eager: Callable[[], object], fused: Callable[[], object], dtype: str) -> None:
    """Results in float32 agree; labels where two classes tie may differ."""
    expected, result = eager(), fused()
    if dtype == "float32" and name != "upsample_argmax":
        torch.testing.assert_close(result, expected, atol=1e-3, rtol=1e-3, msg=lambda text: f"{name}: {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instruction-set", choices=measure.INSTRUCTION_SETS)
    parser.add_argument("--seconds", type=float, default=0.15, help="per size and operator")
    parser.add_argument("--only", default="", metavar="NAME", help="operators with NAME in their name")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    wanted = measure.REGIMES["recycling"]
    if args.instruction_set:
        wanted = wanted | measure.INSTRUCTION_SETS[args.instruction_set]
    if not wanted.items() <= os.environ.items():  # it must be there before the process starts
        module = [sys.executable, "-m", "benchmarks.crossings", *sys.argv[1:]]
        os.execve(sys.executable, module, measure.environment("recycling", 1, args.instruction_set))
    if args.instruction_set:
        measure.restrict(args.instruction_set)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = []
    for where, operators in pairs():
        for name, (eager, fused) in operators:
            if args.only in name:
                check(name, eager, fused, where["dtype"])
                times = fastest([eager, fused], args.seconds)
                case = {"operator": name, **where, "eager_ms": 1e3 * times[0], "fused_ms": 1e3 * times[1]}
                found.append(case)
    data = {"provenance": measure.provenance(), "cases": found}
    print("\n".join(table(data)))
    if args.json:
        args.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
