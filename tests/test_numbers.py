"""Numbers as arguments: of which types they may be, and what is made of them, in every function alike."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fcn_kernels as fk
from fcn_kernels import Sampling, models
from fcn_kernels.nn import bilinear_weight

X = torch.randn(2, 3, 5, 6)
SKIP = torch.randn(2, 3, 20, 20)
FILTER = torch.randn(3, 3, 4, 4)
SCORE = torch.randn(4, 3)
LABELS = torch.randint(0, 3, (2, 10, 12))
SMALL_LABELS = torch.randint(0, 3, (2, 5, 6))

REAL: dict[str, Callable[[Any], Any]] = {
    "upsample_cross_entropy: label_smoothing": lambda v: fk.upsample_cross_entropy(X, LABELS, label_smoothing=v),
    "score_cross_entropy: label_smoothing": lambda v: fk.score_cross_entropy(
        X, SCORE, None, SMALL_LABELS, label_smoothing=v
    ),
    "upsample_add: skip_scale": lambda v: fk.upsample_add(X, SKIP, (10, 12), skip_scale=v),
    "conv_transpose_add: skip_scale": lambda v: fk.conv_transpose_add(X, FILTER, SKIP, stride=2, skip_scale=v),
    "Sampling.interpolate: scale_factor": lambda v: fk.upsample(X, Sampling.interpolate((5, 6), scale_factor=v)),
    "SkipFusion: skip_scale": lambda v: fk.nn.SkipFusion(skip_scale=v)(X, SKIP),
    "UpsampleCrossEntropyLoss: label_smoothing": lambda v: fk.nn.UpsampleCrossEntropyLoss(label_smoothing=v)(X, LABELS),
}
WHOLE: dict[str, Callable[[Any], Any]] = {
    "upsample_add: skip_offset": lambda v: fk.upsample_add(X, SKIP, (10, 12), skip_offset=v),
    "conv_transpose_add: stride": lambda v: fk.conv_transpose_add(X, FILTER, stride=v),
    "conv_transpose_add: groups": lambda v: fk.conv_transpose_add(X, FILTER[:, :1], stride=2, groups=v),
    "conv_transpose_add: offset": lambda v: fk.conv_transpose_add(X, FILTER, stride=2, offset=v),
    "conv_transpose_add: skip_offset": lambda v: fk.conv_transpose_add(X, FILTER, SKIP, stride=2, skip_offset=v),
    "conv_transpose_concat: skip_offset": lambda v: fk.conv_transpose_concat(X, FILTER, SKIP, stride=2, skip_offset=v),
    "upsample_cross_entropy: ignore_index": lambda v: fk.upsample_cross_entropy(X, LABELS, ignore_index=v),
    "score_cross_entropy: ignore_index": lambda v: fk.score_cross_entropy(X, SCORE, None, SMALL_LABELS, ignore_index=v),
    "upsample_confusion_matrix: ignore_index": lambda v: fk.upsample_confusion_matrix(X, LABELS, ignore_index=v),
    "upsample_binary_cross_entropy: ignore_index": lambda v: fk.upsample_binary_cross_entropy(
        X[:, :1], LABELS.clamp(max=1), ignore_index=v
    ),
    "check_labels: classes": lambda v: fk.check_labels(LABELS.clamp(max=0), v),
    "check_labels: ignore_index": lambda v: fk.check_labels(LABELS, 3, v),
    "SkipFusion: skip_offset": lambda v: fk.nn.SkipFusion(skip_offset=v)(X, SKIP),
    "UpsampleCrossEntropyLoss: ignore_index": lambda v: fk.nn.UpsampleCrossEntropyLoss(ignore_index=v)(X, LABELS),
    "bilinear_weight: channels": lambda v: bilinear_weight(v, 3),
    "bilinear_weight: kernel_size": lambda v: bilinear_weight(3, v),
    "FCN32s: num_classes": lambda v: models.FCN32s(v, channels=(1, 1, 1, 1, 1), hidden=1).eval()(
        torch.zeros(1, 3, 1, 1)
    ),
}


def same(a: Any, b: Any) -> bool:
    return a is b if a is None else a.equal(b)


@pytest.mark.parametrize("name", list(REAL))
def test_real_numbers(name: str) -> None:
    call = REAL[name]
    for value in (np.float64(0.5), np.float32(0.5), Fraction(1, 2)):
        assert same(call(value), call(0.5))
    for value in (1, np.int64(1)):
        assert same(call(value), call(1.0))
    operator, argument = name.split(": ")
    tensor = r"must be a number, got a tensor \(its gradient would be lost\)"
    for value, kind in ((torch.tensor(0.5), tensor), ("0.5", "must be a number, got '0.5'")):
        with pytest.raises(TypeError, match=f"{operator}: {argument} {kind}"):
            call(value)
    for value in (True, Decimal("0.5"), 1j) if "interpolate" in name else (None, True, Decimal("0.5"), 1j):
        with pytest.raises(TypeError, match=f"{operator}: {argument} must be a number, got"):
            call(value)


@pytest.mark.parametrize("name", list(WHOLE))
def test_whole_numbers(name: str) -> None:
    call = WHOLE[name]
    number = 3 if "groups" in name else 1
    with torch.random.fork_rng():
        for value in (np.int64(number), np.uint8(number)):
            assert same(call(value), call(number))
    operator, argument = name.split(": ")
    for value in (1.0, "1", True, torch.tensor(1), np.float64(1)):
        with pytest.raises(TypeError, match=f"{operator}: {argument} must be an int, got"):
            call(value)


@pytest.mark.parametrize("name", [n for n in WHOLE if "offset" in n])
def test_one_number_stands_for_two(name: str) -> None:
    call = WHOLE[name]
    assert call(1).equal(call((1, 1)))
    assert call([np.int64(1), 2]).equal(call((1, 2)))
    with pytest.raises(ValueError, match="must be an int or a pair"):
        call((1, 2, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bilinear_weight(3, 4, dtype=torch.int64), TypeError, "dtype must be float32, .* got torch.int64"),
        (lambda: bilinear_weight(3, 0), ValueError, "kernel_size must be at least 1, got 0"),
        (lambda: bilinear_weight(0, 3), ValueError, "channels must be at least 1, got 0"),
        (lambda: models.FCN8s(0), ValueError, "FCN8s: num_classes must be at least 1, got 0"),
        (lambda: models.FCNAlexNet(-1), ValueError, "FCNAlexNet: num_classes must be at least 1, got -1"),
        (lambda: models.FCNGoogLeNet(0), ValueError, "FCNGoogLeNet: num_classes must be at least 1, got 0"),
    ],
)
def test_what_would_be_empty(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with torch.device("meta"), pytest.raises(error, match=message):
        call()


CONVOLUTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "score_softmax": (
        lambda x, w, b: fk.score_softmax(x, w[:, :, 0, 0], b),
        lambda x, w, b: F.conv2d(x, w[:, :, :1, :1], b),
    ),
    "conv_transpose_add": (
        lambda x, w, b: fk.conv_transpose_add(x, w, b[None, :, None, None].expand(2, 3, 12, 14), stride=2),
        lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2),
    ),
    "conv_transpose_concat": (
        lambda x, w, b: fk.conv_transpose_concat(x, w, torch.zeros(2, 1, 12, 14, dtype=x.dtype), b, stride=2),
        lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2),
    ),
}


@pytest.mark.parametrize("name", list(CONVOLUTIONS))
@pytest.mark.parametrize("wide", ["x", "w", "b", "xw", "wb", "xwb", ""])
def test_autocast_leaves_float64_alone_as_torch_does(name: str, wide: str) -> None:
    ours, theirs = CONVOLUTIONS[name]
    arguments = {"x": X, "w": FILTER, "b": torch.ones(3)}
    arguments = {k: t.double() if k in wide else t for k, t in arguments.items()}
    with torch.autocast("cpu", torch.bfloat16):
        if wide in ("xwb", ""):
            assert ours(**arguments).dtype == theirs(**arguments).dtype
            return
        if not ("transpose" in name and wide == "xw"):  # there torch takes a bias of another dtype
            with pytest.raises(RuntimeError):
                theirs(**arguments)
        with pytest.raises(TypeError, match=r"torch.float64.*(torch.bfloat16|autocast, which leaves float64)"):
            ours(**arguments)
