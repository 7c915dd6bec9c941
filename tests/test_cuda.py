"""The CUDA C++ kernels on a GPU: against the float64 reference, the same bits again, captured in a graph. Elsewhere
test_cuda_*.py run the kernels on the host. The tests of each operator include the cuda backend where there is a GPU.
"""

import pytest
import torch

import fcn_kernels as fk
from fcn_kernels import backends, reference

OBSTACLE = backends.device_obstacle("cuda") or next(
    c.reason for c in backends.candidates("upsample_cross_entropy", "cuda") if c.backend == "cuda"
)
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(OBSTACLE is not None, reason=f"no CUDA kernels run here: {OBSTACLE}"),
]

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
TOLERANCES = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 4e-6, torch.float64: 1e-11}
SIZE = 104, 136


def operands(dtype=torch.float32, layout=torch.contiguous_format, classes=24):
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(2, classes, 13, 17, device="cuda", generator=generator, dtype=torch.float64)
    target = torch.randint(0, classes, (2, *SIZE), device="cuda", generator=generator)
    target[torch.rand(target.shape, device="cuda", generator=generator) < 0.1] = 255
    return x.to(dtype, memory_format=layout).requires_grad_(), target


def cross_entropy(reduction):
    def call(x, target):
        return fk.upsample_cross_entropy(x, target, ignore_index=255, label_smoothing=0.1, reduction=reduction)

    return call


def binary_cross_entropy(reduction, kind):
    def call(x, target):
        labels = torch.where(target < x.shape[1], target % 2, target)[:, None].expand(-1, x.shape[1], -1, -1)
        q = torch.linspace(0.5, 2, x.shape[1], device=x.device)
        return fk.upsample_binary_cross_entropy(x, labels.to(kind), pos_weight=q, ignore_index=255, reduction=reduction)

    return call


# What is called with x and labels.
LOSSES = {
    "upsample_cross_entropy-mean": cross_entropy("mean"),
    "upsample_cross_entropy-none": cross_entropy("none"),
    "upsample_binary_cross_entropy-mean": binary_cross_entropy("mean", torch.uint8),
    "upsample_binary_cross_entropy-none": binary_cross_entropy("none", torch.int64),
}
CALLS = LOSSES | {
    "upsample": lambda x, target: fk.upsample(x, SIZE),
    "upsample_add": lambda x, target: fk.upsample_add(x, x.repeat_interleave(8, 2).repeat_interleave(8, 3), SIZE),
    "upsample_sigmoid": lambda x, target: fk.upsample_sigmoid(x, SIZE),
    "channel_sum": lambda x, target: torch.ops.fcn_kernels.channel_sum(2 * x),
}


def value_and_gradient(call, x, target):
    value = call(x, target)
    return value.detach(), *torch.autograd.grad(value.sum(), x)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_the_reference(dtype, layout, call):
    x, target = operands(dtype, layout)
    with fk.use_backend("cuda"):
        actual = value_and_gradient(call, x, target)
    with fk.use_backend("reference"):
        expected = value_and_gradient(call, x.detach().double().requires_grad_(), target)
    for a, b in zip(actual, expected, strict=True):
        tolerance = TOLERANCES[a.dtype] * b.abs().max().item()
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance, check_stride=False)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_same_bits_again(call):
    x, target = operands()
    with fk.use_backend("cuda"):
        first = value_and_gradient(call, x, target)
        for _ in range(10):
            assert all(torch.equal(a, b) for a, b in zip(first, value_and_gradient(call, x, target), strict=True))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_in_a_graph(call):
    """No host reads: a graph captures the call."""
    x, target = operands()
    with fk.use_backend("cuda"):
        expected = value_and_gradient(call, x, target)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = value_and_gradient(call, x, target)
        graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(expected, captured, strict=True))


@pytest.mark.parametrize("call", LOSSES.values(), ids=LOSSES)
def test_a_wrong_label_makes_the_loss_nan(call):
    x, target = operands()
    target[0, 0, 0] = 24
    with fk.use_backend("cuda"):
        assert value_and_gradient(call, x, target)[0].isnan().any()


