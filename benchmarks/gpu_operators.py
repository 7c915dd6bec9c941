"""Every operator on a GPU: CUDA C++ and Triton by name beside eager and compiled PyTorch, and beside the floor.

    python -m benchmarks.gpu_operators --json FILE                     # about three minutes on an H200
    python -m benchmarks.gpu_operators --warm-up                       # compiles and compares everything, times nothing
    python -m benchmarks.gpu_operators --device cpu --tiny             # the same program where there is no GPU
    ncu --profile-from-start off python -m benchmarks.gpu_operators --profile --only upsample_cross_entropy-c150

The ceilings of the device come first. Every method of a case is compared with the float64 oracle, and timed only if it
agrees; caches are cold, runs interleaved. The measuring process is another one: a case that kills or hangs it is named,
its method is left out, and the others go on. The results are written after every case.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch

from fcn_kernels.benchmarking import floors, gpu, measure
from fcn_kernels.benchmarking.agreement import Agreement
from fcn_kernels.benchmarking.floors import Ceilings
from fcn_kernels.benchmarking.gpu_workloads import Case, Goal, cases
from fcn_kernels.benchmarking.workload import Method, call_of

BACKENDS = {"cuda": ("cuda", "triton"), "cpu": ("cpu", "triton")}


# --- the measuring process ---


def methods_of(case: Case, device: str, compiled: bool) -> list[Method]:
    """The fused method once for each backend, and the rivals."""
    fused = case.job.method("fused")
    ours = [replace(fused, name=backend) for backend in BACKENDS[device]]
    return [*ours, *(m for m in case.job.methods if m.role != "fused" and (compiled or not m.compiled))]


def _call(case: Case, method: Method, tensors: dict, device: str) -> Any:
    call = call_of(method, tensors)
    if method.role == "fused":
        call = gpu.in_backend(method.name, call)
    return gpu.graphed(call, device) if case.graph else call


def measured(case: Case, request: dict, timer: gpu.Clock | gpu.HostClock, emit: Any) -> dict:
    """A row: milliseconds of every method by kind of inputs, peak memory, and who was left out, and why."""
    device, skipped = request["device"], {tuple(pair) for pair in request["skip"]}
    row: dict[str, Any] = {"milliseconds": {}, "peak_bytes": {}, "left_out": {}, "disagreements": []}
    for kind in case.job.inputs:
        try:
            tensors = case.job.make(kind)
        except RuntimeError as error:
            if kind == case.job.inputs[0]:
                raise
            row["left_out"][kind] = str(error).splitlines()[0]
            continue
        agreement, calls = Agreement(case.job, tensors), {}
        for method in methods_of(case, device, request["compile"]):
            first = kind == case.job.inputs[0]
            if not first and method.role != "fused":
                continue  # its speed does not depend on the values
            if (case.name, method.name) in skipped:
                row["left_out"][method.name] = "it ended or hung the measuring process"
                continue
            emit("method", case=case.name, method=method.name)
            try:
                call = _call(case, method, tensors, device)
                results = call()
            except RuntimeError as error:
                if "CUDA error" in str(error):  # nothing works in this process any more
                    raise
                row["left_out"][method.name] = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
                continue
            except Exception as error:  # of the compiler
                if not method.compiled:
                    raise
                row["left_out"][method.name] = f"{type(error).__name__}: {str(error).strip()[:160]}"
                continue
            complaints = agreement.complaints(method, results)
            row["disagreements"] += [f"{kind}, {method.name}: {text}" for text in complaints]
            del results
            if complaints:
                continue
            if first:
                for t in tensors.values():
                    t.grad = None  # it belongs to what the call takes
                row["peak_bytes"][method.name] = gpu.peak(call, device)
            calls[method.name] = call
        del agreement
        if calls and not request["warm_up"]:
            emit("method", case=case.name, method=None)
            timings = timer.interleaved(calls, request["seconds"], minimum=5 if device == "cuda" else 2)
            row["milliseconds"][kind] = {name: timing.as_dict() for name, timing in timings.items()}
    return row


def worker() -> None:
    events, sys.stdout = sys.stdout, sys.stderr  # compilers may print
    request = json.load(sys.stdin)

    def emit(event: str, **fields: object) -> None:
        print(json.dumps({"event": event, **fields}), file=events, flush=True)

    torch.manual_seed(0)
    if request["device"] == "cuda":
        emit("provenance", **measure.provenance(), gpu=torch.cuda.get_device_name(), cuda=torch.version.cuda)
    else:
        emit("provenance", **measure.provenance(), gpu=None)
    if request["ceilings"]:
        emit("ceilings", **gpu.ceilings(request["device"], request["seconds"]).as_dict())
    by_name, timer = {c.name: c for c in cases(request["device"], request["tiny"])}, gpu.clock(request["device"])
    for name in request["cases"]:
        case = by_name[name]
        with gpu.tf32(case.work.arithmetic == "tf32"):
            torch._dynamo.reset()
            emit("row", case=name, **measured(case, request, timer, emit))
        if request["device"] == "cuda":
            torch.cuda.empty_cache()
    emit("done")


def profile(chosen: list[Case], device: str) -> None:
    """One call of each backend, warm, for a profiler that waits for the signal."""
    for case in chosen:
        tensors = case.job.make(case.job.inputs[0])
        for method in methods_of(case, device, compiled=False):
            if method.role == "fused":
                call = gpu.in_backend(method.name, call_of(method, tensors))
                call()
                with torch.cuda.profiler.profile() if device == "cuda" else contextlib.nullcontext():
                    call()
                print(case.name, method.name, flush=True)


# --- the process that watches it ---


def events(request: dict, limit: float, log: IO[str]) -> Iterator[dict]:
    """Of a measuring process, until it is done, dead, or silent for `limit` seconds, when it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu_operators", "--worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: [lines.put(line) for line in process.stdout], daemon=True).start()
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request))
            process.stdin.close()
        heard = time.monotonic()
        while time.monotonic() < heard + limit:
            try:
                line = lines.get(timeout=0.2)
            except queue.Empty:  # a compiler's process may outlive the dead one, and hold its output open
                if process.poll() is not None and lines.empty():
                    return
                continue
            heard = time.monotonic()
            if line.startswith('{"event"'):  # others may print there too
                yield json.loads(line)
    finally:
        process.kill()
        process.wait()


