"""Every workload of `fcn-kernels bench` and of the suites in benchmarks/, by name: inputs, methods, goals, traffic.

The families of score convolutions and of binary and evaluation heads stand in files of their own, and so does the grid
of every operator in both directions and all dtypes.
A workload is one job on tensors of one geometry. Its methods are the fused operator, its rivals (PyTorch as it is
usually written, eager and compiled), tuned rivals (the same job rewritten for speed: stricter, reported beside),
inference engines (see engines.py) and yardsticks (a part of the job that no method can avoid). Inputs come in kinds,
since speed may depend on values: "photograph" (scores of features of real photographs, smooth), "random" (normal, sd 1)
and "hot" (normal, sd 10).
"""

from __future__ import annotations

from fnmatch import fnmatch

import torch
import torch.nn.functional as F
from torch import Tensor

import fcn_kernels
from fcn_kernels import Sampling
from fcn_kernels.benchmarking import formulations as torch_ways
from fcn_kernels.benchmarking import photographs
from fcn_kernels.benchmarking.engines import Graph, Value, engines
from fcn_kernels.benchmarking.grid_workloads import GRID
from fcn_kernels.benchmarking.head_workloads import HEADS
from fcn_kernels.benchmarking.score_workloads import SCORES
from fcn_kernels.benchmarking.workload import (
    IGNORE,
    Goal,
    Method,
    Tensors,
    Workload,
    as_written,
    autotuned,
    labels_for,
    named,
    progressions,
    random_inputs,
    small_scores,
)


