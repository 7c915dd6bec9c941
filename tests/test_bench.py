"""`fcn-kernels bench`: rivals, inputs, agreement of all methods, and the command. Its instruments: test_measure.py."""

import argparse
import dataclasses
import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import fcn_kernels
from fcn_kernels.benchmarking import engines, formulations, grid_workloads, measure, memory, worker
from fcn_kernels.benchmarking.agreement import Agreement
from fcn_kernels.benchmarking.report import JUDGED, Report, table
from fcn_kernels.benchmarking.workload import Goal, Method, Workload, call_of
from fcn_kernels.benchmarking.workloads import WORKLOADS, select, workload
from fcn_kernels.cli import bench


def arguments(*argv):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(argv)


# --- rivals and inputs ---


@pytest.mark.skipif(not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()), reason="no MKL")
def test_an_instruction_set_restricts_the_libraries_of_the_rivals():
    """MKL and oneDNN say what they use when their verbose variable is set."""
    code = """import torch
torch.mm(torch.ones(64, 64), torch.ones(64, 64))
torch.conv2d(torch.ones(4, 16, 64, 64), torch.ones(16, 16, 3, 3))"""
    env = measure.environment("default", 1, "avx2") | {"MKL_VERBOSE": "1", "ONEDNN_VERBOSE": "1"}
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert "MKL_VERBOSE SGEMM" in said, said
    assert "cpu,isa:" in said, said
    assert "avx512" not in said.lower().replace("-", ""), said


@pytest.mark.parametrize("stride", [2, 4, 8])
@pytest.mark.parametrize("offset", [0, 1, 5])
def test_formulations_are_the_cropped_deconvolution(stride, offset):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 11, 7, dtype=torch.double)
    filters = formulations.bilinear_filters(3, stride, x)
    dense = torch.zeros(3, 3, 2 * stride, 2 * stride, dtype=torch.double)
    dense[range(3), range(3)] = filters[:, 0]
    full = F.conv_transpose2d(x, dense, stride=stride)
    size = full.shape[2] - offset - 1, full.shape[3] - offset - 2
    expected = full[..., offset : offset + size[0], offset : offset + size[1]]
    torch.testing.assert_close(formulations.padded_interpolate(x, stride, offset, size), expected)
    torch.testing.assert_close(formulations.depthwise_deconvolution(x, filters, offset, size), expected)


def test_photographs_need_no_download_and_give_smooth_scores():
    skimage = pytest.importorskip("skimage")
    from fcn_kernels.benchmarking import photographs

    assert photographs.photographs(len(photographs.NAMES) + 1, (64, 96)).shape[1:] == (3, 64, 96)
    assert skimage.__version__
    x = photographs.head_scores(1, 21, (512, 512), 8)
    assert x.shape == (1, 21, 64, 64)
    assert x.std().item() == pytest.approx(4, rel=1e-3)
    assert (x[..., 1:] - x[..., :-1]).abs().mean() < 0.5 * (x[..., 8:] - x[..., :-8]).abs().mean()
    assert x.argmax(1).unique().numel() > 5
    assert [s.shape[2] for s in photographs.fcn8s_scores(1, 3)] == [16, 44, 88]


@pytest.mark.parametrize("engine", engines.PACKAGES)
@pytest.mark.parametrize(
    "name",
    [
        "upsample_argmax-c21-8x8-64x64",
        "upsample_add-24x21x70x70",
        "fcn8s_head-argmax",
        "upsample_confusion_matrix-c21-64x64-512x512",
        "score_softmax-k512-c21-16x16",
        *(f"grid-{name}-forward-float32" for name, operator in grid_workloads.OPERATORS.items() if operator.graph),
    ],
)
def test_engines_agree_with_the_reference(name, engine):
    if engine not in engines.installed():
        pytest.skip(f"{engine} is not installed")
    job = workload(name)
    tensors = job.make("random")
    method = job.method(engine)
    call = call_of(method, tensors)
    assert Agreement(job, tensors).complaints(method, call()) == []
    next(iter(tensors.values())).zero_()  # it reads its inputs, and writes its result, in each call
    assert Agreement(job, tensors).complaints(method, call()) == []


def test_an_engine_that_refuses_is_unavailable_and_one_that_errs_is_not_timed(monkeypatch, capsys):
    def refusing(**tensors):
        raise RuntimeError("no such node\nas this")

    job = toy(lambda x, target: F.cross_entropy(formulations.interpolate(x, (16, 16)), target))
    methods = (
        *job.methods,
        Method("refuses", "engine", refusing, prepared=True),
        Method("errs", "engine", lambda **tensors: lambda: torch.zeros(()), prepared=True),
    )
    inputs = {name: t.detach() for name, t in job.make("random").items()}
    job = dataclasses.replace(job, methods=methods, inputs=("random",), make=lambda kind: inputs)
    found = []
    monkeypatch.setattr(worker, "_emit", lambda event, **fields: found.append({"event": event} | fields))
    worker._time(job, [m.name for m in methods], True, 0.01, job.inputs)
    assert [e["reason"] for e in found if e["event"] == "unavailable"] == ["no such node"]
    assert [e["method"] for e in found if e["event"] == "disagreement"] == ["errs"]
    assert [e["method"] for e in found if e["event"] == "timing"] == ["fused", "eager"]


