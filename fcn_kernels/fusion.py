"""fuse and unfuse: the operators inside other people's models, by exchanging classes of live modules.

A fused module is the same object with the same parameters, buffers, hooks and name; only its class has become a
subclass, whose forward computes the same with the fused operators. State_dicts, optimizers and checkpoints see nothing.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import FLOATING, autocast_dtype
from .deferred import Log, Site, defer_score, deferring
from .ops.conv_transpose_add import conv_transpose_add, is_bilinear, is_plain
from .ops.upsample import upsample
from .sampling import Sampling

__all__ = ["Entry", "Report", "fuse", "unfuse"]


@dataclass(frozen=True)
class Entry:
    """One finding. `where` is the module's name in the model ("" for the model itself)."""

    where: str
    what: str
    action: str


@dataclass
class Report:
    """What `fuse` did, and what it left alone and why; `print` it.

    `fused` and `left` list the modules. `seen` fills while the model runs: (line of code, consumer) to (how many
    calls were fused, the sizes of the last one). A report is true if anything was fused.
    """

    model: str
    fused: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)
    seen: Log = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.fused)

    def __len__(self) -> int:
        return len(self.fused)

    def __str__(self) -> str:
        if not self.fused and not self.left:
            return f"{self.model}: nothing to fuse"
        lines = [f"{self.model}: {len(self.fused)} fused, {len(self.left)} left alone"]
        for title, entries in (("fused", self.fused), ("left alone", self.left)):
            lines += [f"  {title}: {e.where or '(the model)'} ({e.what}): {e.action}" for e in entries]
        for (place, consumer), (count, sizes) in self.seen.items():
            lines.append(f"  seen: {place}: upsampling + {consumer}, {count} x, {sizes}")
        return "\n".join(lines)


class Fused:
    """Mixin of all exchanged classes. The subclass has the name and the module of its base, as savers expect."""

    _fcn_base: type

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy or a pickle: made as the base class, then fused again."""
        mixin, base = type(self)._fcn_mixin, type(self)._fcn_base
        return _rebuild, (mixin, base), self.__dict__.copy()


def _rebuild(mixin: type, base: type) -> Any:
    fused = fused_class(mixin, base)
    return fused.__new__(fused)


@functools.cache
def fused_class(mixin: type, base: type) -> type:
    """The subclass of `base` with the methods of `mixin` in front."""
    names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    body = {**names, "_fcn_base": base, "_fcn_mixin": mixin}
    for name in getattr(mixin, "wraps", ()):
        body[name] = functools.wraps(getattr(base, name))(mixin.wrapped(base, name))
    return type(base)(base.__name__, (mixin, base), body)


class DeferringForward(Fused):
    """Runs the module's own forward with upsampling deferred; signature and docstring stay."""

    wraps = ("forward",)

    @staticmethod
    def wrapped(base: type, name: str) -> Callable:
        original = getattr(base, name)

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            with deferring(self._fcn_log):
                return original(self, *args, **kwargs)

        return forward


class FusedConvTranspose2d(Fused):
    """nn.ConvTranspose2d: two-tap sampling while its weight is bilinear and gets no gradient, else a learned one."""

    def forward(self: Any, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        weight = self.weight
        learning = weight.requires_grad and torch.is_grad_enabled()
        if output_size is not None or type(x) is not Tensor or x.dim() != 4:
            return super().forward(x, output_size)
        dtype = autocast_dtype(x)
        mixed = any(t is not None and t.dtype != weight.dtype for t in (x if dtype is None else None, self.bias))
        if mixed or (dtype is not None and weight.dtype == torch.float64):
            return super().forward(x, output_size)  # torch says what does not fit
        x = x if dtype is None else x.to(dtype)
        bilinear = not learning and _samples(self)
        if not bilinear and not _pays(self):
            return super().forward(x, output_size)
        k, s, p, op = self.kernel_size[0], self.stride[0], self.padding, self.output_padding
        height, width = ((n - 1) * s + k - 2 * p[i] + op[i] for i, n in enumerate(x.shape[2:]))
        if min(height, width) < 1 or op[0] > p[0] or op[1] > p[1]:
            return super().forward(x, output_size)
        if bilinear:
            sampling = Sampling.transposed_conv(x.shape[2:], s, kernel_size=k, offset=p, output_size=(height, width))
            y = upsample(x, sampling)
        else:
            size = (height, width)
            y = conv_transpose_add(x, weight, stride=s, groups=self.groups, offset=p, output_size=size)
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]


