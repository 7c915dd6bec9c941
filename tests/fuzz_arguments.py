"""Arguments of every kind, steered by libFuzzer: the raw operators and the public functions give a result or one of the
exceptions that docs/design.md names, with a sentence in it.

    python tests/fuzz_arguments.py [options of libFuzzer]     e.g. -max_total_time=600; needs Atheris

A case is a string of bytes: it chooses a function, one of its right calls, and what becomes of each argument. The
validation in Python is instrumented, so that Atheris keeps the strings that reach new lines. test_fuzz_arguments.py
runs some strings without it.
"""

from __future__ import annotations

import faulthandler
import math
import random
import re
import resource
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

try:
    import atheris
except ImportError:
    atheris = None

with atheris.instrument_imports(include=["fcn_kernels"]) if atheris else nullcontext():
    import fcn_kernels as fk
import torch
from hostile import DTYPES
from strategies import examples, operators

from fcn_kernels import Sampling

Call = tuple[tuple, dict[str, Any]]  # arguments without and with names
Functions = dict[str, tuple[Callable, list[Call]]]  # name -> the function and right calls of it

DOCUMENTED = (TypeError, ValueError, RuntimeError)
TWINS = "fcn_kernels_twins"
# Sizes in between would be allocated.
INTEGERS = (-(2**63), -(2**62), -(2**40), -1, 0, 1, 2, 3, 8, 2**16, 2**31 - 1, 2**42, 2**61, 2**62, 2**63 - 1, 2**64)
FLOATS = (math.nan, math.inf, -math.inf, -1.0, 0.0, 0.1, 0.5, 1.0, 2.0, 5e-324, 1e308)
WORDS = ("none", "mean", "sum", "mean_all", "", "zero", "größer", "\0")
ROOM = 2**29  # bytes that a call may allocate


