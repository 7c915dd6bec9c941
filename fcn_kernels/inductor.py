"""A pass of torch.compile's Inductor that swaps the fused operators into any traced model.

    torch.compile(model, options={"pre_grad_custom_pass": fcn_kernels.compile_pass})

It runs on the graph that Dynamo traced, before gradients are derived: the operators bring their own backward. It finds
bilinear `F.interpolate` whose every reader is a cross-entropy, softmax, log-softmax or argmax over the classes, and
transposed convolutions that are cropped or added to an image. What is not certainly equal is left alone. It reads the
graphs of torch.export, too (`fcn_kernels.export.fuse`).
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.fx import Graph, Node

from ._checks import FLOATING, LABELS, REDUCTIONS
from .reference import arithmetic_dtype
from .sampling import Sampling, is_copied

__all__ = ["CompilePass", "compile_pass"]

_ops = torch.ops.fcn_kernels


class _No(Exception):
    """Why something is left alone."""


class CompilePass(CustomGraphPass):
    """Inductor's `pre_grad_custom_pass`. `matched` and `left` say, per graph that was compiled, what became of what.

    Inductor keeps compiled graphs on disk, and does not run the pass again for a graph that it finds there.
    """

    def __init__(self) -> None:
        self.matched: list[str] = []
        self.left: list[str] = []

    def uuid(self) -> str:
        """For Inductor's cache: another pass, another entry."""
        return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()

    def __str__(self) -> str:
        return "\n".join([*(f"fused: {text}" for text in self.matched), *(f"left: {text}" for text in self.left)])

    def __call__(self, graph: Graph) -> None:
        for node in list(graph.nodes):
            replace = _REPLACE.get(node.target) if node.op == "call_function" else None
            if replace is None:
                continue
            try:
                found = replace(graph, node)
            except _No as reason:
                self.left.append(f"{node.name}: {reason}")
            else:
                if found:
                    self.matched.append(found)
        graph.lint()


# --- reading the graph ---------------------------------------------------------------------------------------------


def _value(node: Any) -> Tensor | None:
    """The fake tensor that a node stands for; only its batch may be dynamic."""
    if not isinstance(node, Node):
        return None
    value = node.meta.get("example_value", node.meta.get("val"))
    if not isinstance(value, Tensor):
        return None
    if not all(isinstance(n, int) for n in value.shape[1:]):
        raise _No(f"the shape of {node.name} is dynamic: compile with dynamic=False, or export with fixed sizes")
    return value


def _bound(function: Callable, node: Node) -> dict[str, Any]:
    """The arguments of a call by the names that `function` gives them."""
    try:
        return function(*node.args, **node.kwargs)
    except TypeError:
        raise _No(f"{node.name} has arguments that are not known") from None


def _interpolate(
    input,
    size=None,
    scale_factor=None,
    mode="nearest",
    align_corners=None,
    recompute_scale_factor=None,
    antialias=False,
):
    return locals()


def _aten_interpolate(self, output_size, align_corners, scale_factors):
    return {
        "input": self,
        "size": output_size,
        "scale_factor": scale_factors,
        "mode": "bilinear",
        "align_corners": align_corners,
        "recompute_scale_factor": None,
        "antialias": False,
    }


def _cross_entropy(
    input,
    target,
    weight=None,
    size_average=None,
    ignore_index=-100,
    reduce=None,
    reduction="mean",
    label_smoothing=0.0,
):
    return locals()


def _aten_cross_entropy(self, target, weight=None, reduction=1, ignore_index=-100, label_smoothing=0.0):
    names = {code: name for name, code in REDUCTIONS.items()}
    return _cross_entropy(self, target, weight, None, ignore_index, None, names[reduction], label_smoothing)


def _functional_softmax(input, dim=None, _stacklevel=3, dtype=None):
    return locals()


def _softmax(input, dim=None, dtype=None):
    return locals()


def _argmax(input, dim=None, keepdim=False):
    return locals()


def _aten_softmax(self, dim, dtype=None):
    return _softmax(self, dim, dtype)


def _aten_argmax(self, dim=None, keepdim=False):
    return _argmax(self, dim, keepdim)


def _conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    return locals()


def _add(input, other, *, alpha=1):
    return locals()


def _aten_add(self, other, *, alpha=1):
    return _add(self, other, alpha=alpha)


_aten = torch.ops.aten