SIZES = [(101, 133), (104, 136)]  # packs of 16 bytes fit into the rows of the second


@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_upsample_softmax(dtype, layout, size, log):
    x, _ = operands(dtype, layout)
    f = fk.upsample_log_softmax if log else fk.upsample_softmax

    def call():
        y = f(x, size)
        return y.detach(), *torch.autograd.grad(y, x, y.detach())

    with fk.use_backend("cuda"):
        y, dx = call()
        assert all(torch.equal(a, b) for a, b in zip((y, dx), call(), strict=True))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = call()
        graph.replay()
    assert all(torch.equal(a, b) for a, b in zip((y, dx), captured, strict=True))
    code = fk.Sampling.interpolate((13, 17), size).encode()
    expected = reference.upsample_softmax(x.detach().double(), code, log)
    assert y.stride() == expected.to(memory_format=layout).stride()
    # The gradient is a function of the rounded output: both get the same one.
    expected_dx = reference.upsample_softmax_backward(y.double(), y.double(), code, log)
    for a, b in ((y, expected), (dx, expected_dx)):
        torch.testing.assert_close(
            a.double(), b, rtol=0, atol=TOLERANCES[dtype] * b.abs().max().item(), check_stride=False
        )


@pytest.mark.parametrize("labels", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_upsample_argmax(dtype, layout, labels):
    x, _ = operands(dtype, layout)
    with fk.use_backend("cuda"):
        winner, confidence = fk.upsample_argmax(x, (101, 133), dtype=labels, return_confidence=True)
        again = fk.upsample_argmax(x, (101, 133), dtype=labels)
    assert winner.dtype == labels
    assert winner.equal(again)
    z = reference.upsample(x.detach().double(), fk.Sampling.interpolate((13, 17), (101, 133)).encode())
    margin = z.amax(1) - z.gather(1, winner.long()[:, None]).squeeze(1)
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    assert margin.max() <= 8 * eps * z.abs().max()
    expected = z.softmax(1).amax(1)
    torch.testing.assert_close(confidence.double(), expected, rtol=0, atol=4e-6)


def test_upsample_confusion_matrix():
    x, target = operands()
    with fk.use_backend("cuda"):
        counts = fk.upsample_confusion_matrix(x, target, ignore_index=255)
        winner = fk.upsample_argmax(x, tuple(target.shape[1:]))
        assert counts.cpu().equal(reference.count_labels(winner.cpu(), target.cpu(), 24, 255))
        assert counts.equal(fk.upsample_confusion_matrix(x, target, ignore_index=255))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = fk.upsample_confusion_matrix(x, target, ignore_index=255)
        graph.replay()
        assert captured.equal(counts)
        # A graph cannot raise: it counts -1.
        target[1, 2, 3] = 24
        graph.replay()
        assert captured.eq(-1).all()
        with pytest.raises(RuntimeError, match=r"target\[1, 2, 3\] = 24 is neither a class \(0 to 23\)"):
            fk.upsample_confusion_matrix(x, target, ignore_index=255)


# [K, C, H, W]: many pixels; a long sum over few pixels, split among blocks; classes for a wide tile, and for several.
SCORES = [(40, 21, 33, 65), (1030, 21, 5, 7), (64, 150, 21, 23), (24, 300, 64, 40)]
SCORE_TOLERANCES = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-5, torch.float64: 1e-11}


def score_operands(shape, dtype, layout):
    generator = torch.Generator("cuda").manual_seed(0)
    k, c, h, w = shape
    x, weight, bias = (
        torch.randn(size, device="cuda", generator=generator, dtype=torch.float64)
        for size in ((2, k, h, w), (c, k), (c,))
    )
    weight /= k**0.5
    x = x.to(dtype, memory_format=layout)
    return [t.requires_grad_() for t in (x, weight.to(dtype), bias.to(dtype))]


