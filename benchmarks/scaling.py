"""Fused operators and eager PyTorch over classes, side, stride, batch, threads: milliseconds; memory over classes.

    python -m benchmarks.scaling --json benchmarks/results/scaling.json        # ten minutes

Around 21 classes, 32x32 -> 256x256, one image. Losses with their gradients. `make report` draws the lines.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from fcn_kernels.benchmarking import measure, memory, workloads
from fcn_kernels.benchmarking.workload import Workload, call_of

MAKE = {
    "upsample_cross_entropy": workloads._cross_entropy,
    "upsample_argmax": workloads._argmax,
    "upsample_softmax": workloads._softmax,
}
METHODS = ("fused", "eager")
VALUES = {
    "classes": [2, 4, 8, 19, 21, 32, 64, 150, 256, 512, 1000, 2048, 4096],
    "side": [64, 128, 256, 512, 1024, 2048, 4096],  # of the output, at stride 8
    "stride": [2, 3, 4, 6, 8, 12, 16, 24, 32],  # of 32x32 pixels
    "batch": [1, 2, 4, 8, 16],
    "threads": [],  # all of this machine
}
MEMORY = "memory over classes"


def job(operator: str, axis: str, value: int) -> Workload:
    classes = value if axis == "classes" else 21
    small = value // 8 if axis == "side" else 32
    large = value if axis == "side" else 32 * (value if axis == "stride" else 8)
    options = {"batch": value} if axis == "batch" else {}
    return MAKE[operator](classes, (small, small), (large, large), **options)


def points(operator: str, axis: str, values: list[int], seconds: float) -> Iterator[tuple[int, dict[str, float]]]:
    """Milliseconds of both methods, medians of interleaved calls; of eager PyTorch where its images fit the memory."""
    threads = torch.get_num_threads()
    for value in values:
        chosen = job(operator, axis, value)
        if axis == "threads":
            torch.set_num_threads(value)
        tensors = chosen.make("random")
        fits = memory.available() > 5 * chosen.full
        calls = {m: call_of(chosen.method(m), tensors) for m in METHODS if m == "fused" or fits}
        yield value, {m: t.median for m, t in measure.interleaved(calls, seconds, minimum=3).items()}
    torch.set_num_threads(threads)


def peak(operator: str, classes: int, method: str) -> float:
    """Megabytes beyond the inputs, in a process that has computed only something tiny."""
    for name in MAKE:
        tiny = MAKE[name](3, (2, 2), (16, 16))
        for m in METHODS:
            call_of(tiny.method(m), tiny.make("random"))()
    chosen = job(operator, "classes", classes)
    return memory.peak_of(call_of(chosen.method(method), chosen.make("random"))) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    axes = (*VALUES, MEMORY)
    parser.add_argument("--axes", nargs="+", choices=axes, default=axes, metavar="AXIS", help=", ".join(axes))
    parser.add_argument("--instruction-set", choices=measure.INSTRUCTION_SETS)
    parser.add_argument("--limit", type=int, default=4096, help="the largest value of an axis")
    parser.add_argument("--seconds", type=float, default=1.0, help="per point")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not measure.REGIMES["recycling"].items() <= os.environ.items():  # before the process starts
        env = measure.environment("recycling", None, args.instruction_set)
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.scaling", *sys.argv[1:]], env)
    if args.instruction_set:
        measure.restrict(args.instruction_set)
    lines: dict[str, dict] = {}
    for axis in args.axes:
        for operator in MAKE:
            found = lines.setdefault(axis, {}).setdefault(operator, {m: [] for m in METHODS})
            values = (
                list(range(1, (os.cpu_count() or 1) + 1)) if axis == "threads" else VALUES.get(axis, VALUES["classes"])
            )
            values = [v for v in values if v <= args.limit]
            if axis != MEMORY:
                for value, times in points(operator, axis, values, args.seconds):
                    for method, ms in times.items():
                        found[method].append([value, ms])
                    print(
                        f"{operator}, {axis} {value}: " + ", ".join(f"{m} {t:.4g} ms" for m, t in times.items()),
                        flush=True,
                    )
            elif memory.can_measure():
                for key in measure.REGIMES["recycling"]:
                    os.environ.pop(key, None)
                os.environ.update(measure.REGIMES["exact"])  # for the processes to come
                for value in values:
                    for method in METHODS:
                        if method == "fused" or memory.available() > 5 * job(operator, "classes", value).full:
                            megabytes = memory.in_fresh_process(peak, operator, value, method)
                            found[method].append([value, megabytes])
                            print(f"{operator}, {value} classes, {method}: {megabytes:.4g} MB", flush=True)
    if args.json:
        found = {"provenance": measure.provenance(), "lines": lines}
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
