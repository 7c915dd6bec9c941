"""Tables and pictures of README.md and docs/performance.md, from the committed results.

    python -m benchmarks.report        # or: make report

Reads results/cpu-avx2.json (all workloads) and, where they are there: cpu-avx2-scores.json (every score convolution),
cpu-avx2-grid.json (every operator in both directions and all dtypes), cpu-avx2-1thread.json, cpu-avx512.json,
cpu-avx512-scores.json, sweep-avx2.json, crossings-avx2.json, scaling.json, overhead.json, end-to-end.json,
low-precision.json, fcn8s.json, story.json, drop-in.json, and what gpu.sh leaves in gpu/.
docs/performance.md says which command writes which. Ends with 1 if a loss has no reason in losses.json.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from benchmarks import crossings, drop_in, goals, low_precision
from benchmarks.cases import ALL, ROOT, Case, cases, load
from benchmarks.goals import number
from benchmarks.tables import markdown
from fcn_kernels.benchmarking.report import DISTURBED

REASONS = Path(__file__).resolve().parent / "losses.json"


def provenance(data: dict) -> str:
    p = data["provenance"]
    threads = f"{p['threads']} thread{'s' * (p['threads'] != 1)}"
    took_part = {name for workload in data.get("workloads", ()) for name in workload["roles"]}
    engines = [f"{name} {version}" for name, version in p.get("engines", {}).items() if name in took_part]
    but = f" but {' and '.join(engines)}, which choose for themselves" if engines else ""
    held = f"{p['instruction_set'].upper()} for all{but}"
    return f"{p['processor']}, {threads}, {held}; torch {p['torch']}; commit {p['commit']}{disturbance(data)}"


def disturbance(data: dict) -> str:
    """In how many workloads the threads had to wait for a processor, or it was slow, where that is worth a remark."""
    remarks = []
    for key, what, of in (
        ("waited_for_a_processor", "threads waited for a processor for", "the time, for"),
        ("slow_rounds", "the machine itself was slow in", "the rounds, in"),
    ):
        shares = [w[key] for w in data.get("workloads", ()) if w.get(key) is not None]
        disturbed = [share for share in shares if share > DISTURBED]
        if disturbed:
            most = f"{100 * max(disturbed):.0f}% at most"
            remarks.append(
                f"; in {len(disturbed)} of {len(shares)} workloads {what} "
                f"more than {100 * DISTURBED:.0f}% of {of} {most}"
            )
    return "".join(remarks)


# --- the README's table ---


def _row(case: Case, plain: Case | None, first: bool) -> list[str]:
    """`plain` is the same case with malloc's defaults."""
    peaks = {m: number(b / 1e6) for m, b in case.workload["peak_bytes"].items()}
    compiled = [times["median"] for method, times in case.times.items() if method.startswith("torch.compile")]
    others = case.best(ALL[1:])
    engine = case.best(("engine",))
    return [
        case.title.replace("` ", "`<br>") if first else "",
        case.inputs,
        number(case.fused()),
        number(case.times["eager"]["median"]),
        number(min(compiled)) if compiled else "-",
        f"{number(engine[1])} ({engine[0]})" if engine else "-",
        f"**{number(case.ratio())}x**",
        f"{number(case.ratio(ALL))}x" if others else "-",
        f"{number(plain.ratio(ALL))}x" if plain and plain.best(ALL) else "-",
        f"{number(100 * case.floor / case.fused())}" if case.floor else "",
        f"{peaks['fused']} / {peaks.get('eager', '-')}" if first and peaks else "",
    ]


def everywhere(instruction_set: str) -> list[Case]:
    """The cases of all files whose methods are held to this; of a case that two files have, the lower ratio."""
    family: dict[tuple[str, str], Case] = {}
    for more in ("", "-scores", "-grid"):
        for case in cases(load(f"cpu-{instruction_set}{more}") or {"workloads": []}):
            known = family.get(case.key)
            if known is None or (case.ratio(ALL) or math.inf) < (known.ratio(ALL) or math.inf):
                family[case.key] = case
    return list(family.values())


