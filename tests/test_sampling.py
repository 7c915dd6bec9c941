"""Geometry: the formulas against torch's own operators, derived crops, and what is refused."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from cases import SAMPLINGS
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_kernels import CoordinateMap, Sampling, reference
from fcn_kernels.sampling import Axis, is_copied

SAME = Axis(5, 5, 1, 0, 1)


def bilinear_filter(k: int, channels: int) -> torch.Tensor:
    """FCN's initialisation of a depthwise transposed convolution."""
    factor = (k + 1) // 2
    centre = factor - 1 if k % 2 else factor - 0.5
    w = 1 - (torch.arange(k, dtype=torch.float64) - centre).abs() / factor
    return (w[:, None] * w).expand(channels, 1, k, k).contiguous()


@pytest.mark.parametrize(
    ("k", "s", "c"),
    [(4, 2, 5), (16, 8, 31), (64, 32, 19), (63, 32, 18), (3, 2, 1), (5, 3, 2), (8, 4, 3), (1, 1, 0), (2, 1, 0)],
)
def test_transposed_conv_and_crop(k: int, s: int, c: int) -> None:
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    full = F.conv_transpose2d(x, bilinear_filter(k, 3), stride=s, groups=3)
    size = (full.shape[2] - c, full.shape[3] - c - 1)
    sampling = Sampling.transposed_conv((5, 7), s, kernel_size=k, offset=c, output_size=size)
    expected = full[..., c : c + size[0], c : c + size[1]]
    torch.testing.assert_close(reference.upsample(x, sampling.encode()), expected, rtol=0, atol=3e-15)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(20, 28), (13, 37), (5, 7), (3, 4), (1, 1), (2, 30), (160, 1)])