@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SCORES)
def test_score_softmax(shape, dtype, layout, log):
    tensors = score_operands(shape, dtype, layout)
    f = fk.score_log_softmax if log else fk.score_softmax
    with fk.use_backend("cuda"):
        actual = f(*(t.detach() for t in tensors))
        again = f(*(t.detach() for t in tensors))
    with fk.use_backend("reference"):
        expected = f(*(t.detach().double() for t in tensors))
    assert torch.equal(actual, again)
    tolerance = SCORE_TOLERANCES[dtype] * expected.abs().max().item()
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance, check_stride=False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SCORES)
def test_score_argmax(shape, dtype, layout):
    tensors = [t.detach() for t in score_operands(shape, dtype, layout)]
    with fk.use_backend("cuda"):
        labels = fk.score_argmax(*tensors)
    x, weight, bias = (t.double() for t in tensors)
    z = torch.nn.functional.conv2d(x, weight[:, :, None, None], bias)
    margin = z.amax(1) - z.gather(1, labels[:, None]).squeeze(1)
    assert margin.max().item() <= SCORE_TOLERANCES[torch.float64 if dtype == torch.float64 else torch.float32]


def all_gradients(f, tensors, weights):
    value = f(*tensors)
    return value.detach(), *torch.autograd.grad((value * weights).sum() if value.dim() else value, tensors)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SCORES)
def test_score_softmax_gradients(shape, dtype, layout):
    tensors = score_operands(shape, dtype, layout)
    weights = torch.randn(2, shape[1], *shape[2:], device="cuda", dtype=torch.float64)
    with fk.use_backend("cuda"):
        actual = all_gradients(fk.score_log_softmax, tensors, weights.to(dtype))
        again = all_gradients(fk.score_log_softmax, tensors, weights.to(dtype))
    with fk.use_backend("reference"):
        expected = all_gradients(fk.score_log_softmax, [t.detach().double().requires_grad_() for t in tensors], weights)
    for a, b, e in zip(actual, again, expected, strict=True):
        assert torch.equal(a, b)
        # Derived from the rounded output and gradient.
        tolerance = 2 * SCORE_TOLERANCES[dtype] * e.abs().max().item()
        torch.testing.assert_close(a.double(), e, rtol=0, atol=tolerance, check_stride=False)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SCORES)
def test_score_cross_entropy(shape, dtype, layout, reduction):
    tensors = score_operands(shape, dtype, layout)
    generator = torch.Generator("cuda").manual_seed(1)
    target = torch.randint(0, shape[1], (2, *shape[2:]), device="cuda", generator=generator)
    target[torch.rand(target.shape, device="cuda", generator=generator) < 0.1] = -100
    class_weight = torch.rand(shape[1], device="cuda", generator=generator) + 0.5

    def loss(x, weight, bias):
        options = {"class_weight": class_weight, "reduction": reduction, "label_smoothing": 0.1}
        return fk.score_cross_entropy(x, weight, bias, target, **options)

    with fk.use_backend("cuda"):
        actual, again = (all_gradients(loss, tensors, 1) for _ in range(2))
    with fk.use_backend("reference"):
        expected = all_gradients(loss, [t.detach().double().requires_grad_() for t in tensors], 1)
    for a, b, e in zip(actual, again, expected, strict=True):
        assert torch.equal(a, b)
        tolerance = SCORE_TOLERANCES[a.dtype] * e.abs().max().item()
        torch.testing.assert_close(a.double(), e, rtol=0, atol=tolerance, check_stride=False)


def test_scores_in_a_graph():
    """No host reads: a graph captures the calls, whose labels may be wrong."""
    x, weight, bias = score_operands((1030, 21, 5, 7), torch.float16, torch.contiguous_format)
    target = torch.full((2, 5, 7), 21, device="cuda")
    with fk.use_backend("cuda"):
        expected = fk.score_softmax(x.detach(), weight.detach(), bias.detach())
        fk.score_cross_entropy(x.detach(), weight.detach(), bias.detach(), target)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = fk.score_softmax(x.detach(), weight.detach(), bias.detach())
            loss = fk.score_cross_entropy(x.detach(), weight.detach(), bias.detach(), target)
        graph.replay()
    assert torch.equal(captured, expected)
    assert loss.isnan()


