"""upsample_sigmoid and its backward in Triton: the kernels of upsample_add.py with an activation.

One exponential per element beside one write: bandwidth bound. The backward reads g and the output p, and gathers
p (1 - p) g.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .upsample_add import gather, sample


def upsample_sigmoid(x: Tensor, sampling: Sequence[int]) -> Tensor:
    """sigmoid(upsample(x)); see fcn_kernels.reference.upsample_sigmoid."""
    return sample(x, sampling, sigmoid=True)


def upsample_sigmoid_backward(grad: Tensor, output: Tensor, sampling: Sequence[int]) -> Tensor:
    """The gradient in x; see fcn_kernels.reference.upsample_sigmoid_backward."""
    return gather(grad, sampling, "sigmoid", output)
