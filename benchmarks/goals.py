"""The goals of the project, each with what was measured and, where there is one, the floor: from the committed results.

Goals of workloads stand beside their workloads (`Goal`); those of other measurements here.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.cases import Case, cases, load


def number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


@dataclass(frozen=True)
class Row:
    """`measured` is None where nobody has measured it."""

    what: str
    goal: str
    measured: str | None
    reached: bool = False
    floor: str = ""

    @property
    def cells(self) -> list[str]:
        if self.measured is None:
            return [self.what, self.goal, "not yet measured", self.floor]
        return [self.what, self.goal, self.measured if self.reached else f"**{self.measured}**", self.floor]


def of_workloads(data: dict) -> Iterator[Row]:
    timed: dict[tuple[str, str], Case] = {case.key: case for case in cases(data)}
    for workload in data["workloads"]:
        for goal in workload["goals"]:
            case = timed.get((workload["name"], goal["inputs"]))
            what = f"`{workload['operator']}` {workload['title']}, {goal['inputs']}"
            value, measured, floor = goal["goal"], goal["measured"], ""
            match goal["measure"]:
                case "memory":
                    asked, shown = f"at most {number(value / 1e6)} MB", lambda v: f"{number(v / 1e6)} MB"
                case "time":
                    asked, shown = f"at most {number(value)}x the time of {goal['against']}", lambda v: f"{number(v)}x"
                case _:
                    asked, shown = f"at least {number(value)}x", lambda v: f"{number(v)}x"
                    best = case and case.best(("rival",))
                    if best and case.floor:
                        floor = f"{number(case.floor)} ms: {number(best[1] / case.floor)}x"
            yield Row(what, asked, None if measured is None else shown(measured), bool(goal["reached"]), floor)


def of_scores(data: dict | None) -> Iterator[Row]:
    found = [] if data is None else [c for c in cases(data) if c.workload["name"].startswith("score_softmax-")]
    ratios = [ratio for c in found if "-c1000-" not in c.workload["name"] and (ratio := c.ratio())]
    middle = statistics.median(ratios) if ratios else None
    what = f"`score_softmax`, the median of {len(ratios) or 'all'} shapes with 19 to 150 classes"
    yield Row(what, "at least 1.2x", f"{number(middle)}x" if middle else None, bool(middle and middle >= 1.2))


def of_one_thread(two: dict, one: dict | None) -> Iterator[Row]:
    """The speed of one thread beside that of two, of every timed case."""
    alone = {} if one is None else {case.key: case.fused() for case in cases(one)}
    shares = {c.key: c.fused() / alone[c.key] for c in cases(two) if c.key in alone}
    worst = min(shares, key=shares.get, default=None)
    measured = None if worst is None else f"{number(shares[worst])} ({', '.join(worst)})"
    yield Row(
        "one thread beside two, the worst case", "at least 0.45", measured, bool(shares) and shares[worst] >= 0.45
    )


def of_sweep(data: dict | None) -> Iterator[Row]:
    from benchmarks.sweep import LIMIT, worst_step

    worst: dict[str, tuple] = {}
    for line in [] if data is None else data["lines"]:
        found = (*worst_step(line), line["axis"])
        layout = line.get("layout", "contiguous")
        key = f"`{line['operator']}`" + ("" if layout == "contiguous" else f" in {layout}")
        worst[key] = max(worst.get(key, found), found)
    for operator, (ratio, a, b, axis) in worst.items():
        what = f"{operator}: time per output between neighbouring sizes, the largest step"
        measured = f"{number(ratio)}x ({axis} {number(a)}, {number(b)})"
        yield Row(what, f"at most {number(LIMIT)}x", measured, ratio <= LIMIT)


def of_networks(data: dict | None) -> Iterator[Row]:
    data = data or {}
    agreement = data.get("agreement")
    error = agreement and max(row["error"] for row in agreement)
    lead = agreement and max(row["their lead"] for row in agreement)
    yield Row(
        "FCN-8s against eager PyTorch with its weights, all sizes: logits, and two labels' lead where they differ",
        "at most 1e-5 of the largest logit",
        f"{error:.1g}, {lead:.1g}" if agreement else None,
        bool(agreement and max(error, lead) <= 1e-5),
    )
    heads, sliding = data.get("head"), data.get("sliding")
    share = heads and heads["fused share"]
    yield Row(
        "FCN-8s at 500x500: all that follows the three score maps, as a share of the forward pass",
        "at most 5%",
        f"{100 * share:.2g}% (eager {100 * heads['eager share']:.2g}%)" if share else None,
        bool(share and share <= 0.05),
    )
    one, batch = (sliding and sliding[f"ratio to {k}"] for k in ("one by one", "one batch"))
    yield Row(
        "AlexNet, convolutionalized, against sliding it over 10x10 windows, one by one (the paper's comparison) "
        "and in one batch",
        "at least 5x",
        f"{number(one)}x (in one batch {number(batch)}x)" if sliding else None,
        bool(sliding and min(one, batch) >= 5),
    )
    for row in data.get("memory", ()):
        saved = row["eager"] - row["fused"]
        yield Row(
            f"FCN-8s, {row['widths']} widths, memory of a training step at 500x500 below eager's",
            f"at least {number(row['four tensors'])} MB",
            f"{number(saved)} MB",
            saved >= row["four tensors"],
        )


GPU = (  # as benchmarks/gpu_operators.py knows them in full
    ("`upsample`, `upsample_add`, both directions, maps of 100 MB and more", "at least 90% of copy bandwidth"),
    ("`upsample_softmax`", "at least 85% of copy bandwidth"),
    ("`upsample_cross_entropy` N=8 C=150, 128 -> 512", "at least 25x eager, 10x `torch.compile`; below 100 MB"),
    ("`upsample_cross_entropy` N=16 C=21, 64 -> 512", "at least 20x eager, 8x `torch.compile`"),
    ("`upsample_cross_entropy` N=4 C=19, 128x256 -> 1024x2048 bfloat16", "at least 20x eager, 8x `torch.compile`"),
    ("`upsample_argmax`, the same maps", "at least 20x eager, 5x `torch.compile`"),
    ("`score_softmax` K=4096 C=21, 16x16 to 128x128, batch 1 to 32", "at least 1.5x eager and 1x the fastest rival"),
    ("FCN-8s head after the scores, 500x500, CUDA graph", "at most 3x the latency of its launches"),
)


def of_gpu(data: dict | None) -> Iterator[Row]:
    if data is None:
        yield from (Row(what, goal, None) for what, goal in GPU)
        return
    for row in data["rows"]:
        for goal in row["goals"]:
            value, measured = goal["goal"], goal["measured"]
            match goal["against"]:
                case "memory":
                    asked, shown = f"at most {number(value / 1e6)} MB", lambda v: f"{number(v / 1e6)} MB"
                case "copy":
                    asked, shown = f"at least {value:.0%} of copy bandwidth", lambda v: f"{v:.0%}"
                case "launches":
                    asked, shown = f"at most {number(value)}x the latency of its launches", lambda v: f"{number(v)}x"
                case rival:
                    who = "the fastest rival" if rival == "rivals" else f"`{rival}`"
                    asked, shown = f"at least {number(value)}x {who}", lambda v: f"{number(v)}x"
            floor = f"{number(row['floor_ms'])} ms" if "floor_ms" in row else ""
            text = None if measured is None else shown(measured)
            yield Row(f"`{row['operator']}` {row['title']}", asked, text, bool(goal["reached"]), floor)


def of_drop_in(data: dict | None) -> Iterator[Row]:
    from benchmarks.drop_in import GOALS, TITLES

    found = {(row["model"], row["step"]): row for row in (data or {"rows": []})["rows"]}
    for key, (least, most) in GOALS.items():
        row = found.get(key)
        ratio = row and row["speed_up"]
        yield Row(
            TITLES[key],
            f"at least {number(least)}x",
            f"{number(ratio)}x" if row else None,
            bool(row and ratio >= least),
        )
        if most is not None:
            share = row and row["peak_bytes"]["fused"] / row["peak_bytes"]["library"]
            measured = f"{number(100 * share)}%" if row else None
            yield Row(
                f"{TITLES[key]}: peak memory", f"at most {number(100 * most)}%", measured, bool(row and share <= most)
            )
    leads = [row["their_lead"] for row in found.values() if "their_lead" in row]
    what = "label maps before and after, all models: the lead of two labels where they differ"
    yield Row(what, "at most 1e-5", f"{max(leads):.1g}" if leads else None, bool(leads) and max(leads) <= 1e-5)


def of_story(data: dict | None) -> Iterator[Row]:
    for seed, found in (data or {"seeds": {}})["seeds"].items():
        coarse, middle, fine = (100 * found[name]["mean_iu"] for name in ("fcn32s", "fcn16s", "fcn8s"))
        yield Row(
            f"mean IU of FCN-32s, 16s and 8s on scenes of digits, seed {seed}",
            "rising; 8s at least 60, and 10 above 32s",
            f"{coarse:.1f}, {middle:.1f}, {fine:.1f}",
            coarse < middle < fine and fine >= 60 and fine >= coarse + 10,
        )


def of_overhead(data: dict | None) -> Iterator[Row]:
    for name, ratio in ({} if data is None else data["training ratios"]).items():
        what = f"`{name}`, eager forward + backward at 2x2 -> 4x4 against the native calls"
        yield Row(what, "at most 1.5x", f"{number(ratio)}x", ratio <= 1.5)


def rows(bench: dict) -> dict[str, list[Row]]:
    """All goals by section."""
    scores = load("cpu-avx2-scores")
    every = {(row.what, row.goal): row for data in (bench, scores) if data for row in of_workloads(data)}
    return {
        "Operators": [*every.values(), *of_scores(scores)],
        "Threads and sizes": [*of_one_thread(bench, load("cpu-avx2-1thread")), *of_sweep(load("sweep-avx2"))],
        "Overhead": [*of_overhead(load("overhead"))],
        "Networks": [*of_networks(load("fcn8s")), *of_story(load("story"))],
        "Other people's models": [*of_drop_in(load("drop-in"))],
        "On a GPU": [*of_gpu(load("gpu/operators"))],
    }
