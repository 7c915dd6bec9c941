"""upsample_cross_entropy on every backend: loss and gradient, options, adversarial logits, what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from budget import check_budget
from cases import ADVERSARIAL, DTYPES, FEW_SAMPLINGS, LAYOUTS, SAMPLINGS, layout_rule, parametrized
from conftest import Backend

import fcn_kernels as fk
from fcn_kernels import Sampling, reference

OPERATOR = "upsample_cross_entropy"
REDUCTIONS = {"none": reference.NONE, "mean": reference.MEAN, "sum": reference.SUM, "mean_all": reference.MEAN_ALL}


def labels_for(x: torch.Tensor, sampling: Sampling, ignore_index: int = -100) -> torch.Tensor:
    """Random classes, and about a fifth of the pixels ignored."""
    target = torch.randint(0, x.shape[1], (x.shape[0], *sampling.output_size))
    target[torch.rand(target.shape) < 0.2] = ignore_index
    return target


def check(
    backend: Backend,
    x: torch.Tensor,
    target: torch.Tensor,
    sampling: Sampling,
    *,
    weight: torch.Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> None:
    """Loss and gradient against the oracle, dtype and layout against the rule."""
    x, target = x.to(backend.device).requires_grad_(), target.to(backend.device)
    arithmetic = reference.arithmetic_dtype(x.dtype)
    weight = None if weight is None else weight.to(backend.device, arithmetic)
    options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
    loss = fk.upsample_cross_entropy(x, target, sampling, weight=weight, **options)
    g = torch.randn_like(loss)
    (dx,) = torch.autograd.grad(loss, x, g)

    def specified(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        y = x.detach().to(dtype)
        w = None if weight is None else weight.to(reference.arithmetic_dtype(dtype))
        code, kind = sampling.encode(), REDUCTIONS[reduction]
        value, total, gradient, lse = reference.upsample_cross_entropy(
            y, target, w, code, ignore_index, kind, label_smoothing, True
        )
        if kind == reference.NONE:
            up = g.to(value.dtype)
            return value, reference.upsample_cross_entropy_backward(
                up, y, target, w, lse, code, ignore_index, label_smoothing
            )
        factor = torch.where(total == 0, 0, g.to(total.dtype) / total)
        return value, (gradient * factor).to(dtype)

    (expected, expected_dx), (oracle, oracle_dx) = specified(x.dtype), specified(torch.float64)
    pixels = target.numel() if reduction == "sum" else 1
    check_budget(loss, expected, oracle, x, gain=pixels * (1 if weight is None else weight.max().item()))
    assert dx.is_contiguous(memory_format=layout_rule(x))
    # An input collects from about s_y s_x outputs; a mean divides by their number.
    many = max(1.0, target[0].numel() / (x.shape[2] * x.shape[3])) * g.abs().max().item()
    if "mean" in reduction:
        many /= max(1, target.numel())
    check_budget(dx, expected_dx, oracle_dx, x, gain=many)


@pytest.mark.parametrize("reduction", ["none", "mean"])  # all four of them: test_options
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sampling", **parametrized(SAMPLINGS))
def test_samplings(backend: Backend, sampling: Sampling, dtype: torch.dtype, reduction: str) -> None:
    x = 3 * torch.randn(2, 5, *sampling.input_size).to(dtype)
    check(backend, x, labels_for(x, sampling), sampling, reduction=reduction)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sampling", **parametrized(FEW_SAMPLINGS))
def test_layouts(backend: Backend, sampling: Sampling, layout: str, reduction: str) -> None:
    x = LAYOUTS[layout](torch.randn(2, 5, *sampling.input_size, device=backend.device))
    check(backend, x, labels_for(x, sampling), sampling, reduction=reduction)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("channels", [1, 2, 19, 21, 64, 150])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_channels(backend: Backend, channels: int, layout: str, reduction: str) -> None:
    x, sampling = LAYOUTS[layout](torch.randn(1, channels, 4, 5)), Sampling.interpolate((4, 5), (33, 43))
    check(backend, x, labels_for(x, sampling), sampling, reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_options(backend: Backend, dtype: torch.dtype, weighted: bool, smoothing: float, reduction: str) -> None:
    sampling = Sampling.transposed_conv((4, 5), 8, offset=(9, 3), output_size=(21, 30))
    x = torch.randn(2, 7, 4, 5).to(dtype)
    weight = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0, 1.5, 0.25]) if weighted else None
    target = labels_for(x, sampling)
    check(backend, x, target, sampling, weight=weight, label_smoothing=smoothing, reduction=reduction)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("values", ADVERSARIAL)
def test_adversarial(backend: Backend, values: str, dtype: torch.dtype, reduction: str) -> None:
    for smoothing, (_, sampling) in itertools.product((0.0, 0.1), FEW_SAMPLINGS):
        x = ADVERSARIAL[values](torch.randn(1, 5, *sampling.input_size, dtype=dtype))
        target = labels_for(x, sampling)
        check(backend, x, target, sampling, reduction=reduction, label_smoothing=smoothing)


def test_largest_logits_do_not_overflow(backend: Backend) -> None:
    x = (torch.randn(1, 4, 5, 6).sign() * 1e38).to(backend.device).requires_grad_()
    loss = fk.upsample_cross_entropy(
        x, torch.zeros(1, 20, 24, dtype=torch.long, device=backend.device), reduction="none"
    )
    (dx,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
    assert loss.isfinite().all()
    assert dx.isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 10.0])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("channels", "sampling", "dtype"),
    [
        (21, Sampling.transposed_conv(26, 8, kernel_size=16, offset=31, output_size=180), torch.float32),
        (19, Sampling.interpolate((24, 40), (192, 320)), torch.bfloat16),
        (150, Sampling.interpolate(24, 96, align_corners=True), torch.float32),
        (11, Sampling.interpolate((20, 30), (211, 173)), torch.float64),
    ],
)
def test_heads_of_real_shape(
    backend: Backend, channels: int, sampling: Sampling, dtype: torch.dtype, layout: str, temperature: float
) -> None:
    x = LAYOUTS[layout](temperature * torch.randn(1, channels, *sampling.input_size)).to(dtype)
    check(backend, x, labels_for(x, sampling, 255), sampling, ignore_index=255)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
def test_equals_torch(backend: Backend, weighted: bool, smoothing: float, reduction: str) -> None:
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64, device=backend.device, requires_grad=True)
    target = labels_for(x, Sampling.interpolate((6, 7), (30, 20)), 3).to(backend.device)
    weight = torch.rand(5, dtype=torch.float64, device=backend.device) if weighted else None
    options = {"weight": weight, "ignore_index": 3, "reduction": reduction, "label_smoothing": smoothing}
    ours = fk.upsample_cross_entropy(x, target, **options)
    theirs = F.cross_entropy(F.interpolate(x, size=(30, 20), mode="bilinear"), target, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    g = torch.randn_like(ours)
    expected = torch.autograd.grad(theirs, x, g)
    torch.testing.assert_close(torch.autograd.grad(ours, x, g), expected, rtol=1e-10, atol=1e-12)


def test_mean_over_all_pixels(backend: Backend) -> None:
    x = torch.randn(2, 5, 6, 7, device=backend.device)
    target = labels_for(x, Sampling.interpolate((6, 7), (12, 14))).to(backend.device)
    total = fk.upsample_cross_entropy(x, target, reduction="sum")
    torch.testing.assert_close(fk.upsample_cross_entropy(x, target, reduction="mean_all"), total / target.numel())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("ignore_index", [255, 1, 0])
def test_label_types(backend: Backend, dtype: torch.dtype, ignore_index: int) -> None:
    x, sampling = torch.randn(2, 5, 4, 6), Sampling.interpolate((4, 6), (11, 23))
    target = labels_for(x, sampling, ignore_index).to(dtype)
    for layout in (target, target.transpose(1, 2).contiguous().transpose(1, 2), target[:1].expand(target.shape)):
        check(backend, x, layout, sampling, ignore_index=ignore_index)


def test_small_label_types_do_not_wrap_ignore_index(backend: Backend) -> None:
    """As a byte -100 would be 156, which is a class here."""
    x = torch.randn(1, 200, 2, 2, device=backend.device)
    target = torch.full((1, 4, 4), 156, dtype=torch.uint8, device=backend.device)
    loss = fk.upsample_cross_entropy(x, target)
    torch.testing.assert_close(loss, fk.upsample_cross_entropy(x, target.long()))
    assert loss > 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_all_ignored(backend: Backend, smoothing: float, reduction: str) -> None:
    """Torch's own result: NaN for the mean, zero for the others, and a gradient of zero."""
    x = torch.randn(2, 5, 3, 4, device=backend.device, requires_grad=True)
    target = torch.full((2, 6, 8), 255, dtype=torch.uint8, device=backend.device)
    loss = fk.upsample_cross_entropy(x, target, ignore_index=255, reduction=reduction, label_smoothing=smoothing)
    loss.sum().backward()
    assert loss.isnan() if reduction == "mean" else not loss.any()
    assert x.grad.equal(torch.zeros_like(x))
    if reduction != "mean_all":
        y = x.detach().requires_grad_()
        options = {"ignore_index": 255, "reduction": reduction, "label_smoothing": smoothing}
        theirs = F.cross_entropy(F.interpolate(y, size=(6, 8), mode="bilinear"), target.long(), **options)
        theirs.sum().backward()
        torch.testing.assert_close(loss, theirs, equal_nan=True)
        assert x.grad.equal(y.grad)


