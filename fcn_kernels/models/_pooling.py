"""Max pooling that keeps nothing for its backward pass but its input, which the layer before keeps anyway."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def max_pool2d(x: Tensor, kernel_size: int, stride: int, *, ceil_mode: bool = False) -> Tensor:
    """`F.max_pool2d`, [N, C, h, w] to [N, C, H, W], with the same bits in both directions.

    PyTorch keeps 8 bytes of index for each output until the backward pass, twice the output itself. Here the maxima are
    looked for again, at the cost of a second forward pass of this layer.
    """

    def pool(x: Tensor) -> Tensor:
        return F.max_pool2d(x, kernel_size, stride, ceil_mode=ceil_mode)

    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and x.requires_grad):
        return pool(x)
    return checkpoint(pool, x, use_reentrant=False, preserve_rng_state=False)
