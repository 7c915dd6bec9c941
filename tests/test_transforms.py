"""Derivatives of derivatives: torch.func's transforms, nested, and forward mode, against the PyTorch formulation.

Nothing is lost in silence: an operator that is not linear raises where it is differentiated twice or in forward mode.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import fcn_kernels as fk
from fcn_kernels import backends

SIZE = (4, 5)


def _up(x: Tensor) -> Tensor:
    return F.interpolate(x, size=SIZE, mode="bilinear")


def _conv(x: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    return F.conv_transpose2d(x, weight, stride=2, groups=groups)[:, :, 1:5, :5]


# Name: ours, the PyTorch formulation, and the sizes of the arguments.
CROP = {"stride": 2, "offset": (1, 0), "output_size": SIZE}
X, SKIP, SAME = (2, 2, 2, 3), (2, 2, 5, 6), (2, 2, *SIZE)
LINEAR: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "upsample": (lambda x: fk.upsample(x, SIZE), _up, [X]),
    "upsample_add": (
        lambda x, skip: fk.upsample_add(x, skip, SIZE, skip_offset=(1, 0), skip_scale=0.5),
        lambda x, skip: _up(x) + 0.5 * skip[:, :, 1:5, :5],
        [X, SKIP],
    ),
    "conv_transpose_add": (
        lambda x, weight, skip: fk.conv_transpose_add(x, weight, skip, skip_offset=(1, 0), skip_scale=0.5, **CROP),
        lambda x, weight, skip: _conv(x, weight) + 0.5 * skip[:, :, 1:5, :5],
        [X, (2, 2, 3, 3), SKIP],
    ),
    "conv_transpose_add, depthwise": (
        lambda x, weight: fk.conv_transpose_add(x, weight, groups=2, **CROP),
        lambda x, weight: _conv(x, weight, 2),
        [X, (2, 1, 3, 4)],
    ),
    "conv_transpose_concat": (
        lambda x, weight, skip, bias: fk.conv_transpose_concat(x, weight, skip, bias, skip_offset=(1, 0), **CROP),
        lambda x, weight, skip, bias: torch.cat(
            [skip[:, :, 1:5, :5], _conv(x, weight) + bias[:, None, None]],
            dim=1,
        ),
        [X, (2, 1, 3, 3), SKIP, (1,)],
    ),
}
LABELS = torch.tensor([0, 1, 1, 0]).repeat(10).view(2, *SIZE)
SMALL_LABELS = torch.tensor([0, 1, 2]).repeat(4).view(2, 2, 3)
SCORE = torch.arange(6.0, dtype=torch.double).view(3, 2)
ONCE: dict[str, Callable[[Tensor], Tensor]] = {
    "upsample_softmax": lambda x: fk.upsample_softmax(x, SIZE),
    "upsample_softmax, log": lambda x: fk.upsample_log_softmax(x, SIZE),
    "upsample_sigmoid": lambda x: fk.upsample_sigmoid(x, SIZE),
    "upsample_cross_entropy": lambda x: fk.upsample_cross_entropy(x, LABELS),
    "upsample_cross_entropy, none": lambda x: fk.upsample_cross_entropy(x, LABELS, reduction="none"),
    "upsample_binary_cross_entropy": lambda x: fk.upsample_binary_cross_entropy(x[:, :1], LABELS),
    "upsample_binary_cross_entropy, none": lambda x: fk.upsample_binary_cross_entropy(
        x[:, :1], LABELS, reduction="none"
    ),
    "score_cross_entropy": lambda x: fk.score_cross_entropy(x, SCORE, None, SMALL_LABELS),
    "score_cross_entropy, none": lambda x: fk.score_cross_entropy(x, SCORE, None, SMALL_LABELS, reduction="none"),
}


def cubes(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A scalar whose third derivative is not zero."""
    return lambda *args: f(*args).pow(3).sum()


def norm(f: Callable[..., tuple]) -> Callable[..., Tensor]:
    return lambda *args: sum(t.square().sum() for t in f(*args))


def every(args: tuple) -> tuple[int, ...]:
    return tuple(range(len(args)))


def drawn(sizes: list[tuple[int, ...]], seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(size, dtype=torch.double, generator=generator) for size in sizes)


def nested_grad(f: Callable, args: tuple) -> object:
    return grad(norm(grad(cubes(f), every(args))), every(args))(*args)


