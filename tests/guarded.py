"""Run by test_guard_pages.py in a process of its own, under guard_pages.c.

guarded.py calls N SEED     N calls of every operator, on every instruction set: the same bits as without guards
guarded.py hostile N SEED   N calls of every operator with wrong arguments: an exception, or a result
guarded.py channels_last    every number of channels that leaves a rest in a vector, in images of a few pixels
guarded.py FAULT            commits one fault on purpose: after, before, freed

Operators that are named after SEED are tried alone.
"""

from __future__ import annotations

import ctypes
import faulthandler
import sys
from collections.abc import Callable, Iterator

import torch
from call import Call, results
from hostile import hostile
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from instruction_sets import INSTRUCTION_SETS, instruction_set
from strategies import calls, operators
from torch import Tensor

from fcn_kernels import Sampling

END, START = 1, 2
MODE = ctypes.c_int.in_dll(ctypes.CDLL(None), "guard_mode")
FILL = ctypes.c_int.in_dll(ctypes.CDLL(None), "guard_fill")
OPS = torch.ops.fcn_kernels
# What torch's dispatcher, our checks and torch's allocator raise; anything else is a finding.
EXPECTED = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError)


def guarded(t: object) -> object:
    """The same values at the same strides; the memory begins with the first element and ends with the last."""
    if not isinstance(t, Tensor) or t.layout != torch.strided or t.device.type != "cpu":
        return t
    span = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
    memory = torch.empty(span, dtype=t.dtype)
    memory.copy_(t.detach().as_strided((span,), (1,)))
    return memory.as_strided(t.shape, t.stride()).requires_grad_(t.requires_grad)


def guarded_results(op: str, args: tuple, mode: int, fill: int) -> tuple[Tensor, ...]:
    MODE.value, FILL.value = mode, fill
    try:
        return results(op, OPS, [guarded(a) for a in args])
    finally:
        MODE.value = 0


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal, and NaN where the other is NaN."""
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def check(call: Call) -> None:
    for name in INSTRUCTION_SETS:
        with instruction_set(name):
            expected = results(call.op, OPS, call.args)
            for mode, fill in ((END, 0xFF), (START, 0)):
                for a, b in zip(guarded_results(call.op, call.args, mode, fill), expected, strict=True):
                    assert same_bits(a, b), f"{name}: {call} depends on memory that is not its own"


def check_hostile(call: tuple[str, tuple]) -> None:
    op, args = call
    try:
        guarded_results(op, args, END, 0xFF)
    except EXPECTED as error:
        if not str(error) or "std::bad" in str(error):
            raise AssertionError(f"{op}: {error!r} says nothing") from error


CHECKS: dict[str, tuple[Callable[[str], st.SearchStrategy], Callable]] = {
    "calls": (calls, check),
    "hostile": (lambda op: st.tuples(st.just(op), hostile(op)), check_hostile),
}


def run(kind: str, examples: int, number: int, names: list[str]) -> int:
    """How many cases were tried."""
    strategy, check = CHECKS[kind]
    count = 0

    def counted(case: object) -> None:
        nonlocal count
        count += 1
        check(case)

    for op in names:
        test = settings(max_examples=examples, database=None, deadline=None, suppress_health_check=HealthCheck)(
            seed(number)(given(strategy(op))(counted))
        )
        test()
    return count


def channels_last_calls() -> Iterator[Call]:
    """Vectors reach over several pixels where there are few channels."""
    for channels in range(1, 18):
        for width in (1, 2, 6):
            sampling = Sampling.interpolate((2, width), (5, 2 * width + 1))
            x, skip = (
                torch.randn(1, channels, *size).contiguous(memory_format=torch.channels_last)
                for size in (sampling.input_size, sampling.output_size)
            )
            code = sampling.encode()
            for op, args in (
                ("upsample", (x, code)),
                ("upsample_add", (x, skip, code, [0, 0], 0.5)),
                ("upsample_sigmoid", (x, code)),
                ("upsample_softmax", (x, code, False)),
                ("upsample_softmax", (x, code, True)),
                ("upsample_backward", (skip, code)),
                ("upsample_sigmoid_backward", (skip, skip.sigmoid(), code)),
            ):
                yield Call(op, args, (), x)


def commit(fault: str) -> None:
    MODE.value = START if fault == "before" else END
    t = torch.zeros(7, dtype=torch.float16)
    MODE.value = 0
    first, size = t.data_ptr(), t.numel() * t.element_size()
    ctypes.string_at(first, size)  # all that is ours can be read
    if fault == "freed":
        del t
    ctypes.string_at({"after": first + size, "before": first - 1, "freed": first}[fault], 1)


if __name__ == "__main__":
    torch.set_num_threads(2)
    if sys.argv[1] in CHECKS:
        faulthandler.enable()
        kind, examples, number, *names = sys.argv[1:]
        print(f"{run(kind, int(examples), int(number), names or operators())} cases")
    elif sys.argv[1] == "channels_last":
        faulthandler.enable()
        found = list(channels_last_calls())
        for call in found:
            check(call)
        print(f"{len(found)} cases")
    else:
        commit(sys.argv[1])
        print("nothing noticed")
