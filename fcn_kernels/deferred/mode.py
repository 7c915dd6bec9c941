"""Where computations are deferred: bilinear F.interpolate inside `deferring()`, and what `defer_score` is asked for."""

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

from .._checks import FLOATING
from ..sampling import Sampling, is_copied
from .recipes import Log, Scored, Site, Upsampled
from .tensor import Deferred, plain


def _calling_code() -> str:
    """Module and line that called an upsampling function: the first frame outside torch and this package."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.rpartition(".")[0] != __package__ and module.split(".")[0] != "torch":
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
                if scale_factor is not None and sampling is not None and not align_corners:
                    sampling = None if is_copied(sampling.input_size, scale_factor) else sampling
                if sampling is not None:
                    made = Deferred.of(Upsampled(x, sampling, arguments, Site(_calling_code(), self.log)))
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
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if traced or not _deferrable(plain(x)) or torch.is_autocast_enabled(x.device.type):
        return F.conv2d(x, weight, bias)
    return Deferred.of(Scored(plain(x), weight, bias, site))
