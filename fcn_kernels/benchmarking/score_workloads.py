"""Workloads of the 1x1 score convolutions: softmax over a grid of features, classes and sides; cross-entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import fcn_kernels
from fcn_kernels.benchmarking.engines import Graph, Value, engines
from fcn_kernels.benchmarking.workload import Goal, Method, Tensors, Workload, as_written, random_inputs

NEVER_SLOWER, MANY_CLASSES = 1.0, 0.8  # what score_softmax must reach, the latter for 1000 classes


def _features(kind: str, features: int, classes: int, side: int) -> Tensors:
    return {
        "x": random_inputs(kind, 1, features, side, side),
        "weight": random_inputs(kind, classes, features + 1)[:, 1:].contiguous() / features**0.5,
        "bias": random_inputs(kind, classes),
    }


def _convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight[:, :, None, None], bias)


def _name(operator: str, features: int, classes: int, side: int) -> tuple[str, str]:
    return f"{operator}-k{features}-c{classes}-{side}x{side}", f"K={features} C={classes} {side}x{side}"


def _softmax(features: int, classes: int, side: int, *, extended: bool = True) -> Workload:
    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _convolution(x, weight, bias).softmax(1)

    def graph(g: Graph) -> Value:
        return g.softmax(g.score(g.input("x"), g.tensors["weight"], g.tensors["bias"]))

    name, title = _name("score_softmax", features, classes, side)
    return Workload(
        name,
        "score_softmax",
        title,
        lambda kind: _features(kind, features, classes, side),
        (
            Method("fused", "fused", fcn_kernels.score_softmax),
            *as_written(plain),
            Method("eager, channels last", "tuned", plain, channels_last=True),
            *engines(graph),
        ),
        inputs=("random",),
        goals=(Goal("speed-up", MANY_CLASSES if classes >= 1000 else NEVER_SLOWER, "random"),),
        # reads x and weight, writes the probabilities
        traffic=4 * (features * side * side + classes * features + classes * side * side),
        operations=features * classes * side * side,
        extended=extended,
    )


def _cross_entropy(features: int, classes: int, side: int, *, extended: bool = True) -> Workload:
    def make(kind: str) -> Tensors:
        tensors = {name: t.requires_grad_() for name, t in _features(kind, features, classes, side).items()}
        labels = torch.randint(classes, (1, side, side), generator=torch.Generator().manual_seed(2))
        return tensors | {"target": labels}

    def fused(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        return fcn_kernels.score_cross_entropy(x, weight, bias, target)

    def plain(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(_convolution(x, weight, bias), target)

    def linear(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1).flatten(0, 2)
        return F.linear_cross_entropy(rows, weight, target.flatten(), linear_bias=bias)

    methods = [Method("fused", "fused", fused), *as_written(plain)]
    if hasattr(F, "linear_cross_entropy"):
        methods.append(Method("F.linear_cross_entropy", "rival", linear))
    name, title = _name("score_cross_entropy", features, classes, side)
    return Workload(
        name,
        "score_cross_entropy",
        title,
        make,
        tuple(methods),
        inputs=("random",),
        goals=(Goal("speed-up", 1.3, "random"),),
        # reads x and weight twice, the labels; writes the gradients of x and weight
        traffic=4 * 3 * (features * side * side + classes * features) + 8 * side * side,
        operations=3 * features * classes * side * side,  # scores, gradients of x and weight
        full=4 * classes * side * side,
        extended=extended,
    )


_SHOWN = {(4096, 21, 16), (512, 21, 64), (256, 150, 128), (256, 1000, 64)}  # the others are asked for by name

SCORES = (
    *(
        _softmax(k, c, side, extended=(k, c, side) not in _SHOWN)
        for k, c, sides in [
            *((4096, c, (16, 64)) for c in (19, 21, 150)),
            *((k, c, (16, 64, 128)) for k in (512, 256) for c in (19, 21, 150)),
            *((k, 1000, (side,)) for k, side in ((4096, 16), (512, 16), (256, 64))),
        ]
        for side in sides
    ),
    *(
        _cross_entropy(k, c, side, extended=(k, c, side) not in _SHOWN)
        for k, c, side in (
            (4096, 21, 16),
            (512, 19, 128),
            (512, 21, 64),
            (512, 150, 64),
            (256, 150, 128),
        )
    ),
)
