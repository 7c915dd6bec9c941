"""The operator library: schemas, fallbacks, autograd and vmap rules, and the compiled extension.

An operator is defined once, in `fcn_kernels/ops/NAME.py`:

    define("name(Tensor x, ...) -> Tensor", reference.name, fake)     # schema, any-device fallback, shapes
    _name = differentiable("name", backward, setup_context)           # autograd, if it has one, and how to call it
    batched_per_sample("name", ...) or batched_by_loop("name")        # vmap
    define_out("name")                                                # into a tensor that the caller gives

Kernels for a device register themselves under its dispatch key, before or after.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.autograd.graph import increment_version

NAMESPACE = "fcn_kernels"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def define(schema: str, reference: Callable, fake: Callable) -> None:
    """Define an operator: `reference` serves every device that has no kernel, `fake` computes shapes and strides."""
    name = schema[: schema.index("(")]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)


def define_out(name: str, *results: str) -> Callable:
    """Define the overload NAME.out, which writes its results into tensors that the caller gives, and how to call it.

    `results` are their keywords, ("out",) by default. A device whose kernel knows no such overload copies. Each result
    counts as changed in place, so that a backward pass that wanted what it held before raises.
    """
    results = results or ("out",)
    packet = getattr(getattr(torch.ops, NAMESPACE), name)
    schema = str(packet.default._schema)
    arguments = schema[schema.index("(") + 1 : schema.rindex(") ->")]
    outs = ", ".join(f"Tensor({chr(ord('a') + i)}!) {result}" for i, result in enumerate(results))
    _library.define(f"{name}.out({arguments}, *, {outs}) -> ()", tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(f"{name}.out", lambda *args, **outs: write(packet.default(*args), outs), "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}.out", lambda *args, **outs: None, lib=_library)
    op = packet.out

    def kernel(keyset: Any, *args: Any, **outs: Tensor) -> None:
        with _below_versions():
            op.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args, **outs)
        increment_version(outs.values())

    def call(*args: Any, **outs: Tensor) -> None:
        if not plain(*args, *outs.values()):
            return op(*args, **outs)
        with _below_versions():
            op(*args, **outs)
        increment_version(outs.values())

    _library.impl(f"{name}.out", kernel, "ADInplaceOrView", with_keyset=True)
    return call


def write(results: Tensor | tuple, outs: dict[str, Tensor]) -> None:
    """Copy an operator's results into the tensors given for them."""
    for out, result in zip(outs.values(), results if isinstance(results, tuple) else (results,), strict=True):
        out.copy_(result)


# Arguments that a plain call has: exactly these types, so no subclass of Tensor and no SymInt.
_PLAIN = frozenset((Tensor, torch.nn.Parameter, torch.dtype, torch.Size, type(None), bool, int, float, list, tuple))


_PRE_DISPATCH = torch._C.DispatchKey.PreDispatch
_below_autograd = torch._C._AutoDispatchBelowAutograd
_below_versions = torch._C._AutoDispatchBelowADInplaceOrView
_is_compiling = torch.compiler.is_compiling
_transformed = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_recording = torch.is_grad_enabled
_any_requires_grad = torch._C._any_requires_grad


def plain(*args: Any) -> bool:
    """Whether nobody but the backward pass looks on: no compiler, tracer, transform, tangent, mode or subclass."""
    return not (
        _is_compiling()
        or _transformed()
        or forward_ad._current_level >= 0
        or torch._C._is_torch_function_mode_enabled()
        or _dispatch_modes()
        or torch._C._dispatch_tls_is_dispatch_key_included(_PRE_DISPATCH)
        or torch._C._get_tracing_state() is not None
    ) and _PLAIN.issuperset(map(type, args))


class _Node(_SingleLevelFunction):
    """Its `apply` serves one level of torch.func's transforms. That of `torch.autograd.Function` refuses them, from
    torch 2.14 on for every derived class. Compiled autograd asks for the key."""

    @staticmethod
    def _compiled_autograd_key(ctx: Any) -> tuple:
        return (ctx._autograd_function_id,)


