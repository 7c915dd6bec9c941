"""Calls of every operator, drawn by Hypothesis: geometry, shapes, dtypes, layouts, labels, values and options.

`calls(op)` draws the arguments of the schema `torch.ops.fcn_kernels.op`. The numbers of a call come from a seed, so
that a case is small to draw and to print.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from cases import LAYOUTS
from drawn_samplings import limits, samplings
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

from fcn_kernels import reference

OPS = torch.ops.fcn_kernels
LABELS = (torch.uint8, torch.int16, torch.int32, torch.int64)


class Call(NamedTuple):
    """One call, and how far a rounding of its inputs reaches into each result."""

    op: str
    args: tuple
    gains: tuple[float, ...]
    scale: Tensor  # the tensor whose magnitude is that of the roundings

    def __repr__(self) -> str:
        def show(a: Any) -> str:
            if not isinstance(a, Tensor):
                return repr(a)
            return f"<{str(a.dtype).removeprefix('torch.')} {list(a.shape)} strides {list(a.stride())}>"

        return f"{self.op}({', '.join(map(show, self.args))})"


def results(op: str, ops: Any, args: Sequence[Any]) -> tuple[Tensor, ...]:
    result = getattr(ops, op)(*args)
    return result if isinstance(result, tuple) else (result,)


# --- tensors -------------------------------------------------------------------------------------------------------


def _with_one(value: float) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        x = x.clone()
        if x.numel():
            x.view(-1)[int(torch.randint(0, x.numel(), ()))] = value
        return x

    return change


FINITE: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x,
    "hot": lambda x: 10 * x,
    "very-hot": lambda x: 80 * x,
    "ties": lambda x: x.round(),
    "jumps": lambda x: x.sign() * 1e4,
    "offset": lambda x: x + 300,
    "tiny": lambda x: 1e-30 * x,
}
VALUES = FINITE | {"nan": _with_one(torch.nan), "inf": _with_one(torch.inf), "minus-inf": _with_one(-torch.inf)}


class Draw:
    """Draws tensors with the numbers of one seed."""

    def __init__(self, draw: st.DrawFn, *, values: Sequence[str] = tuple(FINITE)) -> None:
        self.draw = draw
        torch.manual_seed(draw(st.integers(0, 2**31)))
        self.dtype = draw(st.sampled_from(limits().dtypes))
        self.arithmetic = reference.arithmetic_dtype(self.dtype)
        self.values = values

    def one_of(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def batch(self) -> int:
        return self.one_of(1, 1, 2, 2, 3, 0)

    def layout(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.numel() == 0:
            return x
        return LAYOUTS[self.one_of("contiguous", "channels_last", *LAYOUTS)](x)

    def image(self, *shape: int, values: Sequence[str] | None = None) -> Tensor:
        kind = self.one_of("normal", *(values or self.values))
        return self.layout(VALUES[kind](torch.randn(shape)).to(self.dtype))

    def like(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A gradient that arrives: ordinary numbers, in any layout."""
        return self.layout(torch.randn(shape).to(dtype or self.dtype))

    def labels(self, classes: int, *shape: int) -> tuple[Tensor, int]:
        """Labels and the ignored one, in any layout."""
        dtype = self.one_of(*LABELS) if classes <= 200 else self.one_of(*LABELS[1:])
        ignored = self.one_of(-100, -1, 255, 0) if dtype != torch.uint8 else self.one_of(255, 0)
        if 0 < ignored < classes:
            ignored = classes - 1
        target = torch.randint(0, classes, shape)
        target[torch.rand(shape) < self.one_of(0.0, 0.1, 0.1, 1.0)] = ignored
        kind = self.one_of("contiguous", "contiguous", "sliced", "transposed")
        target = LAYOUTS[kind](target.to(dtype)[:, None])[:, 0]
        return target, ignored

    def class_weight(self, classes: int) -> Tensor | None:
        weight = torch.rand(classes).to(self.arithmetic)
        return self.one_of(None, weight, weight.clone().index_fill_(0, torch.tensor([0]), 0.0))


