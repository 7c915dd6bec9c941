"""The pictures of the report. Hatches, markers and line styles carry what is said: they read in black and white."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.cases import ALL, Case, bandwidth

MARKERS = "os^Dv<>P*Xhp"
STYLES = ["-", "--", ":", "-."]


def _write(figure: plt.Figure, file: Path) -> None:
    # Without a date and a version the same data make the same bytes.
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


def speed_ups(found: Sequence[Case], file: Path) -> None:
    """One pair of bars per workload, on its first kind of inputs: the usual rivals, and all of them."""
    shown = {case.workload["name"]: case for case in reversed(found)}  # the first kind of each, from below upwards
    figure, axes = plt.subplots(figsize=(9, 0.34 * len(shown) + 1.1))
    for i, case in enumerate(shown.values()):
        usual, all_of_them = case.ratio(), case.ratio(ALL)
        axes.barh(
            i + 0.2,
            usual - 1,
            0.36,
            left=1,
            color="0.25",
            label="the best of eager and torch.compile" if i == 0 else None,
        )
        axes.barh(
            i - 0.2,
            all_of_them - 1,
            0.36,
            left=1,
            color="white",
            edgecolor="0.25",
            hatch="////",
            label="the best of all, engines and rewritten ones too" if i == 0 else None,
        )
        axes.text(max(usual, all_of_them, 1) * 1.05, i, f"{all_of_them:.3g}", va="center", fontsize=8)
    axes.axvline(1, color="black", lw=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(shown)), [case.title.replace("`", "") for case in shown.values()], fontsize=8)
    axes.set_xlabel("time of the rival / time of the fused operator")
    axes.set_ylim(-0.6, len(shown) - 0.4)
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ends = [case.ratio(roles) for case in shown.values() for roles in (("rival",), ALL)]
    axes.set_xlim(min(0.5, *ends), 2 * max(ends))
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=2, frameon=False, fontsize=8)
    figure.tight_layout()
    _write(figure, file)


def roofline(found: Sequence[Case], file: Path) -> None:
    """Operations per byte against operations per second, below what the machine copies and computes."""
    counted = [case for case in found if case.computing and case.copying]
    rates = counted[0].rates
    figure, axes = plt.subplots(figsize=(8, 5))
    operators = list(dict.fromkeys(case.workload["operator"] for case in counted))
    for case in counted:
        i = operators.index(case.workload["operator"])
        operations, traffic = case.workload["operations"], case.workload["traffic_bytes"]
        first = case is next(c for c in counted if c.workload["operator"] == operators[i])
        axes.plot(
            operations / traffic,
            operations / case.fused() / 1e6,
            MARKERS[i % len(MARKERS)],
            color="black",
            mfc="none" if i % 2 else "0.6",
            ms=7,
            label=operators[i] if first else None,
        )
    intensity = [case.workload["operations"] / case.workload["traffic_bytes"] for case in counted]
    ends = [min(intensity) / 2, max(intensity) * 2]
    top = rates["multiply_adds_per_second"] / 1e9
    sizes = sorted(rates["copy_bytes_per_second"], key=int)
    for size, style in ((sizes[0], "--"), (sizes[-1], "-")):
        slope = bandwidth(rates, int(size)) / 1e9
        xs = [ends[0], top / slope, ends[1]] if top / slope > ends[0] else ends
        label = f"copies of {int(size) >> 20} MiB: {slope:.3g} GB/s; products: {top:.3g} G/s"
        axes.plot(xs, [min(top, x * slope) for x in xs], style, color="black", lw=1, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("vector operations per byte that must move")
    axes.set_ylabel("10⁹ vector operations per second (lanes)")
    axes.grid(True, which="major", alpha=0.25)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    figure.tight_layout()
    _write(figure, file)


def sizes(lines: Sequence[dict], file: Path) -> None:
    """The sweep: time per output value over classes, sides and strides, on one thread."""
    axes = list(dict.fromkeys(line["axis"] for line in lines))
    operators = list(dict.fromkeys(line["operator"] for line in lines))
    figure, panels = plt.subplots(1, len(axes), figsize=(15, 6), sharey=True, squeeze=False)
    for panel, axis in zip(panels[0], axes, strict=True):
        for line in lines:
            if (line["axis"], line["threads"], line.get("layout", "contiguous")) == (axis, 1, "contiguous"):
                i = operators.index(line["operator"])
                panel.loglog(
                    line["values"],
                    line["ns_per_output"],
                    STYLES[i % 4],
                    marker=MARKERS[i % len(MARKERS)],
                    markevery=4,
                    ms=4,
                    lw=1.2,
                    color=f"C{i % 10}",
                    label=line["operator"],
                )
        panel.set_xlabel(axis)
        panel.grid(True, which="both", alpha=0.25)
    panels[0][0].set_ylabel("nanoseconds per output value, one thread")
    handles = {name: h for p in panels[0] for h, name in zip(*p.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=5, frameon=False)
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    _write(figure, file)


def scaling(data: dict, file: Path) -> None:
    """Milliseconds of the fused operators and of eager PyTorch over each axis, and memory over classes."""
    axes = list(data["lines"])
    figure, panels = plt.subplots(1, len(axes), figsize=(3.4 * len(axes), 4.2), squeeze=False)
    for panel, axis in zip(panels[0], axes, strict=True):
        for i, (operator, methods) in enumerate(data["lines"][axis].items()):
            for method, points in methods.items():
                panel.loglog(
                    [value for value, _ in points],
                    [number for _, number in points],
                    "-" if method == "fused" else "--",
                    marker=MARKERS[i],
                    ms=4,
                    color="black",
                    mfc="0.6" if method == "fused" else "white",
                    lw=1,
                    label=f"{operator}, {method}",
                )
        panel.set_title("MB beyond the inputs" if axis.startswith("memory") else "milliseconds", fontsize=9)
        panel.set_xlabel(axis.removeprefix("memory over "))
        panel.grid(True, which="major", alpha=0.25)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
    handles = {name: h for p in panels[0] for h, name in zip(*p.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=3, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    _write(figure, file)