def test_every_operator_is_measured_in_both_directions_and_all_dtypes():
    public = {name for name in fcn_kernels.__all__ if name.startswith(("upsample", "score_", "conv_transpose_"))}
    assert grid_workloads.OPERATORS.keys() == public
    assert {job.operator for job in select(None)} >= public  # in a usual run at least once
    names = {job.name for job in WORKLOADS}
    for name, operator in grid_workloads.OPERATORS.items():
        for dtype in ("float64", "float32", "float16", "bfloat16"):
            assert f"grid-{name}-forward-{dtype}" in names
            assert (f"grid-{name}-training-{dtype}" in names) == operator.differentiable
    labels = workload("grid-upsample_argmax-forward-float16")
    assert labels.traffic == 2 * 21 * 64 * 64 + 8 * 512 * 512
    training = workload("grid-upsample_add-training-float64")
    assert training.traffic == 2 * 8 * 21 * (64 * 64 + 2 * 512 * 512)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rivals_may_round_logits_to_half_and_the_fused_operator_may_not(dtype):
    job = workload(f"grid-score_argmax-forward-{dtype}")
    tensors = job.make("random")
    check = Agreement(job, tensors)
    rounded = call_of(job.method("eager"), tensors)()
    assert check.complaints(job.method("eager"), rounded) == []
    assert check.complaints(dataclasses.replace(job.method("eager"), role="fused"), rounded) != []


def test_max_autotune_is_asked_for():
    job = workload("upsample_argmax-c21-64x64-512x512")

    def names(**options):
        return bench._methods(job, **{"compiled": True, "autotuned": False, "engines": True} | options)

    tuned = "torch.compile, max-autotune"
    assert job.method(tuned).mode == "max-autotune"
    assert workload("conv_transpose_concat-128x196x196").method(tuned).compiled
    assert "torch.compile" in names()
    assert tuned not in names()
    assert tuned in names(autotuned=True)
    assert not {"torch.compile", tuned} & set(names(compiled=False, autotuned=True))
    assert not set(engines.PACKAGES) & set(names(engines=False))


def test_the_goals_are_all_there():
    goals = {(job.name, goal.inputs, goal.measure): goal.value for job in WORKLOADS for goal in job.goals}
    for name, value in {
        "upsample_cross_entropy-c21-64x64-512x512": 25,
        "upsample_cross_entropy-c150-64x64-512x512": 50,
        "upsample_cross_entropy-c150-128x128-512x512": 20,
        "upsample_cross_entropy-c19-128x256-1024x2048-bfloat16": 20,
    }.items():
        assert goals[name, "photograph", "speed-up"] == goals[name, "random", "speed-up"] == value
        assert goals[name, "hot", "time"] == 1.3
    for name, random, smooth in (("c21-64x64-512x512", 12, 30), ("c150-128x128-512x512", 10, 30)):
        assert goals[f"upsample_argmax-{name}", "random", "speed-up"] == random
        assert goals[f"upsample_argmax-{name}", "photograph", "speed-up"] == smooth
    assert goals["upsample_softmax-c21-64x64-512x512", "random", "speed-up"] == 6
    assert goals["upsample_softmax-c150-128x128-512x512", "random", "speed-up"] == 5
    for name in ("upsample_add-1x512x70x70", "upsample_add-24x21x70x70"):
        assert (goals[name, "random", "speed-up"], goals[name, "random", "time"]) == (2, 1.15)
    assert goals["fcn8s_head-cross_entropy", "photograph", "speed-up"] == 20
    assert goals["upsample_cross_entropy-c150-128x128-512x512-batch8", "random", "memory"] == 3 * 78_643_200 + 8_000_000
    scores = [job for job in WORKLOADS if job.operator == "score_softmax"]
    assert {g.value for job in scores for g in job.goals if "c1000" not in job.name} == {1.0}
    assert {g.value for job in scores for g in job.goals if "c1000" in job.name} == {0.8}
    assert all(goal.value == 1.3 for job in WORKLOADS if job.operator == "score_cross_entropy" for goal in job.goals)
    assert goals["upsample_binary_cross_entropy-c1-128x128-1024x1024", "random", "speed-up"] == 10
    assert goals["upsample_confusion_matrix-c21-64x64-512x512", "photograph", "speed-up"] == 20
    assert len({job.name for job in WORKLOADS}) == len(WORKLOADS)


