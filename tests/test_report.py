"""`make report`: what README.md and docs/performance.md show is what was measured, losses included."""

import json
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("matplotlib")

from benchmarks import (
    bench_overhead,
    cases,
    check,
    crossings,
    drop_in,
    goals,
    low_precision,
    plots,
    report,
    scaling,
    sweep,
)
from fcn_kernels.benchmarking import memory
from fcn_kernels.benchmarking.report import JUDGED


def workload(fused, eager, tuned=None, **changes):
    def timing(ms):
        return {"median": ms, "low": ms, "high": ms, "fastest": ms, "samples": 5}

    times = {"fused": timing(fused), "eager": timing(eager)} | ({"quick": timing(tuned)} if tuned else {})
    return {
        "name": "toy-c21",
        "operator": "toy",
        "title": "C=21",
        "roles": {"fused": "fused", "eager": "rival", "quick": "tuned"},
        "traffic_bytes": 2**20,
        "operations": 10**6,
        "milliseconds": {JUDGED: {"photograph": times, "random": {"fused": timing(2 * fused)}}},
        "peak_bytes": {"fused": 10**6, "eager": 4 * 10**6},
        "goals": [
            {"measure": "speed-up", "inputs": "photograph", "goal": 9, "measured": eager / fused, "reached": False}
        ],
    } | changes


RATES = {"copy_bytes_per_second": {str(2**18): 1e9, str(2**22): 2e9}, "multiply_adds_per_second": 4e9}


def data(*workloads):
    where = {"processor": "P", "threads": 2, "instruction_set": "avx2", "torch": "2", "commit": "abc", "rates": RATES}
    return {"provenance": where, "workloads": list(workloads)}


def test_a_case_knows_its_rivals_and_its_floor():
    photograph, random = cases.cases(data(workload(1.0, 8.0, 3.0)))
    assert photograph.ratio() == 8
    assert photograph.ratio(cases.ALL) == 3
    assert random.ratio() == 4  # eager ran on the first kind only
    assert cases.bandwidth(RATES, 2**10) == 1e9
    assert cases.bandwidth(RATES, 2**20) == pytest.approx(1.5e9)  # half-way between, in powers of two
    assert cases.bandwidth(RATES, 2**30) == 2e9
    assert photograph.copying == pytest.approx(1e3 * 2**20 / 1.5e9)
    assert photograph.computing == pytest.approx(0.25)
    assert photograph.floor == photograph.copying


def with_everyone(fused):
    """A workload that an engine and the compiler's slower mode have run, too."""
    found = workload(fused, 8.0, 3.0)
    times = found["milliseconds"][JUDGED]["photograph"]
    for name, role, ms in (
        ("torch.compile", "rival", 5.0),
        ("torch.compile, max-autotune", "rival", 4.0),
        ("OpenVINO", "engine", 2.0),
    ):
        times[name] = times["eager"] | {"median": ms, "fastest": ms}
        found["roles"][name] = role
    return found


def test_engines_and_the_best_of_the_compiler_stand_in_the_table():
    bench = data(with_everyone(1.0))
    bench["provenance"]["engines"] = {"ONNX Runtime": "1", "OpenVINO": "2026.4"}
    photograph, random = cases.cases(bench)
    assert report._row(photograph, random, True)[2:9] == ["1", "8", "4", "2 (OpenVINO)", "**4x**", "2x", "1x"]
    assert report._row(random, None, False)[5:9] == ["2 (OpenVINO)", "**2x**", "1x", "-"]
    assert "AVX2 for all but OpenVINO 2026.4, which choose for themselves; torch 2" in report.provenance(bench)
    assert "AVX2 for all; torch 2" in report.provenance(data(workload(1.0, 8.0)))
    assert report.disturbance(bench) == ""
    bench["workloads"][0]["waited_for_a_processor"] = 0.5
    assert report.disturbance(bench) == (
        "; in 1 of 1 workloads threads waited for a processor for more than 5% of the time, for 50% at most"
    )
    bench["workloads"][0] |= {"waited_for_a_processor": None, "slow_rounds": 0.25, "repeated_rounds": 3}
    assert report.disturbance(bench) == (
        "; in 1 of 1 workloads the machine itself was slow in more than 5% of the rounds, in 25% at most"
    )
    lines, complaints = report.losses(cases.cases(data(with_everyone(2.5))), [])
    assert "2.5 ms against 2 ms of `OpenVINO` (0.8x)" in lines[1]
    assert len(complaints) == 2


