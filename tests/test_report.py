"""`make report`: what README.md and docs/performance.md show is what was measured, losses included."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("matplotlib")

from benchmarks import cases, check, drop_in, goals, plots, report, scaling
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


def test_a_goal_that_is_missed_stands_in_bold_with_what_the_floor_allows():
    (row,) = goals.of_workloads(data(workload(1.0, 8.0)))
    assert row.cells == ["`toy` C=21, photograph", "at least 9x", "**8x**", "0.699 ms: 11.4x"]
    (row,) = goals.of_scores(None)
    assert row.cells[2] == "not yet measured"


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
    assert "\n".join(report.table(bench)) in (cases.ROOT / "README.md").read_text(encoding="utf-8")
    page = (cases.ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert "\n".join(report.goal_tables(bench)) in page
    for reason in json.loads(report.REASONS.read_text(encoding="utf-8")):
        assert reason["reason"].endswith(".")


def test_other_peoples_models_and_their_goals():
    def row(model, step, speed_up, peak, **agreement):
        times = {"library": {"median": 10.0 * speed_up}, "fused": {"median": 10.0}}
        peaks = {"library": 10**9, "fused": int(peak * 10**9)} if peak else {}
        found = {"model": model, "step": step, "milliseconds": times, "speed_up": speed_up, "peak_bytes": peaks}
        return found | agreement

    measured = {"rows": [row("segformer-b0", "training", 1.5, 0.4), row("segformer-b0", "evaluation", 3.5, None)]}
    measured["rows"][1] |= {"labels": 100, "labels_that_differ": 2, "their_lead": 3e-7}
    lines = drop_in.table(measured)
    training = "| SegFormer, training step: forward with loss, and backward | 15 | 10 | **1.5x** | 1e+03 | 400 |"
    assert lines[2] == training
    assert lines[-1].startswith("Labels: 2 of 100 differ, where the best two scores are within 3e-07 of the largest")
    rows = {r.what: r for r in goals.of_drop_in(measured)}
    assert rows[drop_in.TITLES["segformer-b0", "evaluation"]].reached
    assert not rows[drop_in.TITLES["segformer-b0", "training"]].reached
    assert rows[drop_in.TITLES["segformer-b0", "training"] + ": peak memory"].measured == "40%"
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
            "4",
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
    subprocess.run(run, check=True, cwd=cases.ROOT, capture_output=True)
    (benchmark,) = json.loads(found.read_text())["benchmarks"]
    info = benchmark["extra_info"]
    assert benchmark["group"] == "upsample_softmax-c21-8x8-64x64, random"
    assert info["bytes that must move"] == 4 * 21 * (8 * 8 + 64 * 64)
    assert 0 < info["% of copy bandwidth"] <= info["% of the floor"]
    assert {"GB/s", "arithmetic floor, ms", "threads", "torch", "commit"} <= info.keys()
    assert ("peak memory, MB" in info) == memory.can_measure()
