"""The CUDA kernels of upsample_softmax, upsample_argmax and upsample_confusion_matrix on the host: blocks one by one,
their threads as coroutines that meet at barriers and shuffles. On a GPU the operators' own tests run them.
"""

import random

import pytest
import torch
from cuda_host import LABELS, Frame, close, framed, host_module, random_sampling

from fcn_kernels import reference

NAMES = {torch.float32: "float", torch.float64: "double"}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return host_module("cuda_softmax_on_host", tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def backwards(host):
    """Runs a function again with the threads in the opposite order."""

    def run(f):
        host.backwards(True)
        try:
            return f()
        finally:
            host.backwards(False)

    return run


def pack_of(rng: random.Random, sampling: list[int]) -> int:
    """How many neighbouring columns a thread writes: any number that upsample_softmax.cu could choose."""
    width, num, den = sampling[6], sampling[7], sampling[9]
    return rng.choice([1, *(p for p in (4, 4, 8, 8, 8) if width % p == 0 and (p - 1) * num <= 2 * den)])


class Case:
    """Random logits in a frame of NaN, and how a call is spread over threads."""

    def __init__(self, host, seed: int, dtype: torch.dtype = torch.float64, scale: float = 3.0) -> None:
        rng, self.host, self.rng = random.Random(seed), host, random.Random(-seed)
        generator = torch.Generator().manual_seed(seed)
        self.sampling = random_sampling(rng, 5, 24)
        if seed % 2:
            self.sampling[6:8] = 8 * rng.randint(1, 4), rng.randint(0, 3)
        n, c, h, w = rng.randint(1, 2), rng.choice([1, 3, 4, 8, 12, 21]), self.sampling[0], self.sampling[5]
        self.channels_last = seed % 3 == 0
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        x = scale * torch.randn(n, c, h, w, generator=generator, dtype=torch.float64)
        self.x = framed(x.to(dtype, memory_format=layout), torch.nan)
        self.channels_last = self.x.stride(1) == 1 and c > 1
        self.pixels = (n, self.sampling[1], self.sampling[6])
        self.image = torch.empty(n, c, *self.pixels[1:], dtype=dtype, memory_format=layout)
        self.pack = 0 if self.channels_last else pack_of(rng, self.sampling)
        self.wide = self.x.stride(1) == 1 and c % 4 == 0
        self.longest = 4 if dtype == torch.float64 else 8
        self.chunk, self.group = rng.randint(1, c), rng.choice([1, 4, 8, 32])
        self.name = NAMES[dtype]

    def input(self):
        return self.host.Input(
            self.x.data_ptr(), self.x.stride(), self.sampling, self.x.shape[0], self.x.shape[1], self.wide,
            self.longest, self.pack, self.chunk, self.group,
        )  # fmt: skip

    def softmax(self, log: bool) -> torch.Tensor:
        frame = Frame(self.image)
        y = frame.window
        getattr(self.host, f"softmax_{self.name}")(self.input(), log, y.data_ptr(), y.stride())
        return frame.checked()

    def backward(self, grad: torch.Tensor, output: torch.Tensor, log: bool) -> torch.Tensor:
        classes_wide = self.x.shape[1] % 4 == 0 and grad.stride(1) == output.stride(1) == 1
        columns_wide = self.pixels[2] % 4 == 0 and grad.stride(3) == output.stride(3) == 1
        lanes, wide = self.rng.choice([(1, 1), *[(1, 4)] * columns_wide, *[(32, 4), (32, 1)] * classes_wide])
        gather = 0 if self.channels_last else self.rng.choice([1, 8, 32])
        frame = Frame(torch.empty_like(self.x, memory_format=torch.preserve_format))
        dx = frame.window
        arguments = self.host.Gradient(
            grad.data_ptr(), grad.stride(), output.data_ptr(), output.stride(), self.sampling, *self.x.shape[:2],
            lanes, wide, gather,
        )  # fmt: skip
        getattr(self.host, f"softmax_backward_{self.name}")(arguments, log, dx.data_ptr(), dx.stride())
        return frame.checked()

    def argmax(self, dtype: torch.dtype, confidence: bool = True):
        whole = torch.full((self.x.shape[0] + 2, *self.pixels[1:]), 99, dtype=dtype)  # no class
        labels = whole[1:-1]
        sure = torch.full(self.pixels, torch.nan, dtype=self.x.dtype)
        getattr(self.host, f"argmax_{self.name}")(
            self.input(), labels.data_ptr(), LABELS.index(dtype), sure.data_ptr() if confidence else 0
        )
        assert whole[0].eq(99).all()
        assert whole[-1].eq(99).all()
        return labels, sure

    def expected(self, log: bool) -> torch.Tensor:
        return reference.upsample_softmax(self.x.double(), self.sampling, log)

    def check_labels(self, labels: torch.Tensor) -> None:
        """Equal to the reference, but for classes within a few ulp of each other."""
        z = reference.upsample(self.x.double(), self.sampling)
        best, chosen = z.amax(1), z.gather(1, labels.long()[:, None]).squeeze(1)
        finite = self.x[self.x.isfinite()].double()
        band = 8 * torch.finfo(self.x.dtype).eps * (finite.abs().max().item() if finite.numel() else 0.0)
        nan = best.isnan()
        assert labels.long()[nan].equal(z.argmax(1)[nan])
        assert ((chosen >= best - band) | (chosen == best))[~nan].all()


@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
@pytest.mark.parametrize("seed", range(24))
def test_softmax_and_gradient(host, seed, log):
    case = Case(host, seed)
    y = case.softmax(log)
    close(y, case.expected(log), 1e-12)
    grad = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    # Any strides: as the output, one of all pixels, all of a row.
    grad = [grad.contiguous(memory_format=torch.channels_last), grad, grad[..., :1].expand(y.shape)][seed // 3 % 3]
    close(case.backward(grad, y, log), reference.upsample_softmax_backward(grad, y, case.sampling, log), 1e-11)


@pytest.mark.parametrize("scale", [3.0, 1e4, 1e30])
@pytest.mark.parametrize("seed", range(100, 106))
def test_float32_with_far_logits(host, seed, scale):
    """Progressions where they hold, output by output where they would underflow."""
    case = Case(host, seed, torch.float32, scale)
    case.x[:, :, 0, 0] = scale  # all classes alike: 1 / C, however large
    close(case.softmax(True), case.expected(True), 4e-6)
    p = case.softmax(False)
    assert p.isfinite().all()
    close(p.sum(1), torch.ones(case.pixels, dtype=torch.float64), 4e-6)
    if scale < 1e3:
        close(p, case.expected(False), 4e-6)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("seed", range(200, 206))
def test_values_that_are_not_finite_go_where_they_are_read(host, seed, value):
    case = Case(host, seed)
    case.x[0, 0, 0, 0] = value
    case.x[:, -2:, -1, -1] = value  # of two classes the first wins
    for log in (False, True):
        close(case.softmax(log), case.expected(log), 1e-12)
    labels, sure = case.argmax(torch.int64)
    case.check_labels(labels)
    close(sure, reference.upsample_argmax(case.x, case.sampling, torch.int64, True)[1], 1e-12)


@pytest.mark.parametrize("seed", range(300, 306))
def test_the_order_of_the_threads_changes_no_bit(host, backwards, seed):
    case = Case(host, seed, torch.float32)
    y = case.softmax(False)
    assert backwards(lambda: case.softmax(False)).equal(y)
    case.rng = random.Random(seed)
    dx = case.backward(y, y, False)
    case.rng = random.Random(seed)
    assert backwards(lambda: case.backward(y, y, False)).equal(dx)
    labels, sure = case.argmax(torch.int32)
    again, sure_again = backwards(lambda: case.argmax(torch.int32))
    assert labels.equal(again)
    assert sure.equal(sure_again)


def test_every_output_is_stored_once(host):
    rng = random.Random(0)
    for i in range(40):
        sampling = random_sampling(rng, 5, 32)
        if i % 2:
            sampling[6:8] = 8 * rng.randint(1, 4), rng.randint(0, 3)
        channels, pack = rng.choice([1, 3, 8]), 0 if i % 5 == 0 else pack_of(rng, sampling)
        arguments = host.Input(
            0, [], sampling, rng.randint(1, 2), channels, pack == 0 and channels == 8, rng.choice([4, 8]), pack,
            rng.randint(1, channels), rng.choice([1, 4, 8]),
        )  # fmt: skip
        assert host.softmax_stores(arguments, False) == [1, 1], (sampling, pack)


@pytest.mark.parametrize("seed", range(400, 424))
def test_argmax(host, seed):
    case = Case(host, seed, torch.float32 if seed % 4 else torch.float64)
    if seed % 2:  # smooth, so that most tiles are decided at their corners
        case.x.copy_(case.x.cumsum(3) + 20 * case.x[:, :, :1, :1])
    labels, sure = case.argmax(LABELS[seed % 4])
    case.check_labels(labels)
    oracle = reference.upsample_argmax(case.x.double(), case.sampling, torch.int64, True)[1]
    close(sure, oracle, 1e-5 if case.x.dtype == torch.float32 else 1e-12)
    assert case.argmax(LABELS[seed % 4], confidence=False)[0].equal(labels)


@pytest.mark.parametrize("seed", range(500, 506))
def test_the_lowest_class_wins_ties(host, seed):
    """Equal classes tie exactly, whatever the weights: undecided tiles, decided ones and those with infinities."""
    case = Case(host, seed, torch.float32)
    case.x[:] = case.x[:, :1].clone()
    assert not case.argmax(torch.uint8)[0].any()
    if case.x.shape[1] > 2:
        case.x[:, 0] -= 1
        expected = reference.upsample_argmax(case.x, case.sampling, torch.uint8, False)[0]
        assert case.argmax(torch.uint8)[0].equal(expected)
        case.x[:, 0] = -torch.inf  # a class that is masked out
        z = reference.upsample(case.x, case.sampling)
        assert case.argmax(torch.uint8)[0].equal((z[:, 0] < z[:, 1]).to(torch.uint8))


@pytest.mark.parametrize("seed", range(600, 612))
def test_confusion_matrix(host, backwards, seed):
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    shape, classes = [rng.randint(1, 2), rng.randint(1, 30), rng.randint(1, 30)], rng.choice([1, 2, 5, 21])
    ignore_index = rng.choice([None, 0, 255])
    winners = torch.randint(0, classes, shape, generator=generator, dtype=torch.int32)
    frame = torch.full((shape[0], shape[1] + 2, shape[2] + 2), 99, dtype=LABELS[seed % 4])  # no class
    target = frame[:, 1:-1, 1:-1]
    target.copy_(torch.randint(0, classes, shape, generator=generator))
    if ignore_index is not None:
        target[torch.rand(shape, generator=generator) < 0.2] = ignore_index
    expected = reference.count_labels(winners.long(), target, classes, ignore_index)

    def count():
        matrix = torch.full((classes, classes), -7)
        wrong = host.confusion_matrix(
            winners.data_ptr(), target.data_ptr(), LABELS.index(target.dtype), target.stride(), shape, classes,
            ignore_index, rng.choice([1, 3]), matrix.data_ptr(),
        )  # fmt: skip
        return wrong, matrix

    wrong, matrix = count()
    assert wrong == -1
    assert matrix.equal(expected)
    for place in sorted(rng.sample(range(winners.numel()), min(3, winners.numel()))):
        target[place // shape[2] // shape[1], place // shape[2] % shape[1], place % shape[2]] = 99
    first = (target == 99).flatten().nonzero()[0].item()
    for wrong, matrix in (count(), backwards(count)):
        assert wrong == first
        assert matrix.eq(-1).all()


def test_units_hold_every_output_once(host):
    rng = random.Random(1)
    for _ in range(2000):
        sampling, batch = random_sampling(rng, 7, 40), rng.randint(1, 2)
        assert set(host.coverage(sampling, batch, rng.choice([2, 4, 8]))) == {1}, sampling