def watched(request: dict, limit: float, deadline: float, log: IO[str]) -> Iterator[dict]:
    """Events of as many measuring processes as it takes; each that fails names its case and method in "failure"."""
    left, skip = list(request["cases"]), []
    ceilings, tries = request["ceilings"], 0
    while left and time.monotonic() < deadline:
        at: dict[str, Any] = {"case": left[0], "method": None}
        done = False
        for event in events({**request, "cases": [*left], "skip": [*skip], "ceilings": ceilings}, limit, log):
            kind = event["event"]
            if kind == "method":
                at = event
            elif kind == "row":
                left.remove(event["case"])
                at = {"case": left[0] if left else None, "method": None}
                yield event
            else:
                done |= kind == "done"
                ceilings &= kind != "ceilings"
                yield event
            if time.monotonic() > deadline:
                break
        if done or time.monotonic() > deadline:
            break
        yield {"event": "failure", "case": at["case"], "method": at["method"]}
        tries += 1
        if at["method"] is None or tries > 12:  # not a method's fault, or too many
            left.remove(at["case"])
        else:
            skip.append([at["case"], at["method"]])
    for name in left:
        yield {"event": "late", "case": name}


# --- the results ---


def judged(case: Case, row: dict, ceilings: Ceilings | None, device: str) -> list[dict]:
    """Each goal with what our faster backend reached; None where it was not measured."""
    times = {name: t["median"] for name, t in row["milliseconds"].get(case.job.inputs[0], {}).items()}
    ours = {name: times[name] for name in BACKENDS[device] if name in times}
    best = min(ours, key=ours.__getitem__, default=None)
    found = []
    for goal in case.goals:
        value = None if best is None else _reached(goal, case, row, times, best, ceilings, device)
        least = goal.against not in ("memory", "launches")
        good = None if value is None else value >= goal.value if least else value <= goal.value
        found.append({"against": goal.against, "goal": goal.value, "measured": value, "reached": good})
    return found


