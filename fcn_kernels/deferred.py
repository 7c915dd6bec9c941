"""Upsampled images that are not written until something needs their pixels.

Inside `deferring()`, bilinear ``F.interpolate`` returns a `Deferred`: a tensor of the full shape that remembers the
small one. Consumers that have a fused operator take the small one (cross-entropy, softmax, log_softmax, argmax,
addition, 1x1 convolution); any other function makes PyTorch's own full tensor first, once, and gets the numbers it
would have got.
"""

from __future__ import annotations

import operator
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from ._checks import FLOATING
from .ops.score_argmax import score_argmax
from .ops.score_cross_entropy import score_cross_entropy
from .ops.score_softmax import score_log_softmax, score_softmax
from .ops.upsample_add import upsample_add
from .ops.upsample_argmax import upsample_argmax
from .ops.upsample_binary_cross_entropy import upsample_binary_cross_entropy
from .ops.upsample_cross_entropy import upsample_cross_entropy
from .ops.upsample_sigmoid import upsample_sigmoid
from .ops.upsample_softmax import upsample_log_softmax, upsample_softmax
from .sampling import Sampling

Log = dict[tuple[str, str], tuple[int, str]]
"""(place in the code, consumer) to (how many calls were fused, the sizes of the last one)."""

__all__ = ["Deferred", "Log", "Site", "cross_entropy_of", "defer_score", "deferring"]


class Site:
    """A place in somebody's code that upsamples, and the log of what read its results."""

    def __init__(self, name: str, log: Log) -> None:
        self.name, self.log = name, log

    def note(self, consumer: str, sizes: str) -> None:
        count, _ = self.log.get((self.name, consumer), (0, ""))
        self.log[self.name, consumer] = count + 1, sizes


class _Upsampled:
    """``F.interpolate(x, mode="bilinear", ...)``."""

    kind = "upsample"

    def __init__(self, x: Tensor, sampling: Sampling, arguments: dict[str, Any], site: Site) -> None:
        self.x = x
        self.sampling = sampling
        self.arguments = arguments
        self.site = site
        self.size = (x.shape[0], x.shape[1], *sampling.output_size)

    def on(self, x: Tensor) -> _Upsampled:
        return _Upsampled(x, self.sampling, self.arguments, self.site)

    def image(self, index: int) -> _Upsampled:
        return self.on(self.x[index : index + 1])

    def detach(self) -> _Upsampled:
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


class _Scored:
    """``F.conv2d(x, weight, bias)`` with a 1x1 weight."""

    kind = "score"

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None, site: Site) -> None:
        self.x, self.weight, self.bias = x, weight, bias
        self.site = site
        self.size = (x.shape[0], weight.shape[0], *x.shape[2:])

    def image(self, index: int) -> _Scored:
        return _Scored(self.x[index : index + 1], self.weight, self.bias, self.site)

    def detach(self) -> _Scored:
        return _Scored(*(None if t is None else t.detach() for t in (self.x, self.weight, self.bias)), self.site)

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


class _Maximum:
    """The largest score of each pixel, which comes with its class in ``topk(1)`` and ``max`` and is seldom read."""

    kind = "maximum"

    def __init__(self, scores: _Upsampled | _Scored, keepdim: bool) -> None:
        self.scores, self.keepdim = scores, keepdim
        self.x, self.site = scores.x, scores.site
        n, _, height, width = scores.size
        self.size = (n, 1, height, width) if keepdim else (n, height, width)

    def detach(self) -> _Maximum:
        return _Maximum(self.scores.detach(), self.keepdim)

    def needs_grad(self) -> bool:
        return self.scores.needs_grad()

    def sources(self) -> tuple[Tensor, ...]:
        return self.scores.sources()

    def value(self) -> Tensor:
        return self.scores.value().max(1, self.keepdim).values