class DeferringScore(Fused):
    """A 1x1 nn.Conv2d whose only reader is the softmax behind it."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return defer_score(x, self.weight, self.bias, Site("1x1 convolution", self._fcn_log))


def _samples(m: nn.ConvTranspose2d) -> bool:
    """The weight is the bilinear filter now: its values are read in every call, for not all that write to them tell.

    A graph that is traced or captured outlives the values: there the layer stays a transposed convolution.
    """
    weight = m.weight
    if torch.compiler.is_compiling() or not is_plain(weight) or weight.dtype not in FLOATING:
        return False
    if weight.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return _why_not_sampling(m) is None and is_bilinear(weight)


def _pays(m: nn.ConvTranspose2d) -> bool:
    """Where the CPU kernel of `conv_transpose_add` was measured to beat PyTorch's transposed convolution without a sum
    behind it: depthwise ones of small strides do only in training and on contiguous images."""
    square = m.kernel_size[0] == m.kernel_size[1] and m.stride[0] == m.stride[1] and m.dilation == (1, 1)
    return square and m.stride[0] >= 8 and m.weight.device.type == "cpu"


def has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _why_not_sampling(m: nn.ConvTranspose2d) -> str | None:
    """Why the geometry is not that of FCN's bilinear upsampling."""
    k, s = m.kernel_size[0], m.stride[0]
    if m.kernel_size[1] != k or m.stride[1] != s or m.dilation != (1, 1) or m.padding_mode != "zeros":
        return "kernel and stride are not square, or it is dilated"
    if k not in (2 * s - 1, 2 * s):
        return f"kernel {k} with stride {s} is not 2 s - 1 or 2 s"
    if m.in_channels != m.out_channels or m.groups not in (1, m.in_channels):
        return f"{m.in_channels} to {m.out_channels} channels in {m.groups} groups mixes channels"
    return None


def _why_not_bilinear(m: nn.ConvTranspose2d) -> str | None:
    """Why the geometry or the weight is not that of FCN's bilinear upsampling."""
    return _why_not_sampling(m) or (None if _samples(m) else "the weight is not the bilinear filter: it was learned")


def _fuse_transposed(name: str, m: nn.ConvTranspose2d, report: Report) -> None:
    reason = _why_not_bilinear(m)
    what = f"ConvTranspose2d {m.in_channels} to {m.out_channels}, kernel {m.kernel_size[0]}, stride {m.stride[0]}"
    learned = "conv_transpose_add" if _pays(m) else None
    if reason is not None and learned is None:
        report.left.append(Entry(name, what, reason))
        return
    m.__class__ = fused_class(FusedConvTranspose2d, nn.ConvTranspose2d)
    action = learned
    if reason is None:
        action = "two-tap bilinear sampling"
        if m.weight.requires_grad:
            action += f" while its weight gets no gradient; it is trainable: then {learned or 'PyTorch'}"
    report.fused.append(Entry(name, what, action))


def _is_class_softmax(m: nn.Module) -> bool:
    return type(m) is nn.Softmax2d or (type(m) in (nn.Softmax, nn.LogSoftmax) and m.dim in (1, -3))


def _fuse_sequence(name: str, sequence: nn.Sequential, report: Report) -> None:
    """1x1 convolution and softmax, one after the other: nothing else can read the scores in between."""
    children = list(sequence.named_children())
    for (conv_name, conv), (_, head) in itertools.pairwise(children):
        if type(conv) is not nn.Conv2d or not _is_class_softmax(head):
            continue
        where = f"{name}.{conv_name}" if name else conv_name
        what = f"Conv2d {conv.in_channels} to {conv.out_channels} + {type(head).__name__}"
        plain = (conv.kernel_size, conv.stride, conv.padding, conv.groups) == ((1, 1), (1, 1), (0, 0), 1)
        if not plain:
            report.left.append(Entry(where, what, "the convolution is not 1x1, or it is strided, padded or grouped"))
        elif has_hooks(conv):
            report.left.append(Entry(where, what, "hooks read the scores in between"))
        else:
            conv.__class__ = fused_class(DeferringScore, nn.Conv2d)
            conv._fcn_log = report.seen
            report.fused.append(Entry(where, what, "one operator; the scores are not kept"))


