"""What was measured, as data, and the table made of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fcn_kernels.benchmarking.measure import Timing
from fcn_kernels.benchmarking.workload import Goal, Workload

JUDGED = "recycling"  # the malloc regime that goals are judged in
ALL = ("rival", "tuned", "engine")  # the roles of those that do the same job
DISTURBED = 0.05  # of the time, or of the rounds: what may be disturbed before it is worth a remark


@dataclass
class Report:
    """Everything measured so far. Keys: timings (workload, regime, inputs, method), peaks (workload, method)."""

    jobs: list[Workload]
    provenance: dict[str, object] = field(default_factory=dict)
    timings: dict[tuple[str, str, str, str], Timing] = field(default_factory=dict)
    peaks: dict[tuple[str, str], int] = field(default_factory=dict)
    # workload -> share of the time waited for a processor (None: not known), share of slow rounds, rounds repeated
    disturbance: dict[str, dict[str, float | None]] = field(default_factory=dict)
    disagreements: list[dict[str, str]] = field(default_factory=list)
    unavailable: list[dict[str, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def timing(self, job: Workload, inputs: str, method: str, regime: str = JUDGED) -> Timing | None:
        """Of these inputs or, for a rival that ran on the first kind only, of those: its speed ignores the values."""
        found = self.timings.get((job.name, regime, inputs, method))
        if found is None and job.method(method).role != "fused":
            found = self.timings.get((job.name, regime, job.inputs[0], method))
        return found

    def best(
        self, job: Workload, inputs: str, roles: tuple[str, ...] = ("rival",), regime: str = JUDGED
    ) -> tuple[str, Timing] | None:
        """The fastest method of these roles."""
        found = [(m.name, self.timing(job, inputs, m.name, regime)) for m in job.methods if m.role in roles]
        found = [(name, timing) for name, timing in found if timing is not None]
        return min(found, key=lambda pair: pair[1].median, default=None)

    def speed_up(
        self, job: Workload, inputs: str, roles: tuple[str, ...] = ("rival",), regime: str = JUDGED
    ) -> float | None:
        fused, best = self.timing(job, inputs, "fused", regime), self.best(job, inputs, roles, regime)
        return best[1].median / fused.median if fused and best else None

    def measured(self, job: Workload, goal: Goal) -> float | None:
        """The number that a goal is about, if it was measured."""
        if goal.measure == "memory":
            return self.peaks.get((job.name, "fused"))
        if goal.measure == "speed-up":
            return self.speed_up(job, goal.inputs)
        fused = self.timing(job, goal.inputs, "fused")
        if goal.against in job.inputs:
            other = self.timing(job, goal.against, "fused")
        else:
            other = self.timing(job, goal.inputs, goal.against)
        return fused.median / other.median if fused and other else None

    def reached(self, job: Workload, goal: Goal) -> bool | None:
        value = self.measured(job, goal)
        if value is None:
            return None
        return value >= goal.value if goal.measure == "speed-up" else value <= goal.value

    def as_dict(self) -> dict[str, object]:
        workloads = []
        for job in self.jobs:
            timings: dict = {}
            disturbance = self.disturbance.get(job.name, {})
            for (name, regime, inputs, method), timing in self.timings.items():
                if name == job.name:
                    timings.setdefault(regime, {}).setdefault(inputs, {})[method] = timing.as_dict()
            goals = [
                {
                    "measure": goal.measure,
                    "inputs": goal.inputs,
                    **({"against": goal.against} if goal.against else {}),
                    "goal": goal.value,
                    "measured": self.measured(job, goal),
                    "reached": self.reached(job, goal),
                }
                for goal in job.goals
            ]
            workloads.append(
                {
                    "name": job.name,
                    "operator": job.operator,
                    "title": job.title,
                    "roles": {m.name: m.role for m in job.methods},
                    "traffic_bytes": job.traffic,
                    "operations": job.operations,
                    "milliseconds": timings,
                    "peak_bytes": {m: p for (name, m), p in self.peaks.items() if name == job.name},
                    "waited_for_a_processor": disturbance.get("waited"),
                    "slow_rounds": disturbance.get("slow"),
                    "repeated_rounds": disturbance.get("repeated"),
                    "goals": goals,
                }
            )
        return {
            "provenance": self.provenance,
            "workloads": workloads,
            "disagreements": self.disagreements,
            "unavailable": self.unavailable,
            "failures": self.failures,
        }


# --- the table ---

_COLUMNS = (
    ("inputs", 14),
    ("fused ms", 14),
    ("eager", 8),
    ("compile", 8),
    ("tuned", 8),
    ("engine", 8),
    ("speed-up", 9),
    ("(all)", 9),
    ("default malloc", 16),
    ("peak MB: fused", 15),
    ("best", 7),
    ("", 0),
)
_LEGEND = """\
Milliseconds, medians of interleaved calls, ± half the interquartile range; malloc keeps freed memory.
eager: best of PyTorch's usual formulations; compile: best of its modes; tuned: the same job rewritten for speed
(channels last, max for argmax); engine: best of the inference engines that are installed, which no --instruction-set
holds back. speed-up: best of eager and torch.compile / fused; (all): tuned and engines among the rivals.
default malloc: the fused time and its speed-up when large blocks go back to the kernel. Peak: beyond the inputs,
gradients included, of the fused operator and of its best rival."""


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if value >= 100 or value == 0:
        return f"{value:.0f}"
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:.{min(digits, 3)}f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{_number(value)}x"


def _goal_text(report: Report, job: Workload, goal: Goal) -> str:
    value, reached = report.measured(job, goal), report.reached(job, goal)
    if value is None:
        return ""
    verdict = "reached" if reached else "below" if goal.measure == "speed-up" else "above"
    if goal.measure == "speed-up":
        return f"goal {_number(goal.value)}x: {verdict}"
    if goal.measure == "memory":
        return f"goal {goal.value / 1e6:.0f} MB: {verdict}"
    return f"{value:.2f}x the time of {goal.against}, at most {goal.value}: {verdict}"


def _row(report: Report, job: Workload, inputs: str) -> list[str]:
    fused = report.timing(job, inputs, "fused")

    def best(role: str, compiled: bool = False) -> str:
        found = (
            report.timings.get((job.name, JUDGED, inputs, m.name))
            for m in job.methods
            if (m.role, m.compiled) == (role, compiled)
        )
        return _number(min((t.median for t in found if t), default=None))

    default = report.timing(job, inputs, "fused", "default")
    first = inputs == job.inputs[0]
    rivals = {m: peak for (name, m), peak in report.peaks.items() if name == job.name and m != "fused"}
    rival = report.best(job, inputs)
    rival_peak = rivals.get(rival[0]) if rival and rival[0] in rivals else min(rivals.values(), default=None)
    fused_peak = report.peaks.get((job.name, "fused"))
    against_all = report.speed_up(job, inputs, ALL)
    goals = "; ".join(filter(None, (_goal_text(report, job, goal) for goal in job.goals if goal.inputs == inputs)))
    return [
        inputs,
        f"{_number(fused.median)} ±{100 * fused.spread:.0f}%" if fused else "",
        best("rival"),
        best("rival", compiled=True),
        best("tuned"),
        best("engine"),
        _ratio(report.speed_up(job, inputs)),
        f"({_ratio(against_all)})" if any(m.role in ALL[1:] for m in job.methods) else "",
        f"{_number(default.median)}, {_ratio(report.speed_up(job, inputs, regime='default'))}" if default else "",
        _number(fused_peak / 1e6) if first and fused_peak is not None else "",
        _number(rival_peak / 1e6) if first and rival_peak is not None else "",
        goals,
    ]


def table(report: Report) -> str:
    lines = []
    where = report.provenance
    if where:
        lines.append(
            f"{where['processor']}, {where['threads']} threads; "
            f"torch {where['torch']} ({where['torch_instruction_set']}); "
            f"fcn_kernels {where['fcn_kernels']} at {where['commit'] or 'no commit'} ({where['instruction_set']})"
        )
    lines += ["", "".join(f"{title:>{width}}" if width else title for title, width in _COLUMNS).rstrip()]
    operator = None
    for job in report.jobs:
        if job.operator != operator:
            operator = job.operator
            lines.append(operator)
        lines.append(f"  {job.title}   [{job.name}]")
        wrong = [d for d in report.disagreements if d["workload"] == job.name]
        for inputs in job.inputs:
            cells = _row(report, job, inputs)
            lines.append(
                "".join(
                    f"{cell:>{width}}" if width else f"  {cell}"
                    for cell, (_, width) in zip(cells, _COLUMNS, strict=True)
                ).rstrip()
            )
            for d in wrong:
                if d["inputs"] == inputs:
                    lines.append(f"    DISAGREES: {d['method']}: {d['text']}")
    lines += ["", _LEGEND, ""]
    for what, reason in (
        ("waited", "threads waited for a processor, for up to {most:.0f}% of the time: if other work took it,"),
        ("slow", "the machine itself was slow in up to {most:.0f}% of the rounds:"),
    ):
        shares = [d[what] for d in report.disturbance.values() if (d[what] or 0) > DISTURBED]
        if shares:
            begin = f"NOTE: in {len(shares)} of {len(report.disturbance)} workloads "
            lines.append(begin + reason.format(most=100 * max(shares)) + " ratios are unreliable.")
    for entry in report.unavailable:
        lines.append(f"not measured: {entry['workload']}, {entry['method']}: {entry['reason']}")
    lines += [f"FAILED: {text}" for text in report.failures]
    judged = [r for job in report.jobs for goal in job.goals if (r := report.reached(job, goal)) is not None]
    if judged:
        lines.append(f"goals: {sum(judged)} of {len(judged)} reached")
    if report.disagreements:
        lines.append(f"agreement: {len(report.disagreements)} results DISAGREE")
    elif report.timings:
        lines.append("agreement: losses, gradients, probabilities and labels of all methods agree")
    return "\n".join(lines)
