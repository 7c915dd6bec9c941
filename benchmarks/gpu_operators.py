"""The fused operators on a GPU, beside what PyTorch composes of them, eager and compiled: time and peak memory.

    python benchmarks/gpu_operators.py [--json FILE]

Caches are cold, runs interleaved; memory is the peak over what the inputs take, in one call.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from gpu_upsample_add import milliseconds

import fcn_kernels as fk
from fcn_kernels.benchmarking import measure

Case = tuple[str, Callable[[], object], Callable[[], object], Callable[[], object]]


def resized(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def cross_entropy(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(resized(x, target.shape[1:]), target)


def argmax(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return resized(x, size).argmax(1)


def score(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, weight[:, :, None, None], bias).softmax(1)


def transposed(x: torch.Tensor, weight: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    y = F.conv_transpose2d(x, weight, stride=2, groups=x.shape[1])
    return y[:, :, 1:-1, 1:-1] + skip


def concatenated(x: torch.Tensor, weight: torch.Tensor, skip: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.cat([skip, F.conv_transpose2d(x, weight, bias, stride=2)], 1)


def cases() -> Iterator[Case]:
    """Name, our call, the eager one and the compiled one."""
    n, c, small, large = 8, 150, 128, (512, 512)
    x = torch.randn(n, c, small, small, device="cuda", requires_grad=True)
    target = torch.randint(0, c, (n, *large), device="cuda")

    def step(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(x, target), x)

    yield (
        "upsample_cross_entropy, forward and backward, N 8 C 150, 128 to 512",
        step(fk.upsample_cross_entropy),
        step(cross_entropy),
        step(torch.compile(cross_entropy)),
    )
    logits = x.detach()
    compiled = torch.compile(argmax)
    yield (
        "upsample_argmax, N 8 C 150, 128 to 512",
        lambda: fk.upsample_argmax(logits, large),
        lambda: argmax(logits, large),
        lambda: compiled(logits, large),
    )
    for batch, features, classes, side in ((1, 4096, 21, 16), (8, 512, 150, 128)):
        tensors = (
            torch.randn(batch, features, side, side, device="cuda"),
            torch.randn(classes, features, device="cuda") / features**0.5,
            torch.randn(classes, device="cuda"),
        )
        compiled_score = torch.compile(score)
        yield (
            f"score_softmax, N {batch} K {features} C {classes}, {side} x {side}",
            lambda t=tensors: fk.score_softmax(*t),
            lambda t=tensors: score(*t),
            lambda t=tensors, f=compiled_score: f(*t),
        )
    weight, skip = torch.randn(c, 1, 4, 4, device="cuda"), torch.randn(n, c, 256, 256, device="cuda")
    compiled_transposed = torch.compile(transposed)
    yield (
        "conv_transpose_add, depthwise, N 8 C 150, 128 to 256",
        lambda: fk.conv_transpose_add(
            logits, weight, skip, stride=2, groups=c, offset=(1, 1), output_size=(256, 256)
        ),
        lambda: transposed(logits, weight, skip),
        lambda: compiled_transposed(logits, weight, skip),
    )  # fmt: skip
    tensors = (
        torch.randn(n, 128, small, small, device="cuda", requires_grad=True),
        torch.randn(128, 64, 2, 2, device="cuda", requires_grad=True),
        torch.randn(n, 64, 2 * small, 2 * small, device="cuda", requires_grad=True),
        torch.randn(64, device="cuda", requires_grad=True),
    )
    g = torch.randn(n, 128, 2 * small, 2 * small, device="cuda")

    def fused(x: torch.Tensor, weight: torch.Tensor, skip: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return fk.conv_transpose_concat(x, weight, skip, bias, stride=2)

    calls = (fused, concatenated, torch.compile(concatenated))
    yield (
        "conv_transpose_concat, N 8, 128 to 64 beside 64, 128 to 256",
        *(lambda f=f: f(*(t.detach() for t in tensors)) for f in calls),
    )
    yield (
        "conv_transpose_concat, forward and backward",
        *(lambda f=f: torch.autograd.grad(f(*tensors), tensors, g) for f in calls),
    )


def peak(call: Callable[[], object]) -> float:
    """MB over what is allocated before the call."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    print(f"{'operator':<70}{'':<10}{'ms':>9}{'times ours':>11}{'peak MB':>9}")
    for name, ours, eager, compiled in cases():
        functions = {"ours": ours, "eager": eager, "compiled": compiled}
        memory = {}
        for kind, call in functions.items():
            call()
            memory[kind] = peak(call)
        times = milliseconds(functions)
        for kind, ms in times.items():
            rows.append({"workload": name, "kind": kind, "ms": ms, "peak MB": memory[kind]})
            print(f"{name:<70}{kind:<10}{ms:>9.3f}{ms / times['ours']:>11.2f}{memory[kind]:>9.0f}", flush=True)
    if arguments.json:
        facts = measure.provenance() | {"device": torch.cuda.get_device_name()}
        Path(arguments.json).write_text(json.dumps({"provenance": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
