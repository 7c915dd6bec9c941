"""The CUDA kernels of upsample_binary_cross_entropy and channel_sum on the host: blocks one by one, their threads as
coroutines that meet at barriers and shuffles. On a GPU the operators' own tests run them.
"""

import random

import pytest
import torch
from cuda_host import LABELS, Frame, close, framed, host_module, random_sampling

from fcn_kernels import reference

NUMBERS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return host_module("cuda_binary_on_host", tmp_path_factory.mktemp("cuda"))


class Case:
    """A random call, and what the kernels and the reference make of it."""

    def __init__(self, host, seed: int, dtype: torch.dtype = torch.float64, scale: float = 3.0) -> None:
        rng, self.host = random.Random(seed), host
        generator = torch.Generator().manual_seed(seed)
        self.sampling = random_sampling(rng, rng.choice([3, 9, 40]), 60)
        n, c = rng.randint(1, 2), rng.choice([1, 1, 3, 11])
        self.shape = n, c, self.sampling[1], self.sampling[6]
        self.layout = rng.choice([torch.contiguous_format, torch.channels_last])
        x = scale * torch.randn(n, c, self.sampling[0], self.sampling[5], generator=generator, dtype=torch.float64)
        self.x = framed(x.to(dtype, memory_format=rng.choice([torch.contiguous_format, self.layout])), torch.nan)
        kind = (LABELS + NUMBERS)[seed % 8]
        t = torch.rand(self.shape, generator=generator, dtype=torch.float64)
        t = t if kind.is_floating_point else (t < 0.4)
        self.ignore_index = rng.choice([None, 255, 1])
        target = t.to(kind, memory_format=self.layout)
        if self.ignore_index is not None:
            target[torch.rand(self.shape, generator=generator) < 0.2] = self.ignore_index
        self.target = framed(target, 99)  # no label
        self.pos_weight = torch.rand(c, generator=generator).to(dtype) + 0.5 if rng.random() < 0.5 else None
        self.strip = rng.choice([1, 2, 8])
        self.name = {torch.float32: "float", torch.float64: "double"}[dtype]

    def run(self, divisor: float = 0.0, grad: torch.Tensor | None = None):
        """Loss, total weight, losses of the pixels, gradient of their sum."""
        x, target, none = self.x, self.target, (0, [0] * 4)
        loss, frame = torch.full(self.shape, torch.nan, dtype=x.dtype), Frame(x)
        labels = LABELS.index(target.dtype) if target.dtype in LABELS else 0
        value, total = getattr(self.host, f"binary_{self.name}")(
            x.data_ptr(), x.stride(), self.sampling, *x.shape[:2], target.data_ptr(), target.stride(),
            0 if target.dtype in LABELS else 1 + NUMBERS.index(target.dtype), labels,
            self.ignore_index is not None, self.ignore_index or 0,
            0 if self.pos_weight is None else self.pos_weight.data_ptr(),
            *(none if grad is None else (grad.data_ptr(), grad.stride())), loss.data_ptr(), loss.stride(),
            frame.window.data_ptr(), frame.window.stride(), target.stride(1) == 1 and target.stride(3) != 1, self.strip,
            divisor,
        )  # fmt: skip
        return value, total, loss, frame.checked()

    def arguments(self):
        pos_weight = None if self.pos_weight is None else self.pos_weight.double()
        return self.x.double(), self.target, pos_weight, self.sampling, self.ignore_index

    def expected(self, reduction: int):
        return reference.upsample_binary_cross_entropy(*self.arguments(), reduction, True)


@pytest.mark.parametrize("seed", range(32))
def test_loss_and_gradient(host, seed):
    case = Case(host, seed)
    value, total, loss, dx = case.run()
    expected, expected_total, expected_dx = case.expected(reference.MEAN)
    close(torch.tensor([value, total], dtype=torch.float64), torch.stack([expected, expected_total]), 1e-12)
    close(loss, case.expected(reference.NONE)[0], 1e-13)
    close(dx, expected_dx, 1e-12)
    assert case.run(divisor=4.0)[:2] == (pytest.approx(case.expected(reference.SUM)[0].item() / 4), 4.0)

    grad = torch.randn(case.shape, dtype=torch.float64)[:, :, :1].expand(case.shape)  # any strides
    expected_dx = reference.upsample_binary_cross_entropy_backward(grad, *case.arguments())
    close(case.run(grad=grad)[3], expected_dx, 1e-12)


@pytest.mark.parametrize("scale", [3.0, 1e4, 1e37])
@pytest.mark.parametrize("seed", range(100, 104))
def test_float32_with_far_logits(host, seed, scale):
    case = Case(host, seed, torch.float32, scale)
    _, _, loss, dx = case.run()
    close(loss, case.expected(reference.NONE)[0], 1e-6)
    if scale < 1e4:  # where a logit is zero but for the rounding of large ones, no float32 gradient has digits
        close(dx, case.expected(reference.SUM)[2], 4e-6)
    assert dx.isfinite().all()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("seed", range(200, 206))
