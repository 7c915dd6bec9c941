"""upsample_softmax and upsample_log_softmax: class probabilities at full resolution, without the logits."""

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
    "upsample_softmax(Tensor x, SymInt[] sampling, bool log) -> Tensor",
    reference.upsample_softmax,
    lambda x, sampling, log: empty_image(x, x.shape[1], output_size(sampling)),
)
define(
    "upsample_softmax_backward(Tensor grad, Tensor output, SymInt[] sampling, bool log) -> Tensor",
    reference.upsample_softmax_backward,
    lambda grad, output, sampling, log: empty_image(output, output.shape[1], input_size(sampling)),
)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, ctx.sampling, ctx.log = inputs
    ctx.save_for_backward(output)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    (output,) = ctx.saved_tensors
    return _upsample_softmax_backward(grad, output, ctx.sampling, ctx.log), None, None


_upsample_softmax = differentiable("upsample_softmax", _backward, _setup_context)
_upsample_softmax_backward = once_differentiable("upsample_softmax_backward", "upsample_softmax")
batched_per_sample("upsample_softmax", [0])
batched_per_sample("upsample_softmax_backward", [0, 1])

_upsample_softmax_out = define_out("upsample_softmax")


def _run(op: str, x: Tensor, sampling: Sampling | Sequence[int], log: bool, out: Tensor | None) -> Tensor:
    check_image(op, "x", x)
    encoded = encode_sampling(op, x, sampling)
    if out is None:
        return _upsample_softmax(x, encoded, log)
    check_out(op, out, x, (*x.shape[:2], encoded[1], encoded[6]), x.dtype)
    _upsample_softmax_out(x, encoded, log, out=out)
    return out


def upsample_softmax(
    x: Tensor,  # [N, C, h, w]
    sampling: Sampling | Sequence[int],
    *,
    out: Tensor | None = None,
) -> Tensor:  # [N, C, H, W]
    """Class probabilities of upsampled logits; the full-resolution logits are never written.

    Equivalent PyTorch::

        upsample(x, sampling).softmax(dim=1)

    Args:
        x: [N, C, h, w] logits in float32, float64, float16 or bfloat16; half types compute in float32.
        sampling: a `Sampling` made for (h, w), or the output size (H, W).
        out: a tensor for the result, of its shape, dtype and layout, apart from all inputs; no gradient is recorded.

    Returns:
        [N, C, H, W] in the dtype of x, also under autocast; channels_last if x is. Differentiable in x, once.

    Raises:
        TypeError: x is not a floating tensor.
        ValueError: x is not [N, C, h, w], is empty but for N, or the sampling was made for another size.
        RuntimeError: when its gradient is differentiated.
        Of `out`: TypeError (dtype), ValueError (shape, layout, device, overlap), RuntimeError (a gradient is recorded).
    """
    return _run("upsample_softmax", x, sampling, False, out)


def upsample_log_softmax(
    x: Tensor,  # [N, C, h, w]
    sampling: Sampling | Sequence[int],
    *,
    out: Tensor | None = None,
) -> Tensor:  # [N, C, H, W]
    """Logarithms of the class probabilities of upsampled logits.

    Equivalent PyTorch::

        upsample(x, sampling).log_softmax(dim=1)

    Arguments, result and exceptions are those of `upsample_softmax`.
    """
    return _run("upsample_log_softmax", x, sampling, True, out)