def _version(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version


class _Attach(torch.autograd.Function):
    """Gives a Deferred its place in the graph, for code below Python that would otherwise see a constant."""

    @staticmethod
    def forward(ctx: Any, recipe: _Upsampled | _Scored | _Maximum, *sources: Tensor) -> Tensor:
        ctx.recipe = recipe
        return Deferred._make(recipe)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sources = ctx.recipe.sources()
        wanted = [t for t in sources if t.requires_grad]
        with torch.enable_grad(), torch._C.DisableTorchFunction():
            found = iter(torch.autograd.grad(ctx.recipe.value(), wanted, grad, create_graph=torch.is_grad_enabled()))
        return None, *(next(found) if t.requires_grad else None for t in sources)


class Deferred(torch.Tensor):
    """The result of a computation that has not been done; behaves as that tensor in every respect."""

    _recipe: _Upsampled | _Scored | _Maximum
    _value: Tensor | None
    _class_dim: int

    @classmethod
    def _make(cls, recipe: _Upsampled | _Scored | _Maximum, single: bool = False) -> Deferred:
        x = recipe.x
        size = recipe.size[1:] if single else recipe.size
        self = torch.Tensor._make_wrapper_subclass(cls, size, dtype=x.dtype, device=x.device, layout=x.layout)
        self._recipe = recipe
        self._value = None
        self._class_dim = 0 if single else 1
        self._versions = [_version(t) for t in recipe.sources()]
        return self

    @classmethod
    def of(cls, recipe: _Upsampled | _Scored | _Maximum) -> Deferred:
        """A Deferred that gradients flow through; without gradients where they are off."""
        if not recipe.needs_grad():
            return cls._make(recipe)
        if not torch.is_grad_enabled():
            return cls._make(recipe.detach())
        return _Attach.apply(recipe, *recipe.sources())

    def _pending(self) -> _Upsampled | _Scored | None:
        """The recipe, unless the value was made already: what changed it in place must be seen by all."""
        if self._value is not None or isinstance(self._recipe, _Maximum):
            return None
        self._check_unchanged()
        return self._recipe

    def _check_unchanged(self) -> None:
        if self._versions != [_version(t) for t in self._recipe.sources()]:
            raise RuntimeError(
                f"the input of the upsampling at {self._recipe.site.name} was changed in place before its result was "
                "read; clone it first, or undo fcn_kernels.fuse with fcn_kernels.unfuse"
            )

    def _materialise(self) -> Tensor:
        """The full tensor, made once, in the mode in which the computation stood in the program."""
        if self._value is None:
            self._check_unchanged()
            x = self._recipe.x
            inference = x.is_inference()
            with (
                torch._C.DisableTorchFunction(),
                torch.inference_mode(inference),
                torch.set_grad_enabled(not inference),
            ):
                value = self._recipe.value()
            self._value = value if self._class_dim else value[0]
        return self._value

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        handler = _HANDLERS.get(func)
        if handler is not None:
            result = handler(*args, **kwargs)
            if result is not NotImplemented:
                return result
        args, kwargs = tree_map_only(Deferred, Deferred._materialise, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(
        cls, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Code below Python reads the value; its gradient is `_Attach`'s."""
        args, kwargs = tree_map_only(Deferred, lambda t: t._materialise().detach(), (args, kwargs or {}))
        return func(*args, **kwargs)


_METADATA = {
    getattr(torch.Tensor, name).__get__
    for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "is_meta", "layout", "is_sparse")
} | {
    getattr(torch.Tensor, name)
    for name in ("size", "dim", "numel", "nelement", "is_floating_point", "is_complex", "__len__", "element_size")
}
_HANDLERS: dict[Callable, Callable] = {}


def _handles(*functions: Callable) -> Callable[[Callable], Callable]:
    def register(handler: Callable) -> Callable:
        _HANDLERS.update(dict.fromkeys(functions, handler))
        return handler

    return register


def _recipe_of(x: Any) -> _Upsampled | _Scored | None:
    return x._pending() if isinstance(x, Deferred) else None


def _note(recipe: _Upsampled | _Scored, consumer: str) -> None:
    recipe.site.note(consumer, recipe.describe())


def _half_autocast(x: Tensor) -> bool:
    """Autocast would widen the input of a softmax (on the CPU it does not)."""
    return (
        x.device.type != "cpu" and torch.is_autocast_enabled(x.device.type) and x.dtype in (torch.half, torch.bfloat16)
    )


def _over_classes(x: Deferred, dim: int | None) -> bool:
    return isinstance(dim, int) and -x.ndim <= dim < x.ndim and dim % x.ndim == x._class_dim


def _softmax(name: str, x: Any, dim: Any, dtype: torch.dtype | None) -> Any:
    recipe = _recipe_of(x)
    if recipe is None or dtype not in (None, x.dtype) or not _over_classes(x, dim) or _half_autocast(x):
        return NotImplemented
    _note(recipe, name)
    result = getattr(recipe, name)()
    return result if x._class_dim else result[0]


def _make_functional(name: str) -> Callable:
    def handler(input: Any, dim: Any = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Any:
        return _softmax(name, input, dim, dtype)

    return handler


def _make_method(name: str) -> Callable:
    def handler(input: Any, dim: Any = None, dtype: torch.dtype | None = None) -> Any:
        return _softmax(name, input, dim, dtype)

    return handler


for _name in ("softmax", "log_softmax"):
    _HANDLERS[getattr(F, _name)] = _make_functional(_name)
    for _function in (getattr(torch, _name), getattr(torch.Tensor, _name), getattr(torch.special, _name)):
        _HANDLERS[_function] = _make_method(_name)


@_handles(torch.argmax, torch.Tensor.argmax)
def _argmax(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    recipe = _recipe_of(input)
    if recipe is None or not _over_classes(input, dim):
        return NotImplemented
    _note(recipe, "argmax")
    labels = recipe.argmax()
    if not input._class_dim:
        return labels if keepdim else labels[0]
    return labels.unsqueeze(1) if keepdim else labels


@_handles(torch.max, torch.Tensor.max)
def _max(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    recipe = _recipe_of(input)
    if recipe is None or not input._class_dim or not _over_classes(input, dim):
        return NotImplemented
    labels = _argmax(input, dim, keepdim)
    return torch.return_types.max((Deferred.of(_Maximum(recipe, keepdim)), labels))


@_handles(torch.topk, torch.Tensor.topk)
def _topk(input: Any, k: int, dim: Any = -1, largest: bool = True, sorted: bool = True) -> Any:
    if k != 1 or not largest:
        return NotImplemented
    found = _max(input, dim, True)
    return found if found is NotImplemented else torch.return_types.topk(tuple(found))


def cross_entropy_of(input: Any, target: Any, **options: Any) -> Tensor | None:
    """`upsample_cross_entropy` (or `score_cross_entropy`) of a Deferred whose shape fits the labels, else None."""
    recipe = _recipe_of(input)
    if (
        recipe is None
        or not input._class_dim
        or type(target) is not Tensor
        or target.dtype not in (torch.int64, torch.uint8)
        or target.shape != (input.shape[0], *input.shape[2:])
        or target.device != input.device
    ):
        return None
    _note(recipe, "cross_entropy")
    loss = recipe.cross_entropy(target, **options)
    # The operator's loss of half types is float32, as under autocast; plain PyTorch rounds it.
    return loss if torch.is_autocast_enabled(input.device.type) else loss.to(input.dtype)


@_handles(F.cross_entropy)
def _cross_entropy(
    input: Any,
    target: Any,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    unusual = size_average is not None or reduce is not None or reduction not in ("none", "mean", "sum")
    if unusual or (weight is not None and (weight.requires_grad or weight.dtype != input.dtype)):
        return NotImplemented
    options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
    loss = cross_entropy_of(input, target, weight=weight, **options)
    return NotImplemented if loss is None else loss


@_handles(torch.sigmoid, torch.Tensor.sigmoid, torch.special.expit, F.sigmoid)
def _sigmoid(input: Any) -> Any:
    recipe = _recipe_of(input)
    if not isinstance(recipe, _Upsampled) or not input._class_dim or _half_autocast(input):
        return NotImplemented
    _note(recipe, "sigmoid")
    return upsample_sigmoid(recipe.x, recipe.sampling)


@_handles(F.binary_cross_entropy_with_logits)
def _binary_cross_entropy(
    input: Any,
    target: Any,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Any:
    recipe = _recipe_of(input)
    if (
        not isinstance(recipe, _Upsampled)
        or not input._class_dim
        or any(option is not None for option in (weight, size_average, reduce))
        or reduction not in ("none", "mean", "sum")
        or type(target) is not Tensor
        or target.dtype != input.dtype
        or target.shape != input.shape
        or target.device != input.device
        or target.requires_grad
        or (pos_weight is not None and (pos_weight.requires_grad or pos_weight.numel() != 1 or input.shape[1] != 1))
    ):
        return NotImplemented
    _note(recipe, "binary_cross_entropy_with_logits")
    pos_weight = None if pos_weight is None else pos_weight.reshape(1)
    loss = upsample_binary_cross_entropy(recipe.x, target, recipe.sampling, pos_weight=pos_weight, reduction=reduction)
    return loss if torch.is_autocast_enabled(input.device.type) else loss.to(input.dtype)


@_handles(torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__)
def _add(input: Any, other: Any, *, alpha: float = 1, out: Tensor | None = None) -> Any:
    """Addition reads one image and writes one: with a Deferred on one side that is `upsample_add`."""
    if alpha != 1 or out is not None:
        return NotImplemented
    for coarse, fine in ((input, other), (other, input)):
        recipe = _recipe_of(coarse)
        if (
            isinstance(recipe, _Upsampled)
            and type(fine) in (Tensor, nn.Parameter, Deferred)
            and fine.shape == recipe.size
        ):
            if fine.dtype != coarse.dtype or fine.device != coarse.device:
                return NotImplemented
            _note(recipe, "add")
            return upsample_add(recipe.x, _plain(fine), recipe.sampling)
    return NotImplemented


def _plain(t: Tensor) -> Tensor:
    return t._materialise() if isinstance(t, Deferred) else t


@_handles(torch.conv2d)
def _conv2d(
    input: Any,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Bilinear weights sum to one, so a 1x1 convolution commutes with upsampling, and has fewer pixels before it."""
    recipe = _recipe_of(input)
    if (
        not isinstance(recipe, _Upsampled)
        or not input._class_dim
        or weight.shape[2:] != (1, 1)
        or groups != 1
        or stride not in (1, (1, 1), [1, 1])
        or padding not in (0, (0, 0), [0, 0], "valid", "same")
        or recipe.x.shape[2:].numel() >= recipe.size[2] * recipe.size[3]
    ):
        return NotImplemented
    _note(recipe, "1x1 convolution")
    return Deferred.of(recipe.on(F.conv2d(recipe.x, weight, bias)))


@_handles(torch.Tensor.detach)
def _detach(input: Deferred) -> Any:
    recipe = _recipe_of(input)
    return NotImplemented if recipe is None else Deferred._make(recipe.detach(), not input._class_dim)


@_handles(torch.Tensor.__getitem__)
def _getitem(input: Any, index: Any) -> Any:
    """One image of a batch."""
    recipe = _recipe_of(input)
    if recipe is None or type(index) is not int or not input._class_dim or not -len(input) <= index < len(input):
        return NotImplemented
    if recipe.needs_grad() and torch.is_grad_enabled():
        return NotImplemented
    return Deferred._make(recipe.image(index % len(input)).detach(), single=True)


@_handles(torch.Tensor.float)
def _float(input: Any) -> Any:
    return input if _recipe_of(input) is not None and input.dtype == torch.float32 else NotImplemented


@_handles(torch.Tensor.cpu)
def _cpu(input: Any) -> Any:
    return input if _recipe_of(input) is not None and input.device.type == "cpu" else NotImplemented


def _calling_code() -> str:
    """Module and line that called an upsampling function: the first frame outside torch and this file."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module != __name__ and module.split(".")[0] != "torch":
            return f"{module}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


@cache
def _in_place(func: Callable) -> bool:
    name = getattr(func, "__name__", "")
    augmented = ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__", "__set__")
    return (name.endswith("_") and not name.endswith("__")) or name in augmented


def _deferrable(x: Any) -> bool:
    return (
        (type(x) is Tensor or type(x) is nn.Parameter)
        and x.dim() == 4
        and x.dtype in FLOATING
        and x.layout == torch.strided
        and x.numel() > 0
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


class _Deferring(TorchFunctionMode):
    def __init__(self, log: Log) -> None:
        super().__init__()
        self.log = log
        self.made: list[weakref.ref[Deferred]] = []

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.interpolate:
            return self._interpolate(*args, **kwargs)
        if self.made and (_in_place(func) or "out" in kwargs):
            self._before_change(kwargs.get("out", args[0] if args else None))
        return func(*args, **kwargs)

    def _interpolate(
        self,
        input: Any,
        size: Any = None,
        scale_factor: Any = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
        antialias: bool = False,
    ) -> Any:
        arguments = {"size": size, "scale_factor": scale_factor, "mode": mode, "align_corners": align_corners}
        if mode == "bilinear" and not recompute_scale_factor and not antialias:
            x = input._materialise() if isinstance(input, Deferred) else input
            if _deferrable(x):
                try:
                    sampling = Sampling.interpolate(
                        tuple(x.shape[2:]),
                        tuple(operator.index(n) for n in size) if hasattr(size, "__iter__") else size,
                        scale_factor=scale_factor,
                        align_corners=bool(align_corners),
                    )
                except (TypeError, ValueError):
                    sampling = None  # torch says what is wrong with the arguments
                if sampling is not None:
                    made = Deferred.of(_Upsampled(x, sampling, arguments, Site(_calling_code(), self.log)))
                    self.made.append(weakref.ref(made))
                    return made
        return F.interpolate(input, **arguments, recompute_scale_factor=recompute_scale_factor, antialias=antialias)

    def _before_change(self, changed: Any) -> None:
        """An input that is about to change in place: what was deferred on it is made now."""
        for t in changed if isinstance(changed, (tuple, list)) else (changed,):
            if not isinstance(t, Tensor) or isinstance(t, Deferred):
                continue
            storage = t.untyped_storage()._cdata
            for made in (ref() for ref in self.made):
                if (
                    made is not None
                    and made._value is None
                    and any(s.untyped_storage()._cdata == storage for s in made._recipe.sources())
                ):
                    made._materialise()


def _active() -> bool:
    return any(isinstance(mode, _Deferring) for mode in torch.overrides._get_current_function_mode_stack())


@contextmanager
def deferring(log: Log) -> Iterator[None]:
    """Bilinear F.interpolate inside gives `Deferred` images; nothing changes while a graph is being traced."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or _active():
        yield
    else:
        with _Deferring(log):
            yield


def defer_score(x: Tensor, weight: Tensor, bias: Tensor | None, site: Site) -> Tensor:
    """``F.conv2d(x, weight, bias)`` with a 1x1 weight, not computed before something reads it."""
    plain = torch.compiler.is_compiling() or torch.jit.is_tracing() or not _deferrable(_plain(x))
    if plain or torch.is_autocast_enabled(x.device.type):
        return F.conv2d(x, weight, bias)
    return Deferred.of(_Scored(_plain(x), weight, bias, site))
