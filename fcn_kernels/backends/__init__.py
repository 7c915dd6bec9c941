"""Which backend runs an operator on a device, and why another does not.

    reference   PyTorch, any device: the specification
    cpu         C++, CPU tensors
    cuda        CUDA C++, NVIDIA GPUs
    triton      Triton, any GPU that it compiles for (and CPU tensors in its interpreter)

The table is read off torch's dispatcher, so that a kernel which registers itself appears here without being listed.
On NVIDIA GPUs an operator that both backends have goes to the one that was measured to be faster (preferences.py), or
to CUDA C++ where nobody has measured. The choice is made once, per operator, when the package is imported: a choice by
shape would cost a way through Python in every call, and the dispatcher holds one kernel per device.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .. import _library
from . import preferences, triton

BACKENDS = ("reference", "cpu", "cuda", "triton")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # every kernel of every backend has these
TRITON_DEVICES = ("cuda", "xpu")  # ROCm's device is called cuda too
_PREFERENCE = {"cpu": ("cpu", "reference", "triton", "cuda")}
_PREFERENCE_ELSEWHERE = ("cuda", "triton", "reference", "cpu")

# Operators whose backward is another operator's; all others have NAME_backward or are composed of PyTorch's.
_SHARED_BACKWARD = {"upsample_add": "upsample_backward", "conv_transpose_concat": "conv_transpose_add_backward"}

_triton_library: Any = None
_served_by_triton: set[tuple[str, str]] = set()  # (operator, dispatch key)
_set_aside: dict[tuple[str, str], Any] = {}  # the C++ kernels in whose place Triton serves


class Candidate(NamedTuple):
    backend: str
    reason: str | None  # why it cannot serve; None: it can
    note: str | None = None  # why it comes first, where two backends compete


def operators() -> list[str]:
    """The names of all operators that are defined, backward ones included."""
    prefix = _library.NAMESPACE + "::"
    names = (name for name in torch._C._dispatch_get_all_op_names() if name.startswith(prefix))
    return sorted({name.removeprefix(prefix).partition(".")[0] for name in names})


def backward_of(op: str) -> str | None:
    """The operator that computes the derivative of `op`, or None: composed of PyTorch's, or not differentiable."""
    name = _SHARED_BACKWARD.get(op, f"{op}_backward")
    return name if name in operators() else None


def candidates(op: str, device: str, dtype: torch.dtype = torch.float32) -> list[Candidate]:
    """All backends for an operator on a type of device ("cpu", "cuda", ...), best first; what keeps each from it."""
    order = list(_PREFERENCE.get(device, _PREFERENCE_ELSEWHERE))
    note = preference(op) if device == "cuda" else None
    if note is not None and _prefers_triton(op):
        order.remove("triton")
        order.insert(0, "triton")
    return [
        Candidate(backend, _obstacle(backend, op, device, dtype), note if i == 0 else None)
        for i, backend in enumerate(order)
    ]


def preference(op: str) -> str | None:
    """Why CUDA C++ comes before Triton on NVIDIA GPUs, or Triton before CUDA C++; None: Triton does not compete."""
    if op not in triton.KERNELS:
        return None
    if op not in preferences.FASTER:
        return "not yet measured: CUDA C++ by convention"
    backend, times = preferences.FASTER[op]
    faster, other = ("Triton", "CUDA C++") if backend == "triton" else ("CUDA C++", "Triton")
    return f"{faster} measured {times:.2f}x as fast as {other} ({preferences.GPU}, {preferences.SOURCE})"


def _prefers_triton(op: str) -> bool:
    return preferences.FASTER.get(op, ("cuda",))[0] == "triton"


def active(op: str, device: str, dtype: torch.dtype = torch.float32) -> str | None:
    """The backend that torch's dispatcher chooses, or None."""
    return next((c.backend for c in candidates(op, device, dtype) if c.reason is None), None)


def device_obstacle(device: str) -> str | None:
    """Why there is no such device here, or None."""
    if device == "cpu":
        return None
    module = getattr(torch, device, None)
    if module is None or not hasattr(module, "is_available"):
        return f"torch {torch.__version__} knows no device {device!r}"
    if module.is_available():
        return None
    if device == "cuda" and torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA and ROCm"
    if device == "xpu" and not torch.xpu._is_compiled():
        return f"torch {torch.__version__} is built without XPU"
    return "no such device is visible"


def _obstacle(backend: str, op: str, device: str, dtype: torch.dtype) -> str | None:
    if backend != "reference" and dtype not in DTYPES:
        return f"it has no kernels for {str(dtype).removeprefix('torch.')}"
    return _OBSTACLES[backend](op, device)


def _reference_obstacle(op: str, device: str) -> str | None:
    return None if hasattr(_reference(), op) else "it has no such function"