def table(data: dict, family: Collection[Case]) -> list[str]:
    """`family`: also the cases that the table does not show."""
    titles = ["workload", "inputs", "fused", "eager", "compiled", "engine", "speed-up", "against all", "default malloc"]
    titles += ["% of floor", "peak MB, fused / eager"]
    found, rows, seen = list(cases(data)), [], set()
    plain = {case.key: case for case in cases(data, "default")}
    for case in found:
        rows.append(_row(case, plain.get(case.key), case.workload["name"] not in seen))
        seen.add(case.workload["name"])
    for workload in data["workloads"]:
        if workload["name"] not in seen and workload["peak_bytes"]:
            peaks = {m: number(b / 1e6) for m, b in workload["peak_bytes"].items()}
            name = f"`{workload['operator']}`<br>{workload['title']}"
            rows.append([name, *[""] * (len(titles) - 2), f"{peaks['fused']} / {peaks.get('eager', '-')}"])
    return [
        "![Time of the best rival over that of the fused operator](docs/speed-up.png)",
        "",
        f"{provenance(data)}. Milliseconds, medians of interleaved calls; forward and backward for losses.",
        "",
        *markdown(titles, rows),
        "",
        "Compiled is the best of `torch.compile`'s modes, engine that of ONNX Runtime and OpenVINO on the same job.",
        "Speed-up: against the best of eager, `torch.compile` and, where there is one, depthwise deconvolution; then",
        "with engines and the job rewritten for speed among the rivals (channels last, flattened pixels, `max` for",
        "`argmax`).",
        "The floor is the longer of two times: a copy of as many bytes as must move, a matrix product of as many",
        "multiply-adds as the operator has vector operations (rows that take over what their neighbours computed can",
        "pass 100%). Memory is beyond the inputs. malloc keeps freed memory, for all alike",
        "(`MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=10000000000`). By default glibc asks the system for the pages of",
        "every large tensor again, and whoever writes a large result waits for them: *default malloc* is the ratio to",
        "the best rival that was measured so, which is seldom compiled.",
        "",
        f"Where we lose, the workloads that are not shown here included: {sum(c.ratio(ALL) <= 1 for c in family)} "
        f"of {len(family)} cases, [with the reasons](docs/performance.md#where-we-lose).",
    ]


# --- where we lose ---


def reasons(instruction_set: str) -> list[dict]:
    """Those of losses.json that hold with this; most hold with any."""
    found = json.loads(REASONS.read_text(encoding="utf-8"))
    return [r for r in found if r.get("instruction_set", instruction_set) == instruction_set]


def losses(found: Iterable[Case], reasons: Sequence[dict]) -> tuple[list[str], list[str]]:
    """The cases where a method of any role is faster, by reason, and complaints: losses that have none."""
    lost: dict[str, list[str]] = {}
    complaints = []
    for case in found:
        rival, milliseconds = case.best(ALL)
        if milliseconds >= case.fused():
            continue
        name = case.workload["name"]
        fitting = (
            r["reason"] for r in reasons if fnmatch(name, r["workloads"]) and fnmatch(rival, r.get("rivals", "*"))
        )
        reason = next(fitting, None)
        if reason is None:
            complaints.append(f"{name}, {case.inputs}, loses to {rival}, and {REASONS.name} has no reason for it")
        times = f"{number(case.fused())} ms against {number(milliseconds)} ms of `{rival}` ({number(case.ratio(ALL))}x)"
        lost.setdefault(reason or "**No reason is known.**", []).append(f"  - {case.title}, {case.inputs}: {times}")
    lines = [line for reason, where in lost.items() for line in (f"- {reason}", *where)]
    return lines or ["Nowhere, in these workloads."], complaints


# --- docs/performance.md ---


def goal_tables(data: dict) -> list[str]:
    lines = []
    for section, rows in goals.rows(data).items():
        if not rows:
            continue
        titles = ["what", "goal", "measured", "floor: then at most" if section == "Operators" else "floor"]
        measured = [row for row in rows if row.measured is not None]
        lines += [
            f"**{section}**: {sum(r.reached for r in measured)} of {len(measured)} measured goals are reached.",
            "",
        ]
        cells = [row.cells for row in rows]
        if not any(row.floor for row in rows):
            titles, cells = titles[:3], [c[:3] for c in cells]
        lines += [*markdown(titles, cells), ""]
    files = ("cpu-avx2", "cpu-avx2-scores", "cpu-avx2-1thread", "sweep-avx2", "overhead", "fcn8s", "drop-in")
    measured = [(name, load(name)) for name in files]
    return [*lines, *(f"- `{name}.json`: {provenance(found)}." for name, found in measured if found is not None)]


