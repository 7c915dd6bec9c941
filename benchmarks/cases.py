"""Results of `fcn-kernels bench --json`, case by case: one workload on one kind of inputs."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fcn_kernels.benchmarking.report import ALL, JUDGED

__all__ = ["ALL", "RESULTS", "ROOT", "Case", "bandwidth", "cases", "load"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"


def load(name: str) -> dict | None:
    """results/NAME.json, or None where nobody has measured it."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


@dataclass(frozen=True)
class Case:
    workload: dict
    inputs: str
    times: dict[str, dict[str, float]]  # method -> timing, milliseconds
    rates: dict | None  # of the machine, see `measure.rates`

    @property
    def title(self) -> str:
        return f"`{self.workload['operator']}` {self.workload['title']}"

    @property
    def key(self) -> tuple[str, str]:
        return self.workload["name"], self.inputs

    def fused(self, statistic: str = "median") -> float:
        return self.times["fused"][statistic]

    def best(
        self, roles: tuple[str, ...], *, compiled: bool = True, statistic: str = "median"
    ) -> tuple[str, float] | None:
        """The fastest method of these roles and its milliseconds."""
        found = [
            (self.times[method][statistic], method)
            for method, role in self.workload["roles"].items()
            if role in roles and method in self.times and (compiled or not method.startswith("torch.compile"))
        ]
        return min(found)[::-1] if found else None

    def ratio(
        self, roles: tuple[str, ...] = ("rival",), *, compiled: bool = True, statistic: str = "median"
    ) -> float | None:
        """How many times as long the best of these roles takes as the fused method."""
        best = self.best(roles, compiled=compiled, statistic=statistic)
        return best[1] / self.fused(statistic) if best else None

    @property
    def copying(self) -> float | None:
        """Milliseconds of a copy that moves as many bytes as the fused operator must."""
        traffic = self.workload.get("traffic_bytes")
        if not self.rates or not traffic:
            return None
        return 1e3 * traffic / bandwidth(self.rates, traffic)

    @property
    def computing(self) -> float | None:
        """Milliseconds of as many multiply-adds of a matrix product as the operator has vector operations."""
        operations = self.workload.get("operations")
        if not self.rates or not operations:
            return None
        return 1e3 * operations / self.rates["multiply_adds_per_second"]

    @property
    def floor(self) -> float | None:
        return max(filter(None, (self.copying, self.computing)), default=None)


def bandwidth(rates: dict, traffic: float) -> float:
    """Bytes per second of a copy of this size, between the sizes that were measured."""
    points = sorted((float(size), rate) for size, rate in rates["copy_bytes_per_second"].items())
    if traffic <= points[0][0]:
        return points[0][1]
    for (small, a), (large, b) in itertools.pairwise(points):
        if traffic <= large:
            return a + (b - a) * math.log(traffic / small) / math.log(large / small)
    return points[-1][1]


def cases(data: dict, regime: str = JUDGED) -> Iterator[Case]:
    """Every case timed in a regime of malloc (see `measure.REGIMES`).

    A rival that ran on the first kind of inputs only counts for all: its speed ignores values.
    """
    for workload in data["workloads"]:
        kinds = workload["milliseconds"].get(regime, {})
        for inputs, times in kinds.items():
            everyone = {**next(iter(kinds.values())), **times}
            if "fused" in everyone:
                yield Case(workload, inputs, everyone, data["provenance"].get("rates"))
