"""Whether the fused operators still stand to their rivals as in the committed results.

    python -m benchmarks.check        # or: make bench-check; less than a minute

A short run with the threads and the instruction set of results/cpu-avx2.json. Only ratios are compared: the best of the
eager rivals over the fused method, of medians and of the fastest calls, as other work on the machine disturbs the one
or the other. A case that has lost more than a quarter of both is measured again, longer; one that stays below fails.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.cases import ALL, Case, cases, load
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
KEPT = 0.75  # of the committed ratio
SECONDS = (0.8, 2.5, 5.0)  # per case, of the first attempt and of those that follow


@dataclass(frozen=True)
class Verdict:
    key: tuple[str, str]
    kept: float  # the larger share of the committed ratio, of medians and of the fastest calls
    ratio: float
    committed: float

    @property
    def good(self) -> bool:
        return self.kept >= KEPT

    def __str__(self) -> str:
        word = "ok" if self.good else "SLOWER"
        return (
            f"{word:6} {', '.join(self.key):66} {self.ratio:6.2f}x, committed {self.committed:6.2f}x ({self.kept:.2f})"
        )


def compare(committed: Case, measured: Case) -> Verdict:
    """Of the rivals that both have measured: the share of the committed ratio that is left."""
    both = committed.times.keys() & measured.times.keys()
    ratios = {
        statistic: [
            Case(c.workload, c.inputs, {m: t for m, t in c.times.items() if m in both}, None).ratio(
                ALL, compiled=False, statistic=statistic
            )
            for c in (committed, measured)
        ]
        for statistic in ("median", "fastest")
    }
    before, now = max(ratios.values(), key=lambda pair: pair[1] / pair[0])
    return Verdict(committed.key, now / before, now, before)


def run(keys: Sequence[tuple[str, str]], provenance: dict, seconds: float) -> dict[tuple[str, str], Case]:
    """Measures these cases. Raises RuntimeError where results disagree or the measuring process fails."""
    jobs = [workload(name) for name, _ in keys]
    report = Report(jobs)
    entries = [
        {
            "workload": job.name,
            "inputs": [inputs],
            "methods": [m.name for m in job.methods if not m.compiled and m.role != "yardstick"],
            "check": True,
        }
        for job, (_, inputs) in zip(jobs, keys, strict=True)
    ]
    request = {
        "task": "time",
        "threads": min(provenance["threads"], os.cpu_count() or 1),
        "instruction_set": provenance["instruction_set"],
        "seconds": seconds,
        "rates": False,
        "jobs": entries,
    }
    collect(report, events(request, JUDGED), JUDGED, lambda text: None)
    wrong = [*report.failures, *(f"{d['workload']}, {d['method']}: {d['text']}" for d in report.disagreements)]
    if wrong:
        raise RuntimeError("\n".join(wrong))
    return {case.key: case for case in cases(report.as_dict())}


def check(committed: dict[tuple[str, str], Case], provenance: dict) -> list[Verdict]:
    """A verdict for each case, after as many attempts as it takes or there are."""
    verdicts: dict[tuple[str, str], Verdict] = {}
    for seconds in SECONDS:
        keys = [key for key in committed if key not in verdicts or not verdicts[key].good]
        if not keys:
            break
        for key, case in run(keys, provenance, seconds).items():
            verdict = compare(committed[key], case)
            verdicts[key] = max(verdict, verdicts.get(key, verdict), key=lambda v: v.kept)
    return list(verdicts.values())


def main() -> int:
    data = load("cpu-avx2")
    if data is None:
        print("bench-check: results/cpu-avx2.json is not there", file=sys.stderr)
        return 2
    first: dict[str, Case] = {}
    for case in cases(data):
        first.setdefault(case.workload["name"], case)
    missing = [name for name in WORKLOADS if name not in first]
    if missing:
        print(f"bench-check: results/cpu-avx2.json has no {', '.join(missing)}", file=sys.stderr)
        return 2
    provenance = data["provenance"]
    here = measure.provenance()
    if here["processor"] != provenance["processor"] or here["cores"] != provenance["cores"]:
        there = f"{provenance['processor']} with {provenance['cores']} cores"
        print(f"bench-check: the committed ratios are those of another machine, {there}: read the verdicts with care")
    try:
        measure.restrict(provenance["instruction_set"])
        verdicts = check({first[name].key: first[name] for name in WORKLOADS}, provenance)
    except (RuntimeError, ValueError, ImportError) as error:
        print(f"bench-check: {error}", file=sys.stderr)
        return 1
    print("\n".join(map(str, verdicts)))
    return 0 if all(v.good for v in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