def by_operator(family: Iterable[Case], lost: Sequence[str]) -> list[str]:
    """For every operator the ratios to the fastest method of any role, then `lost`, the lines of `losses`."""
    operators: dict[str, list[Case]] = {}
    for case in family:
        if case.best(ALL):
            operators.setdefault(case.workload["operator"], []).append(case)
    rows = []
    for operator, found in sorted(operators.items()):
        worst = min(found, key=lambda case: case.ratio(ALL))
        where = f"{worst.workload['title']}, {worst.inputs}: `{worst.best(ALL)[0]}`"
        middle = statistics.median(case.ratio(ALL) for case in found)
        rows.append([f"`{operator}`", str(len(found)), f"{number(middle)}x", f"{number(worst.ratio(ALL))}x", where])
    table = markdown(["operator", "cases", "median", "lowest", "against"], rows)
    return [*table, "", "Where another method is faster:", "", *lost]


def overhead(data: dict) -> list[str]:
    titles = ["operator", "boundary", "microseconds", "native calls", "ratio"]
    rows = [
        [
            f"`{r['operator']}`",
            r["boundary"],
            f"{r['microseconds']:.1f}",
            f"{r['native']:.1f}" if r["native"] else "-",
            f"{number(r['microseconds'] / r['native'])}x" if r["native"] else "-",
        ]
        for r in data["rows"]
    ]
    return [f"{provenance(data)}. The fastest of many short batches.", "", *markdown(titles, rows)]


def end_to_end(data: dict) -> list[str]:
    titles = ["network", "job", "batch", "method", "images per second", "peak MB"]
    rows = [
        [
            r["network"],
            r["job"],
            str(r["batch"]),
            r["method"],
            number(r["images_per_second"]),
            "-" if r["peak_bytes"] is None else number(r["peak_bytes"] / 1e6),
        ]
        for r in data["rows"]
    ]
    return [f"{provenance(data)}. Peak memory is beyond weights and inputs.", "", *markdown(titles, rows)]


def low_precisions(data: dict) -> list[str]:
    return [f"{provenance(data)}.", "", *low_precision.table(data)]


def sizes(data: dict) -> list[str]:
    return [f"{provenance(data)}. The fastest of many calls, in turns.", "", *crossings.table(data)]


def replace(file: Path, name: str, lines: Sequence[str]) -> None:
    """What stands between the markers NAME:begin and NAME:end."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    text = file.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{file} must have {begin} and, after it, {end}, each once")
    before, rest = text.split(begin)
    content = "\n".join(lines)
    file.write_text(f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def main() -> int:
    from benchmarks import plots  # matplotlib takes a second

    data = load("cpu-avx2")
    if data is None:
        print("report: results/cpu-avx2.json is not there: `fcn-kernels bench --json` writes it", file=sys.stderr)
        return 2
    docs, page = ROOT / "docs", ROOT / "docs/performance.md"
    found, family = list(cases(data)), everywhere("avx2")
    lost, complaints = losses(family, reasons("avx2"))

    plots.speed_ups(found, docs / "speed-up.png")
    replace(ROOT / "README.md", "table", table(data, family))
    replace(page, "goals", goal_tables(data))
    replace(page, "losses", lost)
    if (measured := load("cpu-avx512")) is not None:
        wide = everywhere("avx512")
        lost, more = losses(wide, reasons("avx512"))
        complaints += more
        replace(page, "cpu-avx512", [f"{provenance(measured)}.", "", *by_operator(wide, lost)])
    pictures = []
    if any(case.copying and case.computing for case in found):
        plots.roofline(found, docs / "roofline.png")
        pictures += ["![Vector operations per byte and per second of every workload](roofline.png)", ""]
    if (sweep := load("sweep-avx2")) is not None:
        plots.sizes(sweep["lines"], docs / "sweep.png")
    if (measured := load("scaling")) is not None:
        plots.scaling(measured, docs / "scaling.png")
        pictures += ["![Time over classes, side, stride and batch; memory over classes](scaling.png)", ""]
        pictures.append(f"{provenance(measured)}.")
    replace(page, "pictures", pictures)
    pages = {"overhead": overhead, "end-to-end": end_to_end, "low-precision": low_precisions, "crossings-avx2": sizes}
    for name, make in pages.items():
        measured = load(name)
        replace(page, name, ["Not yet measured."] if measured is None else make(measured))
    if (measured := load("drop-in")) is not None:
        lines = [f"{provenance(measured)}; {drop_in.versions(measured)}.", "", *drop_in.table(measured)]
        replace(ROOT / "README.md", "drop-in", lines)
        replace(docs / "drop-in.md", "measured", lines)
    for text in complaints:
        print(f"report: {text}", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
