"""What a workload is, and the parts that their definitions share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fcn_kernels.benchmarking import formulations, photographs

IGNORE = formulations.IGNORE
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Method:
    name: str
    role: str  # fused, rival, tuned, engine, yardstick
    function: Callable[..., Tensor]  # called with the workload's tensors by name
    compiled: bool = False
    mode: str | None = None  # of torch.compile
    prepared: bool = False  # the function only prepares, untimed, and returns the call
    channels_last: bool = False  # the floating 4-d inputs are laid out so beforehand, untimed


@dataclass(frozen=True)
class Goal:
    """For inputs of one kind: what the fused method must reach."""

    # "speed-up": rivals' best / fused, at least; "time": fused / `against`, at most; "memory": bytes, at most
    measure: str
    value: float
    inputs: str
    against: str = ""  # a kind of inputs of the fused method, or the name of a yardstick


@dataclass(frozen=True)
class Workload:
    name: str
    operator: str
    title: str  # unique beside the operator
    make: Callable[[str], Tensors]  # kind of inputs -> tensors; those that require grad are differentiated in
    methods: tuple[Method, ...]
    inputs: tuple[str, ...] = ("photograph",)
    goals: tuple[Goal, ...] = ()
    logits: Callable[..., Tensor] | None = None  # for labels: the full-resolution logits that they are the argmax of
    traffic: int = 0  # bytes that the fused operator must move
    operations: int = 0  # lanes of vector instructions that it must issue, a multiply-add being one; 0: depends on data
    full: int = 0  # bytes of the full-resolution float32 logits, which rivals write and the fused operator does not
    quick: bool = False
    extended: bool = False  # one of a family: run when it is asked for by name, or with --all
    timed: bool = True  # False: only its memory is measured

    def method(self, name: str) -> Method:
        return next(method for method in self.methods if method.name == name)


def call_of(method: Method, tensors: Tensors) -> Callable[[], Tensors]:
    """A call that does the job once, and the backward pass where an input wants a gradient, returning all results."""
    if method.prepared:
        run = method.function(**tensors)
        return lambda: {"result": run()}
    if method.channels_last:
        tensors = {
            name: t.detach().contiguous(memory_format=torch.channels_last).requires_grad_(t.requires_grad)
            if t.dim() == 4 and t.is_floating_point()
            else t
            for name, t in tensors.items()
        }
    function = method.function
    if method.compiled:
        function = torch.compile(function, dynamic=False, mode=method.mode)
    leaves = {name: t for name, t in tensors.items() if t.requires_grad}
    if not leaves:

        def forward() -> Tensors:
            with torch.no_grad():
                return {"result": function(**tensors)}

        return forward

    def forward_backward() -> Tensors:
        for leaf in leaves.values():
            leaf.grad = None
        loss = function(**tensors)
        loss.backward(tensors.get("arriving"))  # the gradient of a result that is not a scalar
        return {"loss": loss.detach()} | {f"gradient of {name}": leaf.grad for name, leaf in leaves.items()}

    return forward_backward


def random_inputs(kind: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) * {"random": 1, "hot": 10}[kind]


def small_scores(kind: str, batch: int, classes: int, small: tuple[int, int], large: tuple[int, int]) -> Tensor:
    if kind == "photograph":
        return photographs.head_scores(batch, classes, large, large[0] // small[0])
    return random_inputs(kind, batch, classes, *small)


def labels_for(kind: str, logits: Callable[[], Tensor], batch: int, classes: int, size: tuple[int, int]) -> Tensor:
    if kind == "photograph":
        return photographs.labels(logits(), IGNORE)
    return torch.randint(classes, (batch, *size), generator=torch.Generator().manual_seed(2))


def size_text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def named(operator: str, classes: int, small: tuple[int, int], large: tuple[int, int]) -> tuple[str, str]:
    """A name for the command line and a title for the table."""
    geometry = f"{size_text(small)}-{size_text(large)}"
    return f"{operator}-c{classes}-{geometry}", f"C={classes} {geometry.replace('-', ' -> ')}"


def progressions(classes: int, small: tuple[int, int], large: tuple[int, int], fixed: int, per_pixel: int) -> int:
    """Operations on geometric progressions: `fixed` + `per_pixel` * stride for each output row, segment and class."""
    segments = small[1] + 1
    return int(classes * large[0] * segments * (fixed + per_pixel * large[1] / small[1]))


def as_written(plain: Callable[..., Tensor]) -> tuple[Method, ...]:
    return Method("eager", "rival", plain), Method("torch.compile", "rival", plain, compiled=True)


def autotuned(job: Workload) -> Workload:
    """With torch.compile in its mode max-autotune, too."""
    mode = "max-autotune"
    return replace(
        job,
        methods=job.methods + tuple(replace(m, name=f"{m.name}, {mode}", mode=mode) for m in job.methods if m.compiled),
    )
