"""The convolution that a dense layer becomes: a window as large as a feature map, and most of a network's weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# On the CPU oneDNN brings the weights into an order of its own at each call: for VGG's fc6 245 ms and a second copy of
# 411 MB, whatever the map. A product of the windows, unfolded, with the weights as they lie does without, but it takes
# about 10 ps longer per multiplication: break-even lay at 170 to 200 places for weights that no cache holds (float32,
# AMD EPYC with AVX-512). Smaller weights are reordered in no time.
_MOST_PLACES = 128
_LEAST_WEIGHTS = 2**23


class DenseConv2d(nn.Conv2d):
    """`nn.Conv2d` with stride 1 and no padding, [N, C, h, w] to [N, out, H, W].

    Without gradients, large weights over a small map are multiplied without PyTorch's convolution; the result is the
    same up to rounding.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int], **options) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **options)
        if self.stride != (1, 1) or self.padding != (0, 0) or self.groups != 1:
            raise ValueError("DenseConv2d: stride and groups must be 1, padding 0")

    def forward(self, x: Tensor) -> Tensor:
        return _dense_conv2d(x, self.weight, self.bias, self.dilation)


@torch.fx.wrap  # a leaf of torch.fx's graphs: which way to go depends on the shape
def _dense_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: tuple[int, int]) -> Tensor:
    if not _few_places(x, weight, dilation):
        return F.conv2d(x, weight, bias, dilation=dilation)
    layout = torch.contiguous_format if x.is_contiguous() and weight.is_contiguous() else torch.channels_last
    size = _output_size(x, weight, dilation)
    windows = F.unfold(x, tuple(weight.shape[2:]), dilation)  # [N, C * a * b, places]
    if not weight.is_contiguous():  # channels_last: [N, a * b * C, places]
        windows = windows.unflatten(1, (weight.shape[1], -1)).transpose(1, 2).flatten(1, 2)
        weight = weight.permute(0, 2, 3, 1)
    y = F.linear(windows.mT, weight.flatten(1), bias)
    return y.mT.unflatten(2, size).contiguous(memory_format=layout)


def _few_places(x: Tensor, weight: Tensor, dilation: tuple[int, int]) -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # the graph is to serve other sizes
        return False
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    if weight.numel() < _LEAST_WEIGHTS or x.dim() != 4 or x.shape[1] != weight.shape[1]:
        return False
    if not (weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)):
        return False
    height, width = _output_size(x, weight, dilation)
    return height > 0 and width > 0 and 0 < x.shape[0] * height * width <= _MOST_PLACES


def _output_size(x: Tensor, weight: Tensor, dilation: tuple[int, int]) -> tuple[int, int]:
    return tuple(n - d * (k - 1) for n, k, d in zip(x.shape[2:], weight.shape[2:], dilation, strict=True))