def test_empty_batch(backend: Backend) -> None:
    for reduction, value in (("mean", torch.nan), ("mean_all", torch.nan), ("sum", 0.0)):
        x = torch.randn(0, 5, 3, 4, device=backend.device, requires_grad=True)
        target = torch.zeros(0, 6, 8, dtype=torch.long, device=backend.device)
        loss = fk.upsample_cross_entropy(x, target, reduction=reduction)
        loss.backward()
        torch.testing.assert_close(loss.cpu(), torch.tensor(value), equal_nan=True)
        assert x.grad.shape == x.shape
    assert fk.upsample_cross_entropy(x, target, reduction="none").shape == (0, 6, 8)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(backend: Backend, reduction: str, smoothing: float) -> None:
    x = torch.randn(2, 3, 3, 2, dtype=torch.float64, device=backend.device, requires_grad=True)
    sampling = Sampling.transposed_conv((3, 2), 2, offset=1)
    target = labels_for(x, sampling).to(backend.device)
    weight = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64, device=backend.device)

    def f(x: torch.Tensor) -> torch.Tensor:
        options = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
        return fk.upsample_cross_entropy(x, target, sampling, **options)

    assert torch.autograd.gradcheck(f, x)
    (dx,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="upsample_cross_entropy cannot be differentiated twice"):
        (dx.square().sum() + x.sum()).backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_backward_gives_the_same(backend: Backend, reduction: str) -> None:
    x = torch.randn(1, 5, 4, 4, device=backend.device, requires_grad=True)
    target = torch.randint(0, 5, (1, 16, 16), device=backend.device)
    loss = fk.upsample_cross_entropy(x, target, reduction=reduction)
    g = torch.rand_like(loss)
    first = torch.autograd.grad(loss, x, g, retain_graph=True)[0]
    assert first.equal(torch.autograd.grad(loss, x, g)[0])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_backward_without_a_saved_gradient(backend: Backend, reduction: str) -> None:
    """The raw operator, told that no gradient is wanted, still gives the right one."""
    x = torch.randn(1, 5, 4, 4, device=backend.device, requires_grad=True)
    target = torch.randint(0, 5, (1, 16, 16), device=backend.device)
    code = Sampling.interpolate(4, 16).encode()
    op = torch.ops.fcn_kernels.upsample_cross_entropy
    grads = []
    for with_grad in (True, False):
        loss = op(x, target, None, code, -100, REDUCTIONS[reduction], 0.1, with_grad)[0]
        grads.append(torch.autograd.grad(loss, x, torch.ones_like(loss))[0])
    assert grads[0].equal(grads[1])


