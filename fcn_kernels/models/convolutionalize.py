"""From a classifier of whole images to a classifier of every window: dense layers become convolutions.

A dense layer on an a x a feature map is a convolution whose kernel covers the map, with the same weights, reshaped
(Long, Shelhamer & Darrell, 2015, section 3.1). The converted network takes any larger image and gives a map.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ops.score_softmax import score_softmax
from ._dense import DenseConv2d
from .backbones import InputTransform

__all__ = ["Convolutionalized", "convolutionalize"]

_POOLS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d)
_KEPT = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Hardswish,
    nn.Dropout,
    nn.Identity,
)


class Convolutionalized(nn.Module):
    """A classifier without dense layers: features, average pool, convolutions, and a last 1x1 score convolution.

    `forward` gives the map of scores, `probabilities` their softmax.
    """

    def __init__(self, features: nn.Module, pool: nn.Module, hidden: nn.Sequential, score: nn.Conv2d) -> None:
        super().__init__()
        self.features = features
        self.pool = pool
        self.hidden = hidden
        self.score = score

    def _before_scores(self, x: Tensor) -> Tensor:
        return self.hidden(self.pool(self.features(x)))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] images to [N, classes, h, w] scores."""
        return self.score(self._before_scores(x))

    def probabilities(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] images to [N, classes, h, w] class probabilities."""
        if self.score.kernel_size != (1, 1):
            return self.forward(x).softmax(1)
        return score_softmax(self._before_scores(x), self.score.weight, self.score.bias)


@torch.no_grad()
def convolutionalize(classifier: nn.Module, input_size: int | Sequence[int] = 224) -> Convolutionalized:
    """A fully convolutional copy of a classification network, with the same weights.

    On an image of `input_size` it returns the classifier's own scores as a map of one pixel; on a larger one a map of
    scores. An average pool over r x r cells stays one of stride 1 (GoogLeNet's 7x7); what follows it is dilated by r.

    Args:
        classifier: a module whose children are, in order of use, features, optionally an (adaptive) average pool,
            optionally nn.Flatten, and a chain of nn.Linear and element-wise layers, alone or in an nn.Sequential:
            torchvision's AlexNet, VGG, GoogLeNet and ResNet, and those of this package. Children named aux* are left
            out.
        input_size: the side, or (height, width), of the images that it classifies.

    Raises:
        ValueError: the structure is another one, or the converted network does not reproduce the classifier's scores.
    """
    size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    training = {m: m.training for m in classifier.modules()}
    classifier.eval()
    try:
        result = _convert(classifier, size).eval()
        parameter = next(result.parameters())
        probe = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(parameter)
        expected, got = classifier(probe), result(probe)
        if got.shape != (*expected.shape, 1, 1):
            raise ValueError(
                f"convolutionalize: on {size[0]} x {size[1]} pixels the classifier gives {list(expected.shape)}, "
                f"but the converted network {list(got.shape)}: is input_size its own?"
            )
        error = (got.flatten(1) - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
        if not error <= 1e-3:
            raise ValueError(
                f"convolutionalize: the converted network misses the classifier's scores by {error.item():.2g} of the "
                f"largest: {type(classifier).__name__} does more than its children in their order"
            )
    finally:
        for module, mode in training.items():
            module.training = mode
    return result.train(classifier.training)


def _convert(classifier: nn.Module, size: tuple[int, int]) -> Convolutionalized:
    layers = _flat(classifier)
    dense = next((i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear)), None)
    if dense is None:
        raise ValueError(f"convolutionalize: {type(classifier).__name__} has no nn.Linear among its outer layers")
    start = dense
    while start > 0 and isinstance(layers[start - 1], (nn.Flatten, *_KEPT)) and not _ends_features(layers, start - 1):
        start -= 1
    pool = layers[start - 1] if start > 0 and isinstance(layers[start - 1], _POOLS) else None
    trunk = layers[: start - 1 if pool is not None else start]
    if getattr(classifier, "transform_input", False):
        trunk = [InputTransform(), *trunk]
    features = copy.deepcopy(nn.Sequential(*trunk))

    parameter = next(classifier.parameters())
    map_size = features(torch.zeros(1, 3, *size, dtype=parameter.dtype, device=parameter.device)).shape[2:]
    pool, cells, dilation = _dense_pool(pool, tuple(map_size))
    tail = []
    for layer in layers[start:]:
        if isinstance(layer, nn.Linear):  # the first sees all cells, the others one pixel
            tail.append(_reshaped(layer, cells, dilation))
            cells, dilation = (1, 1), (1, 1)
        elif not isinstance(layer, nn.Flatten):
            tail.append(_element_wise(layer))
    if not isinstance(tail[-1], nn.Conv2d):
        raise ValueError(f"convolutionalize: the last layer must be nn.Linear, got {type(tail[-1]).__name__}")
    return Convolutionalized(features, pool, nn.Sequential(*tail[:-1]), tail[-1])


def _flat(module: nn.Module) -> list[nn.Module]:
    """The children in order; a Sequential that holds dense layers is opened."""
    found = []
    for name, child in module.named_children():
        if name.startswith("aux"):
            continue
        opened = isinstance(child, nn.Sequential) and any(
            isinstance(m, (nn.Linear, nn.Flatten)) for m in child.modules()
        )
        found += _flat(child) if opened else [child]
    return found


def _ends_features(layers: list[nn.Module], index: int) -> bool:
    """Whether the activation at `index` still belongs to the features: nothing but a flattening follows it."""
    return not isinstance(layers[index], (nn.Flatten, nn.Dropout, nn.Identity))


def _dense_pool(
    pool: nn.Module | None, map_size: tuple[int, int]
) -> tuple[nn.Module, tuple[int, int], tuple[int, int]]:
    """The pool at stride 1; its cells on the classifier's own map; their distance in pixels of the dense pool."""
    if pool is None:
        return nn.Identity(), map_size, (1, 1)
    if isinstance(pool, nn.AvgPool2d):
        kernel, stride = _pair(pool.kernel_size), _pair(pool.stride)
        if _pair(pool.padding) != (0, 0) or pool.ceil_mode:
            raise ValueError("convolutionalize: an average pool with padding or ceil_mode has no dense counterpart")
        cells = tuple((m - k) // s + 1 for m, k, s in zip(map_size, kernel, stride, strict=True))
        return nn.AvgPool2d(kernel, 1), cells, stride
    cells = tuple(m if c is None else c for m, c in zip(map_size, _pair(pool.output_size), strict=True))
    if any(m % c for m, c in zip(map_size, cells, strict=True)):
        raise ValueError(
            f"convolutionalize: an adaptive pool of {map_size[0]} x {map_size[1]} features to {cells[0]} x {cells[1]} "
            "cells has windows that overlap or differ in size: is input_size the classifier's own?"
        )
    ratio = tuple(m // c for m, c in zip(map_size, cells, strict=True))
    return (nn.Identity() if ratio == (1, 1) else nn.AvgPool2d(ratio, 1)), cells, ratio


def _reshaped(linear: nn.Linear, grid: tuple[int, int], dilation: tuple[int, int]) -> nn.Conv2d:
    """``weight[out, C * a * b]`` as ``[out, C, a, b]``."""
    cells = grid[0] * grid[1]
    if linear.in_features % cells:
        raise ValueError(
            f"convolutionalize: nn.Linear with {linear.in_features} inputs does not fit a map of {grid[0]} x {grid[1]}"
        )
    conv = DenseConv2d(
        linear.in_features // cells,
        linear.out_features,
        grid,
        dilation=dilation,
        bias=linear.bias is not None,
        dtype=linear.weight.dtype,
        device=linear.weight.device,
    )
    conv.weight.copy_(linear.weight.view(conv.weight.shape))
    if linear.bias is not None:
        conv.bias.copy_(linear.bias)
    return conv


def _element_wise(layer: nn.Module) -> nn.Module:
    if isinstance(layer, nn.BatchNorm1d):
        norm = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        norm.load_state_dict(layer.state_dict())
        return norm
    if isinstance(layer, _KEPT):
        return copy.deepcopy(layer)
    raise ValueError(f"convolutionalize: {type(layer).__name__} among the dense layers is not known to be element-wise")


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
