"""Tensors drawn by Hypothesis: dtypes, layouts, values, labels and weights of classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from cases import LAYOUTS
from drawn_samplings import limits
from hypothesis import strategies as st
from torch import Tensor

from fcn_kernels import reference

LABELS = (torch.uint8, torch.int16, torch.int32, torch.int64)


def _with_one(value: float) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        x = x.clone()
        if x.numel():
            x.view(-1)[int(torch.randint(0, x.numel(), ()))] = value
        return x

    return change


FINITE: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x,
    "hot": lambda x: 10 * x,
    "very-hot": lambda x: 80 * x,
    "ties": lambda x: x.round(),
    "jumps": lambda x: x.sign() * 1e4,
    "offset": lambda x: x + 300,
    "tiny": lambda x: 1e-30 * x,
}
VALUES = FINITE | {"nan": _with_one(torch.nan), "inf": _with_one(torch.inf), "minus-inf": _with_one(-torch.inf)}


class Draw:
    """Draws tensors with the numbers of one seed."""

    def __init__(self, draw: st.DrawFn, *, values: Sequence[str] = tuple(FINITE)) -> None:
        self.draw = draw
        torch.manual_seed(draw(st.integers(0, 2**31)))
        self.dtype = draw(st.sampled_from(limits().dtypes))
        self.arithmetic = reference.arithmetic_dtype(self.dtype)
        self.values = values

    def one_of(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def batch(self) -> int:
        return self.one_of(1, 1, 2, 2, 3, 0)

    def layout(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.numel() == 0:
            return x
        return LAYOUTS[self.one_of("contiguous", "channels_last", *LAYOUTS)](x)

    def image(self, *shape: int, values: Sequence[str] | None = None) -> Tensor:
        kind = self.one_of("normal", *(values or self.values))
        return self.layout(VALUES[kind](torch.randn(shape)).to(self.dtype))

    def like(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A gradient that arrives: ordinary numbers, in any layout."""
        return self.layout(torch.randn(shape).to(dtype or self.dtype))

    def labels(self, classes: int, *shape: int) -> tuple[Tensor, int]:
        """Labels and the ignored one, in any layout."""
        dtype = self.one_of(*LABELS) if classes <= 200 else self.one_of(*LABELS[1:])
        ignored = self.one_of(-100, -1, 255, 0) if dtype != torch.uint8 else self.one_of(255, 0)
        if 0 < ignored < classes:
            ignored = classes - 1
        target = torch.randint(0, classes, shape)
        target[torch.rand(shape) < self.one_of(0.0, 0.1, 0.1, 1.0)] = ignored
        kind = self.one_of("contiguous", "contiguous", "sliced", "transposed")
        target = LAYOUTS[kind](target.to(dtype)[:, None])[:, 0]
        return target, ignored

    def class_weight(self, classes: int) -> Tensor | None:
        weight = torch.rand(classes).to(self.arithmetic)
        return self.one_of(None, weight, weight.clone().index_fill_(0, torch.tensor([0]), 0.0))


def channels(d: Draw, pixels: int, batch: int) -> int:
    wanted = d.one_of(1, 2, 3, 5, 8, 9, 16, 17, 19, 21, 33, 64, 150)
    return max(1, min(wanted, limits().elements // max(1, pixels * batch)))