def _reached(
    goal: Goal, case: Case, row: dict, times: dict, best: str, ceilings: Ceilings | None, device: str
) -> float | None:
    match goal.against:
        case "memory":
            return row["peak_bytes"].get(best)
        case "copy":
            return ceilings and 1e3 * case.work.bytes / ceilings.bytes / times[best]
        case "launches":
            launches = ceilings and ceilings.launches(goal.kernels)
            return times[best] / launches if launches else None
        case "rivals":
            rivals = [ms for name, ms in times.items() if name not in BACKENDS[device]]
            return min(rivals) / times[best] if rivals else None
        case name:
            return times[name] / times[best] if name in times else None


def completed(case: Case, row: dict, ceilings: Ceilings | None, device: str) -> dict:
    """The row as data, beside the work and its floor."""
    found = {"case": case.name, "operator": case.job.operator, "title": case.job.title, "work": case.work.as_dict()}
    if ceilings:
        milliseconds, limit = floors.floor(case.work, ceilings)
        found |= {"floor_ms": milliseconds, "limit": limit}
        for times in row["milliseconds"].values():
            for timing in times.values():
                timing["of_floor"] = milliseconds / timing["median"]
    return found | row | {"goals": judged(case, row, ceilings, device)}


def table(data: dict) -> str:
    """Microseconds, shares of the floor, and how many times as long the rivals take."""
    ours = BACKENDS[data["device"]]
    titles = ["floor us", "limit", *(f"{name} us (of floor)" for name in ours), "eager", "compiled", "MB", "  goals"]
    widths = [9, 14, *(22 for _ in ours), 9, 10, 7, 0]
    lines = [" " * 66 + "".join(t.rjust(w) for t, w in zip(titles, widths, strict=True))]
    for row in data["rows"]:
        for kind, times in row["milliseconds"].items():
            best = min((times[name]["median"] for name in ours if name in times), default=None)
            cells = [f"{1e3 * row['floor_ms']:.1f}" if "floor_ms" in row else "", row.get("limit", "")]
            for name in ours:
                t = times.get(name)
                cells.append(f"{1e3 * t['median']:.1f} ({t.get('of_floor', 0):.0%})" if t else "-")
            for name in ("eager", "torch.compile"):
                cells.append(f"{times[name]['median'] / best:.1f}x" if name in times and best else "")
            peaks = [row["peak_bytes"][name] for name in ours if row["peak_bytes"].get(name) is not None]
            cells.append(f"{min(peaks) / 1e6:.0f}" if peaks else "")
            goals = row["goals"] if kind == next(iter(row["milliseconds"])) else []
            cells.append("  " + ", ".join(_goal_text(goal) for goal in goals))
            title = f"{row['operator']} {row['title']}" + ("" if kind == "random" else f", {kind}")
            lines.append(f"{title:<66}" + "".join(c.rjust(w) for c, w in zip(cells, widths, strict=True)).rstrip())
    for row in data["rows"]:
        lines += [f"{row['case']}: {name} left out: {why}" for name, why in row["left_out"].items()]
        lines += [f"DISAGREES: {row['case']}: {text}" for text in row["disagreements"]]
    lines += [f"FAILED: {f['case']}, {f['method'] or 'no method'}: the process ended or hung" for f in data["failures"]]
    lines += [f"no time left: {name}" for name in data["late"]]
    goals = [g["reached"] for row in data["rows"] for g in row["goals"] if g["reached"] is not None]
    return "\n".join([*lines, f"goals: {sum(goals)} of {len(goals)} reached"])


def _shown(against: str, value: float) -> str:
    match against:
        case "memory":
            return f"{value / 1e6:.0f} MB"
        case "copy":
            return f"{value:.0%}"
    return f"{value:.3g}x"


def _goal_text(goal: dict) -> str:
    measured = "not measured" if goal["measured"] is None else _shown(goal["against"], goal["measured"])
    verdict = {True: "ok", False: "MISSED", None: "?"}[goal["reached"]]
    return f"{goal['against']} {measured} of {_shown(goal['against'], goal['goal'])} {verdict}"