CONVOLUTIONS = {  # channels of x and of the result, groups
    "dense": (21, 24, 1),
    "packs": (32, 40, 1),
    "grouped": (12, 18, 3),
    "depthwise": (24, 24, 24),
    "odd depthwise": (21, 21, 21),
}


def convolution(name, dtype, layout, *, bias=False):
    """Operands of a transposed convolution of kernel 4 x 5 and stride 2 x 3, cropped; skip is wider than the crop."""
    inputs, outputs, groups = CONVOLUTIONS[name]
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(2, inputs, 13, 18), (inputs, outputs // groups, 4, 5), (2, outputs, 30, 60), *([(outputs,)] * bias)]
    tensors = [torch.randn(shape, device="cuda", generator=generator, dtype=torch.float64) for shape in shapes]
    tensors = [t.to(dtype) for t in tensors]
    tensors[0], tensors[2] = (tensors[i].to(memory_format=layout) for i in (0, 2))
    options = {
        "stride": (2, 3), "groups": groups, "offset": (1, 2), "output_size": (26, 52), "skip_offset": (2, 3)
    }  # fmt: skip
    return [t.requires_grad_() for t in tensors], options


def results_and_gradients(operator, tensors, options):
    y = operator(*tensors, **options)
    grad = torch.linspace(-1, 1, y.numel(), device=y.device, dtype=torch.float64).view_as(y).to(y.dtype)
    return y.detach(), *torch.autograd.grad(y, tensors, grad)


@pytest.mark.parametrize("operator", [fk.conv_transpose_add, fk.conv_transpose_concat])
@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_transposed_convolutions(dtype, layout, name, operator):
    tensors, options = convolution(name, dtype, layout, bias=operator is fk.conv_transpose_concat)
    with fk.use_backend("cuda"):
        actual = results_and_gradients(operator, tensors, options)
    exact = [t.detach().cpu().double().requires_grad_() for t in tensors]
    with fk.use_backend("reference"):
        expected = results_and_gradients(operator, exact, options)
    tolerances = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 4e-6, torch.float64: 1e-13}
    for a, b in zip(actual, expected, strict=True):
        tolerance = tolerances[a.dtype] * b.abs().max().item()
        torch.testing.assert_close(a.cpu().double(), b, rtol=0, atol=tolerance, check_stride=False)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_transposed_convolutions_give_the_same_bits_again_and_in_a_graph(name):
    tensors, options = convolution(name, torch.float32, torch.contiguous_format, bias=True)
    with fk.use_backend("cuda"):
        first = results_and_gradients(fk.conv_transpose_concat, tensors, options)
        for _ in range(5):
            again = results_and_gradients(fk.conv_transpose_concat, tensors, options)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = results_and_gradients(fk.conv_transpose_concat, tensors, options)
        graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(first, captured, strict=True))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_beyond_two_billion_elements(groups):
    """The last pixels are right where offsets do not fit 32 bits."""
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("it needs 12 GB of memory")
    x = torch.randn(1, 2, 16385, 16385, device="cuda", dtype=torch.float16)
    weight = torch.randn(2, 2 // groups, 2, 2, device="cuda", dtype=torch.float16)
    with fk.use_backend("cuda"):
        y = fk.conv_transpose_add(x, weight, stride=2, groups=groups)
    assert y.numel() > 2**31
    corner = x[:, :, -4:, -4:].cpu().double()
    expected = torch.nn.functional.conv_transpose2d(corner, weight.cpu().double(), stride=2, groups=groups)
    torch.testing.assert_close(y[:, :, -8:, -8:].cpu().double(), expected, rtol=2e-3, atol=2e-3)
