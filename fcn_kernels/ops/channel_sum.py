"""channel_sum: the gradient of a bias. Not a public operator."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import reference
from .._library import batched_by_loop, define, differentiable
from ._fakes import empty_arithmetic

define("channel_sum(Tensor x) -> Tensor", reference.channel_sum, lambda x: empty_arithmetic(x, x.shape[1]))


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.shape, ctx.dtype = inputs[0].shape, inputs[0].dtype


def _backward(ctx: Any, grad: Tensor) -> tuple:
    return (grad.to(ctx.dtype)[:, None, None].expand(ctx.shape),)


channel_sum = differentiable("channel_sum", _backward, _setup_context, lambda _, tangents: channel_sum(tangents[0]))
batched_by_loop("channel_sum")
