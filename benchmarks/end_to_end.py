"""FCN-8s from the image to labels, and a step of training: images per second and peak memory, fused, eager, compiled.

    python -m benchmarks.end_to_end --json benchmarks/results/end-to-end.json                # two minutes
    python -m benchmarks.end_to_end --widths published --json FILE                           # a quarter of an hour
    python -m benchmarks.end_to_end --device cuda --widths published --json FILE             # a minute

Every method runs in a process of its own, which first measures the peak memory of a call (beyond weights, their
gradients and inputs), then times the calls that follow. Labels and losses are compared with eager PyTorch's.
"eager" has the dense transposed convolutions of the published networks, "eager, interpolate" the fastest formulation.
On a GPU a process takes all methods in one precision, interleaved, the fused ones also as the replay of a CUDA graph;
memory is what torch allocates there. bf16 is torch's autocast.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.fcn8s import network, picture
from fcn_kernels import models
from fcn_kernels.benchmarking import eager_fcn, formulations, gpu, measure, memory

WIDTHS = {"narrow": {"channels": (8, 16, 32, 64, 64), "hidden": 128}, "published": {}}
METHODS = ("fused", "eager", "eager, interpolate", "compiled", "fused, compiled")
JOBS = ("labels", "training step")
GRAPH = "fused, graph"  # on a GPU only
PRECISIONS = {"fp32": 1e-3, "bf16": 1e-1, "tf32": 1e-2}  # how far labels, as a share, and losses may be from eager's


def _logits(method: str, model: models.FCN8s, image: Tensor) -> Tensor:
    if "interpolate" in method or method == "compiled":
        return formulations.fcn8s_logits(*eager_fcn.score_maps(model, image), tuple(image.shape[2:]))
    return eager_fcn.logits(model, image)


def _job(job: str, method: str, model: models.FCN8s, image: Tensor, target: Tensor) -> Callable[[], Tensor]:
    def labels() -> Tensor:
        return model.predict(image) if method.startswith("fused") else _logits(method, model, image).argmax(1)

    def loss() -> Tensor:
        if method.startswith("fused"):
            return model.loss(image, target)
        return F.cross_entropy(_logits(method, model, image), target)

    function = labels if job == "labels" else loss
    if method.endswith("compiled"):
        function = torch.compile(function, dynamic=False)
    if job == "labels":

        @torch.inference_mode()
        def call() -> Tensor:
            return function()
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-10, momentum=0.9)

        def call() -> Tensor:
            optimizer.zero_grad(set_to_none=False)
            value = function()
            value.backward()
            optimizer.step()
            return value.detach()

    return call


def run(widths: str, job: str, method: str, batch: int, side: int, threads: int, runs: int) -> dict:
    """In a process that has computed nothing yet: peak memory, seconds of each call, and the result."""
    torch.set_num_threads(threads)
    model = network(lambda: models.FCN8s(**WIDTHS[widths]))
    image, target = picture((side, side)).repeat(batch, 1, 1, 1), torch.randint(0, 21, (batch, side, side))
    small = _job(
        job,
        method.removesuffix(", compiled").replace("compiled", "eager"),
        model,
        image[:1, :, :64, :64],
        target[:1, :64, :64],
    )
    small()  # threads, autograd, gradients and momenta are there
    call = _job(job, method, model, image, target)
    result = call() if method.endswith("compiled") else None  # the compiler's own memory is not meant
    del result
    peak = memory.peak_of(call) if memory.can_measure() else None
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return {"peak_bytes": peak, "seconds": times, "result": result.tolist() if job != "labels" else result.numpy()}


def run_on(device: str, widths: str, jobs: list[str], methods: list[str], batches: list[int], side: int, precision: str,
           seconds: float, warm_up: bool) -> list[dict]:  # fmt: skip
    """The same on a GPU, in one process for all methods of a precision; training at the last batch size alone."""
    model = network(lambda: models.FCN8s(**WIDTHS[widths])).to(device)
    timer, rows = gpu.clock(device), []
    for job in jobs:
        for batch in batches if job == "labels" else batches[-1:]:
            image = picture((side, side)).repeat(batch, 1, 1, 1).to(device)
            target = torch.randint(0, 21, (batch, side, side), device=device)
            calls, peaks, results = {}, {}, {}
            with gpu.tf32(precision == "tf32"):
                for method in sorted(methods, key=lambda m: m != "eager"):  # eager first: it is the yardstick
                    call = _autocast(_job(job, method.removesuffix(", graph"), model, image, target), device, precision)
                    call = gpu.graphed(call, device) if method == GRAPH else call
                    results[method] = call().clone()
                    calls[method], peaks[method] = call, gpu.peak(call, device)
                timings = {} if warm_up else timer.interleaved(calls, seconds, minimum=3)
            for method, timing in timings.items():
                rows.append(
                    {
                        "network": f"FCN-8s, {widths} widths, {side}x{side}",
                        "precision": precision,
                        "job": job,
                        "batch": batch,
                        "method": method,
                        "images_per_second": batch / timing.median * 1e3,
                        "milliseconds": timing.as_dict(),
                        "peak_bytes": peaks[method],
                        "from_eager": _distance(job, results[method], results["eager"]) if "eager" in results else None,
                    }
                )
    return rows


def _autocast(call: Callable[[], Tensor], device: str, precision: str) -> Callable[[], Tensor]:
    """Entered in every call, as weights that were cast are kept until it is left."""

    def there() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            return call()

    return there


def _distance(job: str, found: Tensor, expected: Tensor) -> float:
    """The share of labels that differ; the relative difference of losses."""
    if job == "labels":
        return (found != expected).float().mean().item()
    return ((found - expected).abs() / expected.abs()).item()


def agree(job: str, found: dict, expected: dict) -> bool:
    if job == "labels":
        return (found["result"] != expected["result"]).mean() < 1e-3
    return abs(found["result"] - expected["result"]) < 1e-3 * abs(expected["result"])


def on_device(args: argparse.Namespace) -> None:
    """A process for each precision; the results are written after each."""
    rows, wrong = [], []
    for widths in args.widths:
        for precision in args.precisions:
            methods = args.methods or ["fused", GRAPH, "eager", "eager, interpolate", "compiled"]
            if args.methods is None and precision == "tf32":
                methods.remove("compiled")  # half a minute for what differs from fp32 in the convolutions alone
            job = (args.device, widths, list(args.jobs), list(methods), args.batches, args.side, precision)
            lines: dict[str, list[str]] = {}
            for row in memory.in_fresh_process(run_on, *job, args.seconds, args.warm_up):
                rows.append(row)
                peak = "" if row["peak_bytes"] is None else f" ({row['peak_bytes'] / 1e6:.0f} MB)"
                name = f"{widths}, {precision}, {row['job']}, batch {row['batch']}"
                lines.setdefault(name, []).append(f"{row['method']} {row['milliseconds']['median']:.2f}{peak}")
                if row["from_eager"] is not None and not row["from_eager"] <= PRECISIONS[precision]:
                    wrong.append(f"{name}, {row['method']}, is {row['from_eager']:.3g} from eager PyTorch")
            for name, cells in lines.items():
                print(f"{name}, ms: {'; '.join(cells)}", flush=True)
            if args.json and rows:
                where = measure.provenance() | {"device": args.device}
                if args.device == "cuda":
                    where["gpu"] = torch.cuda.get_device_name()
                args.json.write_text(json.dumps({"provenance": where, "rows": rows, "disagreements": wrong}, indent=1))
    if wrong:
        raise SystemExit("\n".join(wrong))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", nargs="+", choices=WIDTHS, default=["narrow"])
    parser.add_argument("--side", type=int, default=500, help="of the square images")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS)
    parser.add_argument("--methods", nargs="+", choices=(*METHODS, GRAPH), default=None, help="by default all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="on a GPU")
    parser.add_argument("--seconds", type=float, default=1.0, help="on a GPU: of timing, per job and batch")
    parser.add_argument("--warm-up", action="store_true", help="on a GPU: compile and call, but do not time")
    parser.add_argument("--interleaved", action="store_true", help="measure on the CPU as on a GPU, to try it out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.device != "cpu" or args.interleaved:
        return on_device(args)
    args.methods = args.methods or METHODS
    os.environ.update(measure.REGIMES["exact"])  # for the processes to come: resident memory is what is allocated
    rows = []
    for widths in args.widths:
        for job in args.jobs:
            for batch in args.batches:
                expected = None
                for method in sorted(args.methods, key=lambda m: m != "eager"):  # eager first: it is the yardstick
                    where = (widths, job, method, batch, args.side, args.threads, args.runs)
                    found = memory.in_fresh_process(run, *where)
                    expected = expected or found
                    if not agree(job, found, expected):
                        raise SystemExit(f"{method} disagrees with eager PyTorch: {widths}, {job}, batch {batch}")
                    seconds = statistics.median(found["seconds"])
                    rows.append(
                        {
                            "network": f"FCN-8s, {widths} widths, {args.side}x{args.side}",
                            "job": job,
                            "batch": batch,
                            "method": method,
                            "images_per_second": batch / seconds,
                            "seconds": found["seconds"],
                            "peak_bytes": found["peak_bytes"],
                        }
                    )
                    peak = "" if found["peak_bytes"] is None else f", peak {found['peak_bytes'] / 1e6:.0f} MB"
                    print(f"{widths}, {job}, batch {batch}, {method}: {batch / seconds:.3g} images/s{peak}", flush=True)
    if args.json:
        found = {"provenance": measure.provenance() | {"threads": args.threads}, "rows": rows}
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
