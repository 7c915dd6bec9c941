"""The workloads of benchmarks/gpu_operators.py: jobs that fill a GPU, the work that the fused way cannot avoid, and
what they must reach. `cases("cpu", tiny=True)` are the same jobs on a few pixels, to try the programs out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import fcn_kernels
from fcn_kernels import Sampling
from fcn_kernels.benchmarking import floors, photographs
from fcn_kernels.benchmarking import formulations as torch_ways
from fcn_kernels.benchmarking.floors import Geometry, Work
from fcn_kernels.benchmarking.workload import IGNORE, Method, Tensors, Workload, as_written, named

Size = tuple[int, int]


@dataclass(frozen=True)
class Goal:
    """What our faster backend must reach: at least `value` times as fast as `against` ("eager", "torch.compile", or
    "rivals", the fastest of all), or `value` of its rate ("copy"); at most `value` bytes ("memory") or that many times
    the launches of a graph of `kernels` ("launches")."""

    against: str
    value: float
    kernels: int = 0


@dataclass(frozen=True)
class Case:
    job: Workload
    work: Work
    goals: tuple[Goal, ...] = ()
    graph: bool = False  # every method is replayed from a graph

    @property
    def name(self) -> str:
        return self.job.name


class Maker:
    """Makes cases on a device; tiny ones keep the number of dimensions and no more."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.device, self.tiny = device, tiny

    def shape(self, batch: int, channels: int, *sides: Size) -> tuple[int, int, tuple[Size, ...]]:
        if not self.tiny:
            return batch, channels, sides
        factor = [min(4, side[0] // sides[0][0]) for side in sides]
        return min(batch, 2), min(channels, 3), tuple((2 * f, 2 * f) for f in factor)

    def random(self, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=self.device).to(dtype)

    def labels(self, classes: int, *shape: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(2)
        return torch.randint(classes, shape, generator=generator, device=self.device)

    def scores(self, kind: str, g: Geometry, dtype: torch.dtype) -> Tensor:
        if kind == "photograph":
            stride = g.large[0] // g.small[0]
            return photographs.head_scores(g.batch, g.classes, g.large, stride).to(self.device, dtype)
        return self.random(g.batch, g.classes, *g.small, dtype=dtype)

    def geometry(self, batch: int, classes: int, small: Size, large: Size, dtype: torch.dtype) -> Geometry:
        batch, classes, (small, large) = self.shape(batch, classes, small, large)
        return Geometry(batch, classes, small, large, torch.finfo(dtype).bits // 8)

    def workload(self, operator: str, g: Geometry, dtype: torch.dtype, **fields: object) -> Workload:
        name, title = named(operator, g.classes, g.small, g.large)
        kind = str(dtype).removeprefix("torch.")
        return Workload(f"{name}-n{g.batch}-{kind}", operator, f"N={g.batch} {title} {kind}", **fields)


def cross_entropy(m: Maker, g: Geometry, dtype: torch.dtype, goals: tuple[Goal, ...]) -> Case:
    def make(kind: str) -> Tensors:
        x = m.scores(kind, g, dtype)
        if kind == "photograph":
            target = photographs.labels(torch_ways.interpolate(x.cpu().float(), g.large), IGNORE).to(m.device)
        else:
            target = m.labels(g.classes, g.batch, *g.large)
        return {"x": x.requires_grad_(), "target": target}

    def fused(x: Tensor, target: Tensor) -> Tensor:
        return fcn_kernels.upsample_cross_entropy(x, target, ignore_index=IGNORE)

    def plain(x: Tensor, target: Tensor) -> Tensor:
        return torch_ways.cross_entropy(torch_ways.interpolate(x, g.large), target)

    methods = (Method("fused", "fused", fused), *as_written(plain))
    kinds = ("random",) if m.tiny else ("random", "photograph")
    job = m.workload("upsample_cross_entropy", g, dtype, make=make, methods=methods, inputs=kinds)
    return Case(job, floors.cross_entropy(g), goals)


def argmax(m: Maker, g: Geometry, dtype: torch.dtype, goals: tuple[Goal, ...]) -> Case:
    def logits(x: Tensor) -> Tensor:
        return torch_ways.interpolate(x, g.large)

    methods = (
        Method("fused", "fused", lambda x: fcn_kernels.upsample_argmax(x, g.large)),
        *as_written(lambda x: logits(x).argmax(1)),
    )
    kinds = ("random",) if m.tiny else ("random", "photograph")
    make = lambda kind: {"x": m.scores(kind, g, dtype)}  # noqa: E731
    job = m.workload("upsample_argmax", g, dtype, make=make, methods=methods, inputs=kinds, logits=logits)
    return Case(job, floors.argmax(g), goals)


def softmax(m: Maker, g: Geometry, dtype: torch.dtype, goals: tuple[Goal, ...]) -> Case:
    methods = (
        Method("fused", "fused", lambda x: fcn_kernels.upsample_softmax(x, g.large)),
        *as_written(lambda x: torch_ways.interpolate(x, g.large).softmax(1)),
    )
    make = lambda kind: {"x": m.scores(kind, g, dtype)}  # noqa: E731
    job = m.workload("upsample_softmax", g, dtype, make=make, methods=methods, inputs=("random",))
    return Case(job, floors.softmax(g), goals)


def confusion_matrix(m: Maker, g: Geometry, dtype: torch.dtype, goals: tuple[Goal, ...]) -> Case:
    def logits(x: Tensor, **_: Tensor) -> Tensor:
        return torch_ways.interpolate(x, g.large)

    def plain(x: Tensor, target: Tensor) -> Tensor:
        return torch_ways.confusion_matrix(logits(x).argmax(1), target, g.classes)

    def fused(x: Tensor, target: Tensor) -> Tensor:
        return fcn_kernels.upsample_confusion_matrix(x, target, ignore_index=IGNORE)

    def make(kind: str) -> Tensors:
        return {"x": m.scores(kind, g, dtype), "target": m.labels(g.classes, g.batch, *g.large)}

    methods = (Method("fused", "fused", fused), *as_written(plain))
    job = m.workload(
        "upsample_confusion_matrix", g, dtype, make=make, methods=methods, inputs=("random",), logits=logits
    )
    return Case(job, floors.argmax(g), goals)


def binary_cross_entropy(m: Maker, g: Geometry, dtype: torch.dtype, goals: tuple[Goal, ...]) -> Case:
    def make(kind: str) -> Tensors:
        target = m.labels(2, g.batch, g.classes, *g.large).to(dtype)
        return {"x": m.scores(kind, g, dtype).requires_grad_(), "target": target}

    def plain(x: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(torch_ways.interpolate(x, g.large), target)

    fused = Method("fused", "fused", fcn_kernels.upsample_binary_cross_entropy)
    methods = (fused, *as_written(plain))
    job = m.workload("upsample_binary_cross_entropy", g, dtype, make=make, methods=methods, inputs=("random",))
    return Case(job, floors.binary_cross_entropy(g), goals)


def streaming(m: Maker, g: Geometry, dtype: torch.dtype, goals: tuple[Goal, ...], *, operator: str) -> Case:
    """A bilinear transposed convolution, or its adjoint: `upsample`, `upsample_add`, `upsample_backward`."""
    stride = g.large[0] // g.small[0]
    crop = stride // 2
    sampling = Sampling.transposed_conv(g.small, stride, offset=crop, output_size=g.large)
    code = sampling.encode()

    def plain(x: Tensor) -> Tensor:
        return torch_ways.padded_interpolate(x, stride, crop, g.large)

    def adjoint(g_: Tensor) -> Tensor:
        x = torch.zeros(g.batch, g.classes, *g.small, device=g_.device, dtype=g_.dtype, requires_grad=True)
        with torch.enable_grad():
            return torch.autograd.grad(plain(x), x, g_)[0]

    names = ("x", "skip") if operator == "upsample_add" else ("g_",) if operator == "upsample_backward" else ("x",)
    sides = {"x": g.small, "skip": g.large, "g_": g.large}

    def make(kind: str) -> Tensors:
        return {name: m.random(g.batch, g.classes, *sides[name], dtype=dtype, seed=i) for i, name in enumerate(names)}

    functions: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
        "upsample": (lambda x: fcn_kernels.upsample(x, sampling), plain),
        "upsample_add": (
            lambda x, skip: fcn_kernels.upsample_add(x, skip, sampling),
            lambda x, skip: plain(x) + skip,
        ),
        "upsample_backward": (lambda g_: torch.ops.fcn_kernels.upsample_backward(g_, code), adjoint),
    }
    fused, rival = functions[operator]
    methods = (Method("fused", "fused", fused), *as_written(rival))
    if operator == "upsample_backward":  # a gradient inside a compiled function is no rival in common use
        methods = methods[:2]
    job = m.workload(operator, g, dtype, make=make, methods=methods, inputs=("random",))
    return Case(job, floors.streaming(g, 2 if operator == "upsample_add" else 1), goals)


def score_softmax(m: Maker, features: int, classes: int, side: int, batch: int, arithmetic: str, *goals: Goal) -> Case:
    dtype = torch.bfloat16 if arithmetic == "bf16" else torch.float32
    if m.tiny:
        features, classes, side, batch = 8, 3, 3, min(batch, 2)

    def make(kind: str) -> Tensors:
        return {
            "x": m.random(batch, features, side, side, dtype=dtype),
            "weight": m.random(classes, features, seed=2).div(features**0.5).to(dtype),
            "bias": m.random(classes, dtype=dtype, seed=3),
        }

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight[:, :, None, None], bias).softmax(1)

    pixels, itemsize = batch * side * side, torch.finfo(dtype).bits // 8
    job = Workload(
        f"score_softmax-k{features}-c{classes}-{side}x{side}-n{batch}-{arithmetic}",
        "score_softmax",
        f"N={batch} K={features} C={classes} {side}x{side} {arithmetic}",
        make,
        (
            Method("fused", "fused", fcn_kernels.score_softmax),
            *as_written(plain),
            Method("eager, channels last", "tuned", plain, channels_last=True),
        ),
        inputs=("random",),
    )
    work = Work(
        bytes=itemsize * (pixels * (features + classes) + features * classes),
        exponentials=pixels * classes,
        products=pixels * classes * features,
        arithmetic=arithmetic,
    )
    return Case(job, work, goals)


def score_cross_entropy(m: Maker, features: int, classes: int, side: int, batch: int, *goals: Goal) -> Case:
    """Forward and backward, in x, weight and bias."""
    if m.tiny:
        features, classes, side, batch = 8, 3, 3, 2

    def make(kind: str) -> Tensors:
        tensors = {
            "x": m.random(batch, features, side, side),
            "weight": m.random(classes, features, seed=2).div(features**0.5),
            "bias": m.random(classes, seed=3),
        }
        target = m.labels(classes, batch, side, side)
        return {name: t.requires_grad_() for name, t in tensors.items()} | {"target": target}

    def plain(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(F.conv2d(x, weight[:, :, None, None], bias), target)

    pixels = batch * side * side
    job = Workload(
        f"score_cross_entropy-k{features}-c{classes}-{side}x{side}-n{batch}",
        "score_cross_entropy",
        f"N={batch} K={features} C={classes} {side}x{side}",
        make,
        (Method("fused", "fused", fcn_kernels.score_cross_entropy), *as_written(plain)),
        inputs=("random",),
    )
    work = Work(
        bytes=4 * (3 * pixels * features + 2 * classes * features) + 8 * pixels,  # x is needed for the weight again
        exponentials=2 * pixels * classes,
        products=3 * pixels * classes * features,
    )
    return Case(job, work, goals)


def transposed(
    m: Maker, inputs: int, outputs: int, side: int, kernel: int, groups: int, batch: int, operator: str, *goals: Goal
) -> Case:
    """A learned transposed convolution, stride 2, plus a skip or beside one, forward and backward."""
    if m.tiny:
        inputs, outputs, side, batch, groups = 3, 3 if groups > 1 else 2, 2, 1, 3 if groups > 1 else 1
    size, crop = 2 * side, (kernel - 2) // 2
    concat = operator == "conv_transpose_concat"

    def make(kind: str) -> Tensors:
        leaves = {
            "x": m.random(batch, inputs, side, side),
            "weight": m.random(inputs, outputs // groups, kernel, kernel, seed=2).div((inputs // groups) ** 0.5),
            "skip": m.random(batch, outputs, size, size, seed=3),
        } | ({"bias": m.random(outputs, seed=4)} if concat else {})
        arriving = m.random(batch, outputs * (2 if concat else 1), size, size, seed=5)
        return {name: t.requires_grad_() for name, t in leaves.items()} | {"arriving": arriving}

    def fused(x: Tensor, weight: Tensor, skip: Tensor, bias: Tensor | None = None, **_: Tensor) -> Tensor:
        where = {"stride": 2, "groups": groups, "offset": (crop, crop), "output_size": (size, size)}
        if concat:
            return fcn_kernels.conv_transpose_concat(x, weight, skip, bias, **where)
        return fcn_kernels.conv_transpose_add(x, weight, skip, **where)

    def plain(x: Tensor, weight: Tensor, skip: Tensor, bias: Tensor | None = None, **_: Tensor) -> Tensor:
        y = F.conv_transpose2d(x, weight, bias, stride=2, padding=crop, groups=groups)
        return torch.cat([skip, y], 1) if concat else y + skip

    kind = "depthwise " if groups > 1 else ""
    job = Workload(
        f"{operator}-{kind.strip() or 'dense'}-{inputs}-{outputs}-{side}-k{kernel}-n{batch}",
        operator,
        f"N={batch} {kind}{inputs} to {outputs}, {kernel}x{kernel}, {side}x{side} -> {size}x{size}",
        make,
        (Method("fused", "fused", fused), *as_written(plain)),
        inputs=("random",),
    )
    taps = (kernel / 2) ** 2 * inputs / groups  # of an output
    y = batch * outputs * size * size
    work = Work(
        # x twice and its gradient; the skip, the output, the arriving gradient and that of the skip
        bytes=4 * (3 * batch * inputs * side * side + (6 if concat else 4) * y),
        **{"products" if groups == 1 else "instructions": 3 * taps * y},
    )
    return Case(job, work, goals)


def fcn8s_head(m: Maker, end: str, batch: int, *goals: Goal) -> Case:
    """What follows the three scores of FCN-8s at 500 x 500: 16 -> 34 (+ pool4), 34 -> 70 (+ pool3), 70 -> 500."""
    classes, coarse, size = (3, 2, (9, 9)) if m.tiny else (21, 16, (500, 500))
    middle = 2 * coarse + 2
    fine = 2 * middle + 2
    first, second = Sampling.transposed_conv((coarse, coarse), 2), Sampling.transposed_conv((middle, middle), 2)
    last = Sampling.transposed_conv((fine, fine), 8, offset=31, output_size=size)
    sides = {"fr": coarse, "pool4": middle + 10, "pool3": fine + 18}

    def make(kind: str) -> Tensors:
        return {name: m.random(batch, classes, side, side, seed=side) for name, side in sides.items()}

    def logits(fr: Tensor, pool4: Tensor, pool3: Tensor) -> Tensor:
        return torch_ways.fcn8s_logits(fr, pool4, pool3, size)

    def fused(fr: Tensor, pool4: Tensor, pool3: Tensor) -> Tensor:
        x = fcn_kernels.upsample_add(fr, pool4, first, skip_offset=(5, 5))
        x = fcn_kernels.upsample_add(x, pool3, second, skip_offset=(9, 9))
        return fcn_kernels.upsample_argmax(x, last) if end == "argmax" else fcn_kernels.upsample_softmax(x, last)

    def plain(fr: Tensor, pool4: Tensor, pool3: Tensor) -> Tensor:
        y = logits(fr, pool4, pool3)
        return y.argmax(1) if end == "argmax" else y.softmax(1)

    g = Geometry(batch, classes, (fine, fine), size)
    small = 4 * batch * classes * (coarse**2 + 2 * middle**2 + 2 * fine**2)  # scores and sums of the first two stages
    head = floors.argmax(g) if end == "argmax" else floors.softmax(g)
    job = Workload(
        f"fcn8s_head-{end}-n{batch}",
        "fcn8s_head",
        f"N={batch} C={classes} {size[0]}x{size[1]}, {end}, in a graph",
        make,
        (Method("fused", "fused", fused), *as_written(plain)),
        inputs=("random",),
        logits=logits if end == "argmax" else None,
    )
    return Case(job, Work(bytes=small) + head, goals, graph=True)


FP32, BF16 = torch.float32, torch.bfloat16
ADE, VOC, CITYSCAPES = (  # the three jobs of the losses: batch, classes, small, large, dtype
    (8, 150, (128, 128), (512, 512), FP32),
    (16, 21, (64, 64), (512, 512), FP32),
    (4, 19, (128, 256), (1024, 2048), BF16),
)


def cases(device: str, tiny: bool = False) -> list[Case]:
    """The most important first."""
    m = Maker(device, tiny)

    def head(make: Callable[..., Case], shape: tuple, *goals: Goal, **options: object) -> Case:
        return make(m, m.geometry(*shape), shape[-1], goals, **options)

    found = [
        head(cross_entropy, ADE, Goal("eager", 25), Goal("torch.compile", 10), Goal("memory", 100e6)),
        head(cross_entropy, VOC, Goal("eager", 20), Goal("torch.compile", 8)),
        head(cross_entropy, CITYSCAPES, Goal("eager", 20), Goal("torch.compile", 8)),
        *(head(argmax, shape, Goal("eager", 20), Goal("torch.compile", 5)) for shape in (ADE, VOC, CITYSCAPES)),
        head(softmax, VOC, Goal("copy", 0.85)),
        head(softmax, CITYSCAPES, Goal("copy", 0.85)),
        *(
            head(partial(streaming, operator=operator), shape, Goal("copy", 0.9))
            for shape in ((8, 150, (128, 128), (256, 256), FP32), (4, 150, (64, 64), (512, 512), BF16))
            for operator in ("upsample_add", "upsample", "upsample_backward")
        ),
        *(
            score_softmax(m, 4096, 21, side, batch, arithmetic, Goal("eager", 1.5), Goal("rivals", 1.0))
            for side, batch, arithmetic in (
                (16, 1, "fp32"), (16, 32, "fp32"), (64, 1, "fp32"), (64, 8, "fp32"), (128, 1, "fp32"),
                (16, 1, "tf32"), (64, 8, "tf32"), (16, 1, "bf16"), (64, 8, "bf16"), (128, 32, "bf16"),
            )
        ),
        fcn8s_head(m, "argmax", 1, Goal("launches", 3, kernels=3)),
        fcn8s_head(m, "softmax", 1),
        score_softmax(m, 512, 150, 128, 8, "fp32", Goal("rivals", 1.0)),
        score_cross_entropy(m, 512, 150, 128, 8),
        head(confusion_matrix, VOC),
        head(binary_cross_entropy, (16, 1, (128, 128), (1024, 1024), FP32)),
        transposed(m, 150, 150, 128, 4, 150, 8, "conv_transpose_add"),
        transposed(m, 21, 21, 128, 4, 1, 8, "conv_transpose_add"),
        transposed(m, 128, 64, 128, 2, 1, 8, "conv_transpose_concat"),
    ]  # fmt: skip
    unique = {case.name: case for case in found}
    return list(unique.values())
