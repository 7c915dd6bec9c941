"""upsample_add and its backward on the GPU: CUDA C++ and Triton against eager PyTorch, beside the copy bandwidth.

python benchmarks/gpu_upsample_add.py [--json FILE]   # the table
python benchmarks/gpu_upsample_add.py --check         # small, odd shapes against the reference, for compute-sanitizer
"""

import argparse
import json
import statistics
from pathlib import Path

import torch

import fcn_kernels
from fcn_kernels import backends, reference, use_backend
from fcn_kernels.benchmarking import measure

# name: N, C, h, w, stride, dtype
WORKLOADS = {
    "FCN 2x, 512 channels": (1, 512, 70, 70, 2, torch.float32),
    "FCN 2x, batch 24": (24, 21, 70, 70, 2, torch.float32),
    "FCN 2x, batch 24, bf16": (24, 21, 70, 70, 2, torch.bfloat16),
    "8x, batch 8, 150 classes": (8, 150, 64, 64, 8, torch.bfloat16),
}


def inputs(n, c, h, w, stride, dtype, channels_last=False):
    """x, skip and the sampling of a transposed convolution with kernel 2 * stride."""
    sampling = fcn_kernels.Sampling.transposed_conv((h, w), stride).encode()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(n, c, h, w, device="cuda").to(dtype, memory_format=layout)
    skip = torch.randn(n, c, sampling[1] + 9, sampling[6] + 11, device="cuda").to(dtype, memory_format=layout)
    return x, skip, sampling


def available(op):
    """The GPU backends that can run `op`; eager PyTorch, which is the reference, first."""
    found = [c.backend for c in backends.candidates(op, "cuda") if c.reason is None]
    return ["reference", *(b for b in found if b != "reference")]


def check():
    """Every GPU backend, on shapes that fill no block, in every dtype and layout."""
    for stride, h, w in ((2, 5, 7), (8, 3, 5), (32, 2, 3)):
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            for channels_last in (False, True):
                x, skip, sampling = inputs(2, 3, h, w, stride, dtype, channels_last)
                expected = reference.upsample_add(x.double(), skip.double(), sampling, [4, 5], 0.5)
                adjoint = reference.upsample_backward(expected, sampling)
                tolerance = {torch.float64: 1e-13, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}[
                    dtype
                ]
                for backend in available("upsample_add")[1:]:
                    with use_backend(backend):
                        y = torch.ops.fcn_kernels.upsample_add(x, skip, sampling, [4, 5], 0.5)
                        dx = torch.ops.fcn_kernels.upsample_backward(expected.to(dtype), sampling)
                    for result, oracle in ((y, expected), (dx, adjoint)):
                        error = (result.double() - oracle).abs().max().item() / oracle.abs().max().item()
                        assert error <= tolerance, f"{backend} {stride} {dtype} {channels_last}: {error:.1e}"
    torch.cuda.synchronize()
    print("agrees with the reference:", ", ".join(available("upsample_add")[1:]))


def milliseconds(functions, repeats=60):
    """Medians of interleaved runs, each with a cold L2 cache."""
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    times = {name: [] for name in functions}
    for repeat in range(repeats + 10):
        for name, function in functions.items():
            flush.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            function()
            end.record()
            end.synchronize()
            if repeat >= 10:
                times[name].append(start.elapsed_time(end))
    return {name: statistics.median(t) for name, t in times.items()}


def in_backend(backend, function):
    def call():
        with use_backend(backend):
            return function()

    return call


def run(name):
    x, skip, sampling = inputs(*WORKLOADS[name])
    y = torch.ops.fcn_kernels.upsample_add(x, skip, sampling, [4, 5], 1.0)
    forward = lambda: torch.ops.fcn_kernels.upsample_add(x, skip, sampling, [4, 5], 1.0)  # noqa: E731
    backward = lambda: torch.ops.fcn_kernels.upsample_backward(y, sampling)  # noqa: E731
    source = torch.empty_like(y)
    # forward reads x and the window of skip, writes y; backward reads dy, writes dx
    moved = {"forward": x.nbytes + 2 * y.nbytes, "backward": x.nbytes + y.nbytes}
    rows = []
    for direction, op, function in (("forward", "upsample_add", forward), ("backward", "upsample_backward", backward)):
        functions = {backend: in_backend(backend, function) for backend in available(op)}
        functions["copy"] = lambda: source.copy_(y)
        times = milliseconds(functions)
        copy = 2 * y.nbytes / times.pop("copy") / 1e6
        for backend, ms in times.items():
            bandwidth = moved[direction] / ms / 1e6
            rows.append(
                {
                    "workload": name,
                    "direction": direction,
                    "backend": backend,
                    "ms": ms,
                    "GB/s": bandwidth,
                    "copy GB/s": copy,
                }
            )
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true", help="compare with the reference instead of measuring")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.check:
        check()
        return
    rows = [row for name in WORKLOADS for row in run(name)]
    if arguments.json:
        facts = measure.provenance() | {"device": torch.cuda.get_device_name()}
        Path(arguments.json).write_text(json.dumps({"provenance": facts, "rows": rows}, indent=1) + "\n")
    print(f"{'workload':<28}{'direction':<10}{'backend':<11}{'ms':>9}{'GB/s':>8}{'of copy':>9}")
    for r in rows:
        share = r["GB/s"] / r["copy GB/s"]
        print(f"{r['workload']:<28}{r['direction']:<10}{r['backend']:<11}{r['ms']:>9.4f}{r['GB/s']:>8.0f}{share:>9.0%}")


if __name__ == "__main__":
    main()