# Readers of logits: what they are, and how their arguments are named. Dynamo records calls of torch.nn.functional and
# methods, torch.export the operators below them.
_READERS: dict[Any, tuple[str, Callable]] = {
    F.cross_entropy: ("cross_entropy", _cross_entropy),
    F.softmax: ("softmax", _functional_softmax),
    F.log_softmax: ("log_softmax", _functional_softmax),
    torch.softmax: ("softmax", _softmax),
    torch.log_softmax: ("log_softmax", _softmax),
    "softmax": ("softmax", _softmax),
    "log_softmax": ("log_softmax", _softmax),
    torch.argmax: ("argmax", _argmax),
    "argmax": ("argmax", _argmax),
    _aten.cross_entropy_loss.default: ("cross_entropy", _aten_cross_entropy),
    _aten.softmax.int: ("softmax", _aten_softmax),
    _aten.log_softmax.int: ("log_softmax", _aten_softmax),
    _aten.argmax.default: ("argmax", _aten_argmax),
}
_ADDITIONS = {operator.add: _add, torch.add: _add, "add": _add, _aten.add.Tensor: _aten_add}


def _changes_in_place(node: Node) -> bool:
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.is_mutable
    if "out" in node.kwargs or node.kwargs.get("inplace") or node.target is operator.setitem:
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_method":
        return name.endswith("_") and not name.endswith("__")
    in_place = name.endswith("_") or (name[:1] == "i" and hasattr(operator, name) and hasattr(operator, name[1:]))
    return node.op == "call_function" and in_place


def _check_unchanged(first: Node, last: Node) -> None:
    """Nothing between two nodes writes to a tensor: what the first read may be read by the last."""
    node = first.next
    while node is not last:
        if _changes_in_place(node):
            raise _No(f"{node.name} changes a tensor in place before {last.name} reads the result")
        node = node.next


# --- bilinear upsampling and its readers ---------------------------------------------------------------------------


def _replace_interpolate(graph: Graph, node: Node) -> str | None:
    names = _aten_interpolate if node.target is _aten.upsample_bilinear2d.vec else _interpolate
    arguments = _bound(names, node)
    if arguments["mode"] != "bilinear":
        return None
    x = arguments["input"]
    value, result = _value(x), _value(node)
    if value is None or result is None or value.dim() != 4 or value.dtype not in FLOATING:
        raise _No("it is not an image [N, C, H, W]")
    if arguments["antialias"]:
        raise _No("it is antialiased")
    if arguments["recompute_scale_factor"]:
        arguments["scale_factor"], arguments["size"] = None, tuple(result.shape[2:])
    readers = [_reader(user, node) for user in node.users]
    if not readers:
        return None
    size = arguments["size"]
    sampling = Sampling.interpolate(
        tuple(value.shape[2:]),
        tuple(size) if isinstance(size, Sequence) else size,
        scale_factor=arguments["scale_factor"],
        align_corners=bool(arguments["align_corners"]),
    )
    if sampling.output_size != tuple(result.shape[2:]):
        raise _No("its size is not that of the sampling")
    factor = None if arguments["align_corners"] else arguments["scale_factor"]
    if factor is not None and is_copied(sampling.input_size, factor):
        raise _No("an axis keeps its size, and what torch makes of the factor depends on the device")
    names = []
    for user, (kind, options) in zip(list(node.users), readers, strict=True):
        _check_unchanged(node, user)
        _check_reader(kind, options, value, user)
        names.append(kind)
    for user, (kind, options) in zip(list(node.users), readers, strict=True):
        with graph.inserting_before(user):
            fused = _FUSED[kind](graph, x, list(sampling.encode()), options, user)
        fused.meta = dict(user.meta)
        user.replace_all_uses_with(fused)
        graph.erase_node(user)
    graph.erase_node(node)
    (h, w), (height, width) = sampling.input_size, sampling.output_size
    return f"{node.name}, {value.shape[1]} x {h} x {w} to {height} x {width}, with {', '.join(names)}"


def _reader(user: Node, node: Node) -> tuple[str, dict[str, Any]]:
    found = _READERS.get(user.target) if user.op in ("call_function", "call_method") else None
    if found is None:
        raise _No(f"its result is read by {user.name}, too, which has no fused operator")
    kind, names = found
    options = _bound(names, user)
    if options["input"] is not node:
        raise _No(f"{user.name} reads it as something else than its input")
    return kind, options


