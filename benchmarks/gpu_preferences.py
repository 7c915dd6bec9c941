"""CUDA C++ or Triton? Reads what benchmarks/gpu_operators.py measured, writes fcn_kernels/backends/preferences.py.

    python -m benchmarks.gpu_preferences [benchmarks/results/gpu-h200.json] [--print]

An operator goes, with its backward pass, to the backend that is faster on the geometric mean over its workloads. A
workload that only one backend could run, or ran right, counts for neither.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path

from fcn_kernels import backends
from fcn_kernels.backends import preferences

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results/gpu-h200.json"
TEXT = '''\
"""The faster GPU backend of every operator: data, which benchmarks/gpu_preferences.py writes anew from results.

{measured}
"""

# The file that the numbers were read from, and the GPU they are of; None: nobody has measured.
SOURCE: str | None = {source}
GPU: str | None = {gpu}

# operator -> (the faster backend, how many times faster: the geometric mean over its workloads)
FASTER: dict[str, tuple[str, float]] = {{{entries}}}
'''


def faster(data: dict) -> dict[str, tuple[str, float]]:
    """Of every operator that both backends have run, and of its backward pass: the faster backend, and how much."""
    ratios: dict[str, list[float]] = defaultdict(list)  # time of CUDA C++ / time of Triton
    for row in data["rows"]:
        for times in row["milliseconds"].values():
            if {"cuda", "triton"} <= times.keys():
                ratios[row["operator"]].append(times["cuda"]["median"] / times["triton"]["median"])
    found = {}
    for op, of in ratios.items():
        if op not in backends.operators():  # a composition
            continue
        mean = math.exp(sum(map(math.log, of)) / len(of))
        choice = ("triton", round(mean, 2)) if mean > 1 else ("cuda", round(1 / mean, 2))
        found[op] = choice
        if (backward := backends.backward_of(op)) is not None and backward not in ratios:
            found[backward] = choice
    return dict(sorted(found.items()))


def render(found: dict[str, tuple[str, float]], source: str | None, gpu: str | None) -> str:
    """The text of preferences.py."""
    entries = "".join(f'\n    "{op}": ("{backend}", {times}),' for op, (backend, times) in found.items())
    quoted = [None if text is None else json.dumps(text) for text in (source, gpu)]
    measured = f"Measured on {gpu}." if found else "Not yet measured."
    return TEXT.format(measured=measured, source=quoted[0], gpu=quoted[1], entries=entries and entries + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS)
    parser.add_argument("--print", action="store_true", help="show the file instead of writing it")
    args = parser.parse_args()
    if not args.results.exists():
        raise SystemExit(f"gpu_preferences: {args.results} is not there; benchmarks/gpu.sh measures it on a GPU")
    data = json.loads(args.results.read_text(encoding="utf-8"))
    if data["device"] != "cuda":
        raise SystemExit(f"gpu_preferences: {args.results} was measured on {data['device']!r}, expected 'cuda'")
    path = args.results.resolve()
    source = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    text = render(faster(data), source, data["provenance"]["gpu"])
    if args.print:
        print(text, end="")
    else:
        Path(preferences.__file__).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
