"""How time is measured: interleaved rounds, medians with their spread, malloc regimes; and what a number comes with."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import fcn_kernels
from fcn_kernels.benchmarking.pace import Pace, Rounds

# Three ways for malloc to treat large blocks. They must be in the environment before a process starts.
REGIMES: dict[str, dict[str, str]] = {
    # Freed memory stays in the process: no page is zeroed by the kernel twice, and operators alone are measured.
    "recycling": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "10000000000"},
    # What users have: glibc returns large blocks to the kernel, so every large temporary pays for fresh pages.
    "default": {},
    # Every large block comes and goes on its own: the resident size follows what is allocated.
    "exact": {"MALLOC_MMAP_THRESHOLD_": "65536"},
}


# Our names of instruction sets, and what torch's own kernels, MKL (matrix products) and oneDNN (convolutions) obey:
# each looks at the processor for itself.
INSTRUCTION_SETS = {
    "baseline": {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512"},
}


def environment(regime: str, threads: int | None = None, instruction_set: str | None = None) -> dict[str, str]:
    """The environment of a measuring process."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")} | REGIMES[regime]
    if threads is not None:
        env["OMP_NUM_THREADS"] = str(threads)
    if instruction_set is not None:
        env |= INSTRUCTION_SETS[instruction_set]
    return env