def test_interpolate_size(size: tuple[int, int], align_corners: bool) -> None:
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    sampling = Sampling.interpolate((5, 7), size, align_corners=align_corners)
    expected = F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(reference.upsample(x, sampling.encode()), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("factor", [2, 2.5, 0.37, 1 / 3, 1.0, (1.7, 3.3), 0.51])
def test_interpolate_factor(factor: float, align_corners: bool) -> None:
    """The coordinates use the factor itself: for 2.5 times 5 pixels that differs from 12 / 5."""
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    sampling = Sampling.interpolate((5, 7), scale_factor=factor, align_corners=align_corners)
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(reference.upsample(x, sampling.encode()), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("size", "factor"), [((3, 5), 1.3), ((20, 20), 1.04), ((5, 4), 1.2), ((9, 10), 1.1), ((1, 7), (1.9, 1.14))]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_axis_that_keeps_its_size_is_copied(
    size: tuple[int, int], factor: float, align_corners: bool, layout: torch.memory_format
) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=layout)
    sampling = Sampling.interpolate(size, scale_factor=factor, align_corners=align_corners)
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(reference.upsample(x, sampling.encode()), expected, rtol=0, atol=1e-13)


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(1, 5000), factor=st.floats(1, 2, exclude_min=True) | st.integers(1, 5000).map(lambda n: 1 + 1 / n)
)
def test_which_factors_keep_a_size(size: int, factor: float) -> None:
    kept = math.floor(size * factor) == size
    assert is_copied((size, 2), (factor, 2.0)) == kept
    rows = Sampling.interpolate((size, 2), scale_factor=(factor, 2.0)).rows
    assert (rows == Axis(size, size, 1, 0, 1)) == kept


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 90), st.booleans(), st.integers(1, 12), st.booleans(), st.data())
def test_positions_are_exact(size: int, out: int, corners: bool, stride: int, odd: bool, data: st.DataObject) -> None:
    axis = Sampling.interpolate(size, out, align_corners=corners).rows
    for o in (0, out // 2, out - 1):
        if corners:
            expected = Fraction(o * (size - 1), out - 1) if out > 1 else 0
        else:
            expected = (o + Fraction(1, 2)) * size / out - Fraction(1, 2)
        assert axis.position(o) == expected
    k = 2 * stride - odd
    c = data.draw(st.integers(0, (size - 1) * stride + k - 1))
    axis = Sampling.transposed_conv(size, stride, kernel_size=k, offset=c).rows
    assert axis.position(0) == (c - Fraction(k - 1, 2)) / stride
    assert axis.position(axis.output_size - 1) < size  # two taps reach everything


def test_adjoint_of_every_axis() -> None:
    """<A x, y> = <x, A' y>, and A' is what autograd derives from the specification of A."""
    for name, s in SAMPLINGS:
        x = torch.randn(2, 2, *s.input_size, dtype=torch.float64, requires_grad=True)
        y = reference.upsample(x, s.encode())
        g = torch.randn_like(y)
        (expected,) = torch.autograd.grad(y, x, g)
        ours = reference.upsample_backward(g, s.encode())
        torch.testing.assert_close(ours, expected, rtol=1e-13, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}")


def test_large_sizes_are_exact() -> None:
    """Where float32 coordinates drift by pixels: 2^24 + 1 rows."""
    axis = Sampling.interpolate((2**24 + 1, 1), (2**26, 1)).rows
    assert axis.position(2**26 - 1) == (2**26 - Fraction(1, 2)) * Fraction(2**24 + 1, 2**26) - Fraction(1, 2)


def vgg16(padding: int = 100) -> tuple[dict[int, CoordinateMap], CoordinateMap]:
    """Coordinates of VGG16's pools and of the convolutionalized classifier, as FCN lays them out."""
    layer, pools = CoordinateMap(), {}
    for block, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
        for i in range(convolutions):
            layer = layer.conv(3, padding=padding if block == 1 and i == 0 else 1)
        layer = pools[block] = layer.pool(2, 2)
    return pools, layer.conv(7).conv(1).conv(1)


def test_crops_of_fcn_follow() -> None:
    """The authors' numbers come out: 19 (32s), 5 and 27 (16s), 5, 9 and 31 (8s), 18 (AlexNet)."""
    image = CoordinateMap()
    pools, score = vgg16()
    assert score.deconv(64, 32).crop_offset(image) == 19
    fused4 = score.deconv(4, 2)
    assert pools[4].crop_offset(fused4) == 5
    assert fused4.deconv(32, 16).crop_offset(image) == 27
    fused3 = fused4.deconv(4, 2)
    assert pools[3].crop_offset(fused3) == 9
    assert fused3.deconv(16, 8).crop_offset(image) == 31
    alexnet = image.conv(11, 4, 100).pool(3, 2).conv(5, padding=2).pool(3, 2)
    alexnet = alexnet.conv(3, padding=1).conv(3, padding=1).conv(3, padding=1).pool(3, 2).conv(6).conv(1)
    assert alexnet.deconv(63, 32).crop_offset(image) == 18


def test_coordinate_maps_compose() -> None:
    image = CoordinateMap()
    conv = image.conv(3, 2, 1, dilation=2)
    assert (conv.scale, conv.shift) == (2, 1)
    assert conv.then(conv.inverse()) == image
    assert image.crop(3).shift == 3
    sampling = Sampling.transposed_conv(9, 8, offset=31)
    deconv = image.deconv(16, 8).crop(31)
    assert deconv.scale * 5 + deconv.shift == sampling.rows.position(5)


def test_coordinate_maps_refuse() -> None:
    image = CoordinateMap()
    with pytest.raises(ValueError, match="different scales, 1 and 2"):
        image.crop_offset(image.pool(2, 2))
    with pytest.raises(ValueError, match="differ by 1/2 pixels"):
        image.crop_offset(image.conv(2))
    with pytest.raises(ValueError, match="differ by -1 pixels"):
        image.crop(1).crop_offset(image)
    with pytest.raises(ValueError, match="stride must be at least 1"):
        image.conv(3, 0)
    with pytest.raises(ValueError, match="scale 0"):
        CoordinateMap(Fraction(0)).inverse()


def test_value_object() -> None:
    a, b = Sampling.interpolate(64, 512), Sampling.interpolate((64, 64), [512, 512])
    assert a == b
    assert hash(a) == hash(b)
    assert a != Sampling.interpolate(64, 512, align_corners=True)
    assert (a.input_size, a.output_size, a.boundary) == ((64, 64), (512, 512), "clamp")
    assert a.encode() == [64, 512, 2, -7, 16, 64, 512, 2, -7, 16, 1]
    assert Sampling.transposed_conv(16, 2).encode() == [16, 34, 2, -3, 4, 16, 34, 2, -3, 4, 0]
    with pytest.raises(AttributeError):
        a.boundary = "zero"


def test_transposed_conv_defaults() -> None:
    assert Sampling.transposed_conv(16, 8).output_size == (136, 136)  # kernel 16
    assert Sampling.transposed_conv(16, 3) == Sampling.transposed_conv(16, 3, kernel_size=5)
    assert Sampling.transposed_conv(16, 8, offset=31).output_size == (105, 105)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Sampling.transposed_conv(5, 0), ValueError, "stride must be at least 1, got 0"),
        (lambda: Sampling.transposed_conv(0, 2), ValueError, "input_size must be at least 1, got 0"),
        (lambda: Sampling.transposed_conv(5, 2, kernel_size=5), ValueError, "kernel_size 3 or 4, got 5"),
        (lambda: Sampling.transposed_conv(5, 2, offset=-1), ValueError, "leaves the output"),
        (lambda: Sampling.transposed_conv(5, 2, offset=12), ValueError, "empty or leaves"),
        (
            lambda: Sampling.transposed_conv(5, 2, offset=4, output_size=9),
            ValueError,
            r"\[4, 13\) is empty or leaves the output \[0, 12\)",
        ),
        (lambda: Sampling.transposed_conv(5, 2, output_size=0), ValueError, "empty"),
        (lambda: Sampling.transposed_conv(5, 2.0), TypeError, "stride must be an int or a pair of ints, got 2.0"),
        (lambda: Sampling.transposed_conv((5, 5, 5), 2), ValueError, "pair"),
        (lambda: Sampling.transposed_conv(True, 2), TypeError, "input_size"),
        (lambda: Sampling.interpolate(5, 0), ValueError, "size must be at least 1, got 0"),
        (lambda: Sampling.interpolate(0, 5), ValueError, "input_size must be at least 1"),
        (lambda: Sampling.interpolate(5, -3), ValueError, "size must be at least 1, got -3"),
        (lambda: Sampling.interpolate(5, 2**40), ValueError, "from 1 to"),
        (lambda: Sampling.interpolate(5, 10**30), ValueError, "from 1 to"),
        (lambda: Sampling.interpolate(5), ValueError, "exactly one of size and scale_factor"),
        (lambda: Sampling.interpolate(5, 5, scale_factor=2), ValueError, "exactly one"),
        (lambda: Sampling.interpolate(5, scale_factor=0.1), ValueError, "leave no output"),
        (lambda: Sampling.interpolate(5, scale_factor=float("nan")), ValueError, "positive and finite"),
        (lambda: Sampling.interpolate(5, scale_factor=-1), ValueError, "positive and finite"),
        (lambda: Sampling.interpolate(5, scale_factor=(1, 2, 3)), ValueError, "pair"),
        (lambda: Sampling.interpolate(5, "5"), TypeError, "size must be an int"),
        (lambda: Sampling(Axis(5, 5, 2**60, 0, 1), SAME, "zero"), ValueError, "overflows 64-bit positions"),
        (lambda: Sampling(SAME, Axis(5, 5, 1, 2**62, 1), "zero"), ValueError, "overflows 64-bit positions"),
        (lambda: Sampling(Axis(5, 5, 1, 0, 0), SAME, "zero"), ValueError, "den > 0"),
        (lambda: Sampling(SAME, SAME, "wrap"), ValueError, "'wrap'"),
    ],
)
def test_refused(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