def three_levels(f: Callable, args: tuple) -> object:
    return grad(norm(grad(norm(grad(cubes(f), every(args))), every(args))), every(args))(*args)


def tangents(args: tuple) -> tuple:
    return drawn([a.shape for a in args], seed=1)


def tangent(f: Callable, args: tuple) -> object:
    return jvp(f, args, tangents(args))


def tangent_of_tangent(f: Callable, args: tuple) -> object:
    return jvp(lambda *a: jvp(cubes(f), a, tangents(args))[1], args, tangents(args))


def tangent_of_grad(f: Callable, args: tuple) -> object:
    return jvp(grad(cubes(f), every(args)), args, tangents(args))


def grad_of_tangent(f: Callable, args: tuple) -> object:
    return grad(lambda *a: jvp(cubes(f), a, tangents(args))[1], every(args))(*args)


def dual(f: Callable, args: tuple) -> object:
    """A tangent, and the tangent of the gradient, without torch.func."""
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(a.clone().requires_grad_(), t) for a, t in zip(args, tangents(args), strict=True)]
        y = cubes(f)(*duals)
        gradients = torch.autograd.grad(y, duals, create_graph=True)
        return [forward_ad.unpack_dual(t) for t in (y, *gradients)]


def backward_outside(f: Callable, args: tuple) -> object:
    """The gradient of torch.func's gradient by an ordinary backward pass, in its argument and what it closes over."""
    leaves = [a.clone().requires_grad_() for a in args]
    norm(grad(cubes(lambda x: f(x, *leaves[1:])), (0,)))(leaves[0]).backward()
    return [leaf.grad for leaf in leaves]


def vjp_kept(f: Callable, args: tuple) -> object:
    """The function that vjp returns outlives its level."""
    leaves = [a.clone().requires_grad_() for a in args]
    y, pull = vjp(f, *leaves)
    arriving = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape).requires_grad_()
    gradients = pull(arriving)
    norm(lambda: gradients)().backward()
    return gradients, arriving.grad, [leaf.grad for leaf in leaves]


def per_sample(f: Callable, args: tuple) -> object:
    """vmap inside, outside and between; mapped over x alone, and over everything."""
    stacks = tuple(torch.stack([a, -a]) for a in args)
    one = vmap(grad(norm(grad(cubes(f), every(args))), every(args)), (0, *(None,) * (len(args) - 1)))
    between = grad(lambda *a: norm(vmap(grad(cubes(f), every(args))))(*a), every(args))
    return one(stacks[0], *args[1:]), between(*stacks), vmap(jacfwd(cubes(f), every(args)))(*stacks)


SECOND = {
    "nested grad": nested_grad,
    "three levels": three_levels,
    "hessian": lambda f, args: hessian(cubes(f), every(args))(*args),
    "jacrev of jacrev": lambda f, args: jacrev(jacrev(cubes(f), every(args)), every(args))(*args),
    "jacrev of jacfwd": lambda f, args: jacrev(jacfwd(cubes(f), every(args)), every(args))(*args),
    "jacfwd of jacfwd": lambda f, args: jacfwd(jacfwd(cubes(f), every(args)), every(args))(*args),
    "jvp": tangent,
    "jvp of jvp": tangent_of_tangent,
    "jvp of grad": tangent_of_grad,
    "grad of jvp": grad_of_tangent,
    "jacfwd": lambda f, args: jacfwd(f, every(args))(*args),
    "make_dual": dual,
    "backward outside": backward_outside,
    "vjp kept": vjp_kept,
    "vmap": per_sample,
}


@pytest.mark.parametrize("served_by", sorted({backends.active("upsample", "cpu"), "reference"}))
@pytest.mark.parametrize("how", SECOND)
@pytest.mark.parametrize("name", LINEAR)
def test_linear_operators(name: str, how: str, served_by: str) -> None:
    ours, theirs, sizes = LINEAR[name]
    args = drawn(sizes)
    with fk.use_backend(served_by):
        result = SECOND[how](ours, args)
    torch.testing.assert_close(result, SECOND[how](theirs, args))


