"""The convolution that a dense layer becomes: equal to PyTorch's, whichever way it goes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from budget import check_budget
from torch import nn
from torch.overrides import TorchFunctionMode

from fcn_kernels.models._dense import DenseConv2d


def large_weights(dilation: int = 1) -> tuple[DenseConv2d, nn.Conv2d]:
    """A layer whose weights no cache holds, and PyTorch's with the same."""
    options = {"kernel_size": (3, 5), "dilation": dilation}
    ours, plain = DenseConv2d(300, 2048, **options).eval(), nn.Conv2d(300, 2048, **options).eval()
    plain.load_state_dict(ours.state_dict())
    return ours, plain


class Convolutions(TorchFunctionMode):  # counts them
    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += function is F.conv2d
        return function(*args, **(kwargs or {}))


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("weights", LAYOUTS, ids=str)
@pytest.mark.parametrize("dilation", [1, 2])
@torch.no_grad()
def test_large_weights_over_a_small_map(
    layout: torch.memory_format, weights: torch.memory_format, dilation: int
) -> None:
    ours, plain = (layer.to(memory_format=weights) for layer in large_weights(dilation))
    x = torch.randn(2, 300, 9, 11).to(memory_format=layout)
    expected = plain(x)
    with Convolutions() as convolutions:
        y = ours(x)
    assert convolutions.count == 0
    assert y.stride() == expected.stride()
    check_budget(y, expected, F.conv2d(x.double(), *(p.double() for p in plain.parameters()), dilation=dilation), x)


def test_dense_convolutions_are_pytorchs_elsewhere() -> None:
    """With gradients, over larger maps, under autocast, in float64; and wrong inputs raise what they did."""
    ours, plain = large_weights()
    x, wide = torch.randn(1, 300, 4, 6), torch.randn(1, 300, 14, 16)
    with Convolutions() as convolutions:
        ours(x).sum().backward()
        plain(x).sum().backward()
        assert torch.equal(ours.weight.grad, plain.weight.grad)
        with torch.no_grad():
            assert torch.equal(ours(wide), plain(wide))
            assert torch.equal(ours(x[0]), plain(x[0]))
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(ours(x), plain(x))
            assert torch.equal(ours.double()(x.double()), plain.double()(x.double()))
    assert convolutions.count == 10
    with torch.no_grad():
        for wrong in (x[:, :200], x[:, :, :2]):
            with pytest.raises(RuntimeError) as expected:
                plain.float()(wrong)
            with pytest.raises(RuntimeError) as raised:
                ours.float()(wrong)
            assert str(raised.value) == str(expected.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit.trace
@torch.no_grad()
def test_dense_convolutions_in_graphs_take_any_size() -> None:
    model = nn.Sequential(large_weights()[0])
    x, wide = torch.randn(1, 300, 4, 6), torch.randn(1, 300, 5, 9)
    for graph in (torch.fx.symbolic_trace(model), torch.jit.trace(model, x)):
        for image in (x, wide):
            torch.testing.assert_close(graph(image), model(image), atol=1e-5, rtol=1e-5)