# --- agreement ---


def toy(fused, **changes):
    """A workload of the size of a stamp: cross-entropy or, without `backward`, argmax."""
    torch.manual_seed(0)
    x, target = torch.randn(1, 5, 4, 4), torch.randint(5, (1, 16, 16))

    def plain(x, target):
        return F.cross_entropy(formulations.interpolate(x, (16, 16)), target)

    def make(kind):
        return {"x": x.clone().requires_grad_(), "target": target}

    methods = (Method("fused", "fused", fused), Method("eager", "rival", plain))
    return Workload(**{"name": "toy", "operator": "toy", "title": "toy", "make": make, "methods": methods} | changes)


def complaints(job):
    tensors = job.make("random")
    fused = job.method("fused")
    return Agreement(job, tensors).complaints(fused, call_of(fused, tensors)())


def test_agreement_accepts_the_operator_and_refuses_small_errors():
    def right(x, target):
        return F.cross_entropy(formulations.interpolate(x.double(), (16, 16)), target).float()

    assert complaints(toy(right)) == []
    assert any("loss is off by" in c for c in complaints(toy(lambda x, target: right(x, target) * 1.0001)))
    found = complaints(toy(lambda x, target: right(x, target).detach() + 1e-3 * (x - x.detach()).sum()))
    assert found
    assert all("gradient of x is off by" in c for c in found)
    assert "nan" in complaints(toy(lambda x, target: right(x, target) * float("nan")))[0]


def test_agreement_of_labels_has_a_tie_band_and_no_more():
    job = workload("upsample_argmax-c21-64x64-512x512")
    x = torch.randn(1, 3, 4, 4)
    x[0, 1] = x[0, 0]  # ties everywhere
    plain = dataclasses.replace(
        job, make=lambda kind: {"x": x}, logits=lambda x: formulations.interpolate(x, (512, 512))
    )
    check = Agreement(plain, {"x": x})
    fused = plain.method("fused")
    right = check.reference["result"]
    swapped = torch.where(right == 0, 1, right)
    assert check.complaints(fused, {"result": right}) == []
    assert check.complaints(fused, {"result": swapped}) == []
    wrong = right.clone()
    wrong[0, :2, 0] = (right[0, :2, 0].clamp_min(1) + 1) % 3
    assert "2 labels are wrong" in check.complaints(fused, {"result": wrong})[0]


@pytest.mark.parametrize("name", ["fcn8s_head-cross_entropy", "fcn8s_head-argmax", "fcn8s_head-softmax"])
def test_every_formulation_of_the_fcn8s_head_agrees(name):
    job = workload(name)
    tensors = job.make("random")
    check = Agreement(job, tensors)
    for method in job.methods:
        if not method.compiled:
            assert check.complaints(method, call_of(method, tensors)()) == [], method.name


# --- the command ---


def test_select_by_name():
    assert [job.name for job in select("fcn8s_head-arg")] == ["fcn8s_head-argmax"]
    assert 2 <= len(select(None, quick=True)) < len(select(None)) < len(select(None, extended=True)) == len(WORKLOADS)
    assert len(select("score_softmax")) > 20  # by name the whole family
    assert {job.name.partition("-")[0] for job in select("score_*")} == {"score_softmax", "score_cross_entropy"}
    with pytest.raises(ValueError, match="no workload's name contains 'nothing'"):
        select("nothing")


def test_bad_arguments_end_with_a_sentence(capsys):
    assert bench.run(arguments("--only", "nothing")) == 2
    with pytest.raises(SystemExit):
        arguments("--threads", "0")
    error = capsys.readouterr().err
    assert "no workload's name contains 'nothing'" in error
    assert "--threads: must be an integer of at least 1, not '0'" in error


def test_list_names_what_would_be_measured(capsys):
    def listed(*argv):
        assert bench.run(arguments("--list", *argv)) == 0
        return capsys.readouterr().out.split()

    assert listed() == [job.name for job in select(None)]
    assert listed("--quick") == [job.name for job in select(None, quick=True)]
    assert listed("--all") == [job.name for job in WORKLOADS]
    assert listed("--only", "fcn8s_head-arg") == ["fcn8s_head-argmax"]
    assert bench.run(arguments("--list", "--only", "nothing")) == 2


def test_where_json_cannot_be_written_nothing_is_measured(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench, "measure_all", lambda *_, **__: pytest.fail("it measured"))
    for path, reason in ((tmp_path / "none" / "x.json", "there is no folder"), (tmp_path, "is a folder")):
        assert bench.run(arguments("--json", str(path))) == 2
        assert reason in capsys.readouterr().err


