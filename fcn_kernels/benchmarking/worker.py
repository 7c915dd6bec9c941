"""A measuring process: one request (JSON) on standard input, one event (JSON) a line on standard output.

A malloc regime must be in the environment from the start, so `fcn-kernels bench` runs one such process per regime.
Request: {"task": "time" | "memory", "threads", "instruction_set", "seconds", "rates": bool,
"jobs": [{"workload", "methods": [...], "check": bool, "inputs": [...] or all kinds}]}.
Events: {"event": "provenance" | "rates" | "step" | "timing" | "disturbance" | "peak" | "disagreement" | "unavailable" |
"done", ...}; the last one says that nothing is missing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

import torch

from fcn_kernels.benchmarking import measure, memory
from fcn_kernels.benchmarking.agreement import Agreement
from fcn_kernels.benchmarking.pace import Rounds
from fcn_kernels.benchmarking.workload import Method, Workload, call_of
from fcn_kernels.benchmarking.workloads import workload

_events = sys.stdout


def _emit(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), file=_events, flush=True)


def methods_for(job: Workload, names: list[str], inputs: str) -> list[Method]:
    """On its first kind of inputs every method runs; on others the fused one and eager PyTorch, as torch's own speed
    does not depend on the values."""
    methods = [method for method in job.methods if method.name in names]
    if inputs != job.inputs[0]:
        methods = [method for method in methods if method.role == "fused" or method.name == "eager"]
    return methods


def _time(job: Workload, names: list[str], check: bool, seconds: float, kinds: Sequence[str]) -> None:
    calls, where = {}, {}
    if any(job.method(name).compiled for name in names):
        torch._dynamo.reset()
    for inputs in kinds:
        _emit("step", text=f"{job.name}: {inputs} inputs")
        tensors = job.make(inputs)
        agreement = Agreement(job, tensors) if check else None
        for method in methods_for(job, names, inputs):
            if method.compiled:
                _emit("step", text=f"{job.name}: {method.name}")
            try:
                call = call_of(method, tensors)
                results = call()
            except Exception as error:
                if not (method.compiled or method.prepared):
                    raise
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                _emit("unavailable", workload=job.name, method=method.name, reason=reason[:200])
                continue
            if agreement is not None and method.role != "yardstick":
                complaints = agreement.complaints(method, results)
                for text in complaints:
                    _emit("disagreement", workload=job.name, inputs=inputs, method=method.name, text=text)
                if complaints:
                    continue
            key = f"{inputs}/{method.name}"
            calls[key], where[key] = call, (inputs, method.name)
            del results
        del agreement
    if not calls:
        return
    _emit("step", text=f"{job.name}: timing")
    waited, start = measure.waited(), time.perf_counter()
    engines = [key for key, (_, method) in where.items() if job.method(method).role == "engine"]
    rounds = Rounds()
    timings = measure.interleaved(calls, seconds, minimum=3 if seconds < 3 else 5, rested=engines, rounds=rounds)
    busy = None
    if waited is not None:
        busy = (measure.waited() - waited) / (time.perf_counter() - start) / torch.get_num_threads()
    _emit("disturbance", workload=job.name, waited=busy, slow=rounds.slow_share, repeated=rounds.repeated)
    for key, timing in timings.items():
        inputs, method = where[key]
        _emit("timing", workload=job.name, inputs=inputs, method=method, **timing.as_dict())


def _memory(job: Workload, names: list[str], threads: int | None) -> None:
    for name in names:
        _emit("step", text=f"{job.name}: memory of {name}")
        if name != "fused" and memory.available() < 4 * job.full:
            _emit("unavailable", workload=job.name, method=name, reason=f"it would need {3 * job.full / 1e9:.1f} GB")
            continue
        try:
            peak = memory.in_fresh_process(memory.peak_memory, job.name, name, threads)
        except RuntimeError as error:
            _emit("unavailable", workload=job.name, method=name, reason=str(error).splitlines()[0][:200])
            continue
        _emit("peak", workload=job.name, inputs=job.inputs[0], method=name, bytes=peak)


def main() -> None:
    global _events
    # Compilers and libraries may print: events alone go to the real standard output.
    _events, sys.stdout = sys.stdout, sys.stderr
    request = json.load(sys.stdin)
    threads = request["threads"]
    if threads is not None:
        torch.set_num_threads(threads)
    if request["instruction_set"] is not None:
        measure.restrict(request["instruction_set"])
    _emit("provenance", **measure.provenance())
    if request["rates"]:
        _emit("step", text="rates of the machine")
        _emit("rates", **measure.rates())
    for entry in request["jobs"]:
        job = workload(entry["workload"])
        if request["task"] == "memory":
            _memory(job, entry["methods"], threads)
        else:
            _time(job, entry["methods"], entry["check"], request["seconds"], entry.get("inputs", job.inputs))
    _emit("done")


if __name__ == "__main__":
    main()
