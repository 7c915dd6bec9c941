"""The CUDA kernels of conv_transpose_add and conv_transpose_concat on the host: blocks one by one, their
threads as coroutines that meet at barriers and shuffles. On a GPU the operators' own tests run them.
"""

import random

import pytest
import torch
from cuda_host import Frame, close, framed, host_module

from fcn_kernels import reference


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return host_module("cuda_conv_transpose_on_host", tmp_path_factory.mktemp("cuda"))


NONE = (0, [0] * 4)
KERNELS = {torch.float32: "Float", torch.float64: "Double", torch.float16: "Half", torch.bfloat16: "BFloat16"}
TOLERANCES = {torch.float32: 8e-6, torch.float64: 1e-13, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def random_axis(rng: random.Random, size: int, stride: int, kernel: int) -> list[int]:
    """Input, output, kernel, stride and offset of a crop that lies inside the transposed convolution."""
    size, stride, kernel = rng.randint(1, size), rng.randint(1, stride), rng.randint(1, kernel)
    full = (size - 1) * stride + kernel
    offset = rng.choice([0, rng.randrange(full)])
    return [size, rng.choice([full - offset, rng.randint(1, full - offset)]), kernel, stride, offset]


class Case:
    """A random call, and what the kernels and the reference make of it."""

    def __init__(self, host, seed, *, depthwise, dtype=torch.float64, channels=None, rows=None, columns=None):
        rng, self.host = random.Random(seed), host
        self.generator = torch.Generator().manual_seed(seed)
        self.kernels = getattr(host, KERNELS[dtype])
        self.dtype, self.channels_last = dtype, rng.random() < 0.5
        rows, columns = rows or random_axis(rng, 5, 4, 6), columns or random_axis(rng, 6, 4, 6)
        if depthwise:
            groups, inputs, outputs = channels or rng.choice([1, 3, 4, 8]), 1, 1
        else:
            groups, inputs, outputs = channels or (rng.choice([1, 1, 2, 3]), rng.randint(1, 9), rng.randint(1, 9))
            if not channels and rng.random() < 0.4:  # packs
                inputs, outputs = 8 * rng.randint(1, 2), 8 * rng.randint(1, 2)
        n = rng.randint(1, 2)
        self.geometry = [*rows, *columns, n, groups, inputs, outputs]
        self.groups, self.stride, self.offset = groups, [rows[3], columns[3]], [rows[4], columns[4]]
        self.size, self.parts = [rows[1], columns[1]], rng.choice([1, 2, 3])
        self.x = self.image(n, groups * inputs, rows[0], columns[0])
        self.y_shape = (n, groups * outputs, *self.size)
        self.weight = torch.randn(groups * inputs, outputs, rows[2], columns[2], generator=self.generator, dtype=dtype)
        self.skip = self.image(*self.y_shape) if rng.random() < 0.7 else None

    def image(self, *shape):
        """Noise in a frame of NaN, which finds out who reads outside."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        image = torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.dtype, memory_format=layout)
        return framed(image, torch.nan)

    def tensor(self, t):
        return self.host.Tensor(*(NONE if t is None else (t.data_ptr(), t.stride())))

    def frame(self, *shape):
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return Frame(torch.empty(shape, dtype=self.dtype).to(memory_format=layout))

    def forward(self):
        frame = self.frame(*self.y_shape)
        self.kernels.forward(
            self.geometry, self.tensor(self.x), self.tensor(self.weight), self.tensor(self.skip), 0.5,
            self.tensor(frame.window),
        )  # fmt: skip
        return frame.checked()

    def expected(self):
        skip = None if self.skip is None else self.skip.double()
        return reference.conv_transpose_add(
            self.x.double(), self.weight.double(), skip, self.stride, self.groups, self.offset, self.size, (0, 0), 0.5
        )

    def backward(self, grad):
        frame, dw = self.frame(*self.x.shape), torch.full_like(self.weight, torch.nan)
        self.kernels.backward(
            self.geometry, self.tensor(grad), self.tensor(self.x), self.tensor(self.weight),
            self.tensor(frame.window), dw.data_ptr(), self.parts,
        )  # fmt: skip
        return frame.checked(), dw

    def expected_gradients(self, grad):
        return reference.conv_transpose_add_backward(
            grad.double(), self.x.double(), self.weight.double(), self.stride, self.groups, self.offset, True, True
        )


@pytest.mark.parametrize("dtype", KERNELS, ids=str)
@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_any_geometry(host, seed, depthwise, dtype):
    case = Case(host, seed, depthwise=depthwise, dtype=dtype)
    tolerance = TOLERANCES[dtype]
    close(case.forward(), case.expected(), tolerance)
    grad = case.image(*case.y_shape)
    for ours, expected in zip(case.backward(grad), case.expected_gradients(grad), strict=True):
        close(ours, expected, tolerance)


# Geometries for the branches that random ones seldom take: channels (groups, inputs, outputs where weights are not
# depthwise), rows and columns. Axes are input, output, kernel, stride, offset.
BRANCHES = {
    "wide rows": (3, [4, 9, 4, 2, 1], [9, 16, 4, 2, 2]),
    "taller than a block": (1, [40, 81, 3, 2, 0], [2, 4, 2, 2, 0]),
    "rows that are not staged": (1, [2, 20, 60, 1, 1], [2, 40, 150, 1, 3]),
    "long kernel": (2, [2, 30, 40, 8, 5], [3, 47, 40, 8, 3]),
    "kernel of 8": (4, [3, 15, 8, 4, 1], [3, 13, 8, 4, 2]),
    "stride beyond a warp": (2, [2, 5, 3, 2, 0], [3, 90, 45, 40, 7]),
    "kernel below the stride": (4, [3, 9, 2, 4, 0], [3, 9, 1, 4, 0]),
    "many columns": ((1, 5, 40), [2, 5, 3, 2, 0], [4, 9, 4, 2, 0]),
    "many inputs": ((1, 40, 3), [4, 8, 2, 2, 0], [9, 18, 2, 2, 0]),
    "many pixels": ((1, 2, 2), [12, 24, 2, 2, 0], [13, 26, 2, 2, 0]),
    "patches of packs": ((2, 16, 8), [3, 6, 2, 2, 0], [4, 8, 2, 2, 0]),
    "crop within a stride": ((1, 3, 2), [1, 3, 7, 8, 2], [3, 2, 9, 16, 17]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", BRANCHES)
def test_branches(host, name, channels_last, dtype):
    channels, rows, columns = BRANCHES[name]
    case = Case(
        host, seed_of(channels_last), depthwise=isinstance(channels, int), dtype=dtype, channels=channels, rows=rows,
        columns=columns,
    )  # fmt: skip
    tolerance = TOLERANCES[dtype]
    close(case.forward(), case.expected(), tolerance)
    if "rows" in name and not channels_last:
        assert case.kernels.path().startswith(name)
    grad = case.image(*case.y_shape)
    for ours, expected in zip(case.backward(grad), case.expected_gradients(grad), strict=True):
        close(ours, expected, tolerance)


def seed_of(channels_last: bool) -> int:
    """A seed that draws this layout."""
    return next(s for s in range(100) if (random.Random(s).random() < 0.5) == channels_last)


@pytest.mark.parametrize("depthwise", [False, True])
def test_every_way_is_tested(host, depthwise):
    """The ways through the forward that the cases above take."""
    taken = set()
    for seed in range(16):
        for dtype in (torch.float32, torch.float64):
            case = Case(host, seed, depthwise=depthwise, dtype=dtype)
            case.forward()
            taken.add(case.kernels.path())
    expected = {"rows", "pixels", "wide pixels"} if depthwise else {"products", "products of packs"}
    assert expected <= taken


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("seed", range(100, 106))
def test_the_order_of_the_threads_changes_no_bit(host, seed, depthwise):
    """Each output is written once, and what threads share they share between barriers."""
    case = Case(host, seed, depthwise=depthwise, dtype=torch.float32)
    grad = case.image(*case.y_shape)
    forwards = case.forward(), *case.backward(grad)
    host.backwards(True)
    try:
        backwards = case.forward(), *case.backward(grad)
    finally:
        host.backwards(False)
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("seed", range(200, 204))
def test_what_is_not_finite_goes_where_it_is_read(host, seed, depthwise):
    case = Case(host, seed, depthwise=depthwise)
    case.x[0, 0, -1, -1] = torch.inf
    expected = case.expected()
    assert torch.equal(case.forward().isfinite(), expected.isfinite())


@pytest.mark.parametrize("seed", range(300, 304))
def test_gradient_of_x_in_parts(host, seed):
    """The sum of few outputs' long kernels is split; every part has the layout of the gradient."""
    case = Case(host, seed, depthwise=False, channels=(2, 3, 4))
    grad = case.image(*case.y_shape)
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    dx = torch.empty(case.x.shape, dtype=case.dtype).to(memory_format=layout)
    memory = torch.full((8, dx.numel()), torch.nan, dtype=case.dtype)
    first = host.Tensor(memory.data_ptr(), dx.stride())
    count = case.kernels.input_parts(case.geometry, case.tensor(grad), case.tensor(case.weight), 4, first, dx.numel())
    assert 1 <= count <= 4
    assert memory[count:].isnan().all()
    total = memory[:count].sum(0)
    close(total.as_strided(dx.shape, dx.stride()), case.expected_gradients(grad)[0], 1e-13)


@pytest.mark.parametrize("pixelwise", [False, True])
def test_every_output_is_written_once(host, pixelwise):
    """And nothing outside x and the weight is read, whatever the geometry."""
    rng = random.Random(0)
    for _ in range(1500):
        axes = *random_axis(rng, 4, 5, 7), *random_axis(rng, 4, 5, 7)
        geometry = [*axes, rng.randint(1, 2), rng.randint(1, 2), rng.randint(1, 3), rng.randint(1, 3)]
        count, inside = host.coverage(geometry, pixelwise)
        assert set(count) == {1}, geometry
        assert inside, geometry


def test_splits_hold_every_term_once(host):
    rng = random.Random(0)
    for _ in range(5000):
        blocks, depth, unit = rng.randint(1, 2000), rng.randint(1, 10**6), rng.choice([1, 8, 16, 32])
        shortest, longest = rng.randint(1, 300), rng.randint(300, 10**5)
        parts, chunk = host.split(blocks, depth, unit, shortest, longest)
        assert chunk % unit == 0
        assert (parts - 1) * chunk < depth <= parts * chunk
        assert chunk < longest + unit


@pytest.mark.parametrize(
    ("left", "width", "channels_last", "path"),
    [
        (0, 8, False, "packs"),
        (1, 8, False, "packs of numbers"),
        (0, 7, False, "numbers"),
        (3, 7, True, "packs"),
    ],
)
def test_copy(host, left, width, channels_last, path):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    whole = torch.randn(2, 8, 5, 16).to(memory_format=layout)
    window = whole[:, :, 1:4, left : left + width]
    frame = Frame(torch.empty(2, 8, 3, width).to(memory_format=layout))
    tensors = (host.Tensor(t.data_ptr(), t.stride()) for t in (window, frame.window))
    host.Float.copy(*tensors, [2, 8, 3, width])
    assert host.Float.path() == path
    assert torch.equal(frame.checked(), window)
