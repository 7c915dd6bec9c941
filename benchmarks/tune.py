"""Measures the tiles of the Triton products on the GPU that is there, and writes fcn_kernels/backends/triton/
configurations.py anew: for every entry the fastest of a few depths, warps and stages on shapes that choose it.

    python benchmarks/tune.py [--repeats 20]

Only choices that the code-generation report finds without spills should stay: run `python -m
fcn_kernels.benchmarking.codegen` afterwards.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from fcn_kernels.backends.triton import configurations

DTYPES = {"half": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32, "double": torch.float64}
DEPTHS = {"half": (32, 64), "tf32": (16, 32), "ieee": (16, 32), "double": (16,)}
WARPS, STAGES = (1, 2, 4, 8), (2, 3, 4)
COMMENTS = {
    "MATMUL": "# arithmetic -> results of a tile -> (depth of a tile, warps, stages)",
    "SCORE": "# arithmetic -> classes of a tile -> (pixels of a tile, depth, warps, stages)",
    "CONV_TRANSPOSE": "# As MATMUL, for conv_transpose_add, whose pixels have masks and pointers of their own.",
}


def candidates(table: str, arithmetic: str, key: int) -> Iterator[tuple[int, ...]]:
    pixels = [(16,), (32,), (64,)] if table == "SCORE" else [()]
    for p, depth, warps, stages in itertools.product(pixels, DEPTHS[arithmetic], WARPS, STAGES):
        yield *p, depth, warps, stages


def call_for(table: str, arithmetic: str, key: int) -> Callable[[], object]:
    """A call whose product is large and chooses the entry."""
    from fcn_kernels.backends import triton as kernels

    dtype = DTYPES[arithmetic]
    side = {256: 16, 512: 16, 1024: 32, 2048: 32, 4096: 64}.get(key, 64)  # the smaller side of a tile
    classes = key if table == "SCORE" else key // side
    if table == "CONV_TRANSPOSE":
        x = torch.randn(8, side, 64, 64, device="cuda").to(dtype)
        weight = torch.randn(side, classes, 4, 4, device="cuda").to(dtype)
        return lambda: kernels.lazy("conv_transpose_add")(
            x, weight, None, (2, 2), 1, (1, 1), (128, 128), (0, 0), 1.0
        )  # fmt: skip
    if table == "MATMUL":
        from fcn_kernels.backends.triton.matmul import matmul_sum

        a, b = (torch.randn(8, m, n, device="cuda").to(dtype) for m, n in ((side, 16384), (16384, classes)))
        return lambda: matmul_sum(a, b, dtype, "tf32" if arithmetic == "tf32" else "ieee")
    x = torch.randn(8, 512, 128, 128, device="cuda").to(dtype)
    weight = torch.randn(classes, 512, device="cuda").to(dtype)
    return lambda: kernels.lazy("score_softmax")(x, weight, None, False)


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def tuned(repeats: int) -> None:
    """Changes the tables in place, which the kernels read."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources

    for name in COMMENTS:
        for arithmetic, entries in getattr(configurations, name).items():
            torch.set_float32_matmul_precision("high" if arithmetic == "tf32" else "highest")
            for key, chosen in entries.items():
                call, times = call_for(name, arithmetic, key), {}
                for candidate in {chosen, *candidates(name, arithmetic, key)}:
                    entries[key] = candidate
                    try:
                        times[candidate] = milliseconds(call, repeats)
                    except (OutOfResources, CompilationError):
                        continue
                entries[key] = min(times, key=times.__getitem__) if times else chosen
                ours, before = times.get(entries[key], 0), times.get(chosen, 0)
                print(
                    f"{name} {arithmetic} {key}: {entries[key]}, {ours:.3f} ms ({chosen}: {before:.3f} ms)", flush=True
                )


def render(measured: str) -> str:
    """The text of configurations.py."""
    lines = [
        '"""Tiles of the matrix products by shape class: data, which benchmarks/tune.py measures and writes anew.',
        "",
        f'"ieee" is exact float32, "tf32" float32 on tensor cores; {measured}.',
        '"""',
    ]
    for name, comment in COMMENTS.items():
        lines += ["", comment, f"{name} = {{"]
        for arithmetic, entries in getattr(configurations, name).items():
            cells = ", ".join(f"{key}: {value}" for key, value in entries.items())
            lines.append(f'    "{arithmetic}": {{{cells}}},')
        lines.append("}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure and write the tiles of the Triton products.")
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("tune: no CUDA or ROCm device is visible; tiles are measured where they run")
    tuned(arguments.repeats)
    Path(configurations.__file__).write_text(render(f"measured on {torch.cuda.get_device_name()}"))


if __name__ == "__main__":
    main()
