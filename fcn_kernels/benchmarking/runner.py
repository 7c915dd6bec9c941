"""Starts measuring processes (see worker.py) and collects what they report."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

from fcn_kernels.benchmarking import measure
from fcn_kernels.benchmarking.report import JUDGED, Report


def events(request: dict, regime: str) -> Iterator[dict]:
    """Runs a measuring process and yields its events. Raises RuntimeError, with its last words, if it fails."""
    command = [sys.executable, "-m", "fcn_kernels.benchmarking.worker"]
    finished = False
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            env=measure.environment(regime, request["threads"], request["instruction_set"]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            with contextlib.suppress(BrokenPipeError):  # it died early: its exit code and last words follow
                process.stdin.write(json.dumps(request))
                process.stdin.close()
            for line in process.stdout:
                event = json.loads(line)
                finished |= event["event"] == "done"
                yield event
            code = process.wait()
        finally:
            process.kill()
            process.wait()
        if not finished:
            errors.seek(0)
            words = "\n    ".join(errors.read().strip().splitlines()[-12:])
            raise RuntimeError(f"the measuring process ended with exit code {code}:\n    {words}")


def collect(report: Report, found: Iterator[dict], regime: str, step: Callable[[str], None]) -> None:
    """Enters the events of a measuring process in the report; `step` is told where it is."""
    at = "the start"
    try:
        for event in found:
            match event.pop("event"):
                case "step":
                    at = event["text"]
                    step(at)
                case "provenance":
                    if regime == JUDGED:
                        report.provenance = event | {"malloc": measure.REGIMES}
                case "rates":
                    report.provenance["rates"] = event
                case "timing":
                    key = (event.pop("workload"), regime, event.pop("inputs"), event.pop("method"))
                    report.timings[key] = measure.Timing(**event)
                case "peak":
                    report.peaks[event["workload"], event["method"]] = event["bytes"]
                case "disturbance" if regime == JUDGED:
                    report.disturbance[event.pop("workload")] = event
                case "disagreement":
                    report.disagreements.append(event)
                case "unavailable":
                    report.unavailable.append(event)
    except RuntimeError as error:
        report.failures.append(f"{regime} malloc, at {at}: {error}")