def _check_reader(kind: str, options: dict[str, Any], x: Tensor, user: Node) -> None:
    if kind != "cross_entropy":
        if options["dim"] not in (1, -3):
            raise _No(f"{user.name} does not run over the classes")
        if options.get("dtype") is not None or options.get("keepdim"):
            raise _No(f"{user.name} has a dtype, or keeps the dimension")
        return
    target, weight = _value(options["target"]), _value(options["weight"])
    if target is None or target.dtype not in LABELS or target.dim() != 3:
        raise _No(f"the target of {user.name} is not an image of labels")
    if options["weight"] is not None and (
        weight is None or weight.dtype != arithmetic_dtype(x.dtype) or weight.requires_grad
    ):
        raise _No(f"the weights of {user.name} are no constants in {arithmetic_dtype(x.dtype)}")
    if options["size_average"] is not None or options["reduce"] is not None or options["reduction"] not in REDUCTIONS:
        raise _No(f"{user.name} reduces in a way of older PyTorch")
    if not isinstance(options["ignore_index"], int) or not isinstance(options["label_smoothing"], (int, float)):
        raise _No(f"{user.name} has options that are no constants")


def _in_dtype(graph: Graph, node: Node, user: Node) -> Node:
    """The node in the dtype that PyTorch's own result has, which autocast may have chosen."""
    wanted, given = _value(user), _value(node)
    if wanted is None or (given is not None and given.dtype == wanted.dtype):
        return node
    return graph.call_function(_aten.to.dtype, (node, wanted.dtype))


def _fused_cross_entropy(graph: Graph, x: Node, sampling: list[int], o: dict[str, Any], user: Node) -> Node:
    value = _value(x)
    with_grad = value.requires_grad and torch.is_grad_enabled()
    options = (int(o["ignore_index"]), REDUCTIONS[o["reduction"]], float(o["label_smoothing"]), with_grad)
    fused = graph.call_function(_ops.upsample_cross_entropy.default, (x, o["target"], o["weight"], sampling, *options))
    loss = graph.call_function(operator.getitem, (fused, 0))
    wanted = _value(user)
    if wanted is not None and wanted.dtype != arithmetic_dtype(value.dtype):
        return graph.call_function(_aten.to.dtype, (loss, wanted.dtype))
    return loss


def _fused_softmax(log: bool) -> Callable[..., Node]:
    def make(graph: Graph, x: Node, sampling: list[int], o: dict[str, Any], user: Node) -> Node:
        return graph.call_function(_ops.upsample_softmax.default, (_in_dtype(graph, x, user), sampling, log))

    return make


def _fused_argmax(graph: Graph, x: Node, sampling: list[int], o: dict[str, Any], user: Node) -> Node:
    fused = graph.call_function(_ops.upsample_argmax.default, (x, sampling, torch.int64, False))
    return graph.call_function(operator.getitem, (fused, 0))


_FUSED = {
    "cross_entropy": _fused_cross_entropy,
    "softmax": _fused_softmax(False),
    "log_softmax": _fused_softmax(True),
    "argmax": _fused_argmax,
}


# --- transposed convolution, crop, sum -----------------------------------------------------------------------------


def _pair(value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) == 1:
        pair *= 2
    if len(pair) != 2 or not all(isinstance(n, int) for n in pair):
        raise _No("its geometry is not constant")
    return pair


