"""Whether the fused operators still stand to their rivals as it is recorded in results/bench-check.json.

    python -m benchmarks.check             # or: make bench-check; less than a minute
    python -m benchmarks.check --record    # on a quiet machine: the entry of this processor, added or replaced

A short run with AVX2 for all and two threads. Only ratios are compared: the best of the eager rivals over the fused
method, of medians and of the fastest calls, as other work on the machine disturbs the one or the other. A case that has
lost more than a quarter of both is measured again, longer; one that stays below fails.

A ratio is that of a processor. One that has no entry is asked for half of the lowest ratio of those that have.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.cases import RESULTS, Case, cases, load
from fcn_kernels.benchmarking import measure
from fcn_kernels.benchmarking.report import JUDGED, Report
from fcn_kernels.benchmarking.runner import collect, events
from fcn_kernels.benchmarking.workloads import workload

WORKLOADS = (
    "fcn8s_head-cross_entropy",
    "upsample_cross_entropy-c21-64x64-512x512",
    "upsample_argmax-c21-64x64-512x512",
    "upsample_softmax-c21-64x64-512x512",
    "upsample_add-24x21x70x70",
    "conv_transpose_add-depthwise-21x16x16-70-500",
    "conv_transpose_concat-128x196x196",
    "upsample_binary_cross_entropy-c1-128x128-1024x1024",
    "upsample_confusion_matrix-c21-64x64-512x512",
    "score_softmax-k512-c21-64x64",
    "score_cross_entropy-k512-c21-64x64",
)
NAME = "bench-check"  # of the file
THREADS, INSTRUCTION_SET = 2, "avx2"
EAGER = ("rival", "tuned")
STATISTICS = ("median", "fastest")
SAME, OTHER = 0.75, 0.5  # of the recorded ratio: on this processor, on one without an entry
SECONDS = (0.8, 2.5, 5.0)  # per case, of the first attempt and of those that follow
Ratios = dict[str, float]  # by statistic


@dataclass(frozen=True)
class Expected:
    ratios: Ratios
    share: float  # of them, at least


@dataclass(frozen=True)
class Verdict:
    name: str
    kept: float  # the larger share of the recorded ratio, of medians and of the fastest calls
    ratio: float
    recorded: float
    share: float

    @property
    def good(self) -> bool:
        return self.kept >= self.share

    def __str__(self) -> str:
        word = "ok" if self.good else "SLOWER"
        return f"{word:6} {self.name:54} {self.ratio:6.2f}x, recorded {self.recorded:6.2f}x ({self.kept:.2f})"


def ratios_of(case: Case) -> Ratios:
    return {s: case.ratio(EAGER, compiled=False, statistic=s) for s in STATISTICS}


def compare(expected: Expected, case: Case) -> Verdict:
    found = ratios_of(case)
    best = max(STATISTICS, key=lambda s: found[s] / expected.ratios[s])
    before, now = expected.ratios[best], found[best]
    return Verdict(case.workload["name"], now / before, now, before, expected.share)


def expectations(entries: dict[str, dict], processor: str) -> dict[str, Expected]:
    """By workload: this processor's own ratios or, where it has none, the lowest of the others."""
    own = entries.get(processor, {"ratios": {}})["ratios"]
    found = {name: Expected(own[name], SAME) for name in WORKLOADS if name in own}
    for name in WORKLOADS:
        others = [entry["ratios"][name] for entry in entries.values() if name in entry["ratios"]]
        if name not in found and others:
            found[name] = Expected({s: min(ratios[s] for ratios in others) for s in STATISTICS}, OTHER)
    return found


def run(names: Sequence[str], seconds: float) -> dict[str, Case]:
    """Measures these workloads, on their first kind of inputs. Raises RuntimeError where results disagree or the
    measuring process fails."""
    jobs = [workload(name) for name in names]
    report = Report(jobs)
    entries = [
        {
            "workload": job.name,
            "inputs": [job.inputs[0]],
            "methods": [m.name for m in job.methods if not m.compiled and m.role in ("fused", *EAGER)],
            "check": True,
        }
        for job in jobs
    ]
    request = {
        "task": "time",
        "threads": min(THREADS, os.cpu_count() or 1),
        "instruction_set": INSTRUCTION_SET,
        "seconds": seconds,
        "rates": False,
        "jobs": entries,
    }
    collect(report, events(request, JUDGED), JUDGED, lambda text: None)
    wrong = [*report.failures, *(f"{d['workload']}, {d['method']}: {d['text']}" for d in report.disagreements)]
    if wrong:
        raise RuntimeError("\n".join(wrong))
    return {case.workload["name"]: case for case in cases(report.as_dict())}


def check(expected: dict[str, Expected]) -> list[Verdict]:
    """A verdict for each workload, after as many attempts as it takes or there are."""
    verdicts: dict[str, Verdict] = {}
    for seconds in SECONDS:
        names = [name for name in expected if name not in verdicts or not verdicts[name].good]
        if not names:
            break
        for name, case in run(names, seconds).items():
            verdict = compare(expected[name], case)
            verdicts[name] = max(verdict, verdicts.get(name, verdict), key=lambda v: v.kept)
    return list(verdicts.values())


def record(entries: dict[str, dict], here: dict) -> None:
    """Measures the entry of this processor and writes the file."""
    found = run(WORKLOADS, SECONDS[-1])
    ratios = {name: {s: round(r, 3) for s, r in ratios_of(case).items()} for name, case in found.items()}
    entry = {key: here[key] for key in ("commit", "torch", "date")} | {"ratios": ratios}
    text = json.dumps(dict(sorted((entries | {here["processor"]: entry}).items())), indent=1)
    (RESULTS / f"{NAME}.json").write_text(text + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the ratios of this processor, to be compared with")
    args = parser.parse_args(argv)
    entries, here = load(NAME) or {}, measure.provenance()
    # With fewer cores the ratios are others.
    known = here["processor"] if (os.cpu_count() or 1) >= THREADS else "another"
    expected = expectations(entries, known)
    missing = [name for name in WORKLOADS if name not in expected]
    try:
        measure.restrict(INSTRUCTION_SET)
        if args.record:
            record(entries, here)
            return 0
        if missing:
            print(f"bench-check: {NAME}.json has no {', '.join(missing)}: --record adds them", file=sys.stderr)
            return 2
        if any(e.share == OTHER for e in expected.values()):
            print(
                f"bench-check: nothing is recorded of {here['processor']} with {os.cpu_count()} cores: "
                f"what falls below {OTHER} of the lowest ratio of {'; '.join(entries)} fails"
            )
        verdicts = check(expected)
    except (RuntimeError, ValueError, ImportError) as error:
        print(f"bench-check: {error}", file=sys.stderr)
        return 1
    print("\n".join(map(str, verdicts)))
    return 0 if all(v.good for v in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