def _code_objects(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code_objects(constant)


def _mentions_interpolate(function: Any, depth: int = 3) -> bool:
    """The function, or one that it names (a global or an enclosing variable), calls something named interpolate."""
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    names = {name for part in _code_objects(code) for name in part.co_names}
    if names & {"interpolate", "upsample", "upsample_bilinear"}:
        return True
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    found = [*cells, *(function.__globals__.get(name) for name in names)] if depth else []
    return any(isinstance(f, types.FunctionType) and _mentions_interpolate(f, depth - 1) for f in found)


@functools.cache
def _upsamples(cls: type) -> bool:
    """A class outside torch whose own methods call interpolate."""
    for part in cls.__mro__:
        if part.__module__.split(".")[0] in ("torch", "builtins", __package__):
            continue
        methods = [m for m in vars(part).values() if isinstance(m, types.FunctionType)]
        if any(_mentions_interpolate(m) for m in methods):
            return True
    return False


def _is_bilinear_upsample(m: nn.Module) -> bool:
    return type(m) in (nn.Upsample, nn.UpsamplingBilinear2d) and m.mode == "bilinear"


def _fuse_forward(model: nn.Module, report: Report) -> None:
    """Defers upsampling in the whole model, if anything in it upsamples bilinearly."""
    entries = []
    for name, m in model.named_modules():
        if _is_bilinear_upsample(m):
            entries.append(Entry(name, f"{type(m).__name__} {m.extra_repr()}", "deferred until something reads it"))
        elif _upsamples(getattr(type(m), "_fcn_base", type(m))):
            kind = type(m).__name__
            entries.append(Entry(name, kind, "bilinear F.interpolate in its code is deferred until something reads it"))
    if not entries:
        return
    if "forward" in vars(model):
        reason = "its forward was replaced on the instance; fuse before wrapping the model"
        report.left.append(Entry("", type(model).__name__, reason))
        return
    report.fused += entries
    if isinstance(model, Fused):  # an integration has exchanged the model itself
        return
    model.__class__ = fused_class(DeferringForward, type(model))
    model._fcn_log = report.seen


INTEGRATIONS = ("transformers", "torchvision", "segmentation_models_pytorch")
"""Modules of `fcn_kernels.integrations`, each asked when an object comes from the library of that name."""


def _libraries(thing: Any) -> set[str]:
    objects = thing.modules() if isinstance(thing, nn.Module) else [thing]
    return {part.__module__.split(".")[0] for m in objects for part in type(m).__mro__}


def _integrations(thing: Any) -> list[types.ModuleType]:
    libraries = _libraries(thing)
    return [importlib.import_module(f".integrations.{name}", __package__) for name in INTEGRATIONS if name in libraries]


def fuse(model: Any) -> Report:
    """Replaces in a live model what the fused operators compute, in place; results stay the same within rounding.

    Bilinear upsampling anywhere in the model's forward (``F.interpolate``, ``nn.Upsample``) is *deferred*: the result
    is a tensor of the full shape that is not written before something reads it. If that is a cross-entropy, softmax,
    log_softmax, argmax, addition or 1x1 convolution, inside the model or in the code that uses its output, the fused
    operator reads the small tensor instead; everything else gets PyTorch's own full tensor. Further:

    - ``nn.ConvTranspose2d`` whose weight is the bilinear filter and gets no gradient samples with two taps per axis;
      a learned one is `conv_transpose_add` where that is faster.
    - ``nn.Conv2d(1x1)`` followed by a softmax in an ``nn.Sequential`` is one operator.
    - Known libraries have more (see `fcn_kernels.integrations`): the SegFormer decoder, image processors, losses.

    Modules stay the same objects with the same parameters, hooks and state_dict keys. What is not provably equal is
    left alone. While torch.compile, torch.export or torch.jit.trace look at the model, it is the original.

    Args:
        model: an nn.Module; a loss module or an image processor of a known library.

    Returns:
        A readable `Report`, empty if there was nothing to fuse. Fusing twice changes nothing more.

    Raises:
        TypeError: model is neither a module nor an object of a library with an integration.
    """
    report = Report(type(model).__name__)
    integrations = _integrations(model)
    if not isinstance(model, nn.Module):
        if not any(integration.fuse_object(model, report) for integration in integrations):
            raise TypeError(
                "fuse: model must be an nn.Module, or an image processor with post_process_semantic_segmentation, "
                f"got {type(model).__name__}"
            )
        return report
    unfuse(model)
    for integration in integrations:
        for warning in filter(None, [integration.untested()]):
            warnings.warn(warning, stacklevel=2)
        for name, m in model.named_modules():
            integration.fuse_module(name, m, report)
    for name, m in model.named_modules():
        if type(m) is nn.ConvTranspose2d:
            _fuse_transposed(name, m, report)
        elif isinstance(m, nn.Sequential) and type(m).forward is nn.Sequential.forward:
            _fuse_sequence(name, m, report)
    _fuse_forward(model, report)
    return report


def unfuse(model: Any) -> Any:
    """Gives every module its own class back; returns the model."""
    for m in model.modules() if isinstance(model, nn.Module) else [model]:
        if isinstance(m, Fused):
            m.__class__ = type(m)._fcn_base
            for name in [name for name in vars(m) if name.startswith("_fcn_")]:
                delattr(m, name)
    return model