def differentiable(name: str, backward: Callable, setup_context: Callable, jvp: Callable | None = None) -> Callable:
    """Give an operator its derivative: ``backward(ctx, *grads)``, ``setup_context(ctx, inputs, output)``.

    ``jvp(inputs, tangents)`` is the derivative in forward mode, whose tangents are None where there are none. Without
    it forward mode raises.

    Returns a function that calls the operator. Where a call is `plain` it leaves out torch's way through the kernel for
    the key Autograd, which is written in Python and costs as much as a small native operator.

    Makes the same kernel for the key Autograd as `torch.library.register_autograd`, except that it knows forward mode
    and that torch.func's transforms can differentiate it, nested to any depth. They refuse `Function.apply`, because
    they want to see a function whole; an operator they have already taken apart when this kernel runs: once for each
    level that differentiates.
    """
    op = getattr(getattr(torch.ops, NAMESPACE), name).default
    jvp = jvp or _refuse_forward_mode(name)

    def below_autograd(keyset: Any, args: tuple) -> Any:
        with _below_autograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    class Node(_Node):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            *args, (keyset, ctx.outside) = args
            if ctx.outside is None:
                output = below_autograd(keyset, args)
            else:
                with ctx.outside.recording():
                    output = below_autograd(keyset, args)
            setup_context(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple:
            return (*backward(ctx, *grads), None)

        @staticmethod
        def jvp(ctx: Any, *_: Any) -> Any:
            with ctx.outside.recording():
                return jvp(*ctx.outside.primals_and_tangents())

    Node.__name__ = f"{name}_node"
    apply = Node.apply

    def kernel(keyset: Any, *args: Any) -> Any:
        # Perhaps tangents: a graph of torch.compile enters forward mode without a word to `forward_ad`.
        if forward_ad._current_level >= 0 or _transformed() or _dispatch_modes():
            with _Outside(args) as outside, enable_single_level_autograd_function():
                return apply(*args, (keyset, outside))
        if _recording() and _any_requires_grad(*args):
            return apply(*args, (keyset, None))
        return below_autograd(keyset, args)

    _library.impl(name, kernel, "Autograd", with_keyset=True)
    return _direct(op, backward, setup_context)


class _Outside:
    """What a `Node` does not learn from `apply`: its inputs with their tangents, and what is recorded around it.

    `apply` switches all recording off while `forward` and `jvp` run, also for levels farther out, which are still to
    see the call.
    """

    def __init__(self, inputs: tuple) -> None:
        self._inputs = inputs
        self._backward, self._forward = torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled()

    def __enter__(self) -> _Outside:
        return self

    def __exit__(self, *error: object) -> None:
        self._inputs = ()  # the node lives on

    @contextmanager
    def recording(self) -> Iterator[None]:
        with torch.set_grad_enabled(self._backward), forward_ad._set_fwd_grad_enabled(self._forward):
            yield

    def primals_and_tangents(self) -> tuple[tuple, tuple]:
        duals = [forward_ad.unpack_dual(a, level=0) if isinstance(a, Tensor) else (a, None) for a in self._inputs]
        primals, tangents = zip(*duals, strict=True)
        return primals, tangents


def _refuse_forward_mode(name: str) -> Callable:
    def jvp(inputs: tuple, tangents: tuple) -> None:
        raise NotImplementedError(f"{name} has no derivative in forward mode (jvp, jacfwd, hessian, make_dual)")

    return jvp


def _direct(op: Any, backward_of_op: Callable, setup_context: Callable) -> Callable:
    """What `differentiable` returns."""

    class Node(_Node):
        backward = staticmethod(backward_of_op)

        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            with _below_autograd():
                output = op(*args)
            setup_context(ctx, args, output)
            return output

    Node.__name__ = f"{op.__name__.partition('.')[0]}_node"
    apply = Node.apply

    def call(*args: Any) -> Any:
        if not plain(*args):
            return op(*args)
        if _recording() and _any_requires_grad(*args):
            return apply(*args)
        with _below_autograd():
            return op(*args)

    return call


def non_differentiable(name: str) -> Callable:
    """An operator whose outputs never require a gradient."""

    def setup_context(ctx: Any, inputs: tuple, output: Tensor | tuple) -> None:
        ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))

    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        raise RuntimeError(f"{name} has no derivative")

    def jvp(inputs: tuple, tangents: tuple) -> tuple:
        return (None,) * len(op._schema.returns)

    op = getattr(getattr(torch.ops, NAMESPACE), name).default
    return differentiable(name, backward, setup_context, jvp)


def once_differentiable(name: str, forward: str) -> Callable:
    """An operator that is itself a derivative and refuses to be differentiated again."""

    def setup_context(ctx: Any, inputs: tuple, output: Tensor | tuple) -> None:
        pass

    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        raise RuntimeError(_refusal(forward))

    def jvp(inputs: tuple, tangents: tuple) -> None:
        raise RuntimeError(_refusal(forward))

    return differentiable(name, backward, setup_context, jvp)


