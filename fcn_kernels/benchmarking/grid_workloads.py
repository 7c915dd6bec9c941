"""Every public operator in both directions and all dtypes, at one shape each: what else would stay unmeasured.

Names are grid-OPERATOR-DIRECTION-DTYPE. Inputs are random: these workloads compare dtypes, not values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import fcn_kernels as fk
from fcn_kernels.benchmarking import formulations as torch_ways
from fcn_kernels.benchmarking.engines import Build, engines
from fcn_kernels.benchmarking.workload import Method, Tensors, Workload, as_written
from fcn_kernels.reference import arithmetic_dtype

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
C, K, SMALL, LARGE = 21, 256, (64, 64), (512, 512)
X, IMAGE, ONE = (1, C, *SMALL), (1, C, *LARGE), (1, 1, *SMALL)
FEATURES = {"x": (1, K, *SMALL), "weight": (C, K), "bias": (C,)}


@dataclass(frozen=True)
class Operator:
    """`inputs` are shapes by name, all of one dtype; a gradient is taken of each unless the result has none."""

    fused: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    inputs: dict[str, tuple[int, ...]]
    output: tuple[int, ...] = ()  # a loss or counts: nothing to speak of
    labels: tuple[int, ...] | None = None  # shape of the target
    differentiable: bool = True
    mask: bool = False  # the target is a floating 0 or 1
    logits: Callable[..., Tensor] | None = None
    graph: Build | None = None
    then: Callable[..., Tensor] | None = None
    products: int = 0  # multiply-adds of the forward pass, where it is a matrix product
    shown: bool = False  # in float32, forward: among the workloads that stand for their family


def _upsampled(x: Tensor) -> Tensor:
    return torch_ways.interpolate(x, LARGE)


def _wide(x: Tensor) -> Tensor:
    """As autocast does before a loss: a sum over the pixels overflows float16."""
    return x.to(arithmetic_dtype(x.dtype))


def _scores(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight[:, :, None, None], bias)


def _transposed(x: Tensor, weight: Tensor, skip: Tensor) -> Tensor:
    y = F.conv_transpose2d(x, weight, stride=8, groups=C)
    return y[:, :, 4:-4, 4:-4] + skip


def _beside(x: Tensor, weight: Tensor, skip: Tensor, bias: Tensor) -> Tensor:
    return torch.cat([skip, F.conv_transpose2d(x, weight, bias, stride=2)], dim=1)


OPERATORS = {
    "upsample": Operator(
        lambda x: fk.upsample(x, LARGE),
        _upsampled,
        {"x": X},
        IMAGE,
        graph=lambda g: g.interpolate(g.input("x"), LARGE),
        shown=True,
    ),
    "upsample_add": Operator(
        lambda x, skip: fk.upsample_add(x, skip, LARGE),
        lambda x, skip: _upsampled(x) + skip,
        {"x": X, "skip": IMAGE},
        IMAGE,
        graph=lambda g: g.add(g.interpolate(g.input("x"), LARGE), g.input("skip")),
    ),
    "upsample_softmax": Operator(
        lambda x: fk.upsample_softmax(x, LARGE),
        lambda x: _upsampled(x).softmax(1),
        {"x": X},
        IMAGE,
        graph=lambda g: g.softmax(g.interpolate(g.input("x"), LARGE)),
    ),
    "upsample_log_softmax": Operator(
        lambda x: fk.upsample_log_softmax(x, LARGE),
        lambda x: _upsampled(x).log_softmax(1),
        {"x": X},
        IMAGE,
        graph=lambda g: g.log_softmax(g.interpolate(g.input("x"), LARGE)),
        shown=True,
    ),
    "upsample_argmax": Operator(
        lambda x: fk.upsample_argmax(x, LARGE),
        lambda x: _upsampled(x).argmax(1),
        {"x": X},
        (2, *LARGE),  # int64: as many bytes as two images of float32
        differentiable=False,
        logits=_upsampled,
        graph=lambda g: g.argmax(g.interpolate(g.input("x"), LARGE)),
    ),
    "upsample_cross_entropy": Operator(
        fk.upsample_cross_entropy,
        lambda x, target: F.cross_entropy(_wide(_upsampled(x)), target),
        {"x": X},
        labels=(1, *LARGE),
    ),
    "upsample_confusion_matrix": Operator(
        lambda x, target: fk.upsample_confusion_matrix(x, target, ignore_index=255),
        lambda x, target: torch_ways.confusion_matrix(_upsampled(x).argmax(1), target, C),
        {"x": X},
        labels=(1, *LARGE),
        differentiable=False,
        logits=lambda x, target: _upsampled(x),
        graph=lambda g: g.argmax(g.interpolate(g.input("x"), LARGE)),
        then=lambda labels, target, **_: torch_ways.confusion_matrix(labels, target, C),
    ),
    "upsample_sigmoid": Operator(
        lambda x: fk.upsample_sigmoid(x, LARGE),
        lambda x: _upsampled(x).sigmoid(),
        {"x": ONE},
        (1, 1, *LARGE),
        graph=lambda g: g.sigmoid(g.interpolate(g.input("x"), LARGE)),
        shown=True,
    ),
    "upsample_binary_cross_entropy": Operator(
        fk.upsample_binary_cross_entropy,
        lambda x, target: F.binary_cross_entropy_with_logits(_wide(_upsampled(x)), _wide(target)),
        {"x": ONE},
        labels=(1, 1, *LARGE),
        mask=True,
    ),
    "score_softmax": Operator(
        fk.score_softmax,
        lambda x, weight, bias: _scores(x, weight, bias).softmax(1),
        FEATURES,
        X,
        graph=lambda g: g.softmax(g.score(g.input("x"), g.tensors["weight"], g.tensors["bias"])),
        products=C * K * SMALL[0] * SMALL[1],
    ),
    "score_log_softmax": Operator(
        fk.score_log_softmax,
        lambda x, weight, bias: _scores(x, weight, bias).log_softmax(1),
        FEATURES,
        X,
        graph=lambda g: g.log_softmax(g.score(g.input("x"), g.tensors["weight"], g.tensors["bias"])),
        products=C * K * SMALL[0] * SMALL[1],
        shown=True,
    ),
    "score_argmax": Operator(
        fk.score_argmax,
        lambda x, weight, bias: _scores(x, weight, bias).argmax(1),
        FEATURES,
        (2, *SMALL),
        differentiable=False,
        logits=_scores,
        graph=lambda g: g.argmax(g.score(g.input("x"), g.tensors["weight"], g.tensors["bias"])),
        products=C * K * SMALL[0] * SMALL[1],
        shown=True,
    ),
    "score_cross_entropy": Operator(
        fk.score_cross_entropy,
        lambda x, weight, bias, target: F.cross_entropy(_wide(_scores(x, weight, bias)), target),
        FEATURES,
        labels=(1, *SMALL),
        products=C * K * SMALL[0] * SMALL[1],
    ),
    "conv_transpose_add": Operator(
        lambda x, weight, skip: fk.conv_transpose_add(
            x, weight, skip, stride=8, groups=C, offset=(4, 4), output_size=LARGE
        ),
        _transposed,
        {"x": X, "weight": (C, 1, 16, 16), "skip": IMAGE},
        IMAGE,
        products=4 * C * LARGE[0] * LARGE[1],
    ),
    "conv_transpose_concat": Operator(
        lambda x, weight, skip, bias: fk.conv_transpose_concat(x, weight, skip, bias, stride=2),
        _beside,
        {"x": (1, 64, *SMALL), "weight": (64, 32, 2, 2), "skip": (1, 32, 128, 128), "bias": (32,)},
        (1, 64, 128, 128),
        products=64 * 32 * 128 * 128,
    ),
}


def _elements(*shapes: tuple[int, ...]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes)


def _workload(name: str, operator: Operator, dtype: torch.dtype, training: bool) -> Workload:
    def make(kind: str) -> Tensors:
        generator = torch.Generator().manual_seed(1)

        def random(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        tensors = {}
        for key, shape in operator.inputs.items():
            scale = torch.Size(shape[1:]).numel() ** -0.5 if key == "weight" else 1.0
            tensors[key] = (random(shape) * scale).requires_grad_(training)
        if operator.labels is not None:
            target = torch.randint(2 if operator.mask else C, operator.labels, generator=generator)
            tensors["target"] = target.to(dtype) if operator.mask else target
        if training and operator.output:
            tensors["arriving"] = random(operator.output)
        return tensors

    def given(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda arriving=None, **tensors: function(**tensors)

    direction, kind = "training" if training else "forward", str(dtype)[6:]
    single, size = dtype == torch.float32, torch.finfo(dtype).bits // 8
    inputs, output = _elements(*operator.inputs.values()), _elements(operator.output) if operator.output else 0
    labels = 0 if operator.labels is None else _elements(operator.labels) * (size if operator.mask else 8)
    written = output * (4 if operator.logits else size)  # labels stand as float32 in `output`
    methods = (Method("fused", "fused", given(operator.fused)), *as_written(given(operator.plain)))
    if single and operator.graph is not None and not training:
        methods += engines(operator.graph, operator.then)
    return Workload(
        f"grid-{name}-{direction}-{kind}",
        name,
        f"{direction}, {kind}",
        make,
        methods,
        inputs=("random",),
        logits=operator.logits,
        # reads the inputs and the target, writes the result; then reads the arriving gradient, writes the others
        traffic=labels + (2 if training else 1) * (size * inputs + written),
        operations=(3 if training else 1) * operator.products * max(1, size // 4),
        full=4 * _elements(IMAGE),
        extended=not (operator.shown and single and not training),
    )


def _workloads() -> Iterator[Workload]:
    for name, operator in OPERATORS.items():
        for training in (False, True)[: 1 + operator.differentiable]:
            for dtype in DTYPES:
                yield _workload(name, operator, dtype, training)


GRID = tuple(_workloads())
