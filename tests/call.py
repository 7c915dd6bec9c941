"""One call of an operator, the tensors that it returns, and the same call on another device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

OPS = torch.ops.fcn_kernels


class Call(NamedTuple):
    """One call, and how far a rounding of its inputs reaches into each result."""

    op: str
    args: tuple
    gains: tuple[float, ...]
    scale: Tensor  # the tensor whose magnitude is that of the roundings

    def __repr__(self) -> str:
        def show(a: Any) -> str:
            if not isinstance(a, Tensor):
                return repr(a)
            return f"<{str(a.dtype).removeprefix('torch.')} {list(a.shape)} strides {list(a.stride())}>"

        return f"{self.op}({', '.join(map(show, self.args))})"


def results(op: str, ops: Any, args: Sequence[Any]) -> tuple[Tensor, ...]:
    result = getattr(ops, op)(*args)
    return result if isinstance(result, tuple) else (result,)


def moved(call: Call, device: str) -> Call:
    """The call on another device, its tensors stored as they were: strides, fillers between values, and all."""

    def move(a: Any) -> Any:
        if not isinstance(a, Tensor):
            return a
        storage = torch.empty(0, dtype=a.dtype).set_(a.untyped_storage()).to(device)
        return storage.as_strided(a.size(), a.stride(), a.storage_offset())

    return call._replace(args=tuple(map(move, call.args)), scale=move(call.scale))
