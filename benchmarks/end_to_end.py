"""FCN-8s from the image to labels, and a step of training: images per second and peak memory, fused, eager, compiled.

    python -m benchmarks.end_to_end --json benchmarks/results/end-to-end.json                # two minutes
    python -m benchmarks.end_to_end --widths published --json FILE                           # a quarter of an hour

Every method runs in a process of its own, which first measures the peak memory of a call (beyond weights, their
gradients and inputs), then times the calls that follow. Labels and losses are compared with eager PyTorch's.
"eager" has the dense transposed convolutions of the published networks, "eager, interpolate" the fastest formulation.
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
from fcn_kernels.benchmarking import eager_fcn, formulations, measure, memory

WIDTHS = {"narrow": {"channels": (8, 16, 32, 64, 64), "hidden": 128}, "published": {}}
METHODS = ("fused", "eager", "eager, interpolate", "compiled", "fused, compiled")
JOBS = ("labels", "training step")


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


def agree(job: str, found: dict, expected: dict) -> bool:
    if job == "labels":
        return (found["result"] != expected["result"]).mean() < 1e-3
    return abs(found["result"] - expected["result"]) < 1e-3 * abs(expected["result"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", nargs="+", choices=WIDTHS, default=["narrow"])
    parser.add_argument("--side", type=int, default=500, help="of the square images")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
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
