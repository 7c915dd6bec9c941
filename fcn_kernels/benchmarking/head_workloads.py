"""Workloads of the binary and evaluation heads: binary cross-entropy and confusion matrix of upsampled scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import fcn_kernels
from fcn_kernels.benchmarking import formulations as torch_ways
from fcn_kernels.benchmarking.engines import Graph, Value, engines
from fcn_kernels.benchmarking.workload import (
    IGNORE,
    Goal,
    Method,
    Tensors,
    Workload,
    as_written,
    labels_for,
    named,
    small_scores,
)


def _binary_cross_entropy(side: int, size: int, *, speed_up: float) -> Workload:
    """One logit per pixel, forward and backward; the target is floating for all, as PyTorch wants it."""

    def make(kind: str) -> Tensors:
        x = small_scores(kind, 1, 2, (side, side), (size, size))[:, :1].contiguous().requires_grad_()
        mask = torch.randint(2, (1, 1, size, size), generator=torch.Generator().manual_seed(2))
        return {"x": x, "target": mask.float()}

    def plain(x: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(torch_ways.interpolate(x, (size, size)), target)

    name, title = named("upsample_binary_cross_entropy", 1, (side, side), (size, size))
    return Workload(
        name,
        "upsample_binary_cross_entropy",
        f"N=1 {title}",
        make,
        (Method("fused", "fused", fcn_kernels.upsample_binary_cross_entropy), *as_written(plain)),
        inputs=("photograph", "random"),
        goals=(Goal("speed-up", speed_up, "photograph"), Goal("speed-up", speed_up, "random")),
        # reads x, target; writes gradient
        traffic=4 * (2 * side * side + size * size),
        full=4 * size * size,
    )


def _confusion_matrix(
    classes: int, small: tuple[int, int], large: tuple[int, int], *, speed_up: float | None = None
) -> Workload:
    def make(kind: str) -> Tensors:
        x = small_scores(kind, 1, classes, small, large)
        return {"x": x, "target": labels_for(kind, lambda: torch_ways.interpolate(x, large), 1, classes, large)}

    def fused(x: Tensor, target: Tensor) -> Tensor:
        return fcn_kernels.upsample_confusion_matrix(x, target, ignore_index=IGNORE)

    def plain(x: Tensor, target: Tensor) -> Tensor:
        return torch_ways.confusion_matrix(torch_ways.interpolate(x, large).argmax(1), target, classes)

    def maximum(x: Tensor, target: Tensor) -> Tensor:
        logits = torch_ways.interpolate(torch_ways.channels_last(x), large)
        return torch_ways.confusion_matrix(logits.max(1).indices, target, classes)

    def graph(g: Graph) -> Value:
        return g.argmax(g.interpolate(g.input("x"), large))

    def counted(labels: Tensor, target: Tensor, **_: Tensor) -> Tensor:
        return torch_ways.confusion_matrix(labels, target, classes)

    name, title = named("upsample_confusion_matrix", classes, small, large)
    return Workload(
        name,
        "upsample_confusion_matrix",
        f"N=1 {title}",
        make,
        (
            Method("fused", "fused", fused),
            *as_written(plain),
            Method("eager, max, channels last", "tuned", maximum),
            *engines(graph, counted),
        ),
        inputs=("photograph", "random"),
        goals=tuple(Goal("speed-up", speed_up, kind) for kind in ("photograph", "random")) if speed_up else (),
        logits=lambda x, target: torch_ways.interpolate(x, large),
        # reads x and the labels
        traffic=4 * classes * small[0] * small[1] + 8 * large[0] * large[1],
        full=4 * classes * large[0] * large[1],
    )


HEADS = (
    _binary_cross_entropy(128, 1024, speed_up=10),
    _confusion_matrix(21, (64, 64), (512, 512), speed_up=20),
    _confusion_matrix(150, (128, 128), (512, 512)),
)
