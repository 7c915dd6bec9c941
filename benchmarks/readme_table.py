"""Writes the README's performance table from a file of `fcn-kernels bench --json`.

python benchmarks/readme_table.py benchmarks/results/cpu-avx512.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"


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


def main() -> None:
    text = README.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    data = json.loads(Path(sys.argv[1]).read_text())
    README.write_text(f"{before}{BEGIN}\n{table(data)}\n{END}{after}")


if __name__ == "__main__":
    main()
