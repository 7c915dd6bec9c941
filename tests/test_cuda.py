"""The CUDA C++ kernels on a GPU: against the float64 reference, the same bits again, captured in a graph. Elsewhere
test_cuda_*.py run the kernels on the host. The tests of each operator include the cuda backend where there is a GPU.
"""

import pytest
import torch

import fcn_kernels as fk
from fcn_kernels import backends

OBSTACLE = backends.device_obstacle("cuda") or next(
    c.reason for c in backends.candidates("upsample_cross_entropy", "cuda") if c.backend == "cuda"
)
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(OBSTACLE is not None, reason=f"no CUDA kernels run here: {OBSTACLE}"),
]

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def operands(dtype=torch.float32, layout=torch.contiguous_format, classes=24):
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(2, classes, 13, 17, device="cuda", generator=generator, dtype=torch.float64)
    target = torch.randint(0, classes, (2, 101, 133), device="cuda", generator=generator)
    target[torch.rand(target.shape, device="cuda", generator=generator) < 0.1] = 255
    return x.to(dtype, memory_format=layout).requires_grad_(), target


def loss_and_gradient(x, target, **options):
    loss = fk.upsample_cross_entropy(x, target, ignore_index=255, label_smoothing=0.1, **options)
    return loss.detach(), *torch.autograd.grad(loss.sum(), x)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_upsample_cross_entropy(dtype, layout, reduction):
    x, target = operands(dtype, layout)
    with fk.use_backend("cuda"):
        actual = loss_and_gradient(x, target, reduction=reduction)
    with fk.use_backend("reference"):
        expected = loss_and_gradient(x.detach().double().requires_grad_(), target, reduction=reduction)
    tolerances = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 4e-6, torch.float64: 1e-11}
    for a, b in zip(actual, expected, strict=True):
        scale = b.abs().max().item()
        tolerance = tolerances[a.dtype] * scale
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance, check_stride=False)


def test_upsample_cross_entropy_gives_the_same_bits_again():
    x, target = operands()
    with fk.use_backend("cuda"):
        first = loss_and_gradient(x, target)
        for _ in range(10):
            assert all(torch.equal(a, b) for a, b in zip(first, loss_and_gradient(x, target), strict=True))


def test_upsample_cross_entropy_in_a_graph():
    """No host reads: a graph captures the call."""
    x, target = operands()
    with fk.use_backend("cuda"):
        expected = loss_and_gradient(x, target)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = loss_and_gradient(x, target)
        graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(expected, captured, strict=True))


def test_a_wrong_label_makes_the_loss_nan():
    x, target = operands()
    target[0, 0, 0] = 24
    with fk.use_backend("cuda"):
        assert loss_and_gradient(x, target)[0].isnan()
