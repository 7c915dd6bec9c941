"""PyTorch's own sample inputs, replayed through the operators where the semantics overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fcn_kernels as fk
from fcn_kernels import Sampling

Pair = tuple[Tensor, Tensor]  # ours, torch's


@cache
def infos() -> dict[str, Any]:
    from torch.testing._internal.common_methods_invocations import op_db  # seconds

    wanted = {"nn.functional.interpolate": "bilinear", "softmax": "", "log_softmax": ""}
    return {op.name: op for op in op_db if op.variant_test_name == wanted.get(op.name, "")}


def samples(name: str, dtype: torch.dtype) -> Iterator[tuple[Tensor, tuple, dict]]:
    torch.manual_seed(0)
    for sample in infos()[name].sample_inputs("cpu", dtype, requires_grad=False):
        yield sample.input, sample.args, sample.kwargs


def interpolate(x: Tensor, args: tuple, options: dict) -> Pair | None:
    names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
    given = dict(zip(names, args, strict=False)) | options
    if given.get("mode") != "bilinear" or given.get("antialias") or given.get("recompute_scale_factor"):
        return None
    corners = bool(given.get("align_corners"))
    size, factor = given.get("size"), given.get("scale_factor")
    sampling = Sampling.interpolate(x.shape[2:], size, scale_factor=factor, align_corners=corners)
    return fk.upsample(x, sampling), F.interpolate(x, **given)


def conv_transpose(x: Tensor, args: tuple, options: dict) -> Pair | None:
    names = ("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    given = dict(zip(names, args, strict=False)) | options

    def pair(name: str, default: int) -> tuple[int, int]:
        value = given.get(name, default)
        value = (value, value) if isinstance(value, int) else tuple(value)
        return value * 2 if len(value) == 1 else value

    if x.dim() != 4 or pair("dilation", 1) != (1, 1) or pair("output_padding", 0) != (0, 0):
        return None
    expected = F.conv_transpose2d(x, **given)
    ours = fk.conv_transpose_add(
        x,
        given["weight"],
        stride=pair("stride", 1),
        groups=given.get("groups", 1),
        offset=pair("padding", 0),
        output_size=tuple(expected.shape[2:]),
    )
    return ours if given.get("bias") is None else ours + given["bias"].view(-1, 1, 1), expected


def cross_entropy(x: Tensor, args: tuple, options: dict) -> Pair | None:
    (target, *rest) = args
    if rest or target.is_floating_point() or x.dim() < 2:
        return None
    image = x.reshape(x.shape[0], x.shape[1], 1, -1)
    loss = fk.upsample_cross_entropy(image, target.reshape(x.shape[0], 1, -1), **options)
    return loss.reshape(target.shape) if options.get("reduction") == "none" else loss, F.cross_entropy(
        x, target, **options
    )


def along_classes(ours: Callable, theirs: Callable) -> Callable:
    def replay(x: Tensor, args: tuple, options: dict) -> Pair | None:
        dim = args[0] if args else options["dim"]
        if x.dim() < 1 or x.numel() == 0 or options.get("dtype") is not None:
            return None
        moved = x.movedim(dim, 0)
        image = moved.reshape(1, moved.shape[0], 1, -1)
        y = ours(image, image.shape[2:]).view(moved.shape).movedim(0, dim)
        return y, theirs(x, dim)

    return replay


def conv2d(x: Tensor, args: tuple, options: dict) -> Pair | None:
    """The first tap of the kernel as a 1x1 convolution."""
    weight, bias = (*args, None)[:2]
    if x.dim() != 4 or x.shape[0] == 0 or options.get("groups", 1) != 1:
        return None
    bias = options.get("bias", bias)
    one = weight[:, :, :1, :1]
    return fk.score_log_softmax(x, one, bias), F.conv2d(x, one, bias).log_softmax(1)


REPLAYS: dict[str, tuple[Callable[[Tensor, tuple, dict], Pair | None], int]] = {
    "nn.functional.interpolate": (interpolate, 8),
    "nn.functional.conv_transpose2d": (conv_transpose, 2),
    "nn.functional.cross_entropy": (cross_entropy, 10),
    "softmax": (along_classes(fk.upsample_softmax, torch.softmax), 4),
    "log_softmax": (along_classes(fk.upsample_log_softmax, torch.log_softmax), 4),
    "nn.functional.conv2d": (conv2d, 4),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", REPLAYS)
def test_replayed(name: str, dtype: torch.dtype) -> None:
    replay, least = REPLAYS[name]
    done = 0
    for x, args, options in samples(name, dtype):
        pair = replay(x, args, options)
        if pair is None:
            continue
        ours, theirs = pair
        tolerance = {"rtol": 5e-2, "atol": 5e-2} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(ours, theirs.to(ours.dtype), equal_nan=True, **tolerance)
        done += 1
    assert done >= least, f"{done} of torch's samples fit {name}"
