"""score_argmax: labels straight from the features, with a 1x1 score convolution."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from .._checks import check_out, check_score, label_dtype
from .._library import batched_per_sample, define, define_out, non_differentiable

define(
    "score_argmax(Tensor x, Tensor weight, Tensor? bias, ScalarType dtype) -> Tensor",
    reference.score_argmax,
    lambda x, weight, bias, dtype: x.new_empty((x.shape[0], *x.shape[2:]), dtype=dtype),
)
_score_argmax = non_differentiable("score_argmax")
batched_per_sample("score_argmax", [0])

_score_argmax_out = define_out("score_argmax")


def score_argmax(
    x: Tensor,  # [N, K, H, W]
    weight: Tensor,  # [C, K] or [C, K, 1, 1]
    bias: Tensor | None = None,  # [C]
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:  # [N, H, W]
    """The most likely class of every pixel.

    Equivalent PyTorch::

        F.conv2d(x, weight.view(C, K, 1, 1), bias).argmax(dim=1).to(dtype)

    On exact ties the lowest class wins, and NaN wins over everything. Scores within a few ulp of each other may be
    ranked differently than by another order of summation.

    Args:
        x: [N, K, H, W] features in float32, float64, float16 or bfloat16; half types compute in float32. Under
            autocast, x, weight and bias are cast as a convolution casts its arguments.
        weight: [C, K] or [C, K, 1, 1] in the dtype of x.
        bias: [C] in the dtype of x.
        dtype: uint8, int16, int32 or int64; must hold C - 1. By default that of `out`, or int64.
        out: a contiguous tensor for the labels, apart from all inputs.

    Returns:
        Labels [N, H, W]. Not differentiable.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ; dtype is none of the four.
        ValueError: wrong rank, channels or bias length, another device, or dtype cannot hold the classes.
        Of `out`: TypeError (dtype), ValueError (shape, layout, device, overlap with an input).
    """
    op = "score_argmax"
    x, weight, bias = (None if t is None else t.detach() for t in check_score(op, x, weight, bias))
    dtype = label_dtype(op, dtype, out, weight.shape[0])
    if out is None:
        return _score_argmax(x, weight, bias, dtype)
    check_out(op, out, x, (x.shape[0], *x.shape[2:]), dtype, weight, bias)
    _score_argmax_out(x, weight, bias, dtype, out=out)
    return out