def restrict(instruction_set: str) -> None:
    """Fused kernels and torch.compile use no more than this; torch's own kernels and libraries obey `environment`."""
    import torch._inductor.config

    from fcn_kernels import _C

    _C.use_instruction_set(instruction_set)
    torch._inductor.config.cpp.simdlen = {"baseline": 0, "avx2": 256, "avx512": 512}[instruction_set]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call."""

    median: float
    low: float  # quartiles
    high: float
    fastest: float  # what an undisturbed machine would show more often
    samples: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        ms = sorted(1e3 * s for s in seconds)
        low, _, high = statistics.quantiles(ms, n=4, method="inclusive") if len(ms) > 1 else ms * 3
        return cls(statistics.median(ms), low, high, ms[0], len(ms))

    @property
    def spread(self) -> float:
        """Half the interquartile range, relative to the median."""
        return (self.high - self.low) / 2 / self.median

    as_dict = asdict


_SPINNING = 0.01  # seconds after a parallel region within which OpenMP's threads wait for the next one without sleeping


def _let_others_stop(call: Callable[[], object]) -> None:
    """Waits, awake, until other threads sleep: who sleeps itself starts slowly; then warms the call up."""
    end = time.perf_counter() + _SPINNING
    while time.perf_counter() < end:
        pass
    end += _SPINNING / 5
    call()
    while time.perf_counter() < end:
        call()


_PACE = Pace()


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    seconds: float,
    minimum: int = 5,
    rested: Collection[str] = (),
    *,
    pace: Pace = _PACE,
    rounds: Rounds | None = None,
) -> dict[str, Timing]:
    """Times all calls in turns, so that a slow phase of the machine falls on all of them, for about `seconds` in all.

    The first sample of a turn finds another call's data in the cache. Short calls are sampled several times a turn; one
    that has had its share of the time and `minimum` samples (3, if it takes seconds) waits for the others. Before and
    after the turn of a `rested` call, which has threads of its own, those of the others have the time to stop spinning;
    turns are as long as that rest, then, for what it left cold (code, sleeping threads) to weigh little in all of them.

    A round before or after which the machine is slow is forgotten and measured again, until that has taken `seconds`;
    from then on it counts, as slow. What is compared has no part in this: a fixed computation is timed. `rounds` takes
    the numbers.
    """
    turn = _SPINNING if rested else 0.0
    rounds = Rounds() if rounds is None else rounds
    samples: dict[str, list[float]] = {name: [] for name in calls}
    estimate = {}
    for name, call in calls.items():  # warm-up
        start = time.perf_counter()
        call()
        estimate[name] = time.perf_counter() - start
    slowest = max(estimate.values())
    repeats = {name: max(1, min(10, int(0.1 * slowest / own))) for name, own in estimate.items()}
    batch = {name: max(1, int(2e-4 / own)) for name, own in estimate.items()}  # microseconds are not timed one by one
    least = {name: minimum if own < 1 else min(minimum, 3) for name, own in estimate.items()}
    spent = dict.fromkeys(calls, 0.0)
    share, patience = seconds / len(calls), seconds
    is_rested = False
    enabled = gc.isenabled()
    gc.disable()
    try:
        if rested:
            _let_others_stop(pace.now)
        before = pace.now()
        while True:
            enough = [name for name in calls if len(samples[name]) >= least[name]]
            waiting = [name for name in enough if spent[name] >= share]
            if len(waiting) == len(calls) or (len(enough) == len(calls) and sum(spent.values()) >= seconds):
                break
            found: dict[str, list[float]] = {}
            began = time.perf_counter()
            for name in calls:
                if name in waiting:
                    continue
                call, count = calls[name], batch[name]
                if rested and (name in rested) != is_rested:
                    is_rested = not is_rested
                    _let_others_stop(call)
                found[name], used = [], 0.0
                while len(found[name]) < repeats[name] or used < turn:
                    start = time.perf_counter()
                    for _ in range(count):
                        call()
                    elapsed = time.perf_counter() - start
                    found[name].append(elapsed / count)
                    used += elapsed
            if is_rested:
                is_rested = False
                _let_others_stop(pace.now)
            after = pace.now()
            slow = pace.is_slow(before, after)
            before = after
            if slow and patience > 0:
                patience -= time.perf_counter() - began
                rounds.repeated += 1
                continue
            rounds.counted += 1
            rounds.slow += slow
            for name, times in found.items():
                samples[name] += times
                spent[name] += sum(times) * batch[name]
    finally:
        if enabled:
            gc.enable()
    return {name: Timing.of(times) for name, times in samples.items()}


def waited() -> float | None:
    """Seconds that this process's threads were ready to run and had no processor, so far: other work disturbs us."""
    try:
        tasks = Path("/proc/self/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[1]) for task in tasks) / 1e9
    except (OSError, IndexError, ValueError):
        return None


def copy_bandwidth(megabytes: float = 256, seconds: float = 0.5) -> float:
    """Bytes per second, read and written, of a copy that moves so many bytes: what a streaming operator can reach."""
    source = torch.ones(int(megabytes * 2**17))
    target = torch.empty_like(source)
    timing = interleaved({"copy": lambda: target.copy_(source)}, seconds)["copy"]
    return 2 * source.nbytes / (timing.fastest / 1e3)


def multiply_adds(side: int = 1024, seconds: float = 0.5) -> float:
    """Multiply-adds per second of a product of float32 matrices: what arithmetic can reach."""
    a, b = torch.ones(side, side), torch.ones(side, side)
    return side**3 / (interleaved({"product": lambda: a @ b}, seconds)["product"].fastest / 1e3)


def rates(seconds: float = 0.3) -> dict[str, object]:
    """What this machine, with these threads, can copy and compute: the two sides of a roofline."""
    sizes = [2**20, 2**22, 2**24, 2**26, 2**28]
    return {
        "copy_bytes_per_second": {str(size): copy_bandwidth(size / 2**20, seconds) for size in sizes},
        "multiply_adds_per_second": multiply_adds(seconds=seconds),
    }


# --- provenance ---


def _processor() -> str:
    """Its name and, since virtual machines call many processors by one name, family and model."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        first = ""
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    parts = [said.get("model name") or platform.processor() or platform.machine()]
    parts += [f"{word} {said[key]}" for word, key in (("family", "cpu family"), ("model", "model")) if key in said]
    return ", ".join(parts)


def _commit() -> str | None:
    try:
        here = Path(__file__).resolve().parent
        git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _instruction_set() -> str:
    try:
        from fcn_kernels import _C
    except ImportError:
        return "none: no compiled kernels, the PyTorch reference serves"
    return _C.instruction_set()


def provenance() -> dict[str, object]:
    """What a number means nothing without."""
    from fcn_kernels.benchmarking.engines import installed

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torch_instruction_set": torch.backends.cpu.get_cpu_capability(),
        "fcn_kernels": fcn_kernels.__version__,
        "instruction_set": _instruction_set(),
        "commit": _commit(),
        "engines": installed(),
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
