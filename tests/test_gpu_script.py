"""benchmarks/gpu.sh without a GPU: with a stand-in for Python, its order, its limits and what it says at the end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks/gpu.sh"
# Writes its arguments down; ends as FAIL and HANG, parts of the arguments, want it to.
STAND_IN = """\
#!/usr/bin/env bash
echo "$*" >>"$SEEN"
[ "$1" = -c ] && echo 9.0a
[[ -n "${HANG:-}" && "$*" == *"$HANG"* ]] && sleep 100
[[ -n "${FAIL:-}" && "$*" == *"$FAIL"* ]] && exit 3
[[ "$*" == *--json* ]] && echo "ceilings: of this GPU"
exit 0
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a script for Linux")


@pytest.fixture
def run(tmp_path):
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)

    def run(**settings):
        env = {**os.environ, "PYTHON": str(stand_in), "SEEN": str(tmp_path / "seen"), "OUT": str(tmp_path / "out")}
        done = subprocess.run(["bash", SCRIPT], env=env | settings, capture_output=True, text=True, timeout=60)
        return done, (tmp_path / "seen").read_text(), (tmp_path / "out/steps.txt").read_text()

    return run


def test_everything_runs_and_the_table_comes_last(run, tmp_path):
    done, seen, steps = run()
    assert done.returncode == 0, done.stdout + done.stderr
    order = [seen.index(part) for part in ("pip install", "info", "--warm-up", "operators --deadline", "--large")]
    assert order == sorted(order)
    assert seen.index("--large") < seen.index("end-to-end.json") < seen.index("drop-in.json")
    assert all(f"{name} " in steps for name in ("build", "check", "tests", "operators", "bodies", "choice"))
    assert "FAILED" not in steps
    assert done.stdout.endswith("== steps\n" + steps)
    assert "== operators\nceilings: of this GPU\n" in done.stdout
    assert "==== operators: " in (tmp_path / "out/log.txt").read_text()


def test_one_failure_does_not_stop_the_others(run):
    done, seen, steps = run(FAIL="gpu_check.py --calls")
    assert done.returncode == 1
    assert [line.split()[:4] for line in steps.splitlines() if "FAILED" in line] == [
        ["check", "FAILED", "(exit", "3),"]
    ]
    assert "drop-in.json" in seen


def test_nothing_runs_that_was_not_built(run):
    done, seen, _ = run(FAIL="pip install")
    assert done.returncode == 1
    assert "gpu_check" not in seen


def test_a_step_that_hangs_is_stopped(run):
    done, seen, steps = run(HANG="gpu_operators --deadline", BUDGET="12")
    assert done.returncode == 1
    line = next(line for line in steps.splitlines() if line.startswith("operators"))
    assert "stopped at its limit" in line
    assert "end_to_end   no time left" in steps
    assert "end-to-end.json" not in seen
