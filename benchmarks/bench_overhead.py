"""What a call costs when there is nothing to compute: microseconds at tiny sizes, against the native calls it replaces.

    pytest benchmarks/bench_overhead.py
    python -m benchmarks.bench_overhead --json benchmarks/results/overhead.json      # half a minute, one thread

Boundaries: the raw operator, the public function (without a gradient; recording one; forward and backward), and both in
torch.compile.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fcn_kernels as fk
from fcn_kernels.benchmarking import measure

X = torch.randn(1, 2, 2, 2)
ONE = torch.randn(1, 1, 2, 2)
SKIP = torch.randn(1, 2, 4, 4)
TARGET = torch.zeros(1, 4, 4, dtype=torch.long)
SMALL_TARGET = torch.zeros(1, 2, 2, dtype=torch.long)
MASK = torch.zeros(1, 1, 4, 4)
WEIGHT, BIAS = torch.randn(3, 2, requires_grad=True), torch.randn(3, requires_grad=True)
SAMPLING = fk.Sampling.interpolate((2, 2), (4, 4))
CODE = SAMPLING.encode()
ops = torch.ops.fcn_kernels


def upsampled(x: Tensor) -> Tensor:
    return F.interpolate(x, size=(4, 4), mode="bilinear")


@dataclass(frozen=True)
class Operator:
    raw: Callable[[Tensor], object]
    fused: Callable[[Tensor], Tensor]
    native: Callable[[Tensor], Tensor]
    x: Tensor
    differentiable: bool = True
    loss: bool = False


OPERATORS = {
    "upsample_add": Operator(
        lambda x: ops.upsample_add(x, SKIP, CODE, [0, 0], 1.0),
        lambda x: fk.upsample_add(x, SKIP, SAMPLING),
        lambda x: upsampled(x) + SKIP,
        X,
    ),
    "upsample_softmax": Operator(
        lambda x: ops.upsample_softmax(x, CODE, False),
        lambda x: fk.upsample_softmax(x, SAMPLING),
        lambda x: upsampled(x).softmax(1),
        X,
    ),
    "upsample_argmax": Operator(
        lambda x: ops.upsample_argmax(x, CODE, torch.int64, False),
        lambda x: fk.upsample_argmax(x, SAMPLING),
        lambda x: upsampled(x).argmax(1),
        X,
        differentiable=False,
    ),
    "upsample_cross_entropy": Operator(
        lambda x: ops.upsample_cross_entropy(x, TARGET, None, CODE, -100, 1, 0.0, False),
        lambda x: fk.upsample_cross_entropy(x, TARGET),
        lambda x: F.cross_entropy(upsampled(x), TARGET),
        X,
        loss=True,
    ),
    "upsample_binary_cross_entropy": Operator(
        lambda x: ops.upsample_binary_cross_entropy(x, MASK, None, CODE, None, 1, False),
        lambda x: fk.upsample_binary_cross_entropy(x, MASK),
        lambda x: F.binary_cross_entropy_with_logits(upsampled(x), MASK),
        ONE,
        loss=True,
    ),
    "score_cross_entropy": Operator(
        lambda x: ops.score_cross_entropy(x, WEIGHT, BIAS, SMALL_TARGET, None, -100, 1, 0.0, False, False),
        lambda x: fk.score_cross_entropy(x, WEIGHT, BIAS, SMALL_TARGET),
        lambda x: F.cross_entropy(F.conv2d(x, WEIGHT[:, :, None, None], BIAS), SMALL_TARGET),
        X,
        loss=True,
    ),
}
TRAINING = "forward + backward"


def step(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    leaf = x.clone().requires_grad_()
    arriving = torch.ones_like(function(x))

    def call() -> None:
        leaf.grad = None
        function(leaf).backward(arriving)

    return call


def calls(name: str, compiled: bool = True) -> dict[str, tuple[Callable[[], object], Callable[[], object], bool]]:
    """By boundary: our call, the native one, and whether gradients are recorded."""
    op = OPERATORS[name]
    leaf = op.x.clone().requires_grad_()
    found = {
        "operator": (lambda: op.raw(op.x), lambda: op.native(op.x), False),
        "function": (lambda: op.fused(op.x), lambda: op.native(op.x), False),
    }
    if op.differentiable:
        found["recording"] = (lambda: op.fused(leaf), lambda: op.native(leaf), True)
        found[TRAINING] = (step(op.fused, op.x), step(op.native, op.x), True)
    if compiled:
        ours, native = (torch.compile(f, dynamic=False, fullgraph=True) for f in (op.fused, op.native))
        found["compiled"] = (lambda: ours(op.x), lambda: native(op.x), False)
        if op.differentiable:
            found[f"compiled, {TRAINING}"] = (step(ours, op.x), step(native, op.x), True)
    return found


def fastest(pair: tuple[Callable[[], object], Callable[[], object]], seconds: float) -> list[float]:
    """Microseconds of the fastest of many short batches of each, in turns."""
    best = [float("inf")] * len(pair)
    for call in pair:
        for _ in range(20):
            call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for i, call in enumerate(pair):
            start = time.perf_counter()
            for _ in range(50):
                call()
            best[i] = min(best[i], (time.perf_counter() - start) / 50)
    return [1e6 * b for b in best]


@pytest.mark.parametrize("which", ["fused", "native"])
@pytest.mark.parametrize(("name", "boundary"), [(name, b) for name in OPERATORS for b in calls(name, compiled=False)])
def test_overhead(benchmark, name, boundary, which):
    # reads and writes nothing worth mentioning
    benchmark.group = f"overhead of {name}, {boundary}"
    fused, native, wanted = calls(name, compiled=False)[boundary]
    with torch.set_grad_enabled(wanted):
        benchmark(fused if which == "fused" else native)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=OPERATORS, default=list(OPERATORS), metavar="OPERATOR")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--seconds", type=float, default=0.8, help="per boundary")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    gc.disable()
    rows, ratios = [], {}
    for name in args.only:
        torch._dynamo.reset()
        for boundary, (fused, native, wanted) in calls(name, compiled=not args.no_compile).items():
            with torch.set_grad_enabled(wanted):
                ours, theirs = fastest((fused, native), args.seconds)
            rows.append({"operator": name, "boundary": boundary, "microseconds": ours, "native": theirs})
            if OPERATORS[name].loss and boundary == TRAINING:
                ratios[name] = ours / theirs
            print(f"{name:32}{boundary:30}{ours:8.1f} us, native {theirs:7.1f}: {ours / theirs:5.2f}x", flush=True)
    if args.json:
        found = {"provenance": measure.provenance(), "rows": rows, "training ratios": ratios}
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