def refuse_double_backward(name: str, gradient: Tensor, *inputs: Tensor | None) -> Tensor:
    """`gradient`, which depends on `inputs`, such that differentiating it raises instead of going wrong in silence."""
    if not torch.is_grad_enabled():
        return gradient  # nobody records: the usual backward pass
    return _Refusal.apply(name, gradient, *inputs)


class _Refusal(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, gradient: Tensor, *inputs: Tensor | None) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(_refusal(ctx.name))

    jvp = backward


def _refusal(name: str) -> str:
    return f"{name} cannot be differentiated twice: it is not linear, and its second derivative is not implemented"


def batched_by_loop(name: str) -> None:
    """vmap by one call per sample: for operators that reduce over the batch."""
    op = getattr(getattr(torch.ops, NAMESPACE), name).default

    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple:
        return _loop(op, info.batch_size, in_dims, args)

    torch.library.register_vmap(f"{NAMESPACE}::{name}", rule, lib=_library)


def batched_per_sample(name: str, per_sample: Sequence[int], loop_if: Callable[..., bool] | None = None) -> None:
    """vmap by folding the mapped dimension into N, for operators that treat the samples independently.

    Args:
        name: the operator.
        per_sample: positions of the arguments that have a leading dimension N. If another tensor argument is mapped (a
            weight, say), the rule falls back to one call per sample.
        loop_if: ``loop_if(*args)`` says that this call reduces over the batch after all.
    """
    op = getattr(getattr(torch.ops, NAMESPACE), name).default
    folded = frozenset(per_sample)

    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple:
        b = info.batch_size
        in_dims = (*in_dims, *(None,) * (len(args) - len(in_dims)))
        shared = any(isinstance(d, int) and i not in folded for i, d in enumerate(in_dims))
        if shared or b == 0 or (loop_if is not None and loop_if(*args)):
            return _loop(op, b, in_dims, args)
        args = list(args)
        n = None
        for i in folded:
            if isinstance(args[i], Tensor):
                if in_dims[i] is None:
                    t = args[i].unsqueeze(0).expand(b, *args[i].shape)
                else:
                    t = args[i].movedim(in_dims[i], 0)
                if t.dim() > 2 or t.shape[1:] != (0,):  # an absent tensor is an empty [0]
                    n = t.shape[1]
                    args[i] = t.flatten(0, 1)
                else:
                    args[i] = t[0]
        output = op(*args)
        if isinstance(output, Tensor):
            return output.unflatten(0, (b, n)), 0
        # Besides images of all samples there are scalars (a divisor of 1) and absent tensors (an empty [0]).
        parts = [t.unflatten(0, (b, n)) if t.dim() > 1 else t.expand(b, *t.shape) for t in output]
        return tuple(parts), (0,) * len(parts)

    torch.library.register_vmap(f"{NAMESPACE}::{name}", rule, lib=_library)


def _loop(op: Callable, batch: int, in_dims: Sequence[int | None], args: Sequence[Any]) -> tuple:
    in_dims = (*in_dims, *(None,) * (len(args) - len(in_dims)))
    if batch == 0:
        raise ValueError(f"{op}: vmap over an empty dimension is not supported")
    calls = [
        op(*(a.select(d, b) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)))
        for b in range(batch)
    ]
    if isinstance(calls[0], Tensor):
        return torch.stack(calls), 0
    outputs = tuple(torch.stack(parts) for parts in zip(*calls, strict=True))
    return outputs, (0,) * len(outputs)


_extension: Any = None
_extension_error: str | None = None


def load_extension() -> Any:
    """The compiled module `fcn_kernels._C`, whose import registers the kernels; None when it is not there.

    Tries once and never builds. `extension_error` keeps the reason of a failure.
    """
    global _extension, _extension_error
    if _extension is None and _extension_error is None:
        try:
            _extension = importlib.import_module(f"{NAMESPACE}._C")
        except ModuleNotFoundError:
            _extension_error = "the package was installed without compiled kernels"
        except ImportError as error:  # built, but for another Python or torch
            _extension_error = str(error)
            warnings.warn(
                f"fcn_kernels: the compiled kernels cannot be loaded, the PyTorch reference serves: {error}",
                stacklevel=2,
            )
    return _extension


def extension_error() -> str | None:
    """Why the compiled module is not there, or None."""
    return _extension_error
