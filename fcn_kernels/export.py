"""Exported programs: the operators put into one, and taken out again for whoever knows PyTorch's operators only.

`fuse` is for runtimes that load this package (`torch.export.save`, AOTInductor); `decompose` and `to_onnx` for those
that do not (ONNX Runtime and others).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.fx import Graph
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.fx.node import map_arg

from . import reference
from ._library import NAMESPACE
from .inductor import CompilePass
from .reference import arithmetic_dtype

__all__ = ["decompose", "fuse", "to_onnx"]


def fuse(program: ExportedProgram) -> CompilePass:
    """Swaps the operators into an exported program, in place: `fcn_kernels.compile_pass` on its graph.

    For models of any library, which `torch.export` records in PyTorch's operators. Signature and parameters stay.

    Returns:
        The pass, which says what it `matched`, and what it `left` alone and why.

    Raises:
        TypeError: program is not what `torch.export.export` returns.
    """
    _check_program("fuse", program)
    fusing = CompilePass()
    module = program.graph_module
    with module._set_replace_hook(program.graph_signature.get_replace_hook()):
        fusing(module.graph)
    _describe(module.graph)
    module.recompile()
    return fusing


def _describe(graph: Graph) -> None:
    """Gives the nodes that are new the fake results that savers and compilers look for."""
    mode = detect_fake_mode([node.meta.get("val") for node in graph.nodes])
    for node in graph.nodes:
        if node.op == "call_function" and "val" not in node.meta:
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
            with mode, torch.no_grad():
                node.meta["val"] = node.target(*args, **kwargs)


def decompose(program: ExportedProgram) -> ExportedProgram:
    """A program that computes the same with PyTorch's own operators.

    Upsampling becomes ``F.interpolate``, or a depthwise transposed convolution with the bilinear filter and a crop; a
    sampling that is neither is two gathers and a weighted sum per axis. Losses and counts are not for inference, and
    refused.

    Raises:
        TypeError: program is not what `torch.export.export` returns.
        ValueError: it contains an operator that is no inference operator.
    """
    _check_program("decompose", program)
    program = program.run_decompositions(dict(_decompositions()))
    left = sorted({str(node.target) for node in program.graph.nodes if _is_ours(node.target)})
    if left:
        raise ValueError(
            f"decompose: the program contains {', '.join(left)}; only inference operators can be decomposed: export "
            "the network without its loss, its gradients and its counts"
        )
    return program


def to_onnx(
    model: nn.Module,
    args: tuple[Any, ...],
    path: Any = None,
    *,
    kwargs: dict[str, Any] | None = None,
    dynamic_shapes: Any = None,
    **options: Any,
) -> torch.onnx.ONNXProgram:
    """ONNX of a model that uses the operators: `torch.export`, `decompose` and `torch.onnx.export`.

    Args:
        model: it is exported as it stands, in its mode: call ``eval()`` before.
        args: example inputs, as for `torch.export.export`.
        path: file to write, or None.
        kwargs: example inputs by name.
        dynamic_shapes: as for `torch.export.export`.
        options: further options of `torch.onnx.export`, such as input_names.

    Returns:
        What `torch.onnx.export` returns.

    Raises:
        What `decompose` and torch's exporters raise. They need the packages onnx and onnxscript.
    """
    with torch.no_grad():
        program = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes)
        return torch.onnx.export(decompose(program), args, path, kwargs=kwargs, dynamo=True, **options)


def _check_program(name: str, program: Any) -> None:
    if not isinstance(program, ExportedProgram):
        raise TypeError(
            f"{name}: program must be what torch.export.export returns, an ExportedProgram, "
            f"got {type(program).__name__}"
        )


def _is_ours(target: Any) -> bool:
    return getattr(target, "namespace", None) == NAMESPACE


# --- upsampling in standard operators ------------------------------------------------------------------------------


def _same(a: Any, b: Any) -> bool:
    """Equal for all sizes that a dynamic program may be called with."""
    return statically_known_true(a == b)


def _is_resized(axis: Sequence[int], align_corners: bool) -> bool:
    """``pos(o) = (o + 1/2) in / out - 1/2``, or with aligned corners ``o (in - 1) / (out - 1)``."""
    size, out, num, off, den = axis
    if align_corners:
        return _same(off, 0) and (_same(out, 1) or _same(num * (out - 1), (size - 1) * den))
    return _same(num * out, size * den) and _same(2 * out * off, (size - out) * den)


def _factor(axis: Sequence[int]) -> float | None:
    """s of ``pos(o) = (o + 1/2) / s - 1/2``, if s in float32 gives the same size."""
    size, out, num, off, den = axis
    if not all(isinstance(n, int) for n in (num, off, den)) or num == 0 or 2 * off != num - den:
        return None
    if num != den and isinstance(size, int) and size == out:
        return None  # on the CPU torch copies, whatever the factor
    factor = den / num
    (rounded,) = struct.unpack("f", struct.pack("f", factor))
    if rounded == factor:
        return factor
    static = isinstance(size, int) and isinstance(out, int)
    return factor if static and math.floor(size * factor) == math.floor(size * rounded) == out else None


def _filter(axis: Sequence[int]) -> tuple[int, int, int] | None:
    """Stride, kernel, offset of the transposed convolution: ``pos(o) = (o + offset - (kernel - 1) / 2) / stride``."""
    size, out, num, off, den = axis
    if not all(isinstance(n, int) for n in (num, off, den)) or num == 0 or den % num != 0:
        return None
    stride = den // num
    twice, rest = divmod(2 * off, num)  # twice the shift of the position, in output pixels
    if rest != 0:
        return None
    kernel = 2 * stride if twice % 2 else 2 * stride - 1
    offset = (twice + kernel - 1) // 2
    full = (size - 1) * stride + kernel
    return (stride, kernel, offset) if offset >= 0 and statically_known_true(offset + out <= full) else None


def _transposed(x: Tensor, rows: Sequence[int], cols: Sequence[int]) -> Tensor | None:
    found = _filter(rows), _filter(cols)
    if found[0] is None or found[1] is None:
        return None
    (sy, ky, oy), (sx, kx, ox) = found
    weight = reference.bilinear_filter(ky)[:, None] * reference.bilinear_filter(kx)
    weight = weight.to(device=x.device, dtype=x.dtype).expand(x.shape[1], 1, ky, kx)
    y = F.conv_transpose2d(x, weight, stride=(sy, sx), groups=x.shape[1])
    return y[:, :, oy : oy + rows[1], ox : ox + cols[1]]


def _upsampled(x: Tensor, sampling: Sequence[int]) -> Tensor:
    """`reference.upsample` in the dtype of the arithmetic, in operators that every runtime has."""
    x = x.to(arithmetic_dtype(x.dtype))
    rows, cols = sampling[:5], sampling[5:10]
    size = (rows[1], cols[1])
    if sampling[10]:
        for align_corners in (False, True):
            if _is_resized(rows, align_corners) and _is_resized(cols, align_corners):
                return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)
        factors = _factor(rows), _factor(cols)
        if None not in factors:
            y = F.interpolate(x, scale_factor=factors, mode="bilinear")
            if _same(y.shape[2], size[0]) and _same(y.shape[3], size[1]):
                return y
    else:
        y = _transposed(x, rows, cols)
        if y is not None:
            return y
    x = reference._sample_axis(x, 2, rows, sampling[10])
    return reference._sample_axis(x, 3, cols, sampling[10])


def _upsample(x: Tensor, sampling: Sequence[int]) -> Tensor:
    return _upsampled(x, sampling).to(x.dtype)


def _upsample_add(
    x: Tensor, skip: Tensor, sampling: Sequence[int], skip_offset: Sequence[int], skip_scale: float
) -> Tensor:
    y = _upsampled(x, sampling)
    window = skip[:, :, skip_offset[0] : skip_offset[0] + sampling[1], skip_offset[1] : skip_offset[1] + sampling[6]]
    window = window.to(y.dtype)
    return (y + (window if skip_scale == 1 else skip_scale * window)).to(x.dtype)


def _upsample_softmax(x: Tensor, sampling: Sequence[int], log: bool) -> Tensor:
    z = _upsampled(x, sampling)
    return (z.log_softmax(1) if log else z.softmax(1)).to(x.dtype)


def _upsample_argmax(x: Tensor, sampling: Sequence[int], dtype: torch.dtype, confidence: bool) -> tuple[Tensor, Tensor]:
    z = _upsampled(x, sampling)
    return z.argmax(1).to(dtype), z.softmax(1).amax(1) if confidence else z.new_empty(0)


def _upsample_sigmoid(x: Tensor, sampling: Sequence[int]) -> Tensor:
    return _upsampled(x, sampling).sigmoid().to(x.dtype)


def _decompositions() -> dict[Any, Callable]:
    ops = torch.ops.fcn_kernels
    return {
        ops.upsample.default: _upsample,
        ops.upsample_add.default: _upsample_add,
        ops.upsample_softmax.default: _upsample_softmax,
        ops.upsample_argmax.default: _upsample_argmax,
        ops.upsample_sigmoid.default: _upsample_sigmoid,
        ops.conv_transpose_add.default: reference.conv_transpose_add,
        ops.conv_transpose_concat.default: reference.conv_transpose_concat,
        ops.score_softmax.default: reference.score_softmax,
        ops.score_argmax.default: reference.score_argmax,
    }
