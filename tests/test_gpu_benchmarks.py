"""What benchmarks/gpu.sh runs, without a GPU: floors, goals, survival of a dying process, the choice of a backend."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fcn_kernels as fk
from benchmarks import gpu_check, gpu_operators, gpu_preferences
from fcn_kernels import _library, backends
from fcn_kernels.backends import preferences
from fcn_kernels.benchmarking import floors, gpu
from fcn_kernels.benchmarking.floors import PREDICTED_H200, Ceilings, Geometry, Work, floor
from fcn_kernels.benchmarking.gpu_workloads import ADE, cases

ROOT = Path(__file__).parents[1]
RATES = Ceilings(1e12, 1e9, 1e10, {"fp32": 1e11, "tf32": 1e12, "bf16": 2e12}, graph=1e-5, kernel=1e-6)


# --- floors ---


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (Work(bytes=2e9), (2.0, "bytes")),
        (Work(bytes=2e9, exponentials=3e6), (3.0, "exponentials")),
        (Work(bytes=2e9, instructions=5e7, exponentials=3e6), (5.0, "instructions")),
        (Work(products=4e8), (4.0, "products")),
        (Work(bytes=1e9, products=4e8, arithmetic="tf32"), (1.0, "bytes")),
    ],
)
def test_the_floor_is_the_largest_term(work, expected):
    milliseconds, limit = floor(work, RATES)
    assert (pytest.approx(milliseconds), limit) == expected


def test_work_adds_up():
    assert Work(1, 2, 3, 4) + Work(10, 20, 30, 40) == Work(11, 22, 33, 44)


def test_rates_of_an_h200():
    """Those that the docstrings of the kernels reckon with: 3.7e12 exponentials and 3.0e13 instructions a second."""
    assert PREDICTED_H200.exponentials == pytest.approx(3.7e12, rel=0.01)
    assert PREDICTED_H200.instructions == pytest.approx(3.0e13, rel=0.02)
    assert floors.of_multiprocessors(108, 1e9, (8, 0)) == (16 * 108e9, 64 * 108e9)
    assert RATES.launches(3) == pytest.approx(0.013)


def test_work_of_the_heads():
    g = Geometry(8, 150, (128, 128), (512, 512))
    outputs = 8 * 150 * 512 * 512
    assert g.x == 8 * 150 * 128 * 128 * 4
    assert g.y == 4 * outputs
    assert floors.cross_entropy(g) == Work(2 * g.x + 8 * g.pixels, outputs + 2 * g.pixels, 4 * outputs)
    assert floors.softmax(g).bytes == g.x + g.y
    assert floors.argmax(g, label=1).bytes == g.x + g.pixels
    assert floors.streaming(g, 2).bytes == g.x + 2 * g.y
    assert Geometry(1, 1, (8, 8), (4, 4)).run == 1.0  # down-sampling: an exponential for each output


def test_cases_are_those_of_the_goals():
    found = {case.name: case for case in cases("cpu")}
    ade = found["upsample_cross_entropy-c150-128x128-512x512-n8-float32"]
    assert (8, 150, (128, 128), (512, 512), torch.float32) == ADE
    assert [(g.against, g.value) for g in ade.goals] == [("eager", 25), ("torch.compile", 10), ("memory", 100e6)]
    for case in found.values():
        assert case.work.bytes > 0
        names = {m.name for m in case.job.methods}
        assert {"fused", "eager"} <= names
        known = {"memory", "copy", "launches", "rivals"}
        assert all(goal.against in names | known for goal in case.goals)
    forward = {op for op in backends.operators() if not op.endswith("_backward")}
    measured = {case.job.operator for case in found.values()}
    # The others are parts or variants: the bias gradient, upsample with an activation, the argmax of softmax's scores.
    assert forward - measured == {"channel_sum", "upsample_sigmoid", "score_argmax"}


def test_inputs_of_a_case_are_where_it_runs():
    case = cases("cpu", tiny=True)[0]
    tensors = case.job.make("random")
    assert tensors["x"].requires_grad
    assert tensors["target"].shape == (2, 8, 8)


# --- goals ---


def row(**milliseconds):
    return {
        "milliseconds": {"random": {name: {"median": ms} for name, ms in milliseconds.items()}},
        "peak_bytes": {"cuda": 5e7, "triton": 2e8},
        "left_out": {},
        "disagreements": [],
    }


def judged(case, row, ceilings=RATES):
    return {g["against"]: (g["measured"], g["reached"]) for g in gpu_operators.judged(case, row, ceilings, "cuda")}


def test_goals_are_those_of_the_faster_backend():
    ade = cases("cpu")[0]
    times = {"triton": 2.0, "cuda": 1.0, "eager": 30.0, "torch.compile": 9.0}
    assert judged(ade, row(**times)) == {"eager": (30, True), "torch.compile": (9, False), "memory": (5e7, True)}
    times["triton"] = 0.5
    assert judged(ade, row(**times)) == {"eager": (60, True), "torch.compile": (18, True), "memory": (2e8, False)}
    assert judged(ade, row(eager=1.0)) == {
        "eager": (None, None),
        "torch.compile": (None, None),
        "memory": (None, None),
    }


def test_goals_of_bandwidth_launches_and_all_rivals():
    found = {case.job.operator: case for case in reversed(cases("cpu"))}
    upsample = found["upsample"]
    at_copy = upsample.work.bytes / RATES.bytes * 1e3
    assert judged(upsample, row(cuda=at_copy / 0.95))["copy"] == (pytest.approx(0.95), True)
    assert judged(upsample, row(cuda=at_copy / 0.85))["copy"] == (pytest.approx(0.85), False)
    assert judged(upsample, row(cuda=1.0), None)["copy"] == (None, None)
    assert judged(found["fcn8s_head"], row(cuda=0.026))["launches"] == (pytest.approx(2), True)
    scores = judged(found["score_softmax"], row(cuda=1.0, eager=2.0, **{"torch.compile": 0.9}))
    assert scores == {"eager": (2, True), "rivals": (0.9, False)}


def test_the_table_names_what_went_wrong():
    case = cases("cpu")[0]
    measured = row(cuda=1.0, eager=30.0) | {"left_out": {"triton": "no such thing"}, "disagreements": ["cuda: off"]}
    data = {
        "device": "cuda",
        "rows": [gpu_operators.completed(case, measured, RATES, "cuda")],
        "failures": [{"case": "some case", "method": "triton"}],
        "late": ["another"],
    }
    text = gpu_operators.table(json.loads(json.dumps(data)))
    assert "eager 30x of 25x ok, torch.compile not measured of 10x ?, memory 50 MB of 100 MB ok" in text
    assert "315.6 (32%)" not in text
    assert f"1000.0 ({data['rows'][0]['floor_ms']:.0%})" in text
    for line in ("triton left out: no such thing", "DISAGREES: ", "FAILED: some case, triton", "no time left: another"):
        assert line in text
    assert text.endswith("goals: 2 of 2 reached")


def test_predictions_are_those_of_the_notes():
    notes = (ROOT / "docs/gpu-notes.md").read_text(encoding="utf-8").splitlines()
    missing = [line for line in gpu_operators.predicted(PREDICTED_H200) if line not in notes]
    assert not missing, "python -m benchmarks.gpu_operators --predict"


# --- a process that dies ---


def watch(monkeypatch, deaths, deadline=60.0):
    """What is reported where (case, method) of `deaths` end the measuring process."""
    asked = []

    def events(request, limit, log):
        asked.append(request)
        if request["ceilings"]:
            yield {"event": "ceilings"}
        for case in request["cases"]:
            for method in ("cuda", "triton"):
                if [case, method] in request["skip"]:
                    continue
                yield {"event": "method", "case": case, "method": method}
                if (case, method) in deaths:
                    return
            yield {"event": "row", "case": case}
        yield {"event": "done"}

    monkeypatch.setattr(gpu_operators, "events", events)
    request = {"cases": ["a", "b", "c"], "ceilings": True}
    found = list(gpu_operators.watched(request, 1, time.monotonic() + deadline, io.StringIO()))
    return [tuple(event.values()) for event in found], asked


def test_a_method_that_kills_the_process_is_left_out(monkeypatch):
    found, asked = watch(monkeypatch, {("b", "cuda"), ("b", "triton")})
    assert found == [
        ("ceilings",), ("row", "a"), ("failure", "b", "cuda"), ("failure", "b", "triton"), ("row", "b"), ("row", "c"),
        ("done",),
    ]  # fmt: skip
    assert [request["ceilings"] for request in asked] == [True, False, False]


def test_cases_that_are_late_are_named(monkeypatch):
    found, asked = watch(monkeypatch, set(), deadline=-1.0)
    assert found == [("late", "a"), ("late", "b"), ("late", "c")]
    assert not asked


EVENT = '{"event": 1}'


def test_a_silent_process_is_killed(monkeypatch):
    code, found, begun = run_in_place_of_the_worker(
        monkeypatch, "print('hello'); print(EVENT, flush=True); time.sleep(60)"
    )
    assert found == [{"event": 1}]
    assert code != 0
    assert time.monotonic() - begun < 30


def test_a_dead_process_is_noticed_at_once(monkeypatch):
    """Although a child of it keeps its output open."""
    program = "subprocess.Popen(['sleep', '20']); print(EVENT, flush=True); os._exit(7)"
    code, found, begun = run_in_place_of_the_worker(monkeypatch, program, limit=19)
    assert (code, found) == (7, [{"event": 1}])
    assert time.monotonic() - begun < 15


def run_in_place_of_the_worker(monkeypatch, program, limit=4):
    popen, started, begun = subprocess.Popen, [], time.monotonic()

    def other(command, **options):
        started.append(
            popen([sys.executable, "-c", f"import os, subprocess, time; EVENT = {EVENT!r}; {program}"], **options)
        )
        return started[0]

    monkeypatch.setattr(gpu_operators.subprocess, "Popen", other)
    with open(os.devnull, "w") as log:
        found = list(gpu_operators.events({}, limit, log))
    return started[0].returncode, found, begun


# --- one run of each program ---


def test_operators_run_on_the_cpu(tmp_path):
    if _library.load_extension() is None:
        pytest.skip("there are no C++ kernels")
    file = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.gpu_operators", "--device", "cpu", "--tiny", "--no-compile"]
    command += ["--only", "upsample-c3-2x2-4x4", "--seconds", "0.02", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads(file.read_text())
    (found,) = data["rows"]
    assert {"cpu", "eager"} <= found["milliseconds"]["random"].keys()
    assert found["limit"] in ("bytes", "instructions")
    assert found["milliseconds"]["random"]["cpu"]["of_floor"] > 0
    assert Ceilings(**data["ceilings"]).bytes > 0
    assert done.stdout.rstrip().endswith("reached")


def test_unknown_case():
    command = [sys.executable, "-m", "benchmarks.gpu_operators", "--device", "cpu", "--only", "no-such-case"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "no case's name contains 'no-such-case'; the names are" in done.stderr


def test_host_clock_and_precision():
    timings = gpu.clock("cpu").interleaved({"nothing": lambda: None}, 0.01)
    assert timings["nothing"].median >= 0
    assert gpu.peak(lambda: None, "cpu") is None
    before = torch.get_float32_matmul_precision()
    with gpu.tf32(True):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


def test_the_clock_on_a_stand_in_for_a_gpu(monkeypatch):
    """Before every sample the cache is read and the device kept busy; calls take turns; times are those of events."""
    log, now = [], [0.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("event")
            self.at = now[0]

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return 1e3 * (end.at - self.at)

    def busy(cycles):
        log.append("busy")
        now[0] += cycles / 1.5e9

    def call(name, seconds):
        log.append(name)
        now[0] += seconds

    device = SimpleNamespace(multi_processor_count=132, L2_cache_size=1 << 20, major=9, minor=0)
    fake = SimpleNamespace(
        Event=Event, _sleep=busy, get_device_properties=lambda: device, synchronize=lambda: log.append("wait")
    )
    stand_in = SimpleNamespace(
        cuda=fake,
        ones=lambda n, device: torch.ones(n),
        empty=lambda size, device: torch.empty(size),
        sum=lambda *args, **options: log.append("read"),
    )
    monkeypatch.setattr(gpu, "torch", stand_in)
    clock = gpu.Clock()
    assert clock.rate == pytest.approx(1.5e9)
    assert clock.buffer.nbytes == 64 << 20
    log.clear()
    timings = clock.interleaved({"a": lambda: call("a", 2e-3), "b": lambda: call("b", 3e-3)}, 0.0, minimum=7)
    assert (timings["a"].median, timings["b"].median) == (pytest.approx(2), pytest.approx(3))
    assert timings["a"].samples == 7
    sample = ["read", "busy", "event", "a", "event", "read", "busy", "event", "b", "event", "wait"]
    assert log == ["a", "wait", "a", "wait", "b", "wait", "b", "wait"] + 7 * sample


@pytest.mark.skipif(_library.load_extension() is None, reason="there are no C++ kernels")
@pytest.mark.parametrize("op", sorted(gpu_check.large("cpu", 64)))
def test_large_outputs_are_compared_at_their_last_pixels(op):
    gpu_check.check_large(op, "cpu", "cpu", 64)


@pytest.mark.skipif(_library.load_extension() is None, reason="there are no C++ kernels")
def test_a_wrong_last_pixel_is_found(monkeypatch):
    right = fk.upsample

    def wrong(*args):
        y = right(*args)
        y[0, -1, -1, -1] += 5
        return y

    monkeypatch.setattr(fk, "upsample", wrong)
    with pytest.raises(AssertionError, match="upsample: off by"):
        gpu_check.check_large("upsample", "cpu", "cpu", 64)


@pytest.mark.skipif(_library.load_extension() is None, reason="there are no C++ kernels")
def test_drawn_calls_are_compared(monkeypatch):
    gpu_check.drawn("upsample", "cpu", "cpu", 3, compare=True)
    monkeypatch.setattr(gpu_check, "same_bits", lambda a, b: False)
    with pytest.raises(AssertionError, match="other bits in another run"):
        gpu_check.drawn("upsample", "cpu", "cpu", 1, compare=True)


def test_same_bits():
    nan = torch.tensor([math.nan, 1.0])
    assert gpu_check.same_bits([nan], [nan.clone()])
    assert not gpu_check.same_bits([torch.tensor([0.0])], [torch.tensor([-0.0])])


def test_every_operator_and_backend_is_checked():
    found = list(gpu_check.pairs("cuda", [], []))
    triton = {op for op, backend in found if backend == "triton"}
    assert triton == {
        op for op in backends.operators() if backends._obstacle("triton", op, "cuda", torch.float32) is None
    }
    assert {backend for _, backend in found} <= {"cuda", "triton"}


def test_calls_move_as_they_are():
    from call import moved
    from strategies import examples

    for call in examples("upsample_add", 5):
        there = moved(call, "cpu")
        for a, b in zip(call.args, there.args, strict=True):
            if isinstance(a, torch.Tensor):
                assert (a.stride(), a.storage_offset()) == (b.stride(), b.storage_offset())
                assert gpu_check.same_bits([a], [b])


# --- the choice ---


def measurement(operator, cuda, triton, kind="random"):
    times = {"cuda": {"median": cuda}, "triton": {"median": triton}}
    return {"operator": operator, "milliseconds": {kind: {k: t for k, t in times.items() if t["median"]}}}


def test_the_faster_backend_by_geometric_mean():
    data = {
        "rows": [
            measurement("upsample_argmax", 4.0, 2.0),
            measurement("upsample_argmax", 1.0, 2.0, "photograph"),
            measurement("upsample_argmax", 9.0, 2.0),
            measurement("upsample_cross_entropy", 1.0, 1.5),
            measurement("score_softmax", None, 1.0),
            measurement("fcn8s_head", 1.0, 2.0),
        ]
    }
    assert gpu_preferences.faster(data) == {
        "upsample_argmax": ("triton", 1.65),
        "upsample_cross_entropy": ("cuda", 1.5),
        "upsample_cross_entropy_backward": ("cuda", 1.5),
    }


def test_the_written_file_is_read_back():
    found = {"upsample": ("triton", 1.25), "upsample_add": ("cuda", 2.0)}
    space: dict = {}
    exec(gpu_preferences.render(found, "results/x.json", 'GPU "7"'), space)
    assert (space["FASTER"], space["SOURCE"], space["GPU"]) == (found, "results/x.json", 'GPU "7"')


def test_preferences_follow_from_the_committed_results():
    text = Path(preferences.__file__).read_text(encoding="utf-8")
    if gpu_preferences.RESULTS.exists():
        data = json.loads(gpu_preferences.RESULTS.read_text(encoding="utf-8"))
        source = str(gpu_preferences.RESULTS.relative_to(gpu_preferences.ROOT))
        assert text == gpu_preferences.render(gpu_preferences.faster(data), source, data["provenance"]["gpu"])
    else:
        assert text == gpu_preferences.render({}, None, None)
