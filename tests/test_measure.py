"""The instruments of the benchmarks (time in turns, rounds of a slow machine, peak memory) must be right before their
readings are."""

import itertools
import subprocess
import sys
import time

import pytest
import torch

from fcn_kernels.benchmarking import measure, memory, pace


def test_timing_is_a_median_with_quartiles():
    timing = measure.Timing.of([0.001, 0.002, 0.003, 0.004, 0.100])
    assert (timing.median, timing.low, timing.high, timing.fastest, timing.samples) == pytest.approx((3, 2, 4, 1, 5))
    assert timing.spread == pytest.approx(1 / 3)


def test_interleaved_alternates_and_tells_fast_from_slow():
    order = []

    def call(name, seconds):
        order.append(name)
        time.sleep(seconds)

    timings = measure.interleaved({"a": lambda: call("a", 0.004), "b": lambda: call("b", 0.05)}, 0.3, minimum=4)
    assert 4 <= timings["a"].median < timings["b"].median
    assert min(t.samples for t in timings.values()) >= 4
    timed = "".join(order[2:])
    assert "ab" in timed
    assert "ba" in timed


def test_interleaved_batches_calls_of_microseconds():
    timing = measure.interleaved({"nothing": lambda: None}, 0.02)["nothing"]
    assert 0 < timing.median < 0.1


def test_interleaved_gives_every_call_a_long_turn_after_a_rest():
    turns = []  # [name, seconds inside the calls] of each

    def call(name):
        start = time.perf_counter()
        time.sleep(0.001)
        if not turns or turns[-1][0] != name:
            turns.append([name, 0.0])
        turns[-1][1] += time.perf_counter() - start

    calls = {name: lambda name=name: call(name) for name in ("a", "b", "engine")}
    measure.interleaved(calls, 0.2, rested=["engine"])
    timed = turns[3:]  # the first ones are the warm-up
    assert {name for name, _ in timed} == set(calls)
    assert min(seconds for _, seconds in timed) > 0.9 * measure._SPINNING


class Scripted(pace.Pace):
    """Takes one time after the other, and the last one for ever."""

    def __init__(self, *times):
        super().__init__()
        self.times = list(times)

    def now(self):
        found = self.times.pop(0) if len(self.times) > 1 else self.times[0]
        self._fastest = min(self._fastest, found)
        return found


def test_rounds_of_a_slow_machine_are_repeated():
    calls = itertools.count()

    def call():
        time.sleep(0.02 if next(calls) in (1, 2) else 0.002)  # the first one warms up

    rounds = pace.Rounds()
    # A look before, and one after each round: the first is slow at its end, the second at its begin.
    timing = measure.interleaved({"a": call}, 0.1, 3, pace=Scripted(1.0, 1.5, 1.0), rounds=rounds)["a"]
    assert rounds.repeated == 2
    assert (rounds.slow, rounds.slow_share) == (0, 0)
    assert rounds.counted == timing.samples >= 3
    assert timing.high < 15


def test_rounds_of_a_machine_that_stays_slow_count_as_slow():
    rounds = pace.Rounds()
    start = time.perf_counter()
    timing = measure.interleaved({"a": lambda: time.sleep(0.002)}, 0.1, 3, pace=Scripted(1.0, 1.5), rounds=rounds)["a"]
    assert timing.samples >= 3
    assert rounds.repeated > 0
    assert rounds.slow_share == 1
    assert time.perf_counter() - start < 2


def test_pace_is_judged_by_the_fastest_that_was_seen():
    seconds = iter([0.02, 0.01, 0.011])
    looks = pace.Pace(lambda: time.sleep(next(seconds)), looks=1)
    begun = looks.now()
    assert not looks.is_slow(begun)  # nothing is known yet
    assert looks.is_slow(begun, looks.now())
    assert not looks.is_slow(looks.now())


def test_pace_may_be_looked_at_in_inference_mode_and_outside():
    looks = pace.Pace()
    with torch.inference_mode():
        assert looks.now() > 0
    assert looks.now() > 0
    with torch.inference_mode():
        assert looks.now() > 0


@pytest.mark.skipif(not memory.can_measure(), reason="no /proc/self/clear_refs")
def test_peak_memory_of_known_allocations():
    known = {
        "torch.ones(16 << 20)": 64,  # kept
        "torch.ones(16 << 20).sum()": 64,  # gone when the call returns
        "[torch.ones(4 << 20).sum() for _ in range(8)]": 16,  # one after the other
        "torch.ones(4)": 0,
    }
    code = "import torch; from fcn_kernels.benchmarking import memory; torch.ones(1 << 20).sum()\n"
    code += "\n".join(f"print(memory.peak_of(lambda: {expression}))" for expression in known)
    run = [sys.executable, "-c", code]
    output = subprocess.run(run, env=measure.environment("exact", 1), capture_output=True, text=True, check=True)
    for peak, megabytes in zip(output.stdout.split(), known.values(), strict=True):
        # The kernel counts pages per processor and adds them up now and then: half a megabyte for each that was used.
        assert abs(int(peak) / 2**20 - megabytes) < 6


def test_regimes_reach_the_environment_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    assert measure.environment("recycling", 3).items() >= {"MALLOC_MMAP_MAX_": "0", "OMP_NUM_THREADS": "3"}.items()
    assert not [key for key in measure.environment("default") if key.startswith("MALLOC_")]
    assert measure.environment("default", None, "baseline")["ATEN_CPU_CAPABILITY"] == "default"