def test_a_loss_stands_with_its_reason_or_is_complained_about():
    lost = list(cases.cases(data(workload(1.0, 8.0, 0.5), workload(1.0, 8.0, 3.0, name="toy-c150", title="C=150"))))
    reasons = [{"workloads": "toy-*", "rivals": "eager", "reason": "Not this one."}]
    lines, complaints = report.losses(lost, reasons)
    assert lines[0] == "- **No reason is known.**"
    assert "`toy` C=21, photograph: 1 ms against 0.5 ms of `quick` (0.5x)" in lines[1]
    assert complaints == [
        f"toy-c21, {inputs}, loses to quick, and losses.json has no reason for it"
        for inputs in ("photograph", "random")
    ]
    lines, complaints = report.losses(lost, [*reasons, {"workloads": "toy-c2*", "reason": "Rewritten for speed."}])
    assert (lines[0], len(lines), complaints) == ("- Rewritten for speed.", 3, [])


def test_a_reason_may_hold_for_one_instruction_set(tmp_path, monkeypatch):
    file = tmp_path / "losses.json"
    both, one = {"workloads": "*", "reason": "Both."}, {"workloads": "*", "instruction_set": "avx2", "reason": "One."}
    file.write_text(json.dumps([one, both]), encoding="utf-8")
    monkeypatch.setattr(report, "REASONS", file)
    assert report.reasons("avx2") == [one, both]
    assert report.reasons("avx512") == [both]


def test_operators_stand_with_their_median_and_their_lowest_ratio():
    found = [workload(1.0, 8.0, 0.5), workload(1.0, 8.0, 3.0, name="toy-c150", title="C=150")]
    lines = report.by_operator(cases.cases(data(*found)), ["- Nowhere."])
    assert lines[2] == "| `toy` | 4 | 1x | 0.25x | C=21, random: `quick` |"
    assert lines[-1] == "- Nowhere."


def test_a_goal_that_is_missed_stands_in_bold_with_what_the_floor_allows():
    (row,) = goals.of_workloads(data(workload(1.0, 8.0)))
    assert row.cells == ["`toy` C=21, photograph", "at least 9x", "**8x**", "0.699 ms: 11.4x"]
    (row,) = goals.of_scores(None)
    assert row.cells[2] == "not yet measured"


def test_goals_on_a_gpu():
    unmeasured = [row.cells for row in goals.of_gpu(None)]
    assert all(cells[2] == "not yet measured" for cells in unmeasured)
    assert any("25x eager" in cells[1] for cells in unmeasured)
    judged = [
        {"against": "eager", "goal": 25, "measured": 30.0, "reached": True},
        {"against": "rivals", "goal": 1.0, "measured": None, "reached": None},
        {"against": "copy", "goal": 0.9, "measured": 0.85, "reached": False},
        {"against": "memory", "goal": 100e6, "measured": 50e6, "reached": True},
        {"against": "launches", "goal": 3, "measured": 2.0, "reached": True},
    ]
    rows = list(goals.of_gpu({"rows": [{"operator": "toy", "title": "C=1", "floor_ms": 0.5, "goals": judged}]}))
    assert [row.cells for row in rows] == [
        ["`toy` C=1", "at least 25x `eager`", "30x", "0.5 ms"],
        ["`toy` C=1", "at least 1x the fastest rival", "not yet measured", "0.5 ms"],
        ["`toy` C=1", "at least 90% of copy bandwidth", "**85%**", "0.5 ms"],
        ["`toy` C=1", "at most 100 MB", "50 MB", "0.5 ms"],
        ["`toy` C=1", "at most 3x the latency of its launches", "2x", "0.5 ms"],
    ]