def _window(node: Node, size: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Offset and size of ``y[..., a:b, c:d]``."""
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index = (*index[:at], *(slice(None),) * (5 - len(index)), *index[at + 1 :])
    index = (*index, *(slice(None),) * (4 - len(index)))
    if len(index) != 4 or not all(isinstance(s, slice) and s.step in (None, 1) for s in index):
        raise _No(f"{node.name} is not a crop")
    if any(isinstance(n, Node) for s in index for n in (s.start, s.stop)):
        raise _No(f"the place of {node.name} is not constant")
    ranges = [s.indices(n)[:2] for s, n in zip(index, size, strict=True)]
    if ranges[0] != (0, size[0]) or ranges[1] != (0, size[1]) or any(b <= a for a, b in ranges[2:]):
        raise _No(f"{node.name} is not a crop of whole channels")
    (a, b), (c, d) = ranges[2:]
    return (a, c), (b - a, d - c)


def _aten_window(node: Node, size: Sequence[int]) -> tuple[int, range]:
    """Dimension and range of ``slice(y, dim, start, end, step)``."""
    _, dim, start, end, step = (*node.args, *(0, None, None, 1)[len(node.args) - 1 :])
    if any(isinstance(n, Node) for n in (dim, start, end, step)) or step != 1:
        raise _No(f"{node.name} is not a constant crop")
    return dim, range(size[dim])[slice(start, end)]


def _crop(node: Node, size: Sequence[int]) -> tuple[list[Node], tuple[int, int], tuple[int, int]]:
    """`node` and the nodes behind it that do nothing but crop; offset and size of what is left."""
    chain = [node]
    if len(node.users) == 1:
        (user,) = node.users
        if user.op == "call_function" and user.target is operator.getitem and user.args[0] is node:
            return [node, user], *_window(user, size)
    windows = [range(n) for n in size]
    while len(chain[-1].users) == 1:
        (user,) = chain[-1].users
        if user.target is not _aten.slice.Tensor:
            break
        dim, found = _aten_window(user, [len(w) for w in windows])
        windows[dim] = windows[dim][found.start : found.stop]
        chain.append(user)
    if len(windows[0]) != size[0] or len(windows[1]) != size[1] or not all(windows):
        raise _No(f"{chain[-1].name} is not a crop of whole channels")
    return chain, (windows[2].start, windows[3].start), (len(windows[2]), len(windows[3]))


def _replace_conv_transpose(graph: Graph, node: Node) -> str | None:
    arguments = _bound(_conv_transpose2d, node)
    x, weight, result = _value(arguments["input"]), _value(arguments["weight"]), _value(node)
    if x is None or weight is None or result is None or x.dim() != 4:
        return None
    if len(node.users) != 1:
        return None
    if not isinstance(x.shape[0], int):
        raise _No("its batch is dynamic")
    chain, offset, size = _crop(node, result.shape)
    last, skip = chain[-1], None
    if len(last.users) == 1:
        (user,) = last.users
        names = _ADDITIONS.get(user.target) if user.op in ("call_function", "call_method") else None
        if names is not None:
            sum_of = _bound(names, user)
            other = sum_of["other"] if sum_of["input"] is last else sum_of["input"]
            other_value = _value(other)
            if (
                sum_of["alpha"] == 1
                and other_value is not None
                and other is not last
                and other_value.shape == (*result.shape[:2], *size)
                and other_value.dtype == x.dtype
            ):
                skip, last = other, user
                chain.append(user)
    if last is node:
        return None
    if arguments["bias"] is not None:
        raise _No("it has a bias")
    if _pair(arguments["output_padding"]) != (0, 0) or _pair(arguments["dilation"]) != (1, 1):
        raise _No("it has an output padding or a dilation")
    if not x.dtype == weight.dtype == result.dtype or x.dtype not in FLOATING:
        raise _No("its tensors differ in dtype, or autocast chooses it")
    stride, padding, groups = _pair(arguments["stride"]), _pair(arguments["padding"]), arguments["groups"]
    if x.device.type == "cpu" and groups != x.shape[1] and min(stride) < 8:
        raise _No("PyTorch's own is as fast for so small a stride")
    _check_unchanged(node, last)
    offset = (offset[0] + padding[0], offset[1] + padding[1])
    options = (list(stride), groups, list(offset), list(size), [0, 0], 1.0)
    with graph.inserting_before(last):
        fused = graph.call_function(
            _ops.conv_transpose_add.default, (arguments["input"], arguments["weight"], skip, *options)
        )
    fused.meta = dict(last.meta)
    last.replace_all_uses_with(fused)
    for old in reversed(chain):
        graph.erase_node(old)
    what = " and ".join(["crop"] * (size != tuple(result.shape[2:])) + ["sum"] * (skip is not None)) or "crop"
    return f"{node.name}, {tuple(weight.shape)} with stride {stride[0]}, with its {what}"


_REPLACE: dict[Any, Callable[[Graph, Node], str | None]] = {
    F.interpolate: _replace_interpolate,
    _aten.upsample_bilinear2d.vec: _replace_interpolate,
    _aten.conv_transpose2d.input: _replace_conv_transpose,
    torch.conv_transpose2d: _replace_conv_transpose,
    F.conv_transpose2d: _replace_conv_transpose,
}

compile_pass = CompilePass()
