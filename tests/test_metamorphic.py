"""Relations between calls that hold whatever the right answer is: a crop of the whole is the crop, permuted classes
give permuted results, a common shift changes nothing, a class that stands there twice halves its probability."""

from __future__ import annotations

import pytest
import torch
from conftest import Backend
from drawn_samplings import samplings, window
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import fcn_kernels as fk
from fcn_kernels import Sampling

OPERATOR = "upsample_cross_entropy"  # the table has the others wherever it has this one
relation = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
layouts = st.sampled_from([torch.contiguous_format, torch.channels_last])
EXACT = {"rtol": 1e-12, "atol": 1e-12}


@st.composite
def images(draw: st.DrawFn) -> tuple[Tensor, Sampling, Tensor]:
    """x [N, C, h, w] in float64, a sampling of it, and labels for it."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    sampling = draw(samplings())
    n, c = draw(st.sampled_from([1, 2])), draw(st.sampled_from([2, 3, 9, 17, 21]))
    x = 4 * torch.randn(n, c, *sampling.input_size, dtype=torch.float64)
    return x.contiguous(memory_format=draw(layouts)), sampling, torch.randint(0, c, (n, *sampling.output_size))


@relation
@given(case=images(), data=st.data())
def test_a_crop_of_the_whole_is_the_crop(backend: Backend, case: tuple, data: st.DataObject) -> None:
    x, sampling, target = case
    height, width = sampling.output_size
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    part = window(sampling, top, left, height - top, width - left)
    torch.testing.assert_close(fk.upsample(x, sampling)[:, :, top:, left:], fk.upsample(x, part), **EXACT)
    whole, crop = fk.upsample_log_softmax(x, sampling), fk.upsample_log_softmax(x, part)
    torch.testing.assert_close(whole[:, :, top:, left:], crop, **EXACT)
    whole = fk.upsample_cross_entropy(x, target, sampling, reduction="none")
    crop = fk.upsample_cross_entropy(x, target[:, top:, left:], part, reduction="none")
    torch.testing.assert_close(whole[:, top:, left:], crop, **EXACT)


@relation
@given(case=images(), data=st.data())
def test_a_long_row_is_its_two_halves(backend: Backend, case: tuple, data: st.DataObject) -> None:
    """Losses and gradients of sums add up."""
    x, sampling, target = case
    height, width = sampling.output_size
    if width < 2:
        return
    cut = data.draw(st.integers(1, width - 1))

    def loss(part: Sampling, labels: Tensor) -> tuple[Tensor, Tensor]:
        y = x.clone(memory_format=torch.preserve_format).requires_grad_()
        value = fk.upsample_cross_entropy(y, labels, part, reduction="sum")
        return value.detach(), *torch.autograd.grad(value, y)

    whole = loss(sampling, target)
    first = loss(window(sampling, 0, 0, height, cut), target[:, :, :cut])
    second = loss(window(sampling, 0, cut, height, width - cut), target[:, :, cut:])
    for a, b, c in zip(whole, first, second, strict=True):
        torch.testing.assert_close(a, b + c, rtol=1e-11, atol=1e-11)


@relation
@given(case=images())
def test_permuted_classes(backend: Backend, case: tuple) -> None:
    x, sampling, target = case
    order = torch.randperm(x.shape[1])
    place = order.argsort()  # where each class went
    y = x[:, order]
    torch.testing.assert_close(fk.upsample(y, sampling), fk.upsample(x, sampling)[:, order], **EXACT)
    torch.testing.assert_close(fk.upsample_softmax(y, sampling), fk.upsample_softmax(x, sampling)[:, order], **EXACT)
    ours, theirs = (
        fk.upsample_cross_entropy(x, target, sampling, label_smoothing=0.1),
        fk.upsample_cross_entropy(y, place[target], sampling, label_smoothing=0.1),
    )
    torch.testing.assert_close(ours, theirs, **EXACT)
    top = fk.upsample(x, sampling).topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > 1e-9
    labels = fk.upsample_argmax(x, sampling)
    assert place[labels][clear].equal(fk.upsample_argmax(y, sampling)[clear])
    counts = fk.upsample_confusion_matrix(x, labels, sampling, ignore_index=None)
    assert counts.equal(torch.diag(torch.bincount(labels.flatten(), minlength=x.shape[1])))


@relation
@given(case=images(), shift=st.sampled_from([-512.0, -3.5, 0.25, 64.0, 1024.0]))
def test_a_common_shift_changes_nothing(backend: Backend, case: tuple, shift: float) -> None:
    """Clamped: a shift of the input shifts every output. (A zero boundary does not hand it on.)"""
    x, sampling, target = case
    sampling = Sampling(sampling.rows, sampling.cols, "clamp")
    y = x + shift
    tolerance = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(fk.upsample(y, sampling), fk.upsample(x, sampling) + shift, **tolerance)
    torch.testing.assert_close(fk.upsample_softmax(y, sampling), fk.upsample_softmax(x, sampling), **tolerance)
    losses = [fk.upsample_cross_entropy(z, target, sampling, reduction="none") for z in (x, y)]
    torch.testing.assert_close(losses[0], losses[1], **tolerance)


@relation
@given(case=images())
def test_a_class_that_stands_there_twice(backend: Backend, case: tuple) -> None:
    """Half the probability each; the loss grows by log 2; the lower index wins."""
    x, sampling, target = case
    twice = torch.cat([x, x], 1)
    p = fk.upsample_softmax(x, sampling)
    torch.testing.assert_close(fk.upsample_softmax(twice, sampling), torch.cat([p, p], 1) / 2, **EXACT)
    one, two = (fk.upsample_cross_entropy(z, target, sampling, reduction="none") for z in (x, twice))
    torch.testing.assert_close(two, one + torch.tensor(2.0).double().log(), **EXACT)
    assert fk.upsample_argmax(twice, sampling).equal(fk.upsample_argmax(x, sampling))


@relation
@given(case=images())
def test_adjoint_and_linear(backend: Backend, case: tuple) -> None:
    x, sampling, _ = case
    x.requires_grad_()
    y = fk.upsample(x, sampling)
    g = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, g)
    torch.testing.assert_close((y * g).sum(), (x * dx).sum(), rtol=1e-10, atol=1e-9)
    z = torch.randn_like(x)
    torch.testing.assert_close(
        fk.upsample(2 * x.detach() - 3 * z, sampling), 2 * y.detach() - 3 * fk.upsample(z, sampling), **EXACT
    )


@relation
@given(case=images())
def test_reductions_agree(backend: Backend, case: tuple) -> None:
    x, sampling, target = case
    weight = torch.rand(x.shape[1], dtype=torch.float64) + 0.1
    none, mean, total, over_all = (
        fk.upsample_cross_entropy(x, target, sampling, weight=weight, ignore_index=1, reduction=r)
        for r in ("none", "mean", "sum", "mean_all")
    )
    torch.testing.assert_close(none.sum(), total, **EXACT)
    torch.testing.assert_close(total / target.numel(), over_all, **EXACT)
    counted = weight[target][target != 1].sum()
    torch.testing.assert_close(total / counted, mean, equal_nan=True, **EXACT)


@pytest.mark.parametrize("groups", [1, 3])
@relation
@given(seed=st.integers(0, 2**31), kernel=st.integers(1, 7), stride=st.integers(1, 4), width=st.integers(1, 40))
def test_convolutions_are_bilinear(
    backend: Backend, groups: int, seed: int, kernel: int, stride: int, width: int
) -> None:
    """<conv(x, w), g> = <x, grad_x> = <w, grad_w>, and outputs of two filters stand side by side."""
    torch.manual_seed(seed)
    x = torch.randn(2, 6, 3, width, dtype=torch.float64, requires_grad=True)
    w = torch.randn(6, 4, kernel, kernel, dtype=torch.float64, requires_grad=True)
    y = fk.conv_transpose_add(x, w, stride=stride, groups=groups)
    g = torch.randn_like(y)
    dx, dw = torch.autograd.grad(y, (x, w), g)
    torch.testing.assert_close((y * g).sum(), (x * dx).sum(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((y * g).sum(), (w * dw).sum(), rtol=1e-9, atol=1e-9)
    if groups == 1:
        halves = [fk.conv_transpose_add(x, part, stride=stride) for part in (w[:, :1], w[:, 1:])]
        torch.testing.assert_close(y, torch.cat(halves, 1), rtol=1e-11, atol=1e-11)
