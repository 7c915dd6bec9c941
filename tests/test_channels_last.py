"""Channels_last images have kernels of their own, which write whole vectors of channels: numbers of channels that fill
no vector, outputs that leave the cache, taps that are not read; on every instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from budget import check_budget
from cases import ADVERSARIAL, DTYPES, SAMPLINGS, parametrized
from torch import Tensor

from fcn_kernels import Sampling, reference

pytestmark = pytest.mark.usefixtures("on_instruction_set")
CHANNELS = (1, 3, 18, 45)  # a rest in every vector; softmax goes pixel by pixel from 16 or 32 on


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def results(x: Tensor, skip: Tensor, sampling: Sampling, ops: object) -> Iterator[tuple[str, Tensor]]:
    """Names and values of all operators with such kernels; the skip is larger than the output by a pixel."""
    code, (height, width) = sampling.encode(), sampling.output_size
    grad = channels_last(skip[..., :height, :width])
    sigmoid = ops.upsample_sigmoid(x, code)
    yield "upsample", ops.upsample(x, code)
    yield "upsample_add", ops.upsample_add(x, skip, code, [1, 1], 0.5)
    yield "upsample_sigmoid", sigmoid
    yield "upsample_softmax", ops.upsample_softmax(x, code, False)
    yield "upsample_log_softmax", ops.upsample_softmax(x, code, True)
    yield "upsample_backward", ops.upsample_backward(grad, code)
    yield "upsample_sigmoid_backward", ops.upsample_sigmoid_backward(grad, sigmoid, code)


def compare(x: Tensor, skip: Tensor, sampling: Sampling) -> None:
    reached = float(sampling.output_size[0] * sampling.output_size[1])  # all outputs may read one input
    plain = dict(results(x, skip, sampling, reference))
    oracle = dict(results(x.double(), skip.double(), sampling, reference))
    for name, value in results(x, skip, sampling, torch.ops.fcn_kernels):
        check_budget(value, plain[name], oracle[name], x, gain=reached)


def skip_of(x: Tensor, sampling: Sampling) -> Tensor:
    height, width = sampling.output_size
    return channels_last(torch.randn(*x.shape[:2], height + 1, width + 1).to(x.dtype))


@pytest.mark.parametrize("sampling", **parametrized(SAMPLINGS))
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_samplings(dtype: torch.dtype, channels: int, sampling: Sampling) -> None:
    x = channels_last(torch.randn(2, channels, *sampling.input_size).to(dtype))
    compare(x, skip_of(x, sampling), sampling)


@pytest.mark.parametrize("values", ADVERSARIAL)
@pytest.mark.parametrize("factor", [1.5, 3, 11], ids=str)  # of 3 and 11, some outputs lie on inputs; 11 is cut up
def test_values(values: str, factor: float) -> None:
    sampling = Sampling.interpolate((6, 10), (int(6 * factor), int(10 * factor)))
    x = channels_last(ADVERSARIAL[values](torch.randn(1, 45, 6, 10)))
    compare(x, channels_last(ADVERSARIAL[values](skip_of(x, sampling))), sampling)


# More than 8 MiB are written past the cache, in float32; more than 2 MiB with a skip, or to be converted, in order.
@pytest.mark.parametrize(
    ("mebibytes", "channels", "size"),
    [
        *((8, 45, (251, 199)), (8, 64, (192, 176)), (8, 2, (4500, 240)), (2, 45, (131, 111)), (2, 3, (800, 240))),
        (8, 2, (1100, 1001)),  # more than 8 outputs between two columns, which are not written from left to right
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_outputs(dtype: torch.dtype, mebibytes: int, channels: int, size: tuple[int, int]) -> None:
    if dtype == torch.bfloat16:
        size = (2 * size[0], size[1])
    sampling = Sampling.interpolate((17, 31), size)
    x = channels_last(torch.randn(1, channels, *sampling.input_size).to(dtype))
    assert channels * size[0] * size[1] * x.element_size() > mebibytes << 20
    compare(x, skip_of(x, sampling), sampling)


def test_a_skip_whose_channels_lie_apart() -> None:
    sampling = Sampling.interpolate((5, 7), (13, 37))
    x = channels_last(torch.randn(2, 45, 5, 7))
    compare(x, torch.randn(2, 45, 14, 38), sampling)
    compare(x, channels_last(torch.randn(2, 49, 14, 38))[:, 2:-2], sampling)
