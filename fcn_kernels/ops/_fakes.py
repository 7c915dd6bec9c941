"""Shapes and strides of results, for the fake kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference import arithmetic_dtype, memory_format


def empty_image(x: Tensor, channels: int, size: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """[N, channels, *size] in the layout of x."""
    shape = (x.shape[0], channels, *size)
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device, memory_format=memory_format(x))


def empty_arithmetic(x: Tensor, *size: int) -> Tensor:
    """A contiguous tensor in the dtype of the arithmetic."""
    return x.new_empty(size, dtype=arithmetic_dtype(x.dtype))


def input_size(sampling: Sequence[int]) -> tuple[int, int]:
    """(h, w) of an encoded sampling."""
    return sampling[0], sampling[5]


def output_size(sampling: Sequence[int]) -> tuple[int, int]:
    """(H, W) of an encoded sampling."""
    return sampling[1], sampling[6]


def empty_score_gradients(x: Tensor, weight: Tensor, need_x: bool, need_weight: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a 1x1 convolution in x, weight and bias; what is not needed is empty."""
    return (
        empty_image(x, x.shape[1], x.shape[2:]) if need_x else x.new_empty(0),
        weight.new_empty(weight.shape if need_weight else 0),
        weight.new_empty(weight.shape[0]),
    )
