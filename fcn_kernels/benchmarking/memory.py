"""Peak memory, from the kernel's own high-water mark of a process that has done nothing else."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import torch

import fcn_kernels
from fcn_kernels.benchmarking import formulations
from fcn_kernels.benchmarking.workload import call_of
from fcn_kernels.benchmarking.workloads import workload


def _status(field: str) -> int:  # bytes
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(field + ":"):
                return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def available() -> int:  # bytes
    with open("/proc/meminfo") as info:
        return next(1024 * int(line.split()[1]) for line in info if line.startswith("MemAvailable:"))


def high_water_mark() -> int:  # bytes
    return _status("VmHWM")


def can_measure() -> bool:
    return os.access("/proc/self/clear_refs", os.W_OK)


def peak_of(call: Callable[[], object]) -> int:
    """Bytes by which the resident size rises at most during `call`, whose result is kept alive.

    Meaningful in the "exact" regime and in a process that has not run `call` before.
    """
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to the present resident size
    before = _status("VmRSS")
    result = call()
    peak = high_water_mark() - before
    del result
    return max(peak, 0)


def _in_child(connection, function, arguments) -> None:
    try:
        connection.send((True, function(*arguments)))
    except Exception as error:
        connection.send((False, f"{type(error).__name__}: {error}"))


def in_fresh_process(function: Callable, *arguments: object) -> object:
    """`function(*arguments)` in a process that has computed nothing yet, forked from one that has imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_in_child, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        good, value = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the measuring process ended with exit code {process.exitcode}") from None
    process.join()
    if not good:
        raise RuntimeError(value)
    return value


def _warm_up() -> None:
    """Starts threads and autograd and maps the code: a constant of a few MB that no operator is to be charged with."""
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    labels = torch.zeros(1, 128, 128, dtype=torch.long)
    formulations.cross_entropy(formulations.interpolate(x, (128, 128)), labels).backward()
    tiny, label = torch.rand(1, 3, 2, 2, requires_grad=True), torch.zeros(1, 4, 4, dtype=torch.long)
    fcn_kernels.upsample_cross_entropy(tiny, label).backward()
    fcn_kernels.upsample_argmax(tiny, (4, 4))
    fcn_kernels.upsample_softmax(tiny, (4, 4))
    fcn_kernels.upsample_add(tiny, torch.rand(1, 3, 4, 4), (4, 4)).sum().backward()


def peak_memory(name: str, method_name: str, threads: int | None) -> int:
    """Bytes that one call of a method takes at most beyond its inputs, in a process that has not run it before."""
    if threads is not None:
        torch.set_num_threads(threads)
    job = workload(name)
    method = job.method(method_name)
    tensors = job.make(job.inputs[0])
    _warm_up()
    call = call_of(method, tensors)
    if method.compiled:
        call()  # the compiler's own memory is not meant
        for t in tensors.values():
            t.grad = None
    return peak_of(call)
