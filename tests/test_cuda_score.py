"""The CUDA kernels over scores on the host: blocks one by one, their threads as coroutines that meet at barriers,
shuffles and products of a warp. On a GPU the operators' own tests run them.
"""

import random

import pytest
import torch
from cuda_host import Rows, close, host_module

from fcn_kernels import reference
from fcn_kernels.reference import arithmetic_dtype

LABELS = (torch.uint8, torch.int16, torch.int32, torch.int64)
TOLERANCES = {torch.float32: 2e-6, torch.float64: 1e-14, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = list(TOLERANCES)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return host_module("cuda_score_on_host", tmp_path_factory.mktemp("cuda"))


class Case:
    """A random call: sizes around those of the tiles, any layout, rows of any alignment, long sums split or not."""

    def __init__(self, host, seed: int, dtype: torch.dtype, scale: float = 1.0) -> None:
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.host, self.dtype, self.name = host, dtype, str(dtype).removeprefix("torch.")
        images, k, pixels = rng.randint(1, 2), rng.choice([1, 7, 16, 33, 64, 70]), rng.choice([1, 5, 16, 63, 64, 130])
        classes = rng.choice([1, 2, 5, 21, 32, 33, 60, 230])
        self.wide = dtype != torch.float64 and rng.random() < 0.5
        self.splits, self.chunk = (2, 64) if k > 64 else (1, k)

        def normal(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        self.x = Rows(scale * normal(images, k, pixels), rng.random() < 0.5, rng.choice([0, 0, 1, 2]))
        self.weight = Rows(normal(1, k, classes), True, rng.choice([0, 0, 1, 2]))
        self.bias = normal(classes) if rng.random() < 0.5 else None
        self.shape = (images, classes, pixels)

    def call(self):
        n, k, p = self.x.view.stride()
        x = self.host.Operand(self.x.view.data_ptr(), (n, p, k), self.shape[2], self.x.channel_lines)
        _, weight_k, weight_c = self.weight.view.stride()
        weight = self.host.Operand(self.weight.view.data_ptr(), (0, weight_c, weight_k), self.shape[1], True)
        bias = 0 if self.bias is None else self.bias.data_ptr()
        return self.host.Call(
            x, weight, bias, self.shape[0], self.x.view.shape[1], self.shape[1], self.wide, self.splits, self.chunk
        )

    def scores(self) -> torch.Tensor:
        """The float64 oracle."""
        z = torch.einsum("ck,nkp->ncp", self.weight.view[0].double().T, self.x.view.double())
        return z if self.bias is None else z + self.bias.double()[:, None]

    def softmax(self, log: bool) -> torch.Tensor:
        out = Rows(torch.full(self.shape, torch.nan, dtype=self.dtype), self.x.channel_lines, 1, fill=7)
        getattr(self.host, f"softmax_{self.name}")(self.call(), out.view.data_ptr(), out.view.stride(), log)
        return out.checked()

    def argmax(self, dtype: torch.dtype) -> torch.Tensor:
        whole = torch.full((self.shape[0] + 2, self.shape[2]), 255, dtype=dtype)  # no class
        getattr(self.host, f"argmax_{self.name}")(self.call(), whole[1:].data_ptr(), LABELS.index(dtype))
        assert (whole[[0, -1]] == 255).all()
        return whole[1:-1]


class LossCase(Case):
    """With labels of any integer type and options."""

    def __init__(self, host, seed: int, dtype: torch.dtype, scale: float = 1.0) -> None:
        super().__init__(host, seed, dtype, scale)
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        n, c, p = self.shape
        self.width = next(w for w in (13, 8, 5, 1) if p % w == 0)
        size = (n, p // self.width, self.width)
        self.target = torch.randint(0, c, size, generator=generator).to(LABELS[seed % 4])
        self.ignore_index = rng.choice([-100, 255, 0])
        if seed % 4 != 0 or self.ignore_index >= 0:
            self.target[torch.rand(size, generator=generator) < 0.2] = self.ignore_index
        frame = torch.full((n, size[1] + 2, size[2] + 2), 99, dtype=self.target.dtype)
        frame[:, 1:-1, 1:-1] = self.target
        self.target = frame[:, 1:-1, 1:-1]
        self.arithmetic = arithmetic_dtype(dtype)
        weighted, self.smoothing = rng.random() < 0.5, rng.choice([0.0, 0.1])
        self.class_weight = torch.rand(c, generator=generator).to(self.arithmetic) + 0.5 if weighted else None

    def loss(self):
        weight = 0 if self.class_weight is None else self.class_weight.data_ptr()
        return self.host.Loss(
            self.target.data_ptr(), LABELS.index(self.target.dtype), self.target.stride(), self.width,
            self.ignore_index, weight, self.smoothing,
        )  # fmt: skip

    def values(self):
        """[loss, total weight], the losses and log-sum-exps of the pixels."""
        loss, level = (torch.full(self.target.shape, torch.nan, dtype=self.arithmetic) for _ in range(2))
        sums = getattr(self.host, f"cross_entropy_{self.name}")(
            self.call(), self.loss(), loss.data_ptr(), level.data_ptr()
        )
        return torch.tensor(sums, dtype=torch.float64), loss, level

    def gradient_in_scores(self, grad: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        out = Rows(torch.full(self.shape, torch.nan, dtype=self.arithmetic), self.x.channel_lines, 0, fill=7)
        getattr(self.host, f"cross_entropy_gradient_{self.name}")(
            self.call(), self.loss(), grad.data_ptr(), grad.stride(), level.data_ptr(), out.view.data_ptr(),
            out.view.stride(),
        )  # fmt: skip
        return out.checked()

    def image(self, t: torch.Tensor) -> torch.Tensor:
        return t.unflatten(2, self.target.shape[1:])

    def expected(self, reduction: int):
        """The oracle's loss, total weight and log-sum-exps."""
        z, weight = self.image(self.scores()), self.class_weight
        loss, weights = reference._cross_entropy(
            "test", z, self.target, None if weight is None else weight.double(), self.ignore_index, self.smoothing
        )
        return *reference.reduce(loss, weights, reduction), reference._logsumexp(z)

    def expected_gradient(self, grad: torch.Tensor) -> torch.Tensor:
        weight = None if self.class_weight is None else self.class_weight.double()
        return reference._cross_entropy_gradient(
            "test", self.image(self.scores()), None, self.target, weight, self.ignore_index, self.smoothing, grad
        ).flatten(2)


@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_softmax(host, seed, dtype, log):
    case = Case(host, seed, dtype)
    z = case.scores()
    expected = z.log_softmax(1) if log else z.softmax(1)
    size = 1 + case.x.view.shape[1] ** 0.5  # the rounding of the scores grows with their sum
    close(case.softmax(log), expected, TOLERANCES[dtype] * size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(100, 108))
def test_argmax(host, seed, dtype):
    case = Case(host, seed, dtype)
    z = case.scores()
    labels = case.argmax(LABELS[seed % 4]).long()
    margin = z.amax(1) - z.gather(1, labels[:, None]).squeeze(1)
    close(margin, torch.zeros_like(margin), 2e-6 if dtype != torch.float64 else 1e-14)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_argmax_of_equals_takes_the_first_and_nan_wins(host, dtype):
    """Zero weights make all scores equal; then biases decide, NaN before infinity."""
    for seed in range(300, 304):
        case = Case(host, seed, dtype)
        case.weight.view.zero_()
        case.bias = torch.zeros(case.shape[1], dtype=dtype)
        assert (case.argmax(torch.int32) == 0).all()
        for value in (1.0, torch.inf, torch.nan):
            case.bias[case.shape[1] // 2 :] = value
            assert (case.argmax(torch.int16) == case.shape[1] // 2).all()
        case.bias[:] = -torch.inf
        assert (case.argmax(torch.int64) == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_softmax_of_values_that_are_not_finite(host, value, dtype):
    for seed in range(400, 404):
        case = Case(host, seed, dtype)
        case.x.view[0, 0, 0] = value
        case.weight.view[0, 0] = 1
        for log in (False, True):
            z = case.scores()
            expected = z.log_softmax(1) if log else z.softmax(1)
            close(case.softmax(log), expected, 8 * TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_softmax_of_far_scores(host, dtype):
    """One class has everything; nothing overflows, whatever the order of the classes."""
    for seed in range(500, 504):
        case = Case(host, seed, dtype)
        case.bias = torch.linspace(-3e4, 3e4, case.shape[1]).to(dtype)
        case.bias = case.bias if seed % 2 else case.bias.flip(0)
        case.x.view.mul_(1e-3)
        close(case.softmax(False), case.scores().softmax(1), TOLERANCES[dtype])
        close(case.softmax(True), case.scores().log_softmax(1), TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_order_of_the_threads_changes_no_bit(host, dtype):
    """What threads share they share between barriers."""
    for seed in range(600, 604):
        case = Case(host, seed, dtype)
        forwards = case.softmax(True), case.argmax(torch.int64)
        host.backwards(True)
        try:
            backwards = case.softmax(True), case.argmax(torch.int64)
        finally:
            host.backwards(False)
        assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_half_types_of_the_host_round_as_torch_does(host):
    """The kernels' results in half types are compared with those of torch."""
    values = torch.cat([torch.randn(2000) * 10.0**e for e in range(-9, 7)])
    values = torch.cat(
        [values, torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 65519, 65520, 6e-8, 2.9e-8])]
    )
    for dtype in (torch.float16, torch.bfloat16):
        ours = torch.empty(values.shape, dtype=dtype)
        getattr(host, f"rounded_{str(dtype).removeprefix('torch.')}")(values.data_ptr(), ours.data_ptr(), len(values))
        assert torch.equal(ours.nan_to_num(7), values.to(dtype).nan_to_num(7))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(700, 706))
def test_cross_entropy(host, seed, dtype):
    case = LossCase(host, seed, dtype)
    sums, loss, level = case.values()
    size = 1 + case.x.view.shape[1] ** 0.5
    tolerance = size * (1e-14 if dtype == torch.float64 else 2e-6)
    value, total, lse = case.expected(reference.MEAN)
    close(sums, torch.stack([value, total]), tolerance)
    close(loss, case.expected(reference.NONE)[0], tolerance)
    close(level, lse, tolerance)

    grad = torch.randn(loss.shape, dtype=loss.dtype)[:, :, :1].expand(loss.shape)  # any strides
    close(case.gradient_in_scores(grad, level), case.expected_gradient(grad.double()), 2 * tolerance)


def test_a_wrong_label_makes_the_loss_nan(host):
    for seed in range(800, 804):
        case = LossCase(host, seed, torch.float32)
        case.target[0, 0, 0] = 231
        sums, loss, level = case.values()
        assert sums[0].isnan()
        assert loss[0, 0, 0].isnan()
        assert loss.isnan().sum() == 1
        assert case.gradient_in_scores(torch.ones_like(loss), level)[0, :, 0].isnan().all()


@pytest.mark.parametrize("scale", [1e2, 1e30])
def test_cross_entropy_of_far_scores(host, scale):
    for seed in range(900, 904):
        case = LossCase(host, seed, torch.float32, scale)
        sums, loss, level = case.values()
        close(loss, case.expected(reference.NONE)[0], 1e-5)
        assert sums[0].isfinite() or (case.target == case.ignore_index).all()
        assert case.gradient_in_scores(torch.ones_like(loss), level).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(1000, 1006))
def test_gradients(host, seed, dtype):
    """Those in x, weight and bias, from one in the scores."""
    case, generator = Case(host, seed, dtype), torch.Generator().manual_seed(seed)
    n, k, p = case.x.view.shape
    g = torch.randn(case.shape, generator=generator, dtype=torch.float64).to(arithmetic_dtype(dtype))
    rows = Rows(g, case.x.channel_lines, 0)
    dx = Rows(torch.full((n, k, p), torch.nan, dtype=dtype), case.x.channel_lines, 1, fill=7)
    dw = torch.full((case.shape[1] + 1, k), torch.nan, dtype=dtype)
    db = torch.full((case.shape[1] + 1,), torch.nan, dtype=dtype)
    getattr(host, f"gradients_{case.name}")(
        case.call(), rows.view.data_ptr(), rows.view.stride(), dx.view.data_ptr(), dx.view.stride(), dw.data_ptr(),
        db.data_ptr(), 1 + seed % 2,
    )  # fmt: skip
    assert dw[-1].isnan().all()
    assert db[-1].isnan()
    weight, x, g = case.weight.view[0].double(), case.x.view.double(), g.double()
    # The gradients of half types are multiplied in TF32, whose 11 bits hold what a half type does of them.
    close(dx.checked(), torch.einsum("kc,ncp->nkp", weight, g), max(TOLERANCES[dtype], 1e-15))
    close(dw[:-1], torch.einsum("ncp,nkp->ck", g, x), TOLERANCES[dtype])
    close(db[:-1], g.sum((0, 2)), TOLERANCES[dtype])


@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_softmax_gradient(host, dtype, log):
    for seed in range(1100, 1104):
        case = LossCase(host, seed, dtype)
        p = case.scores().log_softmax(1) if log else case.scores().softmax(1)
        output, grad = (Rows(t.to(dtype), case.x.channel_lines, 0) for t in (p, torch.randn(case.shape)))
        out = Rows(torch.full(case.shape, torch.nan, dtype=case.arithmetic), case.x.channel_lines, 0, fill=7)
        getattr(host, f"softmax_gradient_{case.name}")(
            case.call(), grad.view.data_ptr(), output.view.data_ptr(), output.view.stride(), case.width, log,
            out.view.data_ptr(), out.view.stride(),
        )  # fmt: skip
        p, g = output.view.double(), grad.view.double()
        expected = g - p.exp() * g.sum(1, keepdim=True) if log else p * (g - (p * g).sum(1, keepdim=True))
        close(out.checked(), expected, 1e-14 if dtype == torch.float64 else 2e-6)
