"""score_argmax: labels straight from the features, with a 1x1 score convolution."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from .._checks import check_score
from .._library import batched_per_sample, define, non_differentiable

define(
    "score_argmax(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    reference.score_argmax,
    lambda x, weight, bias: x.new_empty((x.shape[0], *x.shape[2:]), dtype=torch.int64),
)
non_differentiable("score_argmax")
batched_per_sample("score_argmax", [0])

_score_argmax = torch.ops.fcn_kernels.score_argmax.default


def score_argmax(
    x: Tensor,  # [N, K, H, W]
    weight: Tensor,  # [C, K] or [C, K, 1, 1]
    bias: Tensor | None = None,  # [C]
) -> Tensor:  # [N, H, W]
    """The most likely class of every pixel.

    Equivalent PyTorch::

        F.conv2d(x, weight.view(C, K, 1, 1), bias).argmax(dim=1)

    On exact ties the lowest class wins, and NaN wins over everything. Scores within a few ulp of each other may be
    ranked differently than by another order of summation.

    Args:
        x: [N, K, H, W] features in float32, float64, float16 or bfloat16; half types compute in float32. Under
            autocast, x, weight and bias are cast as a convolution casts its arguments.
        weight: [C, K] or [C, K, 1, 1] in the dtype of x.
        bias: [C] in the dtype of x.

    Returns:
        Labels [N, H, W] in int64. Not differentiable.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: wrong rank, channels or bias length, another device.
    """
    x, weight, bias = check_score("score_argmax", x, weight, bias)
    return _score_argmax(x.detach(), weight.detach(), None if bias is None else bias.detach())
