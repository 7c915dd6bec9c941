"""upsample_sigmoid: probabilities of binary heads at full resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import reference
from .._checks import check_image, check_out, encode_sampling
from .._library import batched_per_sample, define, define_out, differentiable, once_differentiable
from ..sampling import Sampling
from ._fakes import empty_image, input_size, output_size

define(
    "upsample_sigmoid(Tensor x, SymInt[] sampling) -> Tensor",
    reference.upsample_sigmoid,
    lambda x, sampling: empty_image(x, x.shape[1], output_size(sampling)),
)
define(
    "upsample_sigmoid_backward(Tensor grad, Tensor output, SymInt[] sampling) -> Tensor",
    reference.upsample_sigmoid_backward,
    lambda grad, output, sampling: empty_image(output, output.shape[1], input_size(sampling)),
)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.sampling = inputs[1]
    ctx.save_for_backward(output)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    (output,) = ctx.saved_tensors
    return _upsample_sigmoid_backward(grad, output, ctx.sampling), None


_upsample_sigmoid = differentiable("upsample_sigmoid", _backward, _setup_context)
_upsample_sigmoid_backward = once_differentiable("upsample_sigmoid_backward", "upsample_sigmoid")
batched_per_sample("upsample_sigmoid", [0])
batched_per_sample("upsample_sigmoid_backward", [0, 1])

_upsample_sigmoid_out = define_out("upsample_sigmoid")


def upsample_sigmoid(
    x: Tensor,  # [N, C, h, w]
    sampling: Sampling | Sequence[int],
    *,
    out: Tensor | None = None,
) -> Tensor:  # [N, C, H, W]
    """Probabilities of upsampled binary logits, per channel.

    Equivalent PyTorch::

        upsample(x, sampling).sigmoid()

    Args:
        x: [N, C, h, w] logits in float32, float64, float16 or bfloat16; half types compute in float32.
        sampling: a `Sampling` made for (h, w), or the output size (H, W).
        out: a tensor for the result, of its shape, dtype and layout, apart from all inputs; no gradient is recorded.

    Returns:
        [N, C, H, W] in the dtype of x, channels_last if x is. Differentiable in x, once.

    Raises:
        TypeError: x is not a floating tensor.
        ValueError: x is not [N, C, h, w], is empty but for N, or the sampling was made for another size.
        RuntimeError: when its gradient is differentiated.
        Of `out`: TypeError (dtype), ValueError (shape, layout, device, overlap), RuntimeError (a gradient is recorded).
    """
    check_image("upsample_sigmoid", "x", x)
    encoded = encode_sampling("upsample_sigmoid", x, sampling)
    if out is None:
        return _upsample_sigmoid(x, encoded)
    check_out("upsample_sigmoid", out, x, (*x.shape[:2], encoded[1], encoded[6]), x.dtype)
    _upsample_sigmoid_out(x, encoded, out=out)
    return out