@pytest.mark.parametrize("name", LINEAR)
def test_one_tangent(name: str) -> None:
    """Arguments without a tangent are constants, also where forward mode has no transform around it."""
    ours, theirs, sizes = LINEAR[name]
    args = drawn(sizes)
    for i, t in enumerate(tangents(args)):
        with forward_ad.dual_level():
            duals = (*args[:i], forward_ad.make_dual(args[i], t), *args[i + 1 :])
            result, expected = (forward_ad.unpack_dual(f(*duals)).tangent for f in (ours, theirs))
        torch.testing.assert_close(result, expected)


def test_a_bilinear_weight_has_a_tangent() -> None:
    x, weight = torch.randn(1, 2, 3, 3), fk.nn.bilinear_weight(2, 4, groups=2)
    with forward_ad.dual_level():
        y = fk.conv_transpose_add(x, forward_ad.make_dual(weight, torch.ones_like(weight)), stride=2, groups=2)
        result = forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(result, F.conv_transpose2d(x, torch.ones_like(weight), stride=2, groups=2))


@pytest.mark.parametrize("how", ["nested grad", "jacrev of jacrev", "backward outside", "vmap"])
@pytest.mark.parametrize("name", ONCE)
def test_twice_is_refused(name: str, how: str) -> None:
    sentence = f"{name.partition(',')[0]} (cannot be differentiated twice|has no derivative in forward mode)"
    with pytest.raises(RuntimeError, match=sentence):
        SECOND[how](ONCE[name], drawn([X]))


@pytest.mark.parametrize("how", ["jvp", "jacfwd", "hessian", "grad of jvp", "jvp of grad", "make_dual"])
@pytest.mark.parametrize("name", [*ONCE, "score_softmax"])
def test_forward_mode_is_refused(name: str, how: str) -> None:
    f = ONCE.get(name, lambda x: fk.score_softmax(x, SCORE))
    with pytest.raises(NotImplementedError, match=f"{name.partition(',')[0]} has no derivative in forward mode"):
        SECOND[how](f, drawn([X]))


@pytest.mark.parametrize("name", ONCE)
def test_one_level_of_an_operator_that_is_differentiable_once(name: str) -> None:
    x = drawn([X])[0].requires_grad_()
    cubes(ONCE[name])(x).backward()
    torch.testing.assert_close(grad(cubes(ONCE[name]))(x.detach()), x.grad)
    torch.testing.assert_close(vmap(grad(cubes(ONCE[name])))(x.detach()[None])[0], x.grad)


@pytest.mark.parametrize("name", ["upsample_cross_entropy", "score_cross_entropy", "upsample_binary_cross_entropy"])
def test_a_tangent_that_arrives_backward_is_kept(name: str) -> None:
    """A gradient is linear in the one that arrives, also where that is 1 and nobody records."""
    x = drawn([X])[0].requires_grad_()
    loss = ONCE[name](x)
    with forward_ad.dual_level():
        arriving = forward_ad.make_dual(torch.ones_like(loss), torch.full_like(loss, 3))
        (gradient,) = torch.autograd.grad(loss, x, arriving)
        gradient, tangent = forward_ad.unpack_dual(gradient)
    torch.testing.assert_close(tangent, 3 * gradient)


@pytest.mark.parametrize("how", ["nested grad", "jacrev of jacrev", "backward outside"])
def test_score_softmax_to_any_order(how: str) -> None:
    args = drawn([X, (3, 2), (3,)])
    result = SECOND[how](fk.score_softmax, args)
    expected = SECOND[how](lambda x, w, b: F.conv2d(x, w[:, :, None, None], b).softmax(1), args)
    torch.testing.assert_close(result, expected)


def test_labels_have_no_tangent() -> None:
    def f(x: Tensor) -> Tensor:
        return x.sum() + fk.upsample_argmax(x, SIZE, return_confidence=True)[1].sum()

    x = drawn([X])[0]
    torch.testing.assert_close(jacfwd(f)(x), torch.ones_like(x))
    torch.testing.assert_close(hessian(f)(x), torch.zeros(*X, *X, dtype=x.dtype))


@pytest.mark.parametrize("how", ["nested grad", "jvp", "jvp of grad"])
def test_compiled(how: str) -> None:
    ours, _, sizes = LINEAR["conv_transpose_add"]
    args = drawn(sizes)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *a: SECOND[how](ours, a), backend="aot_eager")
    torch.testing.assert_close(compiled(*args), SECOND[how](ours, args))