def test_no_gradient_is_computed_unasked(backend: Backend) -> None:
    code = Sampling.interpolate(4, 16).encode()
    x, target = (
        torch.randn(1, 5, 4, 4, device=backend.device),
        torch.zeros(1, 16, 16, dtype=torch.long, device=backend.device),
    )
    for reduction in REDUCTIONS.values():
        _, _, gradient, lse = torch.ops.fcn_kernels.upsample_cross_entropy(
            x, target, None, code, -100, reduction, 0.0, False
        )
        assert gradient.numel() == lse.numel() == 0


def test_half_precision_gradients_do_not_underflow(backend: Backend) -> None:
    """A pixel's share of a mean is about 1 / (N H W), which float16 cannot hold; GradScaler's factor must reach it."""
    x = torch.randn(1, 3, 4, 4, device=backend.device).half().requires_grad_()
    target = torch.randint(0, 3, (1, 1024, 1024), device=backend.device)
    scaler = torch.amp.GradScaler(backend.device, init_scale=2.0**16)
    with torch.autocast(backend.device, torch.float16):
        loss = fk.upsample_cross_entropy(x, target)
    assert loss.dtype == torch.float32
    scaler.scale(loss).backward()
    exact = x.detach().double().requires_grad_()
    fk.upsample_cross_entropy(exact, target).backward()
    torch.testing.assert_close(x.grad.double() / 2.0**16, exact.grad, rtol=2e-3, atol=1e-8)


