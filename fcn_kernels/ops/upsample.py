"""upsample: bilinear resampling, as a transposed convolution (zero boundary) or as F.interpolate (clamped)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import reference
from .._checks import check_image, check_out, encode_sampling
from .._library import batched_per_sample, define, define_out, differentiable
from ..sampling import Sampling
from ._fakes import empty_image, input_size, output_size

define(
    "upsample(Tensor x, SymInt[] sampling) -> Tensor",
    reference.upsample,
    lambda x, sampling: empty_image(x, x.shape[1], output_size(sampling)),
)
define(
    "upsample_backward(Tensor grad, SymInt[] sampling) -> Tensor",
    reference.upsample_backward,
    lambda grad, sampling: empty_image(grad, grad.shape[1], input_size(sampling)),
)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.sampling = inputs[1]


_upsample = differentiable(
    "upsample",
    lambda ctx, grad: (_upsample_backward(grad, ctx.sampling), None),
    _setup_context,
    lambda inputs, tangents: _upsample(tangents[0], inputs[1]),
)
_upsample_backward = differentiable(
    "upsample_backward",
    lambda ctx, grad: (_upsample(grad, ctx.sampling), None),
    _setup_context,
    lambda inputs, tangents: _upsample_backward(tangents[0], inputs[1]),
)
batched_per_sample("upsample", [0])
batched_per_sample("upsample_backward", [0])

_upsample_out = define_out("upsample")


def upsample(
    x: Tensor,  # [N, C, h, w]
    sampling: Sampling | Sequence[int],
    *,
    out: Tensor | None = None,
) -> Tensor:  # [N, C, H, W]
    """Bilinear up- or down-sampling.

    Equivalent PyTorch, for a size (H, W) and for ``Sampling.transposed_conv(..., offset=c, output_size=(H, W))``::

        F.interpolate(x, size=(H, W), mode="bilinear", align_corners=False)
        F.conv_transpose2d(x, bilinear, stride=s, groups=C)[..., c : c + H, c : c + W]

    Per axis ``y[o] = (1 - f) x[i] + f x[i + 1]`` at ``i + f = (num o + off) / den``. A tap of weight zero is not read:
    a NaN next to a border stays one row closer to it than in torch, which multiplies it by zero.

    Args:
        x: [N, C, h, w] in float32, float64, float16 or bfloat16; half types compute in float32.
        sampling: a `Sampling` made for (h, w), or the output size (H, W).
        out: a tensor for the result, of its shape, dtype and layout, apart from all inputs; no gradient is recorded.

    Returns:
        [N, C, H, W] in the dtype of x, channels_last if x is. Differentiable in x, any number of times,
        also in forward mode.

    Raises:
        TypeError: x is not a floating tensor.
        ValueError: x is not [N, C, h, w], is empty but for N, or the sampling was made for another size.
        Of `out`: TypeError (dtype), ValueError (shape, layout, device, overlap), RuntimeError (a gradient is recorded).
    """
    check_image("upsample", "x", x)
    encoded = encode_sampling("upsample", x, sampling)
    if out is None:
        return _upsample(x, encoded)
    check_out("upsample", out, x, (*x.shape[:2], encoded[1], encoded[6]), x.dtype)
    _upsample_out(x, encoded, out=out)
    return out