def channels(d: Draw, pixels: int, batch: int) -> int:
    wanted = d.one_of(1, 2, 3, 5, 8, 9, 16, 17, 19, 21, 33, 64, 150)
    return max(1, min(wanted, limits().elements // max(1, pixels * batch)))


class Place(NamedTuple):
    """Where an upsampling reads and writes."""

    n: int
    c: int
    size: tuple[int, int]
    full: tuple[int, int]
    code: list[int]

    @property
    def small(self) -> tuple[int, int, int, int]:
        return (self.n, self.c, *self.size)

    @property
    def large(self) -> tuple[int, int, int, int]:
        return (self.n, self.c, *self.full)

    @property
    def reached(self) -> float:
        """All outputs may read one input."""
        return float(self.full[0] * self.full[1])


def place(d: Draw) -> Place:
    s = d.draw(samplings())
    n = d.batch()
    return Place(
        n, channels(d, max(s.output_size[0] * s.output_size[1], 1), n), s.input_size, s.output_size, s.encode()
    )


# --- operators -----------------------------------------------------------------------------------------------------

_STRATEGIES: dict[str, Callable[[st.DrawFn], Call]] = {}


def _operator(f: Callable[[st.DrawFn], Call]) -> Callable[[st.DrawFn], Call]:
    _STRATEGIES[f.__name__] = f
    return f


def operators() -> list[str]:
    return sorted(_STRATEGIES)


def calls(op: str) -> st.SearchStrategy[Call]:
    """Calls of one operator."""
    return st.composite(_STRATEGIES[op])()


def examples(op: str, count: int, number: int = 0) -> list[Call]:
    """The same `count` calls of an operator every time, or others for another number."""
    found: list[Call] = []

    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=HealthCheck
    )
    @seed(number)
    @given(calls(op))
    def collect(call: Call) -> None:
        found.append(call)

    collect()
    return found


@_operator
def upsample(draw: st.DrawFn) -> Call:
    d = Draw(draw, values=tuple(VALUES))
    p = place(d)
    x = d.image(*p.small)
    return Call("upsample", (x, p.code), (1.0,), x)


@_operator
def upsample_backward(draw: st.DrawFn) -> Call:
    d = Draw(draw, values=tuple(VALUES))
    p = place(d)
    grad = d.image(*p.large)
    return Call("upsample_backward", (grad, p.code), (p.reached,), grad)


@_operator
def upsample_add(draw: st.DrawFn) -> Call:
    d = Draw(draw, values=tuple(VALUES))
    p = place(d)
    oy, ox = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    below, right = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    x, skip = d.image(*p.small), d.like(p.n, p.c, p.full[0] + oy + below, p.full[1] + ox + right)
    return Call("upsample_add", (x, skip, p.code, [oy, ox], d.one_of(1.0, 0.5, -2.0, 0.0)), (2.0,), x)


@_operator
def upsample_softmax(draw: st.DrawFn) -> Call:
    d = Draw(draw, values=tuple(VALUES))
    p = place(d)
    x, log = d.image(*p.small), draw(st.booleans())
    return Call("upsample_softmax", (x, p.code, log), (2.0,), x)


@_operator
def upsample_softmax_backward(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    p = place(d)
    log, z = draw(st.booleans()), torch.randn(p.large)
    output = d.layout((z.log_softmax(1) if log else z.softmax(1)).to(d.dtype))
    grad = d.like(*p.large)
    gain = p.reached * (p.c if log else 1)
    return Call("upsample_softmax_backward", (grad, output, p.code, log), (gain,), grad)


@_operator
def upsample_argmax(draw: st.DrawFn) -> Call:
    d = Draw(draw, values=tuple(VALUES))
    p = place(d)
    x = d.image(*p.small)
    return Call("upsample_argmax", (x, p.code, d.one_of(*LABELS), draw(st.booleans())), (0.0, 2.0), x)


@_operator
def upsample_confusion_matrix(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    p = place(d)
    x = d.image(*p.small)
    target, ignored = d.labels(p.c, p.n, *p.full)
    if not (target == ignored).any():
        ignored = d.one_of(None, ignored)
    return Call("upsample_confusion_matrix", (x, target, p.code, ignored), (0.0,), x)


@_operator
def upsample_cross_entropy(draw: st.DrawFn) -> Call:
    d = Draw(draw, values=tuple(VALUES))
    p = place(d)
    x = d.image(*p.small)
    target, ignored = d.labels(p.c, p.n, *p.full)
    reduction, smoothing = draw(st.integers(0, 3)), d.one_of(0.0, limits().smoothing, 1.0)
    args = (x, target, d.class_weight(p.c), p.code, ignored, reduction, smoothing, draw(st.booleans()))
    loss = 4.0 * (p.n * p.reached if reduction == reference.SUM else 1.0)
    return Call("upsample_cross_entropy", args, (loss, p.reached, p.reached * p.c, 2.0), x)


@_operator
def upsample_cross_entropy_backward(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    p = place(d)
    x = d.image(*p.small)
    target, ignored = d.labels(p.c, p.n, *p.full)
    lse = reference._sampled(x, p.code).logsumexp(1)
    grad = d.layout(torch.rand(p.n, 1, *p.full).to(d.arithmetic))[:, 0]
    args = (grad, x, target, d.class_weight(p.c), lse, p.code, ignored, d.one_of(0.0, limits().smoothing))
    return Call("upsample_cross_entropy_backward", args, (p.reached * p.c,), x)


@_operator
def upsample_sigmoid(draw: st.DrawFn) -> Call:
    d = Draw(draw, values=tuple(VALUES))
    p = place(d)
    x = d.image(*p.small)
    return Call("upsample_sigmoid", (x, p.code), (1.0,), x)


@_operator
def upsample_sigmoid_backward(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    p = place(d)
    output, grad = d.layout(torch.randn(p.large).sigmoid().to(d.dtype)), d.like(*p.large)
    return Call("upsample_sigmoid_backward", (grad, output, p.code), (p.reached,), grad)


def _binary_target(d: Draw, p: Place) -> tuple[Tensor, int | None]:
    if d.one_of(True, True, False):
        kind = d.one_of(*LABELS)
        ignored = d.one_of(255, None) if kind == torch.uint8 else d.one_of(255, -1, None)
        target = torch.randint(0, 2, p.large)
        if ignored is not None:
            target[torch.rand(p.large) < d.one_of(0.1, 1.0)] = ignored
        return d.layout(target.to(kind)), ignored
    return d.layout(torch.rand(p.large).to(d.one_of(torch.float32, torch.float64, torch.float16))), None


@_operator
def upsample_binary_cross_entropy(draw: st.DrawFn) -> Call:
    d = Draw(draw, values=tuple(VALUES))
    p = place(d)
    x = d.image(*p.small)
    target, ignored = _binary_target(d, p)
    reduction = draw(st.integers(0, 3))
    args = (x, target, d.class_weight(p.c), p.code, ignored, reduction, draw(st.booleans()))
    loss = 2.0 * (p.n * p.c * p.reached if reduction == reference.SUM else 1.0)
    return Call("upsample_binary_cross_entropy", args, (loss, 0.0, p.reached), x)


@_operator
def upsample_binary_cross_entropy_backward(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    p = place(d)
    x = d.image(*p.small)
    target, ignored = _binary_target(d, p)
    grad = d.like(*p.large, dtype=d.arithmetic)
    args = (grad, x, target, d.class_weight(p.c), p.code, ignored)
    return Call("upsample_binary_cross_entropy_backward", args, (p.reached,), x)


class Convolution(NamedTuple):
    x: Tensor
    weight: Tensor
    stride: list[int]
    groups: int
    offset: list[int]
    crop: list[int]
    outputs: int


def _convolution(d: Draw) -> Convolution:
    """A transposed convolution; in half of the cases without overlap (kernel = stride), or depthwise."""
    draw = d.draw
    groups = d.one_of(1, 1, 1, 2, 3, 5)
    inputs, outputs = groups * d.one_of(1, 2, 3, 8, 17), groups * d.one_of(1, 1, 2, 5, 16)
    if d.one_of(False, False, True):  # depthwise
        inputs = outputs = groups = d.one_of(1, 3, 7, 19, 40)
    stride = [d.one_of(1, 2, 2, 3, 4, 8), d.one_of(1, 2, 2, 3, 4, 8)]
    if d.one_of(True, False):
        kernel = list(stride)
    elif d.one_of(True, False):
        kernel = [2 * s - s % 2 for s in stride]
    else:
        kernel = [draw(st.integers(1, min(9, limits().line))), draw(st.integers(1, min(20, limits().line)))]
    size = [draw(st.integers(1, min(9, limits().line))), draw(st.integers(1, limits().line))]
    full = [(i - 1) * s + k for i, s, k in zip(size, stride, kernel, strict=True)]
    offset = [draw(st.integers(0, min(f - 1, 9))) for f in full]
    crop = [draw(st.integers(1, f - o)) for f, o in zip(full, offset, strict=True)]
    if d.one_of(True, False):
        offset, crop = [0, 0], full
    n = d.batch() if crop[0] * crop[1] * outputs * inputs < 100_000 else 1
    x = d.image(n, inputs, *size, values=("normal", "ties", "offset"))
    weight = (torch.randn(inputs, outputs // groups, *kernel) * inputs**-0.5).to(d.dtype)
    if d.one_of(True, False):
        weight = d.layout(weight)
    return Convolution(x, weight, stride, groups, offset, crop, outputs)


def _terms(c: Convolution) -> float:
    """How many products a value sums up, at most."""
    return float(c.weight.numel())


@_operator
def conv_transpose_add(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    c = _convolution(d)
    at = [draw(st.integers(0, 3)), draw(st.integers(0, 3))]
    skip = d.like(c.x.shape[0], c.outputs, c.crop[0] + at[0], c.crop[1] + at[1] + draw(st.integers(0, 2)))
    if d.one_of(True, False):
        skip, at = None, [0, 0]
    args = (c.x, c.weight, skip, c.stride, c.groups, c.offset, c.crop, at, d.one_of(1.0, 0.5))
    return Call("conv_transpose_add", args, (2 + _terms(c) ** 0.5,), c.x)


@_operator
def conv_transpose_add_backward(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    c = _convolution(d)
    grad = d.like(c.x.shape[0], c.outputs, *c.crop)
    need_x, need_weight = d.one_of((True, True), (True, False), (False, True))
    gain = 8 * max(_terms(c), float(grad.numel())) ** 0.5
    args = (grad, c.x, c.weight, c.stride, c.groups, c.offset, need_x, need_weight)
    return Call("conv_transpose_add_backward", args, (gain, gain), c.x)


@_operator
def conv_transpose_concat(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    c = _convolution(d)
    at = [draw(st.integers(0, 3)), draw(st.integers(0, 3))]
    skip = d.like(c.x.shape[0], d.one_of(1, 3, 16), c.crop[0] + at[0], c.crop[1] + at[1] + draw(st.integers(0, 2)))
    bias = d.one_of(None, torch.randn(c.outputs).to(d.dtype))
    args = (c.x, c.weight, skip, bias, c.stride, c.groups, c.offset, c.crop, at)
    return Call("conv_transpose_concat", args, (2 + _terms(c) ** 0.5,), c.x)


@_operator
def channel_sum(draw: st.DrawFn) -> Call:
    d = Draw(draw, values=tuple(VALUES))
    n, size = d.batch(), [draw(st.integers(1, 20)), draw(st.integers(1, 70))]
    x = d.image(n, channels(d, size[0] * size[1], n), *size)
    return Call("channel_sum", (x,), (float(x.numel()) ** 0.5,), x)


class Scores(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    size: tuple[int, int, int]


def _score(d: Draw, values: Sequence[str] = ("normal", "hot", "ties")) -> Scores:
    n, h, w = d.batch(), d.draw(st.integers(1, 9)), d.draw(st.integers(1, 50))
    k = d.one_of(1, 2, 5, 8, 17, 33, 64, 270, 300)
    classes = d.one_of(1, 2, 3, 7, 8, 9, 19, 21, 41, 150)
    x = d.image(n, k, h, w, values=values)
    weight = (torch.randn(classes, k) * k**-0.5).to(d.dtype)
    if d.one_of(True, False, False):
        weight = weight.t().contiguous().t()
    return Scores(x, weight, d.one_of(None, torch.randn(classes).to(d.dtype)), (n, h, w))


@_operator
def score_softmax(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    s = _score(d)
    return Call("score_softmax", (s.x, s.weight, s.bias, draw(st.booleans())), (2.0 * s.x.shape[1] ** 0.5,), s.x)


@_operator
def score_softmax_backward(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    s = _score(d)
    log, (n, h, w), classes = draw(st.booleans()), s.size, s.weight.shape[0]
    z = torch.randn(n, classes, h, w)
    output = d.layout((z.log_softmax(1) if log else z.softmax(1)).to(d.dtype))
    need_x, need_weight = d.one_of((True, True), (True, False), (False, True), (False, False))
    args = (d.like(n, classes, h, w), s.x, s.weight, output, log, need_x, need_weight)
    gain = 4.0 * (n * h * w + classes) * (classes if log else 1)
    return Call("score_softmax_backward", args, (gain, gain, gain), s.x)


@_operator
def score_argmax(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    s = _score(d)
    return Call("score_argmax", (s.x, s.weight, s.bias, d.one_of(*LABELS)), (0.0,), s.x)


@_operator
def score_cross_entropy(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    s = _score(d)
    classes, pixels = s.weight.shape[0], float(s.size[0] * s.size[1] * s.size[2])
    target, ignored = d.labels(classes, *s.size)
    reduction = draw(st.integers(0, 3))
    needs = d.one_of((True, True), (True, False), (False, True), (False, False))
    args = (
        s.x,
        s.weight,
        s.bias,
        target,
        d.class_weight(classes),
        ignored,
        reduction,
        d.one_of(0.0, limits().smoothing),
        *needs,
    )
    depth = 4.0 * s.x.shape[1] ** 0.5
    loss, gradient = depth * (pixels if reduction == reference.SUM else 1.0), depth * pixels * classes
    return Call("score_cross_entropy", args, (loss, pixels, depth, gradient, gradient, gradient), s.x)


@_operator
def score_cross_entropy_backward(draw: st.DrawFn) -> Call:
    d = Draw(draw)
    s = _score(d)
    classes, pixels = s.weight.shape[0], float(s.size[0] * s.size[1] * s.size[2])
    target, ignored = d.labels(classes, *s.size)
    lse = reference._scores(s.x, s.weight, s.bias).logsumexp(1)
    grad = d.layout(torch.rand(s.size[0], 1, *s.size[1:]).to(d.arithmetic))[:, 0]
    if d.one_of(False, True):  # what autograd hands on for a reduced loss
        grad = torch.rand((), dtype=d.arithmetic).expand(s.size)
    needs = d.one_of((True, True), (True, False), (False, True))
    args = (
        grad,
        s.x,
        s.weight,
        s.bias,
        target,
        d.class_weight(classes),
        lse,
        ignored,
        d.one_of(0.0, limits().smoothing),
        *needs,
    )
    gain = 4.0 * s.x.shape[1] ** 0.5 * pixels * classes
    return Call("score_cross_entropy_backward", args, (gain,) * 3, s.x)


def moved(call: Call, device: str) -> Call:
    """The call on another device, its tensors stored as they were: strides, fillers between values, and all."""

    def move(a: Any) -> Any:
        if not isinstance(a, Tensor):
            return a
        storage = torch.empty(0, dtype=a.dtype).set_(a.untyped_storage()).to(device)
        return storage.as_strided(a.size(), a.stride(), a.storage_offset())

    return call._replace(args=tuple(map(move, call.args)), scale=move(call.scale))
