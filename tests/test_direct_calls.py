"""Eager calls that leave out torch's way through the key Autograd do what the operators do, and step aside in time."""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fcn_kernels as fk
from fcn_kernels import _library
from fcn_kernels.ops import _losses

SIZE = (11, 9)


def losses(**options):
    """By name: a loss as a function of x."""
    torch.manual_seed(0)
    target = torch.randint(0, 3, (2, *SIZE))
    target[:, :3] = 255
    mask = torch.rand(2, 3, *SIZE)
    return {
        "upsample_cross_entropy": lambda x: fk.upsample_cross_entropy(x, target, ignore_index=255, **options),
        "upsample_binary_cross_entropy": lambda x: fk.upsample_binary_cross_entropy(x, mask, **options),
    }


def gradient(function, factor=1.0, dtype=torch.float32):
    torch.manual_seed(1)
    x = torch.randn(2, 3, 4, 5, dtype=torch.double).to(dtype).requires_grad_()
    y = function(x)
    y.backward(torch.full_like(y, factor))
    return y.detach(), x.grad


@pytest.fixture
def the_long_way(monkeypatch):
    """Switches to calls through the dispatcher."""

    def switch():
        for module in (_library, _losses):
            monkeypatch.setattr(module, "plain", lambda *args: False)

    return switch


@pytest.mark.parametrize("name", list(losses()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum", "mean_all", "none"])
@pytest.mark.parametrize("factor", [1.0, 0.3, 3e38, 0.0, float("inf"), float("nan")])
def test_losses_and_gradients_have_the_same_bits(name, dtype, reduction, factor, the_long_way):
    function = losses(reduction=reduction)[name]
    direct = gradient(function, factor, dtype)
    the_long_way()
    for a, b in zip(direct, gradient(function, factor, dtype), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        assert a.dtype == b.dtype


OTHERS = {
    "upsample": lambda x, y, w: fk.upsample(x, SIZE),
    "upsample_add": lambda x, y, w: fk.upsample_add(x, y, SIZE, skip_offset=(1, 2), skip_scale=0.5),
    "upsample_softmax": lambda x, y, w: fk.upsample_softmax(x, SIZE),
    "upsample_log_softmax": lambda x, y, w: fk.upsample_log_softmax(x, SIZE),
    "upsample_sigmoid": lambda x, y, w: fk.upsample_sigmoid(x, SIZE),
    "conv_transpose_add": lambda x, y, w: fk.conv_transpose_add(x, w, y, stride=2, skip_offset=(1, 2)),
    "conv_transpose_concat": lambda x, y, w: fk.conv_transpose_concat(x, w, y, stride=2),
    "score_softmax": lambda x, y, w: fk.score_softmax(y, w[:, :, 0, 0]),
    "score_cross_entropy": lambda x, y, w: fk.score_cross_entropy(y, w[:, :, 0, 0], None, y.detach().argmax(1)),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    "wanted", [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]
)
def test_gradients_reach_every_input(name, wanted, the_long_way):
    def run():
        torch.manual_seed(2)
        leaves = [torch.randn(size) for size in ((2, 3, 4, 5), (2, 3, 14, 16), (3, 3, 4, 4))]
        for leaf, wants in zip(leaves, wanted, strict=True):
            leaf.requires_grad_(wants)
        y = OTHERS[name](*leaves)
        if y.requires_grad:
            y.square().sum().backward()
        return y.detach(), [leaf.grad for leaf in leaves]

    y, gradients = run()
    the_long_way()
    expected, others = run()
    assert torch.equal(y, expected)
    for a, b in zip(gradients, others, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


@pytest.mark.parametrize("reduction", ["mean", "mean_all", "sum"])
def test_without_a_pixel_that_counts(reduction, the_long_way):
    target = torch.full((2, *SIZE), 255)

    def function(x):
        return fk.upsample_cross_entropy(x, target, ignore_index=255, reduction=reduction)

    direct = gradient(function)
    assert (direct[1] == 0).all()
    the_long_way()
    for a, b in zip(direct, gradient(function), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", list(losses()))
def test_two_backward_passes_and_refusal_of_the_second_derivative(name):
    function = losses()[name]
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    loss = function(x)
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert torch.equal(first, second)
    (recorded,) = torch.autograd.grad(loss, x, create_graph=True)
    assert torch.equal(first, recorded)
    with pytest.raises(RuntimeError, match=f"{name} cannot be differentiated twice"):
        recorded.sum().backward()


def test_a_changed_input_is_noticed():
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    y = x * 1
    loss = losses()["upsample_cross_entropy"](y)
    y.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Seen, Functions])
def test_modes_see_the_operator(mode):
    with mode() as seen:
        fk.upsample_argmax(torch.randn(1, 3, 4, 5), SIZE)
    assert any("fcn_kernels.upsample_argmax" in name for name in seen.names)


def test_subclasses_see_the_operator():
    seen = []

    class Image(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return super().__torch_function__(func, types, args, kwargs or {})

    assert type(fk.upsample_softmax(torch.randn(1, 3, 4, 5).as_subclass(Image), SIZE)) is Image
    assert any("fcn_kernels.upsample_softmax" in name for name in seen)


def test_transforms_tracers_and_backends_see_the_operator():
    from torch.fx.experimental.proxy_tensor import make_fx

    x = torch.randn(2, 1, 3, 4, 5)
    mapped = torch.vmap(lambda x: fk.upsample_softmax(x, SIZE))(x)
    torch.testing.assert_close(mapped[1], fk.upsample_softmax(x[1], SIZE))
    for pre_dispatch in (False, True):
        graph = make_fx(lambda x: fk.upsample_softmax(x, SIZE), pre_dispatch=pre_dispatch)(x[0]).graph
        assert any(node.target is torch.ops.fcn_kernels.upsample_softmax.default for node in graph.nodes)
    traced = torch.jit.trace(lambda x: fk.upsample_softmax(x, SIZE), x[0])
    assert "fcn_kernels::upsample_softmax" in str(traced.graph)
    with fk.use_backend("cuda"), pytest.raises(RuntimeError, match="cannot serve upsample_softmax on cpu tensors"):
        fk.upsample_softmax(x[0], SIZE)


@pytest.mark.parametrize("size", [(True, 5), (2.0, 5), ("2", 5)])
def test_sizes_are_checked_although_geometries_are_kept(size):
    x = torch.randn(1, 3, 1, 5)
    fk.upsample_softmax(x, (1, 5))
    fk.upsample_softmax(x, (2, 5))
    with pytest.raises(TypeError, match="sampling must be a Sampling or an output size"):
        fk.upsample_softmax(x, size)
