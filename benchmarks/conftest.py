"""One pytest-benchmark group per workload and kind of inputs, the fused operator beside its rivals.

    pytest benchmarks                                # everything
    pytest benchmarks -k "upsample_argmax and c21"   # some of it; -k grid: every operator, direction and dtype
    pytest benchmarks --compile                      # torch.compile too; --max-autotune: in that mode, too
    pytest benchmarks --peak-memory                  # with a process for each method, to take its peak
    pytest benchmarks --benchmark-json=FILE          # as data

Inference engines take part where they are installed (`pip install ".[engines]"`). Every method is checked against eager
PyTorch in float64 before it is timed. `fcn-kernels bench` measures the same workloads interleaved: read ratios there.
These suites are for work on one operator, and for `--benchmark-compare` between commits and `--benchmark-histogram`.
"""

import functools
import os

import pytest
import torch

from benchmarks.cases import bandwidth
from fcn_kernels.benchmarking import measure, memory
from fcn_kernels.benchmarking.agreement import Agreement
from fcn_kernels.benchmarking.worker import methods_for
from fcn_kernels.benchmarking.workload import call_of
from fcn_kernels.benchmarking.workloads import WORKLOADS, workload


def pytest_addoption(parser):
    parser.addoption("--compile", action="store_true", help="torch.compile too (slow to start)")
    parser.addoption(
        "--max-autotune", action="store_true", help="torch.compile in that mode too (much slower to start)"
    )
    parser.addoption("--peak-memory", action="store_true", help="peak memory of every method, in extra_info")


def pytest_generate_tests(metafunc):
    """`job`: each of the workloads x inputs x methods."""
    if "job" not in metafunc.fixturenames:
        return
    modes = {None: metafunc.config.getoption("--compile"), "max-autotune": metafunc.config.getoption("--max-autotune")}
    jobs = [
        pytest.param((job.name, inputs, method.name), id=f"{job.name}-{inputs}-{method.name}")
        for job in WORKLOADS
        if job.timed
        for inputs in job.inputs
        for method in methods_for(job, [m.name for m in job.methods], inputs)
        if not method.compiled or modes[method.mode]
    ]
    metafunc.parametrize("job", jobs)


@pytest.fixture(scope="session")
def rates():
    return measure.rates()


def pytest_benchmark_update_machine_info(config, machine_info):
    """Without what differs between two runs on one machine, of which --benchmark-compare would warn."""
    changing = ("commit", "date")
    machine_info["fcn_kernels"] = {k: v for k, v in measure.provenance().items() if k not in changing}


@functools.lru_cache(maxsize=1)
def agreement(name, inputs):
    """Of the workload at hand: its oracle is computed once for all methods."""
    job = workload(name)
    return Agreement(job, job.make(inputs))


def extra_info(job, seconds, rates):
    """What a time is to be judged by. Bytes and operations are those of the fused operator, for all methods alike."""
    copying = job.traffic / bandwidth(rates, job.traffic)
    computing = job.operations / rates["multiply_adds_per_second"]
    floor = max(copying, computing)
    where = measure.provenance()
    return {
        "bytes that must move": job.traffic,
        "GB/s": round(job.traffic / seconds / 1e9, 3),
        "% of copy bandwidth": round(100 * copying / seconds, 2),
        "arithmetic floor, ms": round(1e3 * computing, 4) if job.operations else None,
        "% of the floor": round(100 * floor / seconds, 2),
        **{key: where[key] for key in ("threads", "torch", "fcn_kernels", "engines", "instruction_set", "commit")},
    }


@pytest.fixture
def measured(benchmark, job, rates, request):
    """Times one method of a workload, after a check of its results."""
    name, inputs, method_name = job
    chosen = workload(name)
    method = chosen.method(method_name)
    torch._dynamo.reset()
    call = call_of(method, chosen.make(inputs))
    results = call()
    if method.role != "yardstick":
        assert not agreement(name, inputs).complaints(method, results)
    benchmark.group = f"{name}, {inputs}"
    result = benchmark(call)
    benchmark.extra_info.update(extra_info(chosen, benchmark.stats.stats.median, rates))
    plans_ahead = method.prepared  # an engine allocates when it compiles
    if request.config.getoption("--peak-memory") and memory.can_measure() and not plans_ahead:
        os.environ.update(measure.REGIMES["exact"])  # for the process to come
        peak = memory.in_fresh_process(memory.peak_memory, name, method_name, torch.get_num_threads())
        benchmark.extra_info["peak memory, MB"] = round(peak / 1e6, 3)
    return result
