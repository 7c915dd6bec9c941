"""Writes the tables of README.md and docs/performance.md from the files of `fcn-kernels bench --json` in results/.

    python benchmarks/readme_table.py

cpu-avx2.json: everything, with AVX2 for all. Where it is there, cpu-avx2-scores.json: every score convolution
(`--only score_`); cpu-avx512.json: everything, with AVX-512 for all.
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"


def number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def rows(workload: dict) -> list[str]:
    timed = workload["milliseconds"].get("recycling", {})
    by_inputs = {kind: {m: t["median"] for m, t in methods.items()} for kind, methods in timed.items()}
    peaks = {m: number(b / 1e6) for m, b in workload["peak_bytes"].items()}
    peak = f"{peaks['fused']} / {peaks.get('eager', '-')}" if peaks else ""
    if not by_inputs:
        return [f"| `{workload['operator']}`<br>{workload['title']} | random | | | | | | {peak} |"]
    found = []
    for i, (kind, times) in enumerate(by_inputs.items()):
        # A rival that ran on the first kind of inputs only: its speed does not depend on the values.
        everyone = {**next(iter(by_inputs.values())), **times}
        fused = everyone["fused"]
        best = {
            role: min((everyone[m] for m, r in workload["roles"].items() if r == role and m in everyone), default=None)
            for role in ("rival", "tuned")
        }
        compiled = everyone.get("torch.compile")
        cells = [
            f"`{workload['operator']}`<br>{workload['title']}" if i == 0 else "",
            kind,
            number(fused),
            number(everyone["eager"]),
            number(compiled) if compiled else "-",
            f"**{best['rival'] / fused:.3g}x**",
            f"{min(best.values()) / fused:.3g}x" if best["tuned"] else "-",
            peak if i == 0 else "",
        ]
        found.append("| " + " | ".join(cells) + " |")
    return found


def table(data: dict) -> str:
    p = data["provenance"]
    lines = [
        f"{p['processor']}, {p['threads']} threads, {p['instruction_set'].upper()} for all; torch {p['torch']}; commit "
        f"{p['commit']}. Milliseconds, medians of interleaved calls; forward and backward for losses.",
        "",
        "| workload | inputs | fused | eager | compiled | speed-up | against tuned, too | peak MB, fused / eager |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for workload in data["workloads"]:
        lines += rows(workload)
    lines += [
        "",
        "Speed-up: against the best of eager, `torch.compile` and, where there is one, depthwise deconvolution; then",
        "with the job rewritten for speed among the rivals (channels last, flattened pixels, `max` for `argmax`).",
        "Memory is beyond the inputs. malloc keeps freed memory, for all alike.",
    ]
    return "\n".join(lines)


def asked(goal: dict) -> str:
    value = number(goal["goal"] / 1e6) + " MB" if goal["measure"] == "memory" else f"{number(goal['goal'])}x"
    against = f" the time of {goal['against']}" if goal["measure"] == "time" else ""
    return ("at least " if goal["measure"] == "speed-up" else "at most ") + value + against


def reached(goal: dict | None) -> str:
    if goal is None or goal["measured"] is None:
        return "-"
    value = number(goal["measured"] / 1e6) + " MB" if goal["measure"] == "memory" else f"{number(goal['measured'])}x"
    return value if goal["reached"] else f"**{value}**"


def goals(files: dict[str, list[dict]]) -> str:
    """One row per goal, one column per instruction set; what is below its goal stands in bold."""
    found: dict[tuple, dict[str, dict]] = {}
    for column, files_of_column in files.items():
        for data in files_of_column:
            for workload in data["workloads"]:
                for goal in workload["goals"]:
                    key = (workload["operator"], workload["title"], goal["inputs"], asked(goal))
                    found.setdefault(key, {}).setdefault(column, goal)
    lines = ["| workload | inputs | goal | " + " | ".join(files) + " |", "|---|---|---|" + "---|" * len(files)]
    for (operator, title, inputs, goal), measured in found.items():
        cells = [f"`{operator}` {title}", inputs, goal, *(reached(measured.get(column)) for column in files)]
        lines.append("| " + " | ".join(cells) + " |")
    for column in files:
        mine = [m[column] for m in found.values() if column in m and m[column]["measured"] is not None]
        lines += ["", f"{column}: {sum(g['reached'] for g in mine)} of {len(mine)} goals are reached."]
    commits = {data["provenance"]["commit"] for files_of_column in files.values() for data in files_of_column}
    return "\n".join([*lines, "", f"Measured at commit {', '.join(sorted(commits))}."])


def replace(file: Path, name: str, content: str) -> None:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, rest = file.read_text().split(begin)
    file.write_text(f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}")


def main() -> None:
    names = ("avx2", "avx2-scores", "avx512")
    files = {name: RESULTS / f"cpu-{name}.json" for name in names}
    found = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    replace(ROOT / "README.md", "table", table(found["avx2"]))
    columns = {"AVX2": [found[n] for n in ("avx2-scores", "avx2") if n in found]}
    if "avx512" in found:
        columns["AVX-512"] = [found["avx512"]]
    replace(ROOT / "docs/performance.md", "goals", goals(columns))


if __name__ == "__main__":
    main()