def test_the_table_is_printed_though_the_file_is_not_written(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()

    def events(*asked):
        if folder.exists():
            folder.rmdir()
        yield from fake_events()(*asked)

    monkeypatch.setattr(bench, "events", events)
    code = bench.run(arguments("--only", "upsample_argmax-c21-64x64", "--json", str(folder / "x.json")))
    printed = capsys.readouterr()
    assert code == 1
    assert "30.0x" in printed.out
    assert "x.json" in printed.err


def test_the_command_measures_and_writes_json(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(bench._SECONDS, "full", 0.2)
    path = tmp_path / "results.json"
    code = bench.run(arguments("--only", "upsample_add-24x21", "--no-compile", "--threads", "1", "--json", str(path)))
    printed = capsys.readouterr()
    assert code == 0, printed.out
    assert printed.err == ""  # no progress bar where nobody looks
    assert "all methods agree" in printed.out
    results = json.loads(path.read_text())
    assert results["provenance"]["threads"] == 1
    assert {"processor", "torch", "instruction_set", "commit", "malloc"} <= results["provenance"].keys()
    (found,) = results["workloads"]
    assert {"fused", "eager", "y + skip"} <= found["milliseconds"][JUDGED]["random"].keys()
    assert {"fused", "eager"} <= found["milliseconds"]["default"]["random"].keys()
    assert all(goal["measured"] > 0 for goal in found["goals"])
    if memory.can_measure():
        written = 24 * 21 * 70 * 70 * 4
        assert found["peak_bytes"]["fused"] >= 0.95 * written


def fake_events(disagree=False):
    def events(request, regime):
        yield {"event": "provenance", **measure.provenance()}
        for job in request["jobs"]:
            for method, ms in (("fused", 1.0), ("eager", 30.0)):
                timing = {"median": ms, "low": 0.9 * ms, "high": 1.1 * ms, "fastest": ms, "samples": 9}
                if request["task"] == "time":
                    yield {
                        "event": "timing",
                        "workload": job["workload"],
                        "inputs": "random",
                        "method": method,
                        **timing,
                    }
        if disagree and regime == JUDGED:
            where = {"workload": request["jobs"][0]["workload"], "inputs": "random", "method": "fused"}
            yield {"event": "disagreement", **where, "text": "loss is off by 1, the budget is 0"}
        yield {"event": "done"}

    return events


def test_the_table_judges_the_goals(monkeypatch, capsys):
    monkeypatch.setattr(bench, "events", fake_events())
    assert bench.run(arguments("--only", "upsample_argmax-c21-64x64")) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["random"]]
    assert "30.0x" in row
    assert "goal 12.0x: reached" in row


def test_a_disagreement_fails_the_command(monkeypatch, capsys):
    monkeypatch.setattr(bench, "events", fake_events(disagree=True))
    assert bench.run(arguments("--only", "upsample_argmax-c21-64x64")) == 1
    assert "DISAGREES: fused: loss is off by 1" in capsys.readouterr().out


def test_a_process_that_dies_fails_the_command(monkeypatch, capsys):
    monkeypatch.setattr(measure, "environment", lambda *_: {"PATH": "", "PYTHONPATH": "/nowhere"})
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert bench.run(arguments("--only", "upsample_argmax-c21-64x64")) == 1
    assert (
        "FAILED: recycling malloc, at the start: the measuring process ended with exit code 1"
        in capsys.readouterr().out
    )


def test_goals_of_time_and_memory():
    goals = (Goal("time", 1.3, "hot", "random"), Goal("memory", 100, "random"))
    job = toy(lambda x, target: x, inputs=("random", "hot"), goals=goals)
    report = Report([job])
    assert [report.reached(job, goal) for goal in goals] == [None, None]
    for inputs, ms in (("random", 1.0), ("hot", 1.5)):
        report.timings[job.name, JUDGED, inputs, "fused"] = measure.Timing(ms, ms, ms, ms, 5)
    report.peaks[job.name, "fused"] = 99
    assert [report.reached(job, goal) for goal in goals] == [False, True]
    assert "1.50x the time of random, at most 1.3: above" in table(report)


def test_the_table_says_what_disturbed_it():
    job = toy(lambda x, target: x)
    report = Report([job], disturbance={job.name: {"waited": None, "slow": 0.0, "repeated": 2}})
    assert "NOTE" not in table(report)
    report.disturbance[job.name] = {"waited": 0.25, "slow": 0.5, "repeated": 9}
    notes = [line for line in table(report).splitlines() if line.startswith("NOTE")]
    assert ["25% of the time" in note for note in notes] == [True, False]
    assert ["50% of the rounds" in note for note in notes] == [False, True]
    assert report.as_dict()["workloads"][0]["slow_rounds"] == 0.5
