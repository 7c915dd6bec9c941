"""Triton's score_softmax, score_argmax and score_cross_entropy, on the test bodies of the other backends."""

from __future__ import annotations

import pytest
import test_score_argmax
import test_score_cross_entropy
import test_score_softmax
import torch
from budget import check_budget
from cases import LAYOUTS
from conftest import Backend
from triton_cases import TRITON, check_truncated

import fcn_kernels as fk
from fcn_kernels import reference
from fcn_kernels.backends.triton import matmul, score

pytestmark = TRITON


@pytest.fixture(params=["one-tile", "blocks", "split"])
def score_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All classes in a tile; in blocks of 16, through the online softmax; channels split among programs."""
    if request.param == "blocks":
        monkeypatch.setattr(score, "SCORE", {name: {16: (16, 16, 4, 2)} for name in score.SCORE})
    elif request.param == "one-tile":
        monkeypatch.setattr(matmul, "ENOUGH", 1)
    return request.param


def wide(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """More classes than a block of `score_path`, and channels enough to be split."""
    return [t.to(dtype) for t in (torch.randn(1, 520, 3, 6) / 8, torch.randn(37, 520) / 4, torch.randn(37))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_softmax_layouts(triton_backend: Backend, layout: str) -> None:
    test_score_softmax.test_value_and_gradients(triton_backend, layout, torch.float32, True, False)


@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_softmax_dtypes(triton_backend: Backend, dtype: torch.dtype, log: bool) -> None:
    test_score_softmax.test_value_and_gradients(triton_backend, "contiguous", dtype, False, log)


def test_bfloat16(triton_backend: Backend) -> None:
    x, weight, bias = (t.bfloat16() for t in (torch.randn(1, 9, 3, 4), torch.randn(6, 9), torch.randn(6)))
    check_truncated(lambda x: fk.score_softmax(x, weight, bias), x.to(triton_backend.device))


def test_small_ones(triton_backend: Backend) -> None:
    test_score_softmax.test_one_class_one_channel_and_empty(triton_backend)
    test_score_softmax.test_flat_weight_is_the_same(triton_backend)
    test_score_argmax.test_ties_and_nan(triton_backend)
    test_score_argmax.test_not_differentiable(triton_backend)
    test_score_cross_entropy.test_all_ignored_and_empty(triton_backend)
    test_score_cross_entropy.test_only_what_needs_a_gradient_gets_one(triton_backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_argmax(triton_backend: Backend, dtype: torch.dtype) -> None:
    for layout in ("contiguous", "channels_last", "transposed"):
        test_score_argmax.test_labels(triton_backend, layout, dtype, True)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.125])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
def test_cross_entropy(triton_backend: Backend, weighted: bool, smoothing: float, reduction: str) -> None:
    check = test_score_cross_entropy.test_equals_torch
    check(triton_backend, "contiguous", torch.float32, weighted, smoothing, reduction)
    check(triton_backend, "channels_last", torch.float64, weighted, smoothing, reduction)


def test_gradcheck(triton_backend: Backend) -> None:
    options = {"dtype": torch.float64, "device": triton_backend.device, "requires_grad": True}
    tensors = (torch.randn(1, 3, 1, 2, **options), torch.randn(2, 3, **options), torch.randn(2, **options))
    target = torch.randint(0, 2, (1, 1, 2), device=triton_backend.device)
    assert torch.autograd.gradcheck(fk.score_softmax, tensors, fast_mode=True)
    assert torch.autograd.gradcheck(lambda *t: fk.score_cross_entropy(*t, target), tensors, fast_mode=True)


@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
def test_paths_of_softmax(triton_backend: Backend, score_path: str, log: bool) -> None:
    tensors = [t.to(triton_backend.device) for t in wide()]
    doubles = [t.double() for t in tensors]
    for values in ((), (torch.inf,), (-torch.inf,), (torch.nan,)):
        for t in (tensors, doubles):
            for value in values:
                t[2][1] = value
        ours = (fk.score_log_softmax if log else fk.score_softmax)(*tensors)
        expected = reference.score_softmax(*tensors, log)
        check_budget(ours, expected, reference.score_softmax(*doubles, log), tensors[0], gain=100)


def test_paths_of_cross_entropy(triton_backend: Backend, score_path: str) -> None:
    target = torch.randint(0, 37, (1, 3, 6), device=triton_backend.device)
    target[0, 0, 0] = -100
    for weight in (None, torch.rand(37, device=triton_backend.device)):
        results = []
        for dtype in (torch.float32, torch.float64):
            torch.manual_seed(1)
            tensors = [t.to(triton_backend.device).requires_grad_() for t in wide(dtype)]
            options = {"class_weight": weight, "label_smoothing": 0.125}
            loss = fk.score_cross_entropy(*tensors, target, **options)
            results.append((loss, *torch.autograd.grad(loss, tensors)))
            with fk.use_backend("reference"):
                expected = fk.score_cross_entropy(*tensors, target, **options)
                expected = (expected, *torch.autograd.grad(expected, tensors))
        for ours, oracle in zip(results[0], expected, strict=True):
            torch.testing.assert_close(ours.double(), oracle, rtol=1e-5, atol=1e-5 * oracle.abs().max().item())
        torch.testing.assert_close(results[1], expected, rtol=1e-10, atol=1e-12)


def test_paths_of_argmax(triton_backend: Backend, score_path: str) -> None:
    x, weight, bias = (t.to(triton_backend.device) for t in wide())
    assert fk.score_argmax(x, weight, bias).equal(reference.score_argmax(x, weight, bias, torch.int64))
    weight[20], bias[20] = weight[5], bias[5] + 50
    bias[5] += 50
    assert (fk.score_argmax(x, weight, bias) == 5).all()
    bias[30] = torch.nan
    assert (fk.score_argmax(x, weight, bias) == 30).all()


def test_a_wrong_label(triton_backend: Backend) -> None:
    x, weight = torch.randn(1, 3, 2, 2, device=triton_backend.device), torch.randn(4, 3)
    target = torch.full((1, 2, 2), 4, device=triton_backend.device)
    arguments = (x, weight.to(triton_backend.device), None, target)
    if triton_backend.interpreted:
        with pytest.raises(RuntimeError, match=r"target\[0, 0, 0\] = 4 is neither a class"):
            fk.score_cross_entropy(*arguments)
    else:
        assert fk.score_cross_entropy(*arguments).isnan()


def test_same_bits(triton_backend: Backend) -> None:
    tensors = [t.to(triton_backend.device) for t in wide()]
    assert fk.score_softmax(*tensors).equal(fk.score_softmax(*tensors))


def test_tf32_is_asked_for() -> None:
    allowed = "ieee" if torch.version.hip else "tf32"
    assert matmul.precision(torch.float32) == "ieee"
    assert matmul.precision(torch.float16, gradient=True) == allowed
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert matmul.precision(torch.float32) == allowed
    finally:
        torch.set_float32_matmul_precision(before)
    assert matmul.precision(torch.float32) == "ieee"
