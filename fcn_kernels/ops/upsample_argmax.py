"""upsample_argmax: labels at full resolution straight from the small logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from .._checks import LABELS, check_image, encode_sampling
from .._library import batched_per_sample, define, non_differentiable
from ..sampling import Sampling
from ._fakes import empty_arithmetic, output_size


def _fake(x: Tensor, sampling: Sequence[int], dtype: torch.dtype, confidence: bool) -> tuple[Tensor, Tensor]:
    size = (x.shape[0], *output_size(sampling))
    return x.new_empty(size, dtype=dtype), empty_arithmetic(x, *(size if confidence else (0,)))


define(
    "upsample_argmax(Tensor x, SymInt[] sampling, ScalarType dtype, bool confidence)"
    " -> (Tensor labels, Tensor confidence)",
    reference.upsample_argmax,
    _fake,
)
non_differentiable("upsample_argmax")
batched_per_sample("upsample_argmax", [0])

_upsample_argmax = torch.ops.fcn_kernels.upsample_argmax.default


def upsample_argmax(
    x: Tensor,  # [N, C, h, w]
    sampling: Sampling | Sequence[int],
    *,
    dtype: torch.dtype = torch.int64,
    return_confidence: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # [N, H, W]
    """The most likely class of every full-resolution pixel.

    Equivalent PyTorch::

        z = upsample(x, sampling)
        labels, confidence = z.argmax(dim=1).to(dtype), z.softmax(dim=1).amax(dim=1)

    On exact ties the lowest class wins, and NaN wins over everything, as in torch. The logits are interpolated in
    the dtype of the arithmetic, so that two classes within a few ulp of each other may be ranked differently than
    after rounding the logits to a half type.

    Args:
        x: [N, C, h, w] logits in float32, float64, float16 or bfloat16; half types compute in float32.
        sampling: a `Sampling` made for (h, w), or the output size (H, W).
        dtype: uint8, int16, int32 or int64; must hold C - 1.
        return_confidence: also return the winner's softmax probability.

    Returns:
        Labels [N, H, W]; with `return_confidence` a pair of labels and [N, H, W] probabilities in float32 (float64 for
        float64 logits). Not differentiable.

    Raises:
        TypeError: x is not a floating tensor, or dtype is none of the four.
        ValueError: x is not [N, C, h, w], is empty but for N, the sampling was made for another size, or dtype cannot
            hold the classes.
    """
    op = "upsample_argmax"
    check_image(op, "x", x)
    if dtype is not torch.int64:
        if dtype not in LABELS:
            raise TypeError(f"{op}: dtype must be uint8, int16, int32 or int64, got {dtype}")
        if x.shape[1] - 1 > torch.iinfo(dtype).max:
            raise ValueError(f"{op}: {x.shape[1]} classes do not fit {dtype}")
    encoded = encode_sampling(op, x, sampling)
    labels, confidence = _upsample_argmax(x.detach() if x.requires_grad else x, encoded, dtype, return_confidence)
    return (labels, confidence) if return_confidence else labels
