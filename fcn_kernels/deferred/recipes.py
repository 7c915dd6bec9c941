"""Computations that have not been done: what they are of, and the fused operators that take it."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..ops.score_argmax import score_argmax
from ..ops.score_cross_entropy import score_cross_entropy
from ..ops.score_softmax import score_log_softmax, score_softmax
from ..ops.upsample_argmax import upsample_argmax
from ..ops.upsample_cross_entropy import upsample_cross_entropy
from ..ops.upsample_softmax import upsample_log_softmax, upsample_softmax
from ..sampling import Sampling

Log = dict[tuple[str, str], tuple[int, str]]
"""(place in the code, consumer) to (how many calls were fused, the sizes of the last one)."""


class Site:
    """A place in somebody's code that upsamples, and the log of what read its results."""

    def __init__(self, name: str, log: Log) -> None:
        self.name, self.log = name, log

    def note(self, consumer: str, sizes: str) -> None:
        count, _ = self.log.get((self.name, consumer), (0, ""))
        self.log[self.name, consumer] = count + 1, sizes


class Upsampled:
    """``F.interpolate(x, mode="bilinear", ...)``."""

    kind = "upsample"

    def __init__(self, x: Tensor, sampling: Sampling, arguments: dict[str, Any], site: Site) -> None:
        self.x = x
        self.sampling = sampling
        self.arguments = arguments
        self.site = site
        self.size = (x.shape[0], x.shape[1], *sampling.output_size)

    def on(self, x: Tensor) -> Upsampled:
        return Upsampled(x, self.sampling, self.arguments, self.site)

    def image(self, index: int) -> Upsampled:
        return self.on(self.x[index : index + 1])

    def detach(self) -> Upsampled:
        return self.on(self.x.detach())

    def needs_grad(self) -> bool:
        return self.x.requires_grad

    def sources(self) -> tuple[Tensor, ...]:
        return (self.x,)

    def value(self) -> Tensor:
        return F.interpolate(self.x, **self.arguments)

    def softmax(self) -> Tensor:
        return upsample_softmax(self.x, self.sampling)

    def log_softmax(self) -> Tensor:
        return upsample_log_softmax(self.x, self.sampling)

    def argmax(self) -> Tensor:
        return upsample_argmax(self.x.detach(), self.sampling)

    def cross_entropy(self, target: Tensor, weight: Tensor | None = None, **options: Any) -> Tensor:
        return upsample_cross_entropy(self.x, target, self.sampling, weight=weight, **options)

    def describe(self) -> str:
        (h, w), (height, width) = self.sampling.input_size, self.sampling.output_size
        return f"{self.x.shape[1]} x {h} x {w} to {height} x {width}"


class Scored:
    """``F.conv2d(x, weight, bias)`` with a 1x1 weight."""

    kind = "score"

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None, site: Site) -> None:
        self.x, self.weight, self.bias = x, weight, bias
        self.site = site
        self.size = (x.shape[0], weight.shape[0], *x.shape[2:])

    def image(self, index: int) -> Scored:
        return Scored(self.x[index : index + 1], self.weight, self.bias, self.site)

    def detach(self) -> Scored:
        return Scored(*(None if t is None else t.detach() for t in (self.x, self.weight, self.bias)), self.site)

    def needs_grad(self) -> bool:
        return any(t is not None and t.requires_grad for t in (self.x, self.weight, self.bias))

    def sources(self) -> tuple[Tensor, ...]:
        return tuple(t for t in (self.x, self.weight, self.bias) if t is not None)

    def value(self) -> Tensor:
        return F.conv2d(self.x, self.weight, self.bias)

    def softmax(self) -> Tensor:
        return score_softmax(self.x, self.weight, self.bias)

    def log_softmax(self) -> Tensor:
        return score_log_softmax(self.x, self.weight, self.bias)

    def argmax(self) -> Tensor:
        return score_argmax(*self.detach().sources())

    def cross_entropy(self, target: Tensor, weight: Tensor | None = None, **options: Any) -> Tensor:
        return score_cross_entropy(self.x, self.weight, self.bias, target, class_weight=weight, **options)

    def describe(self) -> str:
        return f"{self.x.shape[1]} to {self.weight.shape[0]} channels, {self.x.shape[2]} x {self.x.shape[3]}"


class Maximum:
    """The largest score of each pixel, which comes with its class in ``topk(1)`` and ``max`` and is seldom read."""

    kind = "maximum"

    def __init__(self, scores: Upsampled | Scored, keepdim: bool) -> None:
        self.scores, self.keepdim = scores, keepdim
        self.x, self.site = scores.x, scores.site
        n, _, height, width = scores.size
        self.size = (n, 1, height, width) if keepdim else (n, height, width)

    def detach(self) -> Maximum:
        return Maximum(self.scores.detach(), self.keepdim)

    def needs_grad(self) -> bool:
        return self.scores.needs_grad()

    def sources(self) -> tuple[Tensor, ...]:
        return self.scores.sources()

    def value(self) -> Tensor:
        return self.scores.value().max(1, self.keepdim).values