class Bytes:
    """Choices, read from bytes; zeros follow them."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at].ljust(count, b"\0")

    def below(self, n: int) -> int:
        return self.take(1)[0] % n

    def one_of(self, choices: Sequence[Any]) -> Any:
        return choices[self.below(len(choices))]

    def integer(self) -> int:
        kind = self.below(4)
        if kind == 3:
            return int.from_bytes(self.take(8), "little", signed=True)
        return self.one_of(INTEGERS) if kind else self.below(12)

    def floating(self) -> float:
        return struct.unpack("<d", self.take(8))[0] if self.below(4) == 3 else self.one_of(FLOATS)


class Arguments:
    """Makes right arguments wrong."""

    def __init__(self, data: Bytes) -> None:
        self.data = data

    def tensor(self) -> torch.Tensor:
        shape = [self.data.below(6) for _ in range(self.data.below(6))]
        return self.bent(torch.ones(shape).to(self.data.one_of(DTYPES)))

    def bent(self, t: torch.Tensor) -> torch.Tensor:
        """The same tensor but for its dtype, rank, sizes, strides, device or layout, where torch can make it."""
        try:
            return self._bent(t)
        except (RuntimeError, IndexError):
            return t

    def _bent(self, t: torch.Tensor) -> torch.Tensor:
        if t.numel() > 2**16:  # has been expanded
            return t
        kind = self.data.below(12)
        d, e = (self.data.below(max(t.dim(), 1)) for _ in range(2))
        if kind == 0:
            return t.to(self.data.one_of(DTYPES))
        if kind == 1:
            return self.data.one_of([t[None], t[..., None], t.flatten(), t.sum(), t.reshape(-1, 1)])
        if kind == 2:
            return t.to("meta")
        if kind == 3:
            return t.detach().requires_grad_(t.is_floating_point())
        if kind == 4:
            return t.to_sparse()
        if t.dim() == 0:
            return t
        if kind == 5:
            return t.transpose(d, e)
        if kind == 6:
            return t[(slice(None),) * d + (slice(0, self.data.below(3)),)]
        if kind == 7:
            return torch.cat([t, t], d)
        if kind == 8:
            return t.flip(d)
        if kind == 9:
            return t.sum(d, keepdim=True, dtype=t.dtype).expand(t.shape)
        if kind == 10:
            return t[(slice(None),) * d + (slice(None, None, 2),)]
        shape = list(t.shape)
        shape[e], shape[d] = 0, self.data.one_of((2**31, 2**40))  # nothing to compute, or
        if d == e:
            shape[d] = 2**16
        return t.new_empty(()).expand(shape) if math.prod(shape) <= 2**28 else t

    def anything(self, depth: int = 0) -> Any:
        kind = self.data.below(13 if depth else 15)
        if kind < 4:
            return self.data.integer()
        if kind == 4:
            return self.data.floating()
        if kind == 5:
            return self.data.one_of((None, True, False, 1j, b"", object(), 10**400, int, torch.device("cpu")))
        if kind == 6:
            return self.data.one_of(WORDS)
        if kind == 7:
            return self.data.one_of(DTYPES)
        if kind < 11:
            return self.tensor()
        if kind == 11:
            return Sampling.interpolate((1 + self.data.below(5), 1 + self.data.below(6)), (8, 10))
        if kind == 12:
            return torch.tensor(self.data.below(12))
        values = [self.anything(depth + 1) for _ in range(self.data.below(4))]
        return tuple(values) if kind == 13 else values

    def changed(self, value: Any) -> Any:
        """Of the same type, mostly."""
        if self.data.below(5) == 4:
            return self.anything()
        if isinstance(value, torch.Tensor):
            return self.bent(value)
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return self.data.integer()
        if isinstance(value, float):
            return self.data.floating()
        if isinstance(value, (list, tuple)) and value:
            values, i = list(value), self.data.below(len(value))
            values[i] = self.changed(values[i])
            return type(value)(self.data.one_of([values, values, values, values[1:], [*values, 1]]))
        return self.anything()


class Reached(Exception):
    """torch has parsed the arguments, and an operator has them."""


def _reached(*args: Any, **options: Any) -> None:
    raise Reached


@cache
def _twins() -> torch.library.Library:
    """Operators with the names and schemas of ours, on every device, that only say that they were reached."""
    library = torch.library.Library(TWINS, "DEF")
    for op in operators():
        packet = getattr(torch.ops.fcn_kernels, op)
        for overload in packet.overloads():
            schema = str(getattr(packet, overload)._schema).removeprefix("fcn_kernels::")
            library.define(schema)
            library.impl(schema[: schema.index("(")], _reached, "CompositeImplicitAutograd")
    return library


def torch_refuses(name: str, args: tuple, error: Exception) -> bool:
    """Whether it is torch that raises this error, while it parses the arguments of a raw operator: no line of ours has
    run then, and the twin, in which nothing else can fail, raises the same."""
    if not name.startswith("ops."):
        return False
    _twins()
    try:
        getattr(getattr(torch.ops, TWINS), name.removeprefix("ops."))(*args)
    except Exception as twin:
        return type(twin) is type(error) and _said(twin).replace(TWINS, "fcn_kernels") == _said(error)
    raise AssertionError(f"the twin of {name} returned")


def _said(error: Exception) -> str:
    """The sentence of an error, without the frames of C++ and of Python that torch may write below it."""
    return re.sub(r"\n\nAt:\n(  .*\n)*", "\n", str(error).partition("\nException raised from ")[0])


def documented(name: str, args: tuple) -> tuple[type[Exception], ...]:
    """What a call may raise. Where a raw operator gets None for a tensor, or one that is not the CPU's, the reference
    or a fake kernel stands in for the kernels and takes raw arguments as they are: there it is what Python raises."""
    if name.startswith("ops."):
        schema = getattr(torch.ops.fcn_kernels, name.removeprefix("ops.")).default._schema
        for argument, given in zip(schema.arguments, args, strict=True):
            if _elsewhere(given) or (given is None and str(argument.type) == "Tensor"):
                return (Exception,)
    return DOCUMENTED


def _elsewhere(given: Any) -> bool:
    return isinstance(given, torch.Tensor) and (given.is_meta or given.layout != torch.strided)


def raw_calls() -> Functions:
    return {
        f"ops.{op}": (getattr(torch.ops.fcn_kernels, op), [(call.args, {}) for call in examples(op, 30)])
        for op in operators()
    }


def public_calls() -> Functions:
    """Every public function, with every argument given."""
    x, skip, filters = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 9, 11), torch.randn(3, 3, 4, 4)
    rows, bias, factors = torch.randn(7, 3), torch.randn(7), torch.rand(3)
    target, labels = torch.randint(0, 3, (2, 8, 10)), torch.randint(0, 7, (2, 4, 5), dtype=torch.uint8)
    image, sampling, size = torch.empty(2, 3, 8, 10), Sampling.interpolate((4, 5), (8, 10)), (8, 10)
    crop = {"stride": (2, 2), "groups": 1, "offset": (1, 1), "output_size": size, "skip_offset": (0, 1), "out": None}
    loss = {"ignore_index": -100, "reduction": "mean", "label_smoothing": 0.1}
    binary = {"pos_weight": factors, "ignore_index": 255, "reduction": "mean"}
    calls: dict[Callable, list[Call]] = {
        fk.check_labels: [((target, 3, -100), {})],
        fk.conv_transpose_add: [((x, filters, skip), {**crop, "skip_scale": 0.5})],
        fk.conv_transpose_concat: [((x, filters, skip, factors), crop)],
        fk.score_argmax: [((x, rows, bias), {"dtype": torch.uint8, "out": None})],
        fk.score_cross_entropy: [((x, rows, bias, labels), {"class_weight": bias.abs(), **loss})],
        fk.score_log_softmax: [((x, rows, bias), {"out": None})],
        fk.score_softmax: [((x, rows, bias), {"out": torch.empty(2, 7, 4, 5)})],
        fk.upsample: [((x, sampling), {"out": image}), ((x, size), {})],
        fk.upsample_add: [((x, skip, sampling), {"skip_offset": (1, 1), "skip_scale": 0.5, "out": image})],
        fk.upsample_argmax: [((x, size), {"dtype": torch.int32, "return_confidence": True, "out": None})],
        fk.upsample_binary_cross_entropy: [((x, image.sigmoid(), sampling), binary), ((x, image.gt(0), size), binary)],
        fk.upsample_confusion_matrix: [((x, target, sampling), {"ignore_index": None})],
        fk.upsample_cross_entropy: [
            ((x, target, sampling), {"weight": factors, **loss}),
            ((x, target), {"pixel_weight": torch.rand(2, 8, 10), "return_extras": True}),
        ],
        fk.upsample_log_softmax: [((x, size), {"out": None})],
        fk.upsample_sigmoid: [((x, size), {"out": image})],
        fk.upsample_softmax: [((x, sampling), {"out": image})],
        Sampling.interpolate: [(((4, 5), size), {"align_corners": True}), ((5,), {"scale_factor": (2.0, 0.3)})],
        Sampling.transposed_conv: [((4, (2, 8)), {"kernel_size": (4, 16), "offset": (1, 0), "output_size": (5, 6)})],
    }
    return {f.__qualname__: (f, found) for f, found in calls.items()}


def functions() -> Functions:
    return raw_calls() | public_calls()


@contextmanager
def limited_memory(room: int) -> Iterator[None]:
    """Inside, the process may take `room` bytes of addresses more than it has.

    What surrounds a call is not limited, and what earlier ones left behind, such as the code that torch's convolutions
    compile and keep for every shape, takes nothing of its room: they end the process where it runs out.
    """
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def one(functions: Functions, data: bytes, limits: Callable[[], AbstractContextManager] = nullcontext) -> None:
    """Runs the case, the call itself inside `limits`; raises where it finds something."""
    source = Bytes(data)
    name = source.one_of(sorted(functions))
    f, calls = functions[name]
    args, options = source.one_of(calls)
    make, given = Arguments(source), [*args, *options.values()]
    for _ in range(source.below(4)):
        i = source.below(len(given))
        wrong = make.changed(given[i])
        if not (isinstance(given[i], torch.dtype) and isinstance(wrong, int)):  # torch's own operators crash there too
            given[i] = wrong
    args, options = given[: len(args)], dict(zip(options, given[len(args) :], strict=True))
    try:
        with limits():
            f(*args, **options)
    except Exception as error:
        with limits():
            refused = torch_refuses(name, args, error)
        if refused:
            return
        if not isinstance(error, documented(name, args)):
            raise AssertionError(f"{name}: {type(error).__name__} is not documented: {error}") from error
        if not _said(error) or any(word in _said(error) for word in ("std::", "INTERNAL ASSERT")):
            raise AssertionError(f"{name}: {error!r} says nothing") from error


def some(functions: Functions, cases: int = 600) -> None:
    """Runs cases of random bytes, the same ones always."""
    source = random.Random(1)
    for _ in range(cases):
        one(functions, source.randbytes(40))


def main() -> None:
    if atheris is None:
        sys.exit("fuzz_arguments.py needs Atheris (pip install atheris; Linux, Python 3.10 to 3.14)")
    found = functions()
    torch.set_num_threads(1)
    some(found)  # torch has then loaded what it loads when it is used first

    def run(data: bytes) -> None:
        faulthandler.enable()  # after libFuzzer's handlers: a signal prints the line of Python, then libFuzzer the case
        one(found, data, partial(limited_memory, ROOM))

    atheris.Setup(sys.argv, run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
