"""`fcn-kernels bench`: fused heads against eager PyTorch, torch.compile and inference engines that are installed, on
features of real photographs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from fcn_kernels.benchmarking import measure, memory
from fcn_kernels.benchmarking.report import JUDGED, Report, table
from fcn_kernels.benchmarking.runner import collect, events
from fcn_kernels.benchmarking.workload import Workload
from fcn_kernels.benchmarking.workloads import select

from ._options import positive

_SECONDS = {"full": 6.0, "quick": 1.0}  # per workload; half of it in the default regime


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="a few workloads, in less than a minute")
    parser.add_argument(
        "--only",
        metavar="NAME",
        help="only the workloads with NAME in their name (see --list --all), or like it: 'grid-*'",
    )
    parser.add_argument("--all", action="store_true", help="every member of every family of workloads (over an hour)")
    parser.add_argument("--list", action="store_true", help="print the names of what would be measured, and stop")
    compiling = parser.add_mutually_exclusive_group()
    compiling.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    compiling.add_argument(
        "--max-autotune", action="store_true", help="torch.compile in that mode too (its compiler takes minutes more)"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: torch's choice)")
    parser.add_argument(
        "--instruction-set",
        choices=measure.INSTRUCTION_SETS,
        help="let torch, its compiler and the fused kernels use no more than this",
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the results as JSON to FILE, or to standard output instead of the table",
    )


class _Progress:
    """A bar on standard error, when that is a terminal."""

    def __init__(self, total: int) -> None:
        self._bar = None
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            layout = "{percentage:3.0f}% |{bar:24}| {elapsed}  {desc}"
            self._bar = tqdm(total=total, file=sys.stderr, bar_format=layout, leave=False)
            self._begun = 0

    def step(self, text: str) -> None:
        """A step begins: those before it are done. The total is an estimate, as it depends on which rival is best."""
        if self._bar is not None:
            self._bar.n = min(self._begun, self._bar.total - 1)
            self._begun += 1
            self._bar.set_description_str(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _methods(job: Workload, *, compiled: bool, autotuned: bool, engines: bool) -> list[str]:
    wanted = (m for m in job.methods if engines or m.role != "engine")
    return [m.name for m in wanted if not m.compiled or (compiled and (autotuned or m.mode is None))]


def _contenders(report: Report, job: Workload, *, quick: bool) -> list[str]:
    """After the judged regime: the fused method, the best rival and eager PyTorch; what else is slower or is a part."""
    best = report.best(job, job.inputs[0])
    keep = {"fused", "eager"} | ({best[0]} if best else set())
    return [m.name for m in job.methods if m.name in keep and not (quick and m.compiled)]


def measure_all(
    jobs: list[Workload],
    *,
    quick: bool,
    compiled: bool,
    autotuned: bool = False,
    threads: int | None,
    instruction_set: str | None,
) -> Report:
    """Times and checks the workloads in the judged malloc regime, times the contenders in the default one, and takes
    their peak memory."""
    report = Report(jobs)
    timed = [job for job in jobs if job.timed]
    with_memory = jobs if memory.can_measure() else []
    # In a quick run one workload shows torch.compile: compiling them all takes longer than everything else.
    compiled_jobs = (
        timed if compiled and not quick else [j for j in timed if j.operator == "upsample_argmax"][:compiled]
    )
    steps = sum(2 * (len(job.inputs) + 1) for job in timed) + 2 * len(with_memory)
    steps += len(compiled_jobs) * (1 + autotuned)
    progress = _Progress(steps)
    seconds = _SECONDS["quick" if quick else "full"]
    try:
        request = {"task": "time", "threads": threads, "instruction_set": instruction_set, "seconds": seconds}
        request["rates"] = not quick
        request["jobs"] = [
            {
                "workload": job.name,
                "methods": _methods(job, compiled=job in compiled_jobs, autotuned=autotuned, engines=not quick),
                "check": True,
            }
            for job in timed
        ]
        collect(report, events(request, JUDGED), JUDGED, progress.step)
        contenders = [
            {"workload": job.name, "methods": _contenders(report, job, quick=quick), "check": False} for job in timed
        ]
        request |= {"seconds": seconds / 2, "jobs": contenders, "rates": False}
        collect(report, events(request, "default"), "default", progress.step)
        if with_memory:
            request |= {"task": "memory"}
            request["jobs"] = [
                {"workload": job.name, "methods": _contenders(report, job, quick=quick)} for job in with_memory
            ]
            collect(report, events(request, "exact"), "exact", progress.step)
    finally:
        progress.close()
    return report


def _check_writable(file: Path) -> None:
    """OSError, before much is measured that could then not be written."""
    if file.is_dir():
        raise IsADirectoryError(f"--json {file} is a folder")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"--json {file}: there is no folder {file.parent}")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise PermissionError(f"--json {file} may not be written")


def run(args: argparse.Namespace) -> int:
    """0: measured; 1: results disagree, or something failed; 2: nothing was begun."""
    file = None if args.json in (None, "-") else Path(args.json)
    try:
        jobs = select(args.only, args.quick, args.all)
        if args.list:
            print("\n".join(job.name for job in jobs))
            return 0
        if file is not None:
            _check_writable(file)
        if args.instruction_set is not None:
            measure.restrict(args.instruction_set)
    except (ValueError, ImportError, OSError) as error:
        print(f"fcn-kernels bench: {error}", file=sys.stderr)
        return 2
    report = measure_all(
        jobs,
        quick=args.quick,
        compiled=not args.no_compile,
        autotuned=args.max_autotune,
        threads=args.threads,
        instruction_set=args.instruction_set,
    )
    failed = bool(report.disagreements or report.failures)
    text = None if args.json is None else json.dumps(report.as_dict(), indent=1)
    print(text if args.json == "-" else table(report), flush=True)
    if file is not None:
        try:
            file.write_text(f"{text}\n", encoding="utf-8")
        except OSError as error:
            print(f"fcn-kernels bench: {error}", file=sys.stderr)
            failed = True
    return int(failed)
