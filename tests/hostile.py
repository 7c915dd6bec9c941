"""Calls with one argument made wrong: another dtype, rank, size or device, integers and floats of any value."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from strategies import calls
from torch import Tensor

# Sizes between these would be allocated.
INTEGERS = (-(2**63), -(2**62), -(2**40), -7, -1, 0, 1, 2, 3, 7, 2**42, 2**61, 2**62, 2**63 - 1)
FLOATS = (float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e308, 2.0)
DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.complex64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16),
)


@st.composite
def hostile(draw: st.DrawFn, op: str) -> tuple:
    """The arguments of a call that is right but for one or two of them."""
    args = list(draw(calls(op)).args)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        i = draw(st.integers(0, len(args) - 1))
        args[i] = _wrong(draw, args[i])
    return tuple(args)


def _wrong(draw: st.DrawFn, a: Any) -> Any:
    if isinstance(a, Tensor):
        return _wrong_tensor(draw, a)
    if isinstance(a, list):
        a, i = list(a), draw(st.integers(0, len(a) - 1))
        kind = draw(st.sampled_from(["value", "value", "value", "nudge", "longer", "shorter"]))
        if kind == "value":
            a[i] = draw(st.sampled_from(INTEGERS))
        elif kind == "nudge":
            a[i] += draw(st.sampled_from([-1, 1]))
        elif kind == "longer":
            a.append(1)
        else:
            a.pop()
        return a
    if isinstance(a, bool):
        return not a
    if isinstance(a, int):
        return draw(st.sampled_from(INTEGERS))
    if isinstance(a, float):
        return draw(st.sampled_from(FLOATS))
    if isinstance(a, torch.dtype):
        return draw(st.sampled_from(DTYPES))
    return draw(st.sampled_from([torch.zeros(3), torch.zeros(2, 3, 4, 5), torch.zeros(())]))  # where None stood


def _wrong_tensor(draw: st.DrawFn, t: Tensor) -> Tensor:
    if t.is_meta:
        return t
    if t.dim() == 0 or t.numel() == 0:
        return draw(st.sampled_from([t[None], t.to("meta"), torch.ones(2, 3, dtype=t.dtype)]))
    kind = draw(st.sampled_from(["size", "size", "size", "dtype", "rank", "transpose", "expand", "meta", "leaf"]))
    d, e = draw(st.integers(0, t.dim() - 1)), draw(st.integers(0, t.dim() - 1))
    if kind == "dtype":
        return t.to(draw(st.sampled_from(DTYPES)))
    if kind == "rank":
        return draw(st.sampled_from([t[None], t[..., None], t.flatten(), t.flatten()[:1], t.sum(), t.reshape(-1, 1)]))
    if kind == "size":
        shape = list(t.shape)
        shape[d] = draw(st.sampled_from([0, 1, max(t.shape[d] - 1, 0), t.shape[d] + 1, 2 * t.shape[d]]))
        return torch.zeros(shape, dtype=t.dtype)
    if kind == "transpose":
        return t.transpose(d, e)
    if kind == "expand":
        return torch.zeros((), dtype=t.dtype).expand(t.shape)
    if kind == "meta":
        return t.to("meta")
    return t.clone().requires_grad_(t.is_floating_point())