def predicted(ceilings: Ceilings) -> list[str]:
    """The floors of all cases at these ceilings, in Markdown."""
    lines = ["| | MB | bytes | exponentials | instructions | products | floor, us | must reach |", "|---|" + "---|" * 7]
    for case in cases("cpu"):  # nothing is made
        terms = [f"{1e3 * t:.3g}" if t else "" for t in floors.terms(case.work, ceilings).values()]
        milliseconds, limit = floors.floor(case.work, ceilings)
        goals = ", ".join(f"{goal.against} {_shown(goal.against, goal.value)}" for goal in case.goals)
        floor = f"**{1e3 * milliseconds:.3g}** {limit}"
        title = f"`{case.job.operator}` {case.job.title}"
        lines.append("| " + " | ".join([title, f"{case.work.bytes / 1e6:.3g}", *terms, floor, goals]) + " |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=BACKENDS, default="cuda")
    parser.add_argument("--tiny", action="store_true", help="images of a few pixels, to try the program out")
    parser.add_argument("--only", default="", help="a part of the names of the cases")
    parser.add_argument("--seconds", type=float, default=0.8, help="of timing, per case and kind of inputs")
    parser.add_argument("--limit", type=float, default=60, help="seconds until a silent process counts as hung")
    parser.add_argument("--deadline", type=float, default=600, help="seconds in all, after which cases are left out")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    parser.add_argument("--warm-up", action="store_true", help="compile and compare, but do not time")
    parser.add_argument("--predict", action="store_true", help="print the floors that an H200 should have, and end")
    parser.add_argument("--profile", action="store_true", help="call each backend once for a profiler, and end")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker()
        return 0
    if args.predict:
        print(*predicted(floors.PREDICTED_H200), sep="\n")
        return 0
    # Here the cases only tell their names and goals: nothing is made on the device.
    by_name = {case.name: case for case in cases(args.device, args.tiny)}
    chosen = [name for name in by_name if args.only in name]
    if not chosen:
        raise SystemExit(f"no case's name contains {args.only!r}; the names are\n  " + "\n  ".join(by_name))
    if args.profile:
        profile([by_name[name] for name in chosen], args.device)
        return 0
    request = {
        "device": args.device, "tiny": args.tiny, "seconds": args.seconds, "compile": not args.no_compile,
        "warm_up": args.warm_up, "ceilings": not args.warm_up, "cases": chosen,
    }  # fmt: skip
    data: dict[str, Any] = {"device": args.device, "rows": [], "failures": [], "late": []}
    ceilings = None
    log_file = args.json.with_suffix(".errors") if args.json else Path(os.devnull)
    with log_file.open("w", encoding="utf-8") as log:
        for event in watched(request, args.limit, time.monotonic() + args.deadline, log):
            match event.pop("event"):
                case "provenance":
                    data["provenance"] = event
                case "ceilings":
                    ceilings, data["ceilings"] = Ceilings(**event), event
                case "row":
                    name = event.pop("case")
                    data["rows"].append(completed(by_name[name], event, ceilings, args.device))
                    print(name, flush=True)
                case "failure":
                    data["failures"].append(event)
                case "late":
                    data["late"].append(event["case"])
            if args.json:
                args.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if ceilings:
        print(shown(ceilings))
    print(table(data))
    wrong = data["failures"] or any(row["disagreements"] for row in data["rows"])
    return 1 if wrong or data["late"] else 0


def shown(c: Ceilings) -> str:
    products = ", ".join(f"{name} {2 * rate / 1e12:.0f}" for name, rate in c.products.items())
    return (
        f"ceilings: copy {c.bytes / 1e12:.2f} TB/s; products, TFLOP/s: {products}; "
        f"exponentials {c.exponentials:.2g}/s, instructions {c.instructions:.2g}/s; "
        f"graph {1e6 * c.graph:.1f} us and {1e6 * c.kernel:.1f} us a kernel"
    )


if __name__ == "__main__":
    sys.exit(main())
