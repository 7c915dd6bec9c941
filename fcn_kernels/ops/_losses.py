"""What the losses over upsampled logits share."""

from __future__ import annotations

from torch import Tensor, is_grad_enabled, where

from .. import reference
from .._library import plain, refuse_double_backward

_LARGEST = 1e38  # a factor that float32 holds


def reduced_gradient(name: str, gradient: Tensor, grad: Tensor, total: Tensor, reduction: int, x: Tensor) -> Tensor:
    """The gradient of x: what the forward pass left undivided, times `grad`, divided by the weight of the pixels.

    It is kept undivided in the arithmetic dtype and rounded once: that of one pixel is about 1 / (N H W), which float16
    cannot hold. Without a pixel that counts it is zero, as torch has it.
    """
    if grad.device.type == "cpu" and not is_grad_enabled() and plain(gradient, grad, total, x):
        # Numbers instead of tensors of one element: a quotient of two float32 in double precision rounds to the same.
        factor = grad.item()
        if reduction != reference.SUM:
            divisor = total.item()
            factor = factor / divisor if divisor != 0 else 0.0 if reduction == reference.MEAN else float("nan")
        if -_LARGEST < factor < _LARGEST:
            gradient = gradient * factor
            return gradient if gradient.dtype == x.dtype else gradient.to(x.dtype)
    factor = grad / total if reduction != reference.SUM else grad
    if reduction == reference.MEAN:
        factor = where(total == 0, 0, factor)
    return refuse_double_backward(name, (gradient * factor).to(x.dtype), x, grad)
