"""The CUDA kernels of upsample_cross_entropy on the host: blocks one by one, their threads as coroutines that
meet at barriers and shuffles. On a GPU the operator's own tests run them.
"""

import random

import pytest
import torch
from cuda_host import LABELS, Frame, close, framed, host_module, random_axis, random_sampling

from fcn_kernels import reference


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return host_module("cuda_cross_entropy_on_host", tmp_path_factory.mktemp("cuda"))


class Case:
    """A random call, and what the kernels and the reference make of it."""

    def __init__(self, host, seed: int, dtype: torch.dtype = torch.float64, scale: float = 3.0) -> None:
        rng, self.host = random.Random(seed), host
        generator = torch.Generator().manual_seed(seed)
        self.sampling = random_sampling(rng, 5, 24)
        n, c, h, w = rng.randint(1, 2), rng.choice([1, 3, 4, 8, 12, 21]), self.sampling[0], self.sampling[5]
        self.pixels = (n, self.sampling[1], self.sampling[6])
        channels_last = rng.random() < 0.5
        self.x = scale * torch.randn(n, c, h, w, generator=generator, dtype=torch.float64)
        self.x = self.x.to(dtype, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        self.x = framed(self.x, torch.nan)
        self.target = torch.randint(0, c, self.pixels, generator=generator).to(LABELS[seed % 4])
        self.ignore_index = rng.choice([-100, 255, 0])
        if seed % 4 != 0 or self.ignore_index >= 0:
            self.target[torch.rand(self.pixels, generator=generator) < 0.2] = self.ignore_index
        frame = torch.full((n, self.pixels[1] + 2, self.pixels[2] + 2), 99, dtype=self.target.dtype)  # no class
        frame[:, 1:-1, 1:-1] = self.target
        self.target = frame[:, 1:-1, 1:-1]
        self.weight = torch.rand(c, generator=generator).to(dtype) + 0.5 if rng.random() < 0.5 else None
        self.smoothing = rng.choice([0.0, 0.1])
        self.longest = 4 if dtype == torch.float64 else 8
        self.strip = rng.choice([1, 2, 16])
        self.wide = self.x.stride(1) == 1 and c % 4 == 0
        self.name = {torch.float32: "float", torch.float64: "double"}[dtype]

    def arguments(self):
        x, target, weight = self.x, self.target, self.weight
        return self.host.Arguments(
            x.data_ptr(), x.stride(), self.sampling, x.shape[0], x.shape[1], target.data_ptr(),
            LABELS.index(target.dtype), target.stride(), self.ignore_index, 0 if weight is None else weight.data_ptr(),
            self.smoothing, self.wide, self.longest, self.strip,
        )  # fmt: skip

    def reduced(self, divisor: float = 0.0):
        """Loss, total weight, losses of the pixels, their log-sum-exp, gradient of the sum."""
        loss, absolute = (torch.full(self.pixels, torch.nan, dtype=self.x.dtype) for _ in range(2))
        frame = Frame(self.x)
        dx = frame.window
        value, total = getattr(self.host, f"reduced_{self.name}")(
            self.arguments(), divisor, loss.data_ptr(), absolute.data_ptr(), dx.data_ptr(), dx.stride()
        )
        return value, total, loss, absolute, frame.checked()

    def backward(self, absolute, grad):
        frame = Frame(self.x)
        dx = frame.window
        getattr(self.host, f"backward_{self.name}")(
            self.arguments(), absolute.data_ptr(), grad.data_ptr(), grad.stride(), dx.data_ptr(), dx.stride()
        )
        return frame.checked()

    def expected(self, reduction: int):
        weight = None if self.weight is None else self.weight.double()
        return reference.upsample_cross_entropy(
            self.x.double(), self.target, weight, self.sampling, self.ignore_index, reduction, self.smoothing, True
        )


@pytest.mark.parametrize("seed", range(24))
def test_loss_and_gradient(host, seed):
    case = Case(host, seed)
    value, total, loss, absolute, dx = case.reduced()
    expected, expected_total, expected_dx, _ = case.expected(reference.MEAN)
    pixel_loss, _, _, lse = case.expected(reference.NONE)
    close(torch.tensor([value, total], dtype=torch.float64), torch.stack([expected, expected_total]), 1e-11)
    close(loss, pixel_loss, 1e-12)
    close(absolute, lse, 1e-12)
    close(dx, expected_dx, 1e-11)

    grad = torch.randn(case.pixels, dtype=torch.float64)[:, :, :1].expand(case.pixels)  # any strides
    expected_dx = reference.upsample_cross_entropy_backward(
        grad, case.x, case.target, case.weight, lse, case.sampling, case.ignore_index, case.smoothing
    )
    close(case.backward(lse, grad), expected_dx, 1e-11)


@pytest.mark.parametrize("scale", [3.0, 1e3, 1e30])
@pytest.mark.parametrize("seed", range(100, 104))
def test_float32_with_far_logits(host, seed, scale):
    """Chains where they hold, pixel by pixel where they would underflow."""
    case = Case(host, seed, torch.float32, scale)
    _, _, loss, _, dx = case.reduced()
    close(loss, case.expected(reference.NONE)[0], 2e-6)
    # Where the best two classes tie to the rounding of the logits, no float32 gradient has digits.
    if scale < 1e3:
        close(dx, case.expected(reference.SUM)[2], 4e-6)
    assert dx.isfinite().all()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("seed", range(200, 204))
def test_values_that_are_not_finite_go_where_they_are_read(host, seed, value):
    case = Case(host, seed)
    case.x[0, 0, 0, 0] = value
    _, _, loss, absolute, _ = case.reduced()
    expected, _, _, lse = case.expected(reference.NONE)
    smooth = case.smoothing > 0
    if not smooth:
        close(loss, expected, 1e-12)
    close(absolute, lse, 1e-12)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("seed", range(204, 208))
def test_a_weight_of_zero_does_not_hide_values_that_are_not_finite(host, seed, value):
    case = Case(host, seed)
    case.x[0, 0, 0, 0] = value
    case.weight = torch.zeros(case.x.shape[1], dtype=case.x.dtype)
    *_, absolute, dx = case.reduced()
    close(dx, case.expected(reference.SUM)[2], 1e-11)
    options = (case.sampling, case.ignore_index, case.smoothing)
    expected = reference.upsample_cross_entropy_backward(
        torch.ones(case.pixels, dtype=torch.float64), case.x, case.target, case.weight, absolute, *options
    )
    close(case.backward(absolute, torch.ones(case.pixels, dtype=torch.float64)), expected, 1e-11)


@pytest.mark.parametrize("seed", range(300, 306))
def test_the_order_of_the_threads_changes_no_bit(host, seed):
    """Each output is written once, and what threads share they share between barriers."""
    case = Case(host, seed, torch.float32)
    forwards = case.reduced()
    host.backwards(True)
    try:
        backwards = case.reduced()
    finally:
        host.backwards(False)
    assert forwards[:2] == backwards[:2] or case.target.eq(case.ignore_index).all()
    for a, b in zip(forwards[2:], backwards[2:], strict=True):
        assert torch.equal(a.nan_to_num(7), b.nan_to_num(7))


@pytest.mark.parametrize("seed", range(400, 404))
def test_a_wrong_label_makes_the_loss_nan(host, seed):
    case = Case(host, seed)
    case.target = case.target.long()
    case.target[0, 0, 0] = case.x.shape[1]
    value, _, loss, _, _ = case.reduced()
    assert torch.tensor(value).isnan()
    assert loss.isnan().sum() == 1
    assert loss[0, 0, 0].isnan()


def test_segments_hold_every_output_once(host):
    rng = random.Random(0)
    for _ in range(20000):
        axis, longest = random_axis(rng), rng.choice([2, 4, 8])
        assert host.coverage(axis, longest) == [1] * axis[1], (axis, longest)
