"""upsample_argmax: labels at full resolution straight from the small logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from .._checks import check_image, check_out, encode_sampling, label_dtype
from .._library import batched_per_sample, define, define_out, non_differentiable
from ..reference import arithmetic_dtype
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
_upsample_argmax = non_differentiable("upsample_argmax")
batched_per_sample("upsample_argmax", [0])

_upsample_argmax_out = define_out("upsample_argmax", "labels_out", "confidence_out")


def upsample_argmax(
    x: Tensor,  # [N, C, h, w]
    sampling: Sampling | Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    return_confidence: bool = False,
    out: Tensor | tuple[Tensor, Tensor] | None = None,
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
        dtype: uint8, int16, int32 or int64; must hold C - 1. By default that of `out`, or int64.
        return_confidence: also return the winner's softmax probability.
        out: a contiguous tensor for the labels, apart from x; with `return_confidence` a pair.

    Returns:
        Labels [N, H, W]; with `return_confidence` a pair of labels and [N, H, W] probabilities in float32 (float64 for
        float64 logits). Not differentiable.

    Raises:
        TypeError: x is not a floating tensor, or dtype is none of the four.
        ValueError: x is not [N, C, h, w], is empty but for N, the sampling was made for another size, or dtype cannot
            hold the classes.
        Of `out`: TypeError (dtype), ValueError (shape, layout, device, overlap with an input).
    """
    op = "upsample_argmax"
    check_image(op, "x", x)
    encoded = encode_sampling(op, x, sampling)
    x = x.detach() if x.requires_grad else x
    if out is not None:
        return _into(op, x, encoded, dtype, return_confidence, out)
    if dtype is not torch.int64:
        dtype = label_dtype(op, dtype, None, x.shape[1])
    labels, confidence = _upsample_argmax(x, encoded, dtype, return_confidence)
    return (labels, confidence) if return_confidence else labels


def _into(
    op: str, x: Tensor, encoded: list[int], dtype: torch.dtype | None, confidence: bool, out: Tensor | tuple
) -> Tensor | tuple[Tensor, Tensor]:
    if confidence and not (isinstance(out, (tuple, list)) and len(out) == 2):
        raise TypeError(f"{op}: with return_confidence out must be a pair of tensors, got {type(out).__name__}")
    labels, winner = out if confidence else (out, empty_arithmetic(x, 0))
    dtype = label_dtype(op, dtype, labels, x.shape[1])
    size = (x.shape[0], encoded[1], encoded[6])
    check_out(op, labels, x, size, dtype)
    if confidence:
        check_out(op, winner, x, size, arithmetic_dtype(x.dtype), labels, name="the confidence of out")
    _upsample_argmax_out(x, encoded, dtype, confidence, labels_out=labels, confidence_out=winner)
    return (labels, winner) if confidence else labels