def test_inputs_stay_as_they_are(backend: Backend) -> None:
    x = torch.randn(1, 5, 4, 4, device=backend.device, requires_grad=True)
    target, weight = torch.randint(0, 5, (1, 9, 9), device=backend.device), torch.rand(5, device=backend.device)
    copies = [t.detach().clone() for t in (x, target, weight)]
    fk.upsample_cross_entropy(x, target, weight=weight, label_smoothing=0.1).backward()
    assert all(a.equal(b) for a, b in zip((x, target, weight), copies, strict=True))


@pytest.mark.parametrize("value", [5, -1, 2**40, -(2**40)])
def test_labels_outside_the_classes(backend: Backend, value: int) -> None:
    x = torch.randn(2, 5, 4, 4, device=backend.device, requires_grad=True)
    target = torch.randint(0, 5, (2, 12, 12), device=backend.device)
    target[1, 3, 7] = target[1, 9, 0] = value
    if backend.device != "cpu":
        assert fk.upsample_cross_entropy(x, target).isnan()
        return
    message = rf"target\[1, 3, 7\] = {value} is neither a class \(0 to 4\) nor ignore_index \(-100\)$"
    for reduction in REDUCTIONS:
        with pytest.raises(RuntimeError, match=message):
            fk.upsample_cross_entropy(x, target, reduction=reduction)
    assert fk.upsample_cross_entropy(x, target, ignore_index=value).isfinite()