def _cross_entropy(
    classes: int,
    small: tuple[int, int],
    large: tuple[int, int],
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    speed_up: float | None = None,
    memory: float | None = None,
    quick: bool = False,
    extended: bool = False,
) -> Workload:
    def make(kind: str) -> Tensors:
        x = small_scores(kind, batch, classes, small, large)
        target = labels_for(kind, lambda: torch_ways.interpolate(x, large), batch, classes, large)
        return {"x": x.to(dtype).requires_grad_(), "target": target}

    def fused(x: Tensor, target: Tensor) -> Tensor:
        return fcn_kernels.upsample_cross_entropy(x, target, ignore_index=IGNORE)

    def plain(x: Tensor, target: Tensor) -> Tensor:
        return torch_ways.cross_entropy(torch_ways.interpolate(x, large), target)

    def rows(x: Tensor, target: Tensor) -> Tensor:
        return torch_ways.cross_entropy_rows(torch_ways.interpolate(torch_ways.channels_last(x), large), target)

    methods = [Method("fused", "fused", fused), *as_written(plain)]
    if dtype == torch.float32:
        methods.append(Method("eager, channels last", "tuned", rows))
    goals = []
    if speed_up:
        goals += [Goal("speed-up", speed_up, "photograph"), Goal("speed-up", speed_up, "random")]
        goals += [Goal("time", 1.3, "hot", against="random")]
    if memory:
        goals.append(Goal("memory", memory, "random"))
    suffix = ("" if batch == 1 else f"-batch{batch}") + ("" if dtype == torch.float32 else f"-{str(dtype)[6:]}")
    name, title = named("upsample_cross_entropy", classes, small, large)
    itemsize = torch.finfo(dtype).bits // 8
    return Workload(
        name + suffix,
        "upsample_cross_entropy",
        f"N={batch} {title}" + ("" if dtype == torch.float32 else f" {str(dtype)[6:]}"),
        make,
        tuple(methods),
        inputs=("random",) if memory else ("photograph", "random", "hot"),
        goals=tuple(goals),
        # reads x, target; writes gradient
        traffic=batch * (2 * itemsize * classes * small[0] * small[1] + 8 * large[0] * large[1]),
        # two exponentials of 16, seeds and sums of each pixel; gradient: two Horner chains, four corners
        operations=batch * progressions(classes, small, large, 32 + 12, 2 + 2) * max(1, itemsize // 4),
        full=4 * batch * classes * large[0] * large[1],
        quick=quick,
        extended=extended,
        timed=memory is None,
    )


def _argmax(
    classes: int,
    small: tuple[int, int],
    large: tuple[int, int],
    *,
    batch: int = 1,
    random: float | None = None,
    smooth: float | None = None,
    quick: bool = False,
    extended: bool = False,
) -> Workload:
    def make(kind: str) -> Tensors:
        return {"x": small_scores(kind, batch, classes, small, large)}

    def logits(x: Tensor) -> Tensor:
        return torch_ways.interpolate(x, large)

    def fused(x: Tensor) -> Tensor:
        return fcn_kernels.upsample_argmax(x, large)

    def plain(x: Tensor) -> Tensor:
        return logits(x).argmax(1)

    def maximum(x: Tensor) -> Tensor:
        return logits(torch_ways.channels_last(x)).max(1).indices

    def graph(g: Graph) -> Value:
        return g.argmax(g.interpolate(g.input("x"), large))

    goals = []
    if random and smooth:
        goals = [Goal("speed-up", smooth, "photograph"), Goal("speed-up", random, "random")]
    name, title = named("upsample_argmax", classes, small, large)
    return Workload(
        name,
        "upsample_argmax",
        f"N={batch} {title}",
        make,
        (
            Method("fused", "fused", fused),
            *as_written(plain),
            Method("eager, max, channels last", "tuned", maximum),
            *engines(graph),
        ),
        inputs=("photograph", "random"),
        goals=tuple(goals),
        logits=logits,
        # reads x; writes labels
        traffic=batch * (4 * classes * small[0] * small[1] + 8 * large[0] * large[1]),
        full=4 * batch * classes * large[0] * large[1],
        quick=quick,
        extended=extended,
    )


def _softmax(
    classes: int,
    small: tuple[int, int],
    large: tuple[int, int],
    *,
    batch: int = 1,
    speed_up: float | None = None,
    extended: bool = False,
) -> Workload:
    def make(kind: str) -> Tensors:
        return {"x": small_scores(kind, batch, classes, small, large)}

    def fused(x: Tensor) -> Tensor:
        return fcn_kernels.upsample_softmax(x, large)

    def plain(x: Tensor) -> Tensor:
        return torch_ways.interpolate(x, large).softmax(1)

    def graph(g: Graph) -> Value:
        return g.softmax(g.interpolate(g.input("x"), large))

    name, title = named("upsample_softmax", classes, small, large)
    return Workload(
        name,
        "upsample_softmax",
        f"N={batch} {title}",
        make,
        (Method("fused", "fused", fused), *as_written(plain), *engines(graph)),
        inputs=("photograph", "random"),
        goals=tuple(Goal("speed-up", speed_up, kind) for kind in ("photograph", "random")) if speed_up else (),
        # reads x; writes probabilities
        traffic=4 * batch * classes * (small[0] * small[1] + large[0] * large[1]),
        # two exponentials of 16, seeds and sums of each pixel; multiplications, and shuffles into the order of pixels
        operations=batch * progressions(classes, small, large, 32, 2 + 2 + 3),
        full=4 * batch * classes * large[0] * large[1],
        extended=extended,
    )


def _add(batch: int, channels: int, *, speed_up: float | None = None, quick: bool = False) -> Workload:
    """FCN-8s's second fusion: 34 -> 70 by a 4/2 deconvolution, plus pool3's scores, 88, cropped by 9."""
    small, large, offset = (34, 34), (70, 70), 9
    sampling = Sampling.transposed_conv(small, 2)

    def make(kind: str) -> Tensors:
        x, skip = random_inputs(kind, batch, channels, *small), random_inputs(kind, batch, channels, 88, 88)
        return {
            "x": x,
            "skip": skip,
            "filters": torch_ways.bilinear_filters(channels, 2, x),
            "y": torch_ways.padded_interpolate(x, 2, 0, large),
        }

    def fused(x: Tensor, skip: Tensor, **_: Tensor) -> Tensor:
        return fcn_kernels.upsample_add(x, skip, sampling, skip_offset=(offset, offset))

    def padded(x: Tensor, skip: Tensor, **_: Tensor) -> Tensor:
        return torch_ways.padded_interpolate(x, 2, 0, large) + torch_ways.cropped(skip, offset, large)

    def depthwise(x: Tensor, skip: Tensor, filters: Tensor, **_: Tensor) -> Tensor:
        y = torch_ways.depthwise_deconvolution(x, filters, 0, large)
        return y + torch_ways.cropped(skip, offset, large)

    def graph(g: Graph) -> Value:
        return g.add(g.transposed(g.input("x"), 2, 0, large), g.cropped(g.input("skip"), (offset, offset), large))

    def addition(skip: Tensor, y: Tensor, **_: Tensor) -> Tensor:
        return y + torch_ways.cropped(skip, offset, large)

    goals = [Goal("speed-up", speed_up, "random"), Goal("time", 1.15, "random", "y + skip")] if speed_up else []
    return Workload(
        f"upsample_add-{batch}x{channels}x70x70",
        "upsample_add",
        f"{batch}x{channels}, 34x34 -> 70x70, skip 88x88",
        make,
        (
            Method("fused", "fused", fused),
            *as_written(padded),
            Method("depthwise deconvolution", "rival", depthwise),
            Method("depthwise deconvolution, channels last", "rival", depthwise, channels_last=True),
            *engines(graph),
            Method("y + skip", "yardstick", addition),
        ),
        inputs=("random",),
        goals=tuple(goals),
        # reads x, the window of skip; writes y
        traffic=4 * batch * channels * (34 * 34 + 2 * 70 * 70),
        operations=batch * channels * 70 * (34 + 2 * 70),  # widening a row, blending two and adding
        quick=quick,
    )


def _learned(
    small: int, stride: int, offset: int, size: int, groups: int, *, speed_up: float | None = None
) -> Workload:
    """A learned transposed convolution of 21 classes, kernel 2s, cropped, with a skip, forward and backward."""
    channels, kernel = 21, 2 * stride
    kind = {1: "dense", channels: "depthwise"}[groups]

    def make(inputs: str) -> Tensors:
        image = random_inputs(inputs, 1, channels, size, size)
        return {
            "x": random_inputs(inputs, 1, channels, small, small).requires_grad_(),
            "weight": random_inputs(inputs, channels, channels // groups, kernel, kernel).requires_grad_(),
            "skip": image.clone().requires_grad_(),
            "arriving": image,
        }

    def fused(x: Tensor, weight: Tensor, skip: Tensor, **_: Tensor) -> Tensor:
        crop = {"offset": (offset, offset), "output_size": (size, size)}
        return fcn_kernels.conv_transpose_add(x, weight, skip, stride=stride, groups=groups, **crop)

    def plain(x: Tensor, weight: Tensor, skip: Tensor, **_: Tensor) -> Tensor:
        y = F.conv_transpose2d(x, weight, stride=stride, groups=groups)
        return y[:, :, offset : offset + size, offset : offset + size] + skip

    return Workload(
        f"conv_transpose_add-{kind}-{channels}x{kernel}x{kernel}-{small}-{size}",
        "conv_transpose_add",
        f"{kind} {channels}x{kernel}x{kernel}, stride {stride}, {small}x{small} -> {size}x{size}",
        make,
        (
            Method("fused", "fused", fused),
            *as_written(plain),
            Method("eager, channels last", "rival", plain, channels_last=True),
            Method("torch.compile, channels last", "rival", plain, compiled=True, channels_last=True),
        ),
        inputs=("random",),
        goals=(Goal("speed-up", speed_up, "random"),) if speed_up else (),
        # reads x, skip, the arriving gradient; writes y and the gradients of x and skip
        traffic=4 * channels * (2 * small * small + 4 * size * size),
        # three products: the output, the gradients of x and weight; four taps read by each output value
        operations=3 * 4 * channels * channels // groups * size * size,
    )


def _unet(channels: int, small: int, fine: int) -> Workload:
    """A step of U-Net's way up, 572 -> 388: 2x2 up-convolution beside the centre of the skip, forward and backward."""
    half, size = channels // 2, 2 * small
    offset = (fine - size) // 2

    def make(inputs: str) -> Tensors:
        return {
            "x": random_inputs(inputs, 1, channels, small, small).requires_grad_(),
            "weight": (random_inputs(inputs, channels, half, 2, 2) * channels**-0.5).requires_grad_(),
            "skip": random_inputs(inputs, 1, half, fine, fine).requires_grad_(),
            "bias": random_inputs(inputs, half).requires_grad_(),
            "arriving": random_inputs(inputs, 1, channels, size, size),
        }

    def fused(x: Tensor, weight: Tensor, skip: Tensor, bias: Tensor, **_: Tensor) -> Tensor:
        return fcn_kernels.conv_transpose_concat(x, weight, skip, bias, stride=2, skip_offset=(offset, offset))

    def plain(x: Tensor, weight: Tensor, skip: Tensor, bias: Tensor, **_: Tensor) -> Tensor:
        y = F.conv_transpose2d(x, weight, bias, stride=2)
        return torch.cat([skip[:, :, offset : offset + size, offset : offset + size], y], dim=1)

    return Workload(
        f"conv_transpose_concat-{channels}x{small}x{small}",
        "conv_transpose_concat",
        f"U-Net {channels}x{small}x{small} -> {channels}x{size}x{size}",
        make,
        (
            Method("fused", "fused", fused),
            *as_written(plain),
            Method("eager, channels last", "rival", plain, channels_last=True),
        ),
        inputs=("random",),
        # reads x (twice), the window of skip and the arriving gradient; writes y and the gradients of x and skip
        traffic=4 * (3 * channels * small**2 + (half + 2 * channels) * size**2 + half * fine**2),
        operations=3 * channels * half * size**2,  # three products, of one tap
    )


def _fcn8s(end: str, *, speed_up: float | None = None, quick: bool = False) -> Workload:
    """The FCN-8s head after its scores, on a 500x500 photograph: 16 -> 34 (+ pool4), 34 -> 70 (+ pool3), 70 -> 500."""
    classes, size = 21, (500, 500)
    first, second = Sampling.transposed_conv((16, 16), 2), Sampling.transposed_conv((34, 34), 2)
    last = Sampling.transposed_conv((70, 70), 8, offset=31, output_size=size)
    names = ("fr", "pool4", "pool3")

    def make(kind: str) -> Tensors:
        if kind == "photograph":
            scores = photographs.fcn8s_scores(1, classes)
        else:
            scores = tuple(random_inputs(kind, 1, classes, side, side) for side in (16, 44, 88))
        tensors = dict(zip(names, scores, strict=True))
        if end == "cross_entropy":
            target = labels_for(kind, lambda: logits(**tensors), 1, classes, size)
            tensors = {name: t.requires_grad_() for name, t in tensors.items()} | {"target": target}
        return tensors

    def logits(fr: Tensor, pool4: Tensor, pool3: Tensor) -> Tensor:
        return torch_ways.fcn8s_logits(fr, pool4, pool3, size)

    def fused_scores(fr: Tensor, pool4: Tensor, pool3: Tensor) -> Tensor:  # [1, C, 70, 70]
        x = fcn_kernels.upsample_add(fr, pool4, first, skip_offset=(5, 5))
        return fcn_kernels.upsample_add(x, pool3, second, skip_offset=(9, 9))

    def fused(fr: Tensor, pool4: Tensor, pool3: Tensor, target: Tensor | None = None) -> Tensor:
        x = fused_scores(fr, pool4, pool3)
        if end == "cross_entropy":
            return fcn_kernels.upsample_cross_entropy(x, target, last, ignore_index=IGNORE)
        if end == "argmax":
            return fcn_kernels.upsample_argmax(x, last)
        return fcn_kernels.upsample_softmax(x, last)

    def finish(y: Tensor, target: Tensor | None) -> Tensor:
        if end == "cross_entropy":
            return torch_ways.cross_entropy(y, target)
        return y.argmax(1) if end == "argmax" else y.softmax(1)

    def padded(fr: Tensor, pool4: Tensor, pool3: Tensor, target: Tensor | None = None) -> Tensor:
        return finish(logits(fr, pool4, pool3), target)

    def depthwise(fr: Tensor, pool4: Tensor, pool3: Tensor, target: Tensor | None = None) -> Tensor:
        return finish(torch_ways.fcn8s_logits_depthwise(fr, pool4, pool3, size), target)

    def tuned(fr: Tensor, pool4: Tensor, pool3: Tensor, target: Tensor | None = None) -> Tensor:
        y = logits(*map(torch_ways.channels_last, (fr, pool4, pool3)))
        return torch_ways.cross_entropy_rows(y, target) if end == "cross_entropy" else y.max(1).indices

    def graph(g: Graph) -> Value:
        x, pool4, pool3 = map(g.input, names)
        x = g.add(g.transposed(x, 2, 0, (34, 34)), g.cropped(pool4, (5, 5), (34, 34)))
        x = g.add(g.transposed(x, 2, 0, (70, 70)), g.cropped(pool3, (9, 9), (70, 70)))
        x = g.transposed(x, 8, 31, size)
        return g.argmax(x) if end == "argmax" else g.softmax(x)

    methods = [
        Method("fused", "fused", fused),
        *as_written(padded),
        Method("depthwise deconvolution", "rival", depthwise),
    ]
    if end != "softmax":
        methods.append(Method("eager, channels last", "tuned", tuned))
    if end != "cross_entropy":
        methods += engines(graph)
    inputs = ("photograph", "random")
    small = 4 * classes * (16 * 16 + 34 * 34 + 70 * 70)
    return Workload(
        f"fcn8s_head-{end}",
        "fcn8s_head",
        f"N=1 C={classes} 500x500, {end.replace('_', '-')}",
        make,
        tuple(methods),
        inputs=inputs,
        goals=tuple(Goal("speed-up", speed_up, kind) for kind in inputs) if speed_up else (),
        logits=logits if end == "argmax" else None,
        # reads and writes the scores of three stages (and their gradients), the labels or the probabilities
        traffic={
            "cross_entropy": 4 * small + 8 * 250_000,
            "argmax": 2 * small + 8 * 250_000,
            "softmax": 2 * small + 4 * classes * 250_000,
        }[end],
        # the last stage, whose window spans 64 segments: see _cross_entropy and _softmax
        operations={
            "cross_entropy": progressions(classes, (63, 63), size, 32 + 12, 2 + 2),
            "argmax": 0,
            "softmax": progressions(classes, (63, 63), size, 32, 2 + 2 + 3),
        }[end],
        full=4 * classes * 250_000,
        quick=quick,
    )


# Small logits of the memory goal: 8 * 150 * 128 * 128 float32. Allowed: three times as much, and 8 MB.
_MEMORY = 3 * 8 * 150 * 128 * 128 * 4 + 8 * 10**6

# Asked for by name or with --all: COCO-Stuff (171 classes), heatmaps of ImageNet's 1000, maps of 64 pixels.
_FAMILY = tuple(
    make(classes, small, large, extended=True)
    for classes, small, large in (
        (171, (80, 80), (640, 640)),
        (1000, (12, 12), (96, 96)),
        (21, (8, 8), (64, 64)),
    )
    for make in (_cross_entropy, _argmax, _softmax)
)

WORKLOADS: tuple[Workload, ...] = tuple(
    autotuned(job)
    for job in (
        _fcn8s("cross_entropy", speed_up=20, quick=True),
        _fcn8s("argmax"),
        _fcn8s("softmax"),
        _cross_entropy(21, (64, 64), (512, 512), speed_up=25, quick=True),
        _cross_entropy(150, (64, 64), (512, 512), speed_up=50),
        _cross_entropy(150, (128, 128), (512, 512), speed_up=20),
        _cross_entropy(19, (128, 256), (1024, 2048), dtype=torch.bfloat16, speed_up=20),
        _cross_entropy(150, (128, 128), (512, 512), batch=8, memory=_MEMORY),
        _argmax(21, (64, 64), (512, 512), random=12, smooth=30, quick=True),
        _argmax(150, (128, 128), (512, 512), random=10, smooth=30),
        _argmax(19, (256, 512), (1024, 2048)),
        _softmax(21, (64, 64), (512, 512), speed_up=6),
        _softmax(150, (128, 128), (512, 512), speed_up=5),
        _add(1, 512, speed_up=2),
        _add(24, 21, speed_up=2, quick=True),
        _learned(70, 8, 31, 500, 21, speed_up=3),
        _learned(64, 2, 0, 130, 21, speed_up=3),
        _learned(70, 8, 31, 500, 1, speed_up=2),
        _learned(64, 2, 0, 130, 1),
        *HEADS,
        *SCORES,
        _unet(1024, 28, 64),
        _unet(128, 196, 568),
        *GRID,
        *_FAMILY,
    )
)


def workload(name: str) -> Workload:
    return next(w for w in WORKLOADS if w.name == name)


def select(pattern: str | None, quick: bool = False, extended: bool = False) -> list[Workload]:
    """Workloads whose name contains `pattern` or, where that has a *, is like it; without one those that stand for
    their family, or all, or the quick."""
    if pattern:
        found = [w for w in WORKLOADS if (fnmatch(w.name, pattern) if "*" in pattern else pattern in w.name)]
        if not found:
            known = "\n  ".join(w.name for w in WORKLOADS)
            raise ValueError(f"no workload's name contains {pattern!r}; the names are\n  {known}")
        return found
    return [w for w in WORKLOADS if (w.quick or not quick) and (extended or not w.extended)]
