"""A tensor whose value is made when something reads it, and the table of functions that need not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .recipes import Maximum, Scored, Upsampled


def _version(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version


class Attach(torch.autograd.Function):
    """Gives a Deferred its place in the graph, for code below Python that would otherwise see a constant."""

    @staticmethod
    def forward(ctx: Any, recipe: Upsampled | Scored | Maximum, *sources: Tensor) -> Tensor:
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

    _recipe: Upsampled | Scored | Maximum
    _value: Tensor | None
    _class_dim: int

    @classmethod
    def _make(cls, recipe: Upsampled | Scored | Maximum, single: bool = False) -> Deferred:
        x = recipe.x
        size = recipe.size[1:] if single else recipe.size
        self = torch.Tensor._make_wrapper_subclass(cls, size, dtype=x.dtype, device=x.device, layout=x.layout)
        self._recipe = recipe
        self._value = None
        self._class_dim = 0 if single else 1
        self._versions = [_version(t) for t in recipe.sources()]
        return self

    @classmethod
    def of(cls, recipe: Upsampled | Scored | Maximum) -> Deferred:
        """A Deferred that gradients flow through; without gradients where they are off."""
        if not recipe.needs_grad():
            return cls._make(recipe)
        if not torch.is_grad_enabled():
            return cls._make(recipe.detach())
        return Attach.apply(recipe, *recipe.sources())

    def _pending(self) -> Upsampled | Scored | None:
        """The recipe, unless the value was made already: what changed it in place must be seen by all."""
        if self._value is not None or isinstance(self._recipe, Maximum):
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
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        handler = HANDLERS.get(func)
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
        """Code below Python reads the value; its gradient is `Attach`'s."""
        args, kwargs = tree_map_only(Deferred, lambda t: t._materialise().detach(), (args, kwargs or {}))
        return func(*args, **kwargs)


METADATA = {
    getattr(torch.Tensor, name).__get__
    for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "is_meta", "layout", "is_sparse")
} | {
    getattr(torch.Tensor, name)
    for name in ("size", "dim", "numel", "nelement", "is_floating_point", "is_complex", "__len__", "element_size")
}
HANDLERS: dict[Callable, Callable] = {}


def handles(*functions: Callable) -> Callable[[Callable], Callable]:
    def register(handler: Callable) -> Callable:
        HANDLERS.update(dict.fromkeys(functions, handler))
        return handler

    return register


def recipe_of(x: Any) -> Upsampled | Scored | None:
    return x._pending() if isinstance(x, Deferred) else None


def plain(t: Tensor) -> Tensor:
    return t._materialise() if isinstance(t, Deferred) else t