X, TARGET = torch.randn(2, 3, 5, 6), torch.zeros(2, 10, 12, dtype=torch.long)
WEIGHT = torch.rand(3)
CE = fk.upsample_cross_entropy
BAD = [
    (lambda: CE(X[0], TARGET), ValueError, r"x must be \[N, C, H, W\]"),
    (lambda: CE(X.long(), TARGET), TypeError, "x must be float32"),
    (lambda: CE(X, torch.rand(2, 3, 10, 12)), TypeError, "soft targets are not supported"),
    (lambda: CE(X, TARGET.float()), TypeError, "soft targets are not supported"),
    (lambda: CE(X, TARGET.bool()), TypeError, "target must be uint8, int16, int32 or int64, got torch.bool"),
    (lambda: CE(X, TARGET.tolist()), TypeError, "target must be a tensor of labels, got list"),
    (lambda: CE(X, TARGET[0]), ValueError, r"target must be \[N, H, W\]"),
    (lambda: CE(X, TARGET[:1]), ValueError, r"target must be \[N, H, W\] = \[2, 10, 12\], got shape \[1, 10, 12\]"),
    (lambda: CE(X, TARGET[:, None]), ValueError, r"got shape \[2, 1, 10, 12\]"),
    (lambda: CE(X, TARGET, (10, 13)), ValueError, r"= \[2, 10, 13\], got shape \[2, 10, 12\]"),
    (lambda: CE(X, TARGET.to("meta")), ValueError, "target is on meta, but x is on cpu"),
    (lambda: CE(X, TARGET, Sampling.interpolate(5, 9)), ValueError, "the sampling reads 5 x 5"),
    (
        lambda: CE(X, TARGET, weight=WEIGHT[:2]),
        ValueError,
        r"weight must be \[3\], one factor per class, got shape \[2\]",
    ),
    (lambda: CE(X, TARGET, weight=WEIGHT[None]), ValueError, r"weight must be \[3\]"),
    (lambda: CE(X, TARGET, weight=WEIGHT.long()), TypeError, "weight must be a floating tensor"),
    (lambda: CE(X, TARGET, weight=[1.0, 1.0, 1.0]), TypeError, "weight must be a tensor, got list"),
    (lambda: CE(X, TARGET, weight=WEIGHT.to("meta")), ValueError, "weight is on meta, but x is on cpu"),
    (lambda: CE(X, TARGET, weight=WEIGHT.clone().requires_grad_()), ValueError, "weight requires a gradient"),
    (
        lambda: CE(X, TARGET, reduction="average"),
        ValueError,
        "reduction must be one of none, mean, sum, mean_all, got 'average'",
    ),
    (lambda: CE(X, TARGET, reduction=None), ValueError, "reduction must be one of"),
    (lambda: CE(X, TARGET, label_smoothing=1.5), ValueError, r"label_smoothing must lie in \[0, 1\], got 1.5"),
    (lambda: CE(X, TARGET, label_smoothing=-0.1), ValueError, r"label_smoothing must lie in \[0, 1\], got -0.1"),
    (lambda: CE(X, TARGET, label_smoothing=float("nan")), ValueError, "label_smoothing must lie in"),
    (lambda: CE(X, TARGET, ignore_index=1.5), TypeError, "ignore_index must be an int, got 1.5"),
    (lambda: CE(X, TARGET, ignore_index=None), TypeError, "ignore_index must be an int, got None"),
    (lambda: CE(X, TARGET, pixel_weight=[1.0]), TypeError, "pixel_weight must be a tensor, got list"),
    (lambda: CE(X, TARGET, pixel_weight=TARGET), TypeError, "pixel_weight must be a floating tensor, got torch.int64"),
    (
        lambda: CE(X, TARGET, pixel_weight=torch.rand(2, 10, 13)),
        ValueError,
        r"pixel_weight must be \[N, H, W\] = \[2, 10, 12\], got shape \[2, 10, 13\]",
    ),
    (
        lambda: CE(X, TARGET, pixel_weight=torch.rand(2, 10, 12).requires_grad_()),
        ValueError,
        "pixel_weight requires a gradient",
    ),
    (lambda: CE(X, TARGET, pixel_weight=torch.rand(2, 10, 12).to("meta")), ValueError, "pixel_weight is on meta"),
    (lambda: CE(X, TARGET, ignore_index=2**70), ValueError, "ignore_index must fit 64 bits"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        call()
    assert str(raised.value).startswith("upsample_cross_entropy: ")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_pixel_weights_and_extras(backend: Backend, dtype: torch.dtype, reduction: str, weighted: bool) -> None:
    """Against plain PyTorch in float64, as heads write it: weights times pixel losses, divided as without them."""
    x = torch.randn(2, 5, 6, 7).to(dtype).to(backend.device).requires_grad_()
    target = torch.randint(0, 5, (2, 24, 21), device=backend.device).to(torch.uint8)
    target[:, :3] = 255
    factors = torch.rand(2, 24, 21, device=backend.device)
    weight = torch.rand(5, device=backend.device) if weighted else None
    options = {"weight": weight, "label_smoothing": 0.1 if weighted else 0.0}
    extras = CE(x, target, ignore_index=255, reduction=reduction, pixel_weight=factors, return_extras=True, **options)
    y = x.detach().double().requires_grad_()
    z, labels, kept = F.interpolate(y, size=(24, 21), mode="bilinear"), target.long(), target != 255
    if weighted:
        options["weight"] = weight.double()
    losses = factors.double() * F.cross_entropy(z, labels, ignore_index=255, reduction="none", **options)
    counts = torch.where(kept, 1.0 if weight is None else weight.double()[labels.clamp(max=4)], 0.0)
    divisor = {"mean": counts.sum(), "mean_all": losses.numel(), "sum": 1, "none": 1}[reduction]
    expected = losses if reduction == "none" else losses.sum() / divisor
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(extras.loss.double(), expected, **tolerance)
    torch.testing.assert_close(extras.pixel_loss.double(), losses.detach(), **tolerance)
    torch.testing.assert_close(extras.logsumexp.double(), z.detach().logsumexp(1), **tolerance)
    p = z.detach().softmax(1).gather(1, labels.clamp(max=4)[:, None]).squeeze(1)
    torch.testing.assert_close(extras.label_probability.double(), torch.where(kept, p, 0.0), **tolerance)
    assert extras.counted == kept.sum()
    assert extras.correct == ((z.argmax(1) == labels) & kept).sum()
    assert not any(t.requires_grad for t in extras[1:])
    g = torch.rand_like(expected)
    (dx,) = torch.autograd.grad(extras.loss, x, g.to(extras.loss.dtype))
    (dy,) = torch.autograd.grad(expected, y, g)
    rounding = {"rtol": 8e-3, "atol": 1e-5} if dtype == torch.bfloat16 else tolerance
    torch.testing.assert_close(dx.double(), dy, **rounding)
    alone = CE(x, target, ignore_index=255, reduction=reduction, pixel_weight=factors, **options)
    torch.testing.assert_close(alone, extras.loss)


@pytest.mark.parametrize("reduction", ["mean", "mean_all", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_all_ignored_with_pixel_weights_or_extras(backend: Backend, reduction: str, weighted: bool) -> None:
    x = torch.randn(2, 3, 4, 5, device=backend.device, requires_grad=True)
    target = torch.full((2, 8, 10), 255, device=backend.device)
    weight = torch.full((2, 8, 10), torch.nan, device=backend.device) if weighted else None
    loss = CE(x, target, ignore_index=255, reduction=reduction, pixel_weight=weight, return_extras=True).loss
    expected = CE(x, target, ignore_index=255, reduction=reduction)
    torch.testing.assert_close(loss, expected, equal_nan=True)
    (dx,) = torch.autograd.grad(loss.sum(), x)
    assert not dx.any()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in Triton's interpreter
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("channels", [1, 2, 9])
def test_a_weight_of_zero_does_not_hide_logits_that_are_not_finite(
    any_backend: Backend, channels: int, reduction: str, value: float
) -> None:
    """Torch's own result: zero times NaN."""
    x = torch.randn(1, channels, 2, 2)
    x[0, 0, 0, 0] = value
    target = torch.zeros(1, 6, 6, dtype=torch.int64)
    target[:, :, 4:] = -100
    options = {"weight": torch.zeros(channels), "reduction": reduction}
    y = x.clone().requires_grad_()
    F.cross_entropy(F.interpolate(y, size=(6, 6), mode="bilinear"), target, **options).sum().backward()
    x = x.to(any_backend.device).requires_grad_()
    options["weight"] = options["weight"].to(any_backend.device)
    fk.upsample_cross_entropy(x, target.to(any_backend.device), **options).sum().backward()
    assert y.grad.isnan().any() == (value != -torch.inf or channels == 1)
    torch.testing.assert_close(x.grad.cpu(), y.grad, equal_nan=True)


def test_a_weight_of_an_ignored_pixel_is_not_read(backend: Backend) -> None:
    x = torch.randn(2, 3, 4, 5, device=backend.device, requires_grad=True)
    target = torch.randint(0, 3, (2, 8, 10), device=backend.device)
    target[:, :3] = 255
    weight = torch.rand(2, 8, 10, device=backend.device)
    expected = CE(x, target, ignore_index=255, pixel_weight=weight)
    broken = weight.masked_fill(target == 255, torch.nan)
    loss = CE(x, target, ignore_index=255, pixel_weight=broken)
    assert loss.equal(expected)
    (dx,), (wanted,) = torch.autograd.grad(loss, x), torch.autograd.grad(expected, x)
    assert dx.equal(wanted)


def test_pixel_weights_of_one_change_nothing(backend: Backend) -> None:
    x = torch.randn(2, 5, 6, 7, device=backend.device)
    target = torch.randint(0, 5, (2, 24, 21), device=backend.device)
    ones = torch.ones(target.shape, dtype=torch.float16, device=backend.device)
    for reduction in REDUCTIONS:
        options = {"reduction": reduction, "ignore_index": 2, "weight": torch.rand(5, device=backend.device)}
        torch.testing.assert_close(CE(x, target, pixel_weight=ones, **options), CE(x, target, **options))


@pytest.mark.parametrize("weight", [None, 100.0])
@pytest.mark.parametrize(("reduction", "scale"), [("mean", 1.0), ("none", 65536.0)])
@pytest.mark.parametrize("jump", [80.0, 84.0, 88.0, 93.0])
def test_a_class_that_rises_from_underflow(
    backend: Backend, jump: float, reduction: str, scale: float, weight: float | None
) -> None:
    """The smaller e_0, the larger the sums that multiply it."""
    x = torch.full((1, 2, 2, 40), -65.8)
    x[:, 1, :, 0::2], x[:, 1, :, 1::2] = -jump, 0.0
    target = torch.zeros(1, 16, 320, dtype=torch.long)
    weights = None if weight is None else torch.tensor([weight, 1.0])

    def gradient(f: Callable[..., torch.Tensor], dtype: torch.dtype, device: str) -> torch.Tensor:
        y = x.to(device, dtype).requires_grad_()
        w = None if weights is None else weights.to(device, dtype)
        loss = f(y, target.to(device), weight=w, reduction=reduction)
        return torch.autograd.grad((scale * loss).sum(), y)[0].cpu()

    def specified(y: torch.Tensor, t: torch.Tensor, **options: object) -> torch.Tensor:
        return F.cross_entropy(F.interpolate(y, size=t.shape[1:], mode="bilinear"), t, **options)

    ours = gradient(fk.upsample_cross_entropy, torch.float32, backend.device)
    oracle = gradient(specified, torch.float64, "cpu")
    torch.testing.assert_close(ours.double(), oracle, rtol=0, atol=1e-5 * oracle.abs().max().item())
