"""Modules: equal to the torch modules they replace, with the same state_dicts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fcn_kernels as fk
from fcn_kernels.nn import (
    BilinearConvTranspose2d,
    ConvTransposeConcat,
    ScoreSoftmax,
    SkipFusion,
    UpsampleArgmax,
    UpsampleCrossEntropyLoss,
    bilinear_weight,
)


@pytest.mark.parametrize("groups", [1, 5])
@pytest.mark.parametrize(("k", "s"), [(4, 2), (3, 2), (16, 8), (5, 3), (1, 1)])
def test_bilinear_conv_transpose_replaces_torch(k: int, s: int, groups: int) -> None:
    theirs = nn.ConvTranspose2d(5, 5, k, s, groups=groups, bias=False, dtype=torch.float64)
    theirs.load_state_dict({"weight": bilinear_weight(5, k, groups=groups, dtype=torch.float64)})
    ours = BilinearConvTranspose2d(5, k, s, groups=groups, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x, offset=1, output_size=4), theirs(x)[:, :, 1:5, 1:5])
    assert not list(ours.parameters())


def test_bilinear_conv_transpose_loads_half_checkpoints() -> None:
    ours = BilinearConvTranspose2d(3, 15, 8)
    ours.load_state_dict({"weight": bilinear_weight(3, 15).bfloat16()})


def test_bilinear_conv_transpose_refuses_a_learned_weight() -> None:
    model = nn.Sequential(BilinearConvTranspose2d(3, 4, 2))
    weight = bilinear_weight(3, 4)
    weight[0, 1, 2, 2] = 1e-3  # off the diagonal
    with pytest.raises(RuntimeError, match=r"0\.weight is not the bilinear filter .* use nn.ConvTranspose2d"):
        model.load_state_dict({"0.weight": weight})
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict({"0.weight": bilinear_weight(3, 4, groups=3)})
    with pytest.raises(ValueError, match="kernel_size 3 or 4, got 6"):
        BilinearConvTranspose2d(3, 6, 2)
    with pytest.raises(ValueError, match="groups must be 1 or channels = 4, got 2"):
        BilinearConvTranspose2d(4, 4, 2, groups=2)
    with pytest.raises(ValueError, match="x must have 3 channels, got 2"):
        model(torch.randn(1, 2, 4, 4))


def test_skip_fusion() -> None:
    x, skip = torch.randn(1, 3, 5, 6, dtype=torch.float64), torch.randn(1, 3, 20, 20, dtype=torch.float64)
    full = F.conv_transpose2d(x, bilinear_weight(3, 4, groups=3, dtype=torch.float64), stride=2, groups=3)
    expected = full + 0.01 * skip[:, :, 5:17, 5:19]
    torch.testing.assert_close(SkipFusion(skip_offset=5, skip_scale=0.01)(x, skip), expected)


@pytest.mark.parametrize("size", [(14, 15), (10, 12)])
def test_conv_transpose_concat(size: tuple[int, int]) -> None:
    theirs = nn.ConvTranspose2d(4, 6, 2, 2, groups=2)
    ours = ConvTransposeConcat(4, 6, groups=2)
    ours.load_state_dict(theirs.state_dict())
    x, skip = torch.randn(2, 4, 5, 6), torch.randn(2, 3, *size)
    oy, ox = (size[0] - 10) // 2, (size[1] - 12) // 2
    torch.testing.assert_close(ours(x, skip), torch.cat([skip[:, :, oy : oy + 10, ox : ox + 12], theirs(x)], dim=1))
    with pytest.raises(ValueError, match="skip has 14 x 11 pixels, fewer than the 10 x 12 that x of 5 x 6 becomes"):
        ours(x, torch.randn(2, 3, 14, 11))


@pytest.mark.parametrize("log", [False, True])
def test_score_softmax(log: bool) -> None:
    conv = nn.Conv2d(8, 5, 1)
    ours = ScoreSoftmax(8, 5, log=log)
    ours.load_state_dict(conv.state_dict())
    x = torch.randn(2, 8, 6, 7)
    expected = conv(x).log_softmax(1) if log else conv(x).softmax(1)
    torch.testing.assert_close(ours(x), expected)
    ours(x).square().sum().backward()
    assert ours.weight.grad.shape == (5, 8, 1, 1)


def test_upsample_cross_entropy_loss() -> None:
    weight = torch.rand(5)
    theirs = nn.CrossEntropyLoss(weight, ignore_index=3, label_smoothing=0.1)
    ours = UpsampleCrossEntropyLoss(weight, ignore_index=3, label_smoothing=0.1)
    ours.load_state_dict(theirs.state_dict())
    x, target = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 24, 21))
    torch.testing.assert_close(ours(x, target), theirs(F.interpolate(x, size=(24, 21), mode="bilinear"), target))
    assert UpsampleCrossEntropyLoss(reduction="mean_all")(x, target, (24, 21)).isfinite()
    with pytest.raises(ValueError, match="reduction must be one of"):
        UpsampleCrossEntropyLoss(reduction="average")
    with pytest.raises(ValueError, match="label_smoothing must lie in"):
        UpsampleCrossEntropyLoss(label_smoothing=2)


def test_upsample_argmax() -> None:
    x = torch.randn(2, 5, 6, 7)
    labels, confidence = UpsampleArgmax((24, 21), dtype=torch.uint8, return_confidence=True)(x)
    assert labels.equal(fk.upsample_argmax(x, (24, 21), dtype=torch.uint8))
    assert confidence.shape == labels.shape
    assert UpsampleArgmax()(x, 9).shape == (2, 9, 9)
    with pytest.raises(ValueError, match="no sampling was given"):
        UpsampleArgmax()(x)


def test_modules_print_their_options() -> None:
    assert repr(BilinearConvTranspose2d(3, 4, 2)) == "BilinearConvTranspose2d(3, kernel_size=4, stride=2, groups=1)"
    assert "skip_offset=(5, 5)" in repr(SkipFusion(skip_offset=5))
    assert "stride=2, kernel_size=3," in repr(SkipFusion(kernel_size=3))
    assert "ignore_index=255" in repr(UpsampleCrossEntropyLoss(ignore_index=255))
    assert repr(ScoreSoftmax(3, 4, log=True)) == "ScoreSoftmax(3, 4, kernel_size=(1, 1), stride=(1, 1), log=True)"
    shown = repr(UpsampleArgmax((4, 5), dtype=torch.uint8, return_confidence=True))
    assert shown == "UpsampleArgmax((4, 5), dtype=torch.uint8, return_confidence=True)"


def test_bilinear_conv_transpose_by_default() -> None:
    assert BilinearConvTranspose2d(3).weight.equal(bilinear_weight(3, 4))
    assert BilinearConvTranspose2d(3, stride=3).weight.equal(bilinear_weight(3, 5))


IMAGE = torch.randn(3, 4, 5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: BilinearConvTranspose2d(3, (4, 4)), TypeError, r"BilinearConvTranspose2d: kernel_size must be an int"),
        (lambda: BilinearConvTranspose2d(3, 4, (2, 2)), TypeError, r"BilinearConvTranspose2d: stride must be an int"),
        (lambda: BilinearConvTranspose2d(0), ValueError, "BilinearConvTranspose2d: channels must be at least 1"),
        (lambda: BilinearConvTranspose2d(3)(IMAGE), ValueError, r"x must be \[N, C, H, W\], got shape \[3, 4, 5\]"),
        (lambda: ConvTransposeConcat(3, 2)(IMAGE, IMAGE), ValueError, r"Concat: x must be \[N, C, H, W\], got shape"),
        (lambda: ConvTransposeConcat(3, 2)(IMAGE[None], IMAGE), ValueError, r"Concat: skip must be \[N, C, H, W\]"),
        (lambda: SkipFusion(skip_scale=float("nan")), ValueError, "SkipFusion: skip_scale must be finite, got nan"),
        (lambda: SkipFusion(skip_offset=(1, 2, 3)), ValueError, "SkipFusion: skip_offset must be an int or a pair"),
        (lambda: SkipFusion(skip_offset=-1), ValueError, "SkipFusion: skip_offset must be at least 0"),
        (lambda: UpsampleCrossEntropyLoss(ignore_index="a"), TypeError, "Loss: ignore_index must be an int, got 'a'"),
        (lambda: UpsampleArgmax("x"), TypeError, "UpsampleArgmax: sampling must be an int, got 'x'"),
        (lambda: UpsampleArgmax((4, 0)), ValueError, "UpsampleArgmax: sampling must be at least 1"),
        (lambda: UpsampleArgmax(dtype=torch.float32), TypeError, "UpsampleArgmax: dtype must be uint8, int16"),
    ],
)
def test_modules_refuse_what_their_operators_refuse(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