def test_crossings_list_where_eager_is_faster(monkeypatch, tmp_path):
    for name, value in (("CHANNELS", (2,)), ("SIDES", (6,)), ("FACTORS", (1.5,)), ("KERNELS", ((3, 2),))):
        monkeypatch.setattr(crossings, name, value)
    for key, value in crossings.measure.REGIMES["recycling"].items():
        monkeypatch.setenv(key, value)
    file = tmp_path / "crossings.json"
    monkeypatch.setattr(sys, "argv", ["crossings", "--seconds", "0.001", "--json", str(file)])
    crossings.main()
    data = json.loads(file.read_text())
    assert len(data["cases"]) == 7 * 2 * 2 + 3 * 2  # heads in two layouts and dtypes; a depthwise kernel in float32
    assert all(case["eager_ms"] > 0 and case["fused_ms"] > 0 for case in data["cases"])
    for case, eager in zip(data["cases"], [1.0, 3.0], strict=False):
        case |= {"eager_ms": eager, "fused_ms": 2.0}
    text = "\n".join(crossings.table({"cases": data["cases"][:2]}))
    assert "| `upsample` | 1 | 0.50x | 0.50x | 1 |" in text
    assert "2 channels of 6x6, factor 1.5 | contiguous, float32 | 1 | 2 | 0.50x |" in text
    assert text.count("`upsample_add`") == 1
    wrong = lambda: torch.ones(1)  # noqa: E731
    with pytest.raises(AssertionError, match="upsample: "):
        crossings.check("upsample", wrong, lambda: torch.zeros(1), "float32")


def test_sweeps_judge_every_layout(monkeypatch):
    lines = [
        {"operator": "toy", "axis": "side", "threads": 1, "values": [1, 2, 3], "ns_per_output": [1, 3, 4]},
        {"operator": "toy", "axis": "side", "threads": 1, "values": [1, 2, 3], "ns_per_output": [1, 1, 1.5]}
        | {"layout": "channels_last"},
    ]
    first, second = goals.of_sweep({"lines": lines})
    assert (first.measured, first.reached) == ("3x (side 1, 2)", False)
    assert second.what.startswith("`toy` in channels_last: ")
    assert second.reached
    assert sweep.image("channels_last", 1, 2, 4, 4).stride() == (32, 1, 8, 2)
    monkeypatch.setattr(sweep.torch, "set_num_threads", lambda threads: None)
    line = sweep.sweep("conv_transpose_concat", "side", 1, 0.01, "channels_last")
    assert line["layout"] == "channels_last"
    assert len(line["ns_per_output"]) == len(sweep.SIDES)


def test_low_precision_pays_where_it_is_faster_and_keeps_its_accuracy(monkeypatch):
    target = torch.tensor([[[0, 1, 1, 255]]])
    single = torch.tensor([[[0, 1, 1, 1]]])
    found = low_precision.kept(torch.tensor([[[0, 1, 0, 0]]]), single, target)
    assert found == {"labels that agree": 0.5, "change": pytest.approx(-1 / 3)}
    assert low_precision.kept(torch.tensor(1.01), torch.tensor(1.0), None) == {"change": pytest.approx(0.01)}
    step = low_precision.quantised(torch.tensor([[-2.0, 1.0], [0.5, 0.25]]), (1,))
    assert step[0].tolist() == [[-127, 64], [127, 64]]
    monkeypatch.setattr(low_precision, "HEADS", {"C=3 64x64 -> 512x512": (3, 8)})
    monkeypatch.setattr(low_precision, "SCORES", {"K=8 C=3 64x64": (8, 3, 8)})
    rows = list(low_precision.rows(0.05))
    assert {row["precision"] for row in rows} == {"float32", "bfloat16", "float16", "int8"}
    assert len(rows) == 4 * 4
    assert all(row["labels that agree"] > 0.9 for row in rows if "labels that agree" in row)
    rows[1] |= {"pays": True, "labels that agree": 0.9991, "change": -0.0002}
    assert low_precision.table({"rows": rows})[3].endswith("| 99.910% | -0.020% | yes |")


