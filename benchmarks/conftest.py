"""One pytest-benchmark group per workload and kind of inputs, the fused operator beside its rivals.

    pytest benchmarks                                   # everything
    pytest benchmarks/bench_upsample_argmax.py -k c21   # some of it
    pytest benchmarks --benchmark-json=FILE             # as data

`fcn-kernels bench` measures the same workloads interleaved: read ratios there. These suites are for work on one
operator, and for `--benchmark-compare` between commits.
"""

import pytest
import torch

from fcn_kernels.benchmarking import measure
from fcn_kernels.benchmarking.worker import methods_for
from fcn_kernels.benchmarking.workload import call_of
from fcn_kernels.benchmarking.workloads import WORKLOADS, workload


def pytest_addoption(parser):
    parser.addoption("--compile", action="store_true", help="torch.compile too (slow to start)")


def pytest_generate_tests(metafunc):
    """`job`, for a test named test_OPERATOR: each of its workloads x inputs x methods."""
    if "job" not in metafunc.fixturenames:
        return
    operator = metafunc.function.__name__.removeprefix("test_")
    compiled = metafunc.config.getoption("--compile")
    jobs = [
        pytest.param((job.name, inputs, method.name), id=f"{job.name}-{inputs}-{method.name}")
        for job in WORKLOADS
        if job.operator == operator and job.timed
        for inputs in job.inputs
        for method in methods_for(job, [m.name for m in job.methods], inputs)
        if compiled or not method.compiled
    ]
    metafunc.parametrize("job", jobs)


@pytest.fixture(scope="session")
def bandwidth():
    return measure.copy_bandwidth()


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["fcn_kernels"] = measure.provenance()


@pytest.fixture
def measured(benchmark, job, bandwidth):
    """Times one method of a workload; GB/s are those of the bytes that the fused operator must move."""
    name, inputs, method = job
    chosen = workload(name)
    torch._dynamo.reset()
    call = call_of(chosen.method(method), chosen.make(inputs))
    call()
    benchmark.group = f"{name}, {inputs}"
    result = benchmark(call)
    rate = chosen.traffic / benchmark.stats.stats.median
    benchmark.extra_info["GB/s"] = round(rate / 1e9, 3)
    benchmark.extra_info["% of copy bandwidth"] = round(100 * rate / bandwidth, 2)
    return result
