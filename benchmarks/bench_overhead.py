"""What a call costs when there is nothing to compute: microseconds at tiny sizes, against the native calls it replaces.

    pytest benchmarks/bench_overhead.py
    python -m benchmarks.bench_overhead --json benchmarks/results/overhead.json      # half a minute, one thread
    python -m benchmarks.bench_overhead --device cuda --json FILE

Boundaries: the raw operator and the public function, each without a gradient and recording one; the function forward
and backward; the function in torch.compile, likewise; and on a GPU, where calls are timed until they have run, the
replay of a CUDA graph.
"""

from __future__ import annotations

import argparse
import functools
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


@functools.cache
def operators(device: str = "cpu") -> dict[str, Operator]:
    with torch.device(device):
        x, one, skip = torch.randn(1, 2, 2, 2), torch.randn(1, 1, 2, 2), torch.randn(1, 2, 4, 4)
        target, small_target = torch.zeros(1, 4, 4, dtype=torch.long), torch.zeros(1, 2, 2, dtype=torch.long)
        mask = torch.zeros(1, 1, 4, 4)
        weight, bias = torch.randn(3, 2, requires_grad=True), torch.randn(3, requires_grad=True)
        filters = torch.randn(2, 1, 4, 4, requires_grad=True)
    return {
        "upsample_add": Operator(
            lambda x: ops.upsample_add(x, skip, CODE, [0, 0], 1.0),
            lambda x: fk.upsample_add(x, skip, SAMPLING),
            lambda x: upsampled(x) + skip,
            x,
        ),
        "upsample_softmax": Operator(
            lambda x: ops.upsample_softmax(x, CODE, False),
            lambda x: fk.upsample_softmax(x, SAMPLING),
            lambda x: upsampled(x).softmax(1),
            x,
        ),
        "upsample_argmax": Operator(
            lambda x: ops.upsample_argmax(x, CODE, torch.int64, False),
            lambda x: fk.upsample_argmax(x, SAMPLING),
            lambda x: upsampled(x).argmax(1),
            x,
            differentiable=False,
        ),
        "upsample_cross_entropy": Operator(
            lambda x: ops.upsample_cross_entropy(x, target, None, CODE, -100, 1, 0.0, x.requires_grad),
            lambda x: fk.upsample_cross_entropy(x, target),
            lambda x: F.cross_entropy(upsampled(x), target),
            x,
            loss=True,
        ),
        "upsample_binary_cross_entropy": Operator(
            lambda x: ops.upsample_binary_cross_entropy(x, mask, None, CODE, None, 1, x.requires_grad),
            lambda x: fk.upsample_binary_cross_entropy(x, mask),
            lambda x: F.binary_cross_entropy_with_logits(upsampled(x), mask),
            one,
            loss=True,
        ),
        "conv_transpose_add": Operator(
            lambda x: ops.conv_transpose_add(x, filters, skip, [2, 2], 2, [1, 1], [4, 4], [0, 0], 1.0),
            lambda x: fk.conv_transpose_add(x, filters, skip, stride=2, groups=2, offset=(1, 1), output_size=(4, 4)),
            lambda x: F.conv_transpose2d(x, filters, stride=2, groups=2)[:, :, 1:5, 1:5] + skip,
            x,
        ),
        "score_cross_entropy": Operator(
            lambda x: ops.score_cross_entropy(
                x, weight, bias, small_target, None, -100, 1, 0.0, *[x.requires_grad] * 2
            ),
            lambda x: fk.score_cross_entropy(x, weight, bias, small_target),
            lambda x: F.cross_entropy(F.conv2d(x, weight[:, :, None, None], bias), small_target),
            x,
            loss=True,
        ),
    }


OPERATORS = tuple(operators())
TRAINING = "forward + backward"


def step(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    leaf = x.clone().requires_grad_()
    arriving = torch.ones_like(function(x))

    def call() -> None:
        leaf.grad = None
        function(leaf).backward(arriving)

    return call


def graphed(call: Callable[[], object]) -> Callable[[], object]:
    """The replay of a CUDA graph of `call`."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # what is allocated or compiled once is there
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def calls(
    name: str, compiled: bool = True, device: str = "cpu"
) -> dict[str, tuple[Callable[[], object], Callable[[], object], bool]]:
    """By boundary: our call, the native one, and whether gradients are recorded."""
    op = operators(device)[name]
    leaf = op.x.clone().requires_grad_()
    found = {
        "operator": (lambda: op.raw(op.x), lambda: op.native(op.x), False),
        "function": (lambda: op.fused(op.x), lambda: op.native(op.x), False),
    }
    if op.differentiable:
        found["operator, recording"] = (lambda: op.raw(leaf), lambda: op.native(leaf), True)
        found["recording"] = (lambda: op.fused(leaf), lambda: op.native(leaf), True)
        found[TRAINING] = (step(op.fused, op.x), step(op.native, op.x), True)
    if compiled:
        ours, native = (torch.compile(f, dynamic=False, fullgraph=True) for f in (op.fused, op.native))
        found["compiled"] = (lambda: ours(op.x), lambda: native(op.x), False)
        if op.differentiable:
            found[f"compiled, {TRAINING}"] = (step(ours, op.x), step(native, op.x), True)
    if device == "cuda":
        found["CUDA graph"] = (*(graphed(call) for call in found["function"][:2]), False)
        if op.differentiable:
            with torch.enable_grad():
                found[f"CUDA graph, {TRAINING}"] = (*(graphed(call) for call in found[TRAINING][:2]), True)
    return found


def fastest(
    pair: tuple[Callable[[], object], Callable[[], object]],
    seconds: float,
    finish: Callable[[], object] = lambda: None,
) -> list[float]:
    """Microseconds of the fastest of many short batches of each, in turns, `finish` included."""
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
            finish()
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
    where = measure.provenance()
    benchmark.extra_info |= {k: where[k] for k in ("threads", "torch", "fcn_kernels", "instruction_set", "commit")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=OPERATORS, default=OPERATORS, metavar="OPERATOR")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--seconds", type=float, default=0.8, help="per boundary")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    gc.disable()
    finish = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    rows, ratios = [], {}
    for name in args.only:
        torch._dynamo.reset()
        for boundary, (fused, native, wanted) in calls(name, not args.no_compile, args.device).items():
            with torch.set_grad_enabled(wanted):
                ours, theirs = fastest((fused, native), args.seconds, finish)
            rows.append({"operator": name, "boundary": boundary, "microseconds": ours, "native": theirs})
            if operators(args.device)[name].loss and boundary == TRAINING:
                ratios[name] = ours / theirs
            print(f"{name:32}{boundary:30}{ours:8.1f} us, native {theirs:7.1f}: {ours / theirs:5.2f}x", flush=True)
    if args.json:
        where = measure.provenance()
        if args.device == "cuda":
            where["gpu"] = torch.cuda.get_device_name()
        found = {"provenance": where, "rows": rows, "training ratios": ratios}
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