def test_between_the_markers_and_nowhere_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a:begin -->\nold\n<!-- a:end -->\nafter\n")
    report.replace(page, "a", ["new"])
    assert page.read_text() == "before\n<!-- a:begin -->\nnew\n<!-- a:end -->\nafter\n"
    with pytest.raises(ValueError, match=r"must have <!-- b:begin -->"):
        report.replace(page, "b", ["new"])


def test_pictures_are_drawn(tmp_path):
    found = list(cases.cases(data(workload(1.0, 8.0, 0.5), workload(1.0, 8.0, name="toy-c150", operations=10**8))))
    plots.speed_ups(found, tmp_path / "a.png")
    plots.roofline(found, tmp_path / "b.png")
    lines = [{"operator": "toy", "axis": "side", "threads": 1, "values": [1, 2], "ns_per_output": [3, 4]}]
    plots.sizes(lines, tmp_path / "c.png")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("a.png", "b.png", "c.png"))


def test_the_pages_show_the_committed_results():
    bench = cases.load("cpu-avx2")
    family = report.everywhere("avx2")
    assert "\n".join(report.table(bench, family)) in (cases.ROOT / "README.md").read_text(encoding="utf-8")
    page = (cases.ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert "\n".join(report.goal_tables(bench)) in page
    lost, complaints = report.losses(family, report.reasons("avx2"))
    assert not complaints
    assert "\n".join(lost) in page
    wide = report.everywhere("avx512")
    lost, complaints = report.losses(wide, report.reasons("avx512"))
    assert not complaints
    assert "\n".join(report.by_operator(wide, lost)) in page
    for reason in json.loads(report.REASONS.read_text(encoding="utf-8")):
        assert reason["reason"].endswith(".")


HEADS = {"heads": 14.0, "scores": 30.0}


def test_other_peoples_models_and_their_goals():
    def row(model, step, speed_up, peak, **agreement):
        times = {"library": {"median": 10.0 * speed_up}, "fused": {"median": 10.0}}
        peaks = {"library": 10**9, "fused": int(peak * 10**9)} if peak else {}
        found = {"model": model, "step": step, "milliseconds": times, "speed_up": speed_up, "peak_bytes": peaks}
        return found | agreement

    measured = {"rows": [row("segformer-b0", "training", 1.5, 0.4), row("segformer-b0", "evaluation", 3.5, None)]}
    measured["rows"] += [row(f"torchvision-{part}", "training", speed_up, None) for part, speed_up in HEADS.items()]
    measured["rows"][1] |= {"labels": 100, "labels_that_differ": 2, "their_lead": 3e-7}
    lines = drop_in.table(measured)
    training = "| SegFormer, training step: forward with loss, and backward | 15 | 10 | **1.5x** | 1e+03 | 400 |"
    assert lines[2] == training
    assert lines[-1].startswith("Labels: 2 of 100 differ, where the best two scores are within 3e-07 of the largest")
    rows = {r.what: r for r in goals.of_drop_in(measured)}
    assert rows[drop_in.TITLES["segformer-b0", "evaluation"]].reached
    assert not rows[drop_in.TITLES["segformer-b0", "training"]].reached
    assert rows[drop_in.TITLES["segformer-b0", "training"] + ": peak memory"].measured == "40%"
    whole, part = (drop_in.TITLES[f"torchvision-{part}", "training"] for part in HEADS)
    assert f"| {whole} | 140 | 10 | **14x** |  |  |" in lines
    assert f"| {part} | 300 | 10 | **30x** |  |  |" in lines
    assert rows[part].reached, "the goal is of loss and backward"
    assert whole not in rows
    assert all(r.measured is None for r in goals.of_drop_in(None))


# --- make bench-check ---


RECORDED = {"median": 8.0, "fastest": 8.0}


def run_of(fused_times):
    """A measurement whose fused method takes these milliseconds, attempt by attempt."""
    asked = []

    def run(names, seconds):
        asked.append((list(names), seconds))
        return {"toy-c21": next(cases.cases(data(workload(fused_times[len(asked) - 1], 8.0))))}

    return run, asked


@pytest.mark.parametrize(
    ("fused_times", "share", "good", "attempts"),
    [
        ((1.3,), check.SAME, True, 1),
        ((1.4, 1.4, 1.4), check.SAME, False, 3),
        ((1.4, 1.2), check.SAME, True, 2),
        ((1.9,), check.OTHER, True, 1),
        ((2.1, 2.1, 2.1), check.OTHER, False, 3),
    ],
    ids=["within a quarter", "below it every time", "below it once", "another processor", "below half of it"],
)
def test_check_fails_what_stays_below_its_share(monkeypatch, fused_times, share, good, attempts):
    run, asked = run_of(fused_times)
    monkeypatch.setattr(check, "run", run)
    (verdict,) = check.check({"toy-c21": check.Expected(RECORDED, share)})
    assert (verdict.good, len(asked)) == (good, attempts)
    assert verdict.kept == pytest.approx(1 / min(fused_times))
    assert [seconds for _, seconds in asked] == sorted(seconds for _, seconds in asked)


def test_check_takes_the_better_of_two_statistics_and_no_compiled_rival_nor_engine():
    found = workload(1.0, 8.0)
    quicker = {"median": 0.1, "low": 0.1, "high": 0.1, "fastest": 0.1, "samples": 5}
    found["milliseconds"][JUDGED]["photograph"] |= {"torch.compile": quicker, "an engine": quicker}
    found["roles"] |= {"torch.compile": "rival", "an engine": "engine"}
    case = next(cases.cases(data(found)))
    assert case.ratio(cases.ALL) == pytest.approx(0.1)
    verdict = check.compare(check.Expected({"median": 16.0, "fastest": 10.0}, check.SAME), case)
    assert (verdict.recorded, verdict.ratio, verdict.kept) == (10, 8, 0.8)


def test_a_processor_is_held_to_its_own_ratios_and_another_to_half_of_the_lowest(monkeypatch):
    monkeypatch.setattr(check, "WORKLOADS", ("a", "b"))
    entries = {
        "P": {"ratios": {"a": {"median": 8.0, "fastest": 4.0}}},
        "Q": {"ratios": {"a": {"median": 6.0, "fastest": 5.0}, "b": {"median": 2.0, "fastest": 2.0}}},
    }
    assert check.expectations(entries, "Q")["a"] == check.Expected({"median": 6.0, "fastest": 5.0}, check.SAME)
    lowest = check.expectations(entries, "R")["a"]
    assert lowest == check.Expected({"median": 6.0, "fastest": 4.0}, check.OTHER)
    assert check.expectations(entries, "P")["b"].share == check.OTHER  # younger than its entry
    assert check.expectations({}, "P") == {}


@pytest.fixture
def quick_check(monkeypatch, tmp_path):
    """bench-check of one workload, on what every processor has, with results of its own."""
    name = "upsample_add-24x21x70x70"
    monkeypatch.setattr(cases, "RESULTS", tmp_path)
    monkeypatch.setattr(check, "RESULTS", tmp_path)
    monkeypatch.setattr(check, "WORKLOADS", (name,))
    monkeypatch.setattr(check, "SECONDS", (0.1, 0.1))
    monkeypatch.setattr(check, "INSTRUCTION_SET", "baseline")
    monkeypatch.setattr(check, "THREADS", 1)
    monkeypatch.setattr(check.measure, "restrict", lambda instruction_set: None)
    return tmp_path / "bench-check.json", name


def test_check_records_measures_and_fails_where_the_recorded_ratio_was_higher(quick_check, capsys):
    file, name = quick_check
    assert check.main([]) == 2
    assert f"bench-check.json has no {name}" in capsys.readouterr().err
    file.write_text(json.dumps({"Abacus": {"ratios": {name: {"median": 1e-3, "fastest": 1e-3}}}}))
    assert check.main([]) == 0
    said = capsys.readouterr().out
    assert "what falls below 0.5 of the lowest ratio of Abacus fails" in said
    assert check.main(["--record"]) == 0
    entries = json.loads(file.read_text())
    here = check.measure.provenance()
    assert entries.keys() == {"Abacus", here["processor"]}
    assert entries[here["processor"]]["commit"] == here["commit"]
    ratios = entries[here["processor"]]["ratios"][name]
    for factor, code, word in ((1e-3, 0, "ok"), (1e3, 1, "SLOWER")):
        entries[here["processor"]]["ratios"][name] = {s: factor * r for s, r in ratios.items()}
        file.write_text(json.dumps(entries))
        assert check.main([]) == code
        said = capsys.readouterr().out
        assert word in said
        assert "nothing is recorded" not in said


def test_every_workload_of_the_check_is_recorded():
    assert check.expectations(cases.load(check.NAME), "another").keys() == set(check.WORKLOADS)


# --- what else the report shows ---


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
@pytest.mark.parametrize("name", bench_overhead.OPERATORS)
def test_every_boundary_computes_what_the_native_calls_do(name, device):
    found = bench_overhead.calls(name, compiled=False, device=device)
    boundaries = {"operator", "function"}
    if bench_overhead.operators(device)[name].differentiable:
        boundaries |= {"operator, recording", "recording", bench_overhead.TRAINING}
    if device == "cuda":
        boundaries |= {b.replace("function", "CUDA graph") for b in boundaries if b.startswith("function")}
    assert found.keys() >= boundaries
    for boundary, (fused, native, wanted) in found.items():
        with torch.set_grad_enabled(wanted):
            ours, theirs = fused(), native()
        assert (ours is None) == (theirs is None) == ("backward" in boundary or "graph" in boundary)
        if ours is not None:
            ours = ours[0] if isinstance(ours, (tuple, list)) else ours
            torch.testing.assert_close(ours.detach().float().sum(), theirs.detach().float().sum())
            assert ours.requires_grad == theirs.requires_grad == (wanted and ours.is_floating_point())


def test_commands_write_what_the_report_reads(monkeypatch, tmp_path):
    run = [sys.executable, "-m"]
    for name, arguments in {
        "overhead": [
            "benchmarks.bench_overhead",
            "--only",
            "upsample_cross_entropy",
            "--no-compile",
            "--seconds",
            "0.01",
        ],
        "scaling": [
            "benchmarks.scaling",
            "--axes",
            "classes",
            "batch",
            scaling.MEMORY,
            "--limit",
            "2",
            "--seconds",
            "0.01",
        ],
        "end-to-end": [
            "benchmarks.end_to_end",
            "--side",
            "64",
            "--batches",
            "1",
            "--methods",
            "eager",
            "fused",
            "--runs",
            "1",
        ],
    }.items():
        found = tmp_path / f"{name}.json"
        subprocess.run([*run, *arguments, "--json", str(found)], check=True, cwd=cases.ROOT, capture_output=True)
    monkeypatch.setattr(cases, "RESULTS", tmp_path)
    (row,) = goals.of_overhead(cases.load("overhead"))
    assert row.goal == "at most 1.5x"
    assert any("forward + backward" in line for line in report.overhead(cases.load("overhead")))
    lines = report.end_to_end(cases.load("end-to-end"))
    assert sum("| fused |" in line for line in lines) == sum("| eager |" in line for line in lines) == 2
    plots.scaling(cases.load("scaling"), tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 5000


def test_suites_say_what_a_time_is_to_be_judged_by(tmp_path):
    found = tmp_path / "suite.json"
    one = [
        "-k",
        "upsample_softmax-c21-8x8-64x64-random-fused",
        "--benchmark-min-rounds=2",
        "--benchmark-max-time=0.01",
        "--peak-memory",
    ]
    run = [sys.executable, "-m", "pytest", "benchmarks/bench_operators.py", *one, f"--benchmark-json={found}"]
    # pytest-benchmark measures nothing where it believes to be in a process of pytest-xdist.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    subprocess.run(run, check=True, cwd=cases.ROOT, env=env, capture_output=True)
    (benchmark,) = json.loads(found.read_text())["benchmarks"]
    info = benchmark["extra_info"]
    assert benchmark["group"] == "upsample_softmax-c21-8x8-64x64, random"
    assert info["bytes that must move"] == 4 * 21 * (8 * 8 + 64 * 64)
    assert 0 < info["% of copy bandwidth"] <= info["% of the floor"]
    assert {"GB/s", "arithmetic floor, ms", "threads", "torch", "commit"} <= info.keys()
    assert ("peak memory, MB" in info) == memory.can_measure()
