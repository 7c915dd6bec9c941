"""What the CPU kernels refuse themselves, before memory is touched: for callers of torch.ops who pass by the public
functions. Integers near 2^63 must not wrap around into a window that seems to fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fcn_kernels as fk
from fcn_kernels import Sampling
from fcn_kernels._library import load_extension

OPS = torch.ops.fcn_kernels
LARGEST = 2**63 - 1
pytestmark = pytest.mark.skipif(load_extension() is None, reason="the package was built without C++ kernels")


def x() -> torch.Tensor:
    return torch.randn(1, 2, 3, 4)


def sampling(**changes: int) -> list[int]:
    names = ("h", "H", "num", "off", "den", "w", "W", "num_x", "off_x", "den_x", "clamp")
    code = dict(zip(names, Sampling.interpolate((3, 4), (6, 8)).encode(), strict=True))
    return list((code | changes).values())


def transpose(**changes: Any) -> torch.Tensor:
    args = {"stride": [2, 2], "groups": 1, "offset": [0, 0], "size": [4, 6], "skip_offset": [0, 0], "scale": 1.0}
    skip = torch.randn(1, 5, 6, 8) if "skip_offset" in changes else None
    return OPS.conv_transpose_add(x(), torch.randn(2, 5, 2, 2), skip, *(args | changes).values())


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "positions": (lambda: OPS.upsample(x(), sampling(num=2**61)), "overflows 64-bit positions"),
    "denominator": (lambda: OPS.upsample(x(), sampling(den=LARGEST)), "overflows 64-bit positions"),
    "offset": (lambda: OPS.upsample(x(), sampling(off=-(2**63))), "overflows 64-bit positions"),
    "size": (lambda: OPS.upsample_argmax(x(), sampling(W=2**31), torch.uint8, False), "expected at most 2147483647"),
    "negative": (lambda: OPS.upsample(x(), sampling(num=-1)), "positive sizes and denominators"),
    "short": (lambda: OPS.upsample(x(), sampling()[:10]), "10 integers, expected 11"),
    "skip": (
        lambda: OPS.upsample_add(x(), torch.randn(1, 2, 9, 9), sampling(), [0, LARGEST], 1.0),
        "the window of 6 x 8 leaves the skip of 9 x 9",
    ),
    "stride": (lambda: transpose(stride=[1, 2**61]), "stride must be at most 65536"),
    "crop": (lambda: transpose(offset=[LARGEST, 0]), "the crop of 4 x 6 leaves the transposed convolution of 6 x 8"),
    "crop size": (lambda: transpose(offset=[1, 1], size=[LARGEST, 1]), "leaves the transposed convolution"),
    "skip of a convolution": (lambda: transpose(skip_offset=[LARGEST, 0]), "leaves the skip of 6 x 8"),
    "wide input": (
        lambda: OPS.conv_transpose_add(
            torch.zeros(()).expand(1, 1, 1, 2**50),
            torch.ones(1, 1, 1, 1),
            None,
            [1, 2**16],
            1,
            [0, 0],
            [1, 1],
            [0, 0],
            1.0,
        ),
        "expected at most 2147483647 each way",
    ),
    # As many elements as are expected, in another shape.
    "gradient of a softmax": (
        lambda: OPS.upsample_softmax_backward(torch.randn(4, 3, 6, 8), torch.randn(2, 6, 6, 8), sampling(), False),
        "must have the same shape",
    ),
    "gradient of a binary loss": (
        lambda: OPS.upsample_binary_cross_entropy_backward(
            torch.randn(2, 1, 6, 8), x(), torch.rand(1, 2, 6, 8), None, sampling(), None
        ),
        "one value per pixel",
    ),
    "gradient of a loss": (
        lambda: OPS.upsample_cross_entropy_backward(
            torch.randn(1, 8, 6), x(), torch.zeros(1, 6, 8).long(), None, torch.randn(1, 6, 8), sampling(), -100, 0.0
        ),
        "one value per pixel",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(RuntimeError, match=message):
        call()


def test_the_public_function_says_it_first() -> None:
    with pytest.raises(ValueError, match=r"conv_transpose_add: stride must be at most 65536, got \[1, 65537\]"):
        fk.conv_transpose_add(x(), torch.randn(2, 5, 2, 2), stride=[1, 65537])
    huge = fk.conv_transpose_add(x(), torch.randn(2, 5, 2, 2), stride=(65536, 4), output_size=(3, 3))
    assert not huge[:, :, 2:].any()
    assert huge[:, :, :2, :2].all()


def test_scratch_that_does_not_fit() -> None:
    """No std::bad_alloc: a sentence with the size."""
    with pytest.raises(RuntimeError, match=r"not enough memory: \d+ x 1 bytes of scratch"):
        fk.conv_transpose_add(x(), torch.randn(2, 5, 2, 2), stride=(65536, 65535), output_size=(3, 3))