def test_values_that_are_not_finite_go_where_they_are_read(host, seed, value):
    case = Case(host, seed)
    case.x[0, 0, 0, 0] = value
    _, _, loss, dx = case.run()
    close(loss, case.expected(reference.NONE)[0], 1e-13)
    close(dx, case.expected(reference.SUM)[2], 1e-12)


@pytest.mark.parametrize("seed", range(300, 308))
def test_the_order_of_the_threads_changes_no_bit(host, seed):
    case = Case(host, seed, torch.float32)
    forwards = case.run(divisor=1.0)
    host.backwards(True)
    try:
        backwards = case.run(divisor=1.0)
    finally:
        host.backwards(False)
    assert forwards[:2] == backwards[:2]
    assert all(torch.equal(a, b) for a, b in zip(forwards[2:], backwards[2:], strict=True))


@pytest.mark.parametrize("wrong", [2, -1])
@pytest.mark.parametrize("seed", range(401, 404))
def test_a_wrong_label_makes_the_loss_nan(host, seed, wrong):
    case = Case(host, seed)
    case.target[0, 0, 0, 0] = wrong
    value, _, loss, dx = case.run()
    assert torch.tensor(value).isnan()
    assert loss.isnan().sum() == 1
    assert loss[0, 0, 0, 0].isnan()
    assert dx.isnan().sum() <= 4


def test_every_output_is_counted_once_and_every_input_written_once(host):
    rng = random.Random(0)
    for _ in range(100):
        case = random_sampling(rng, rng.choice([2, 9, 40])), rng.randint(1, 2), rng.choice([1, 1, 5])
        layout = rng.random() < 0.5, rng.choice([1, 2, 8])
        assert host.covers(*case, *layout), (case, layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(600, 616))
def test_gradients_of_upsample_and_upsample_sigmoid(host, seed, dtype):
    rng = random.Random(seed)
    s = random_sampling(rng, rng.choice([1, 5, 40]), 60)
    n, c = rng.randint(1, 2), rng.choice([1, 3, 11])
    layout = rng.choice([torch.contiguous_format, torch.channels_last])
    grad = framed(torch.randn(n, c, s[1], s[6]).to(dtype, memory_format=layout), torch.nan)
    sigmoid = framed(torch.rand(n, c, s[1], s[6]).to(dtype, memory_format=layout), torch.nan)
    run = getattr(host, f"backward_{'float' if dtype == torch.float32 else 'double'}")
    for output in (None, sigmoid):
        frame = Frame(torch.empty(n, c, s[0], s[5], dtype=dtype).to(memory_format=layout))
        dx, last = frame.window, layout == torch.channels_last
        run(
            grad.data_ptr(), grad.stride(), 0 if output is None else output.data_ptr(), sigmoid.stride(),
            dx.data_ptr(), dx.stride(), s, n, c, last, rng.choice([1, 2, 8]),
        )  # fmt: skip
        if output is None:
            expected = reference.upsample_backward(grad.double(), s)
        else:
            expected = reference.upsample_sigmoid_backward(grad.double(), output.double(), s)
        close(frame.checked(), expected, 2e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("seed", range(500, 520))
def test_channel_sum(host, seed):
    rng = random.Random(seed)
    size = rng.randint(1, 2), rng.choice([1, 3, 8, 36]), rng.randint(1, 6), rng.choice([1, 7, 64, 700])
    dtype = rng.choice([torch.float32, torch.float64])
    layout = rng.choice([torch.contiguous_format, torch.channels_last])
    x = torch.randn(size, dtype=dtype).to(memory_format=layout)
    if rng.random() < 0.5:
        x = framed(x, torch.nan)
    channels_last = x.stride(1) == 1 and size[1] > 1
    strides = list(x.stride())
    along = strides.pop(1 if channels_last else 3)
    whole = size[1] if channels_last else size[3]
    aligned = x.data_ptr() % (4 * x.element_size()) == 0
    wide = along == 1 and aligned and all(k % 4 == 0 for k in (*strides, whole))
    sums, again = (torch.full(size[1:2], torch.nan, dtype=dtype) for _ in range(2))
    call = getattr(host, f"channel_sum_{'float' if dtype == torch.float32 else 'double'}")
    arguments = x.data_ptr(), x.stride(), size, wide, channels_last
    call(*arguments, sums.data_ptr())
    oracle = x.double().sum((0, 2, 3))
    close(sums, oracle, 1e-6 if dtype == torch.float32 else 1e-13)
    host.backwards(True)
    try:
        call(*arguments, again.data_ptr())
    finally:
        host.backwards(False)
    assert torch.equal(sums, again)