def _cpu_obstacle(op: str, device: str) -> str | None:
    if device != "cpu":
        return "it reads CPU tensors only"
    if _library.load_extension() is None:
        return _library.extension_error()
    return None if _has_cpp_kernel(op, "CPU") else "it has no kernel for this operator"


def _cuda_obstacle(op: str, device: str) -> str | None:
    if device != "cuda":
        return "it reads CUDA tensors only"
    extension = _library.load_extension()
    if extension is None:
        return _library.extension_error()
    if extension.built()["cuda_architectures"] is None:
        return "the extension is built without CUDA (there was no nvcc, or FCN_KERNELS_BUILD=cpu)"
    if torch.version.hip is not None:
        return "this torch is built for ROCm"
    return None if _has_cpp_kernel(op, "CUDA") else "it has no kernel for this operator"


def _triton_obstacle(op: str, device: str) -> str | None:
    if op not in triton.KERNELS:
        return "it has no kernel for this operator"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device == "cpu":
        interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
        return None if interpreted else "it reads CPU tensors only in its interpreter (TRITON_INTERPRET=1)"
    return None if device in TRITON_DEVICES else f"it does not compile for {device}"


_OBSTACLES: dict[str, Callable[[str, str], str | None]] = {
    "reference": _reference_obstacle,
    "cpu": _cpu_obstacle,
    "cuda": _cuda_obstacle,
    "triton": _triton_obstacle,
}


def _reference() -> Any:
    return importlib.import_module("fcn_kernels.reference")


def _has_kernel(op: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{_library.NAMESPACE}::{op}", key)


def _has_cpp_kernel(op: str, key: str) -> bool:
    return (op, key) in _set_aside or ((op, key) not in _served_by_triton and _has_kernel(op, key))


def register_triton() -> None:
    """Gives the GPUs' dispatch keys their Triton kernels, where no C++ kernel is registered or Triton's is the faster
    one; after the extension.

    Triton itself is imported by the first call.
    """
    global _triton_library
    if _triton_library is not None or importlib.util.find_spec("triton") is None:
        return
    _triton_library = torch.library.Library(_library.NAMESPACE, "IMPL")
    for device in TRITON_DEVICES:
        key = device.upper()
        for op in triton.KERNELS:
            if not _has_kernel(op, key) or (key == "CUDA" and _prefers_triton(op)):
                _give_to_triton(op, key)


def _give_to_triton(op: str, key: str) -> None:
    if _has_kernel(op, key):
        overload = getattr(getattr(torch.ops, _library.NAMESPACE), op).default
        _set_aside[op, key] = torch.library.get_kernel(overload, key)
    with warnings.catch_warnings():  # torch warns of a kernel that takes another's place
        warnings.filterwarnings("ignore", "[\\s\\S]*Overriding a previously registered kernel")
        _triton_library.impl(op, triton.lazy(op), key)
    _served_by_triton.add((op, key))


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the context, the operators of this package run on the named backend: for tests, benchmarks, debugging.

    Args:
        name: "reference", "cpu", "cuda" or "triton". Contexts nest and the innermost decides. A backward pass obeys
            if it runs inside the context.

    Raises:
        ValueError: no backend has that name.
        RuntimeError: (by an operator that is called inside) the backend cannot serve it, and why.
    """
    if name not in BACKENDS:
        raise ValueError(f"use_backend: {name!r} is none of the backends {', '.join(BACKENDS)}")
    with _Route(name):
        yield


class _Route(TorchDispatchMode):
    """Below autograd, sends every operator of the package to one backend."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "namespace", None) != _library.NAMESPACE:
            return func(*args, **kwargs)
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
        if any(t.is_meta or isinstance(t, torch._subclasses.FakeTensor) for t in tensors):
            return func(*args, **kwargs)
        op = func._schema.name.partition("::")[2]
        device = tensors[0].device.type
        reason = _obstacle(self.backend, op, device, tensors[0].dtype)
        if reason is not None:
            raise RuntimeError(f"use_backend({self.backend!r}) cannot serve {op} on {device} tensors: {reason}")
        if func._overloadname == "out" and self.backend != "cpu":  # the other backends allocate
            default = getattr(getattr(torch.ops, _library.NAMESPACE), op).default
            return _library.write(self.__torch_dispatch__(default, types, args), kwargs)
        if self.backend == "reference":
            return getattr(_reference(), op)(*args, **kwargs)
        if self.backend == "triton":
            return triton.lazy(op)(*args, **kwargs)
        # Straight to the kernel, past the contexts around this one.
        key = getattr(torch._C.DispatchKey, self.backend.upper())
        if (op, key.name) in _set_aside:
            return _set_aside[op, key.name].call_boxed(torch._C.DispatchKeySet(key), *args, **kwargs)
        return func._op_dk(key, *args, **kwargs)
