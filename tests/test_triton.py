"""The Triton kernels, on the test bodies of the other backends: on a GPU, else in Triton's interpreter, which takes
about a tenth of a millisecond for an operation on a tile of any size, so that the images are tiny.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from budget import check_budget
from cases import ADVERSARIAL, DTYPES, LAYOUTS, parametrized
from conftest import Backend
from torch.library import opcheck

pytest.importorskip("triton")

import test_channel_sum
import test_conv_transpose_add
import test_conv_transpose_concat
import test_library
import test_score_argmax
import test_score_cross_entropy
import test_score_softmax
import test_upsample_argmax
import test_upsample_binary_cross_entropy
import test_upsample_confusion_matrix
import test_upsample_cross_entropy
import test_upsample_sigmoid
import test_upsample_softmax

import fcn_kernels as fk
from fcn_kernels import Sampling, reference
from fcn_kernels.backends.triton import conv_transpose_add, logsumexp, matmul, score, upsample_cross_entropy
from fcn_kernels.sampling import Axis

pytestmark = pytest.mark.triton
# The interpreter computes as numpy does, which reports what the kernels mean to do with infinities.
warnings = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# Integer and other factors, both boundaries, crops, longer runs than a segment, one pixel, down-sampling, equal sizes.
TINY = [
    ("resize-4x", Sampling.interpolate((2, 2), (6, 8))),
    ("ragged", Sampling.interpolate((2, 2), (3, 5))),
    ("corners", Sampling.interpolate((2, 3), (3, 7), align_corners=True)),
    ("down", Sampling.interpolate((7, 8), (2, 3))),
    ("same", Sampling.interpolate((2, 3), (2, 3))),
    ("one-to-many", Sampling.interpolate((1, 1), (2, 3))),
    ("many-to-one", Sampling.interpolate((3, 4), (1, 1))),
    ("fcn-2x", Sampling.transposed_conv((2, 2), 2, kernel_size=4)),
    ("fcn-8x", Sampling.transposed_conv((2, 2), 8, kernel_size=16, offset=(11, 5), output_size=(3, 13))),
    ("fcn-16x", Sampling.transposed_conv((2, 1), 16, kernel_size=32, offset=(9, 3), output_size=(2, 20))),
    ("fcn-32x", Sampling.transposed_conv((1, 2), 32, kernel_size=64, offset=(30, 49), output_size=(1, 41))),
]
FEW = [case for case in TINY if case[0] in ("ragged", "corners", "fcn-8x")]


@pytest.fixture
def triton_backend() -> Iterator[Backend]:
    with fk.use_backend("triton"):
        yield Backend("triton", "cuda" if torch.cuda.is_available() else "cpu")


def check_truncated(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> None:
    """For bfloat16, where the interpreter truncates: value and gradient within an ulp of the reference."""
    results = []
    for backend in ("triton", "reference"):
        with fk.use_backend(backend):
            y = x.clone().requires_grad_()
            value = f(y)
            g = torch.linspace(-1, 1, value.numel()).view(value.shape).to(value)
            results.append((value, *torch.autograd.grad(value, y, g)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=2**-6, atol=2**-6 * expected.abs().max().item())


@warnings
@pytest.mark.parametrize("name", test_library.NAMES)
def test_opcheck(triton_backend: Backend, name: str) -> None:
    """Schema, autograd and fake kernels; tracing is in test_library.py, as the interpreter reads memory of its own."""
    x = torch.randn(2, 5, 3, 4).requires_grad_()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(getattr(test_library.OPS, name).default, test_library.arguments(x)[name][0], test_utils=checks)


@warnings
class TestSoftmax:
    check = staticmethod(test_upsample_softmax.check)

    @pytest.mark.parametrize("sampling", **parametrized(TINY))
    def test_samplings(self, triton_backend: Backend, sampling: Sampling) -> None:
        for log in (False, True):
            self.check(triton_backend, 3 * torch.randn(1, 3, *sampling.input_size), sampling, log)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_dtypes(self, triton_backend: Backend, dtype: torch.dtype) -> None:
        x, sampling = torch.randn(1, 5, *FEW[0][1].input_size).to(dtype), FEW[0][1]
        for log in (False, True):
            if dtype == torch.bfloat16 and triton_backend.interpreted:
                check_truncated(
                    lambda y, log=log: (fk.upsample_log_softmax if log else fk.upsample_softmax)(y, sampling), x
                )
            else:
                self.check(triton_backend, x, sampling, log)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts(self, triton_backend: Backend, layout: str) -> None:
        sampling = FEW[0][1]
        self.check(triton_backend, LAYOUTS[layout](torch.randn(2, 3, *sampling.input_size)), sampling, False)

    @pytest.mark.parametrize("values", ADVERSARIAL)
    def test_adversarial(self, triton_backend: Backend, values: str) -> None:
        sampling = FEW[0][1]
        x = ADVERSARIAL[values](torch.randn(1, 4, *sampling.input_size))
        self.check(triton_backend, x, sampling, False)

    def test_many_classes(self, triton_backend: Backend) -> None:
        self.check(triton_backend, torch.randn(1, 37, 1, 2), Sampling.interpolate((1, 2), (2, 5)), False)

    def test_largest_logits_do_not_overflow(self, triton_backend: Backend) -> None:
        x = torch.randn(1, 4, 2, 3, device=triton_backend.device).sign() * 3e38
        p = fk.upsample_softmax(x, (3, 5))
        assert p.isfinite().all()
        torch.testing.assert_close(p.sum(1), torch.ones_like(p[:, 0]))

    def test_a_large_common_offset_costs_no_digits(self, triton_backend: Backend) -> None:
        """Neighbouring numbers lie 0.06 apart there; the differences of these logits are exact."""
        x = torch.randint(-32, 32, (1, 4, 2, 3), device=triton_backend.device) / 8.0
        torch.testing.assert_close(fk.upsample_softmax(x + 1e6, (5, 7)), fk.upsample_softmax(x, (5, 7)))

    def test_empty_batch(self, triton_backend: Backend) -> None:
        x = torch.randn(0, 3, 4, 5, device=triton_backend.device, requires_grad=True)
        p = fk.upsample_softmax(x, (8, 9))
        p.sum().backward()
        assert p.shape == (0, 3, 8, 9)
        assert x.grad.shape == x.shape

    @pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
    def test_gradcheck(self, triton_backend: Backend, log: bool) -> None:
        f = fk.upsample_log_softmax if log else fk.upsample_softmax
        x = torch.randn(1, 2, 1, 2, dtype=torch.float64, device=triton_backend.device, requires_grad=True)
        sampling = Sampling.transposed_conv((1, 2), 2, offset=1)
        assert torch.autograd.gradcheck(lambda x: f(x, sampling), x, fast_mode=True)


@warnings
class TestArgmax:
    check = staticmethod(test_upsample_argmax.check)

    @pytest.mark.parametrize("sampling", **parametrized(TINY))
    def test_samplings(self, triton_backend: Backend, sampling: Sampling) -> None:
        self.check(triton_backend, torch.randn(2, 3, *sampling.input_size), sampling)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts(self, triton_backend: Backend, layout: str) -> None:
        self.check(triton_backend, LAYOUTS[layout](torch.randn(2, 9, 2, 2)), FEW[0][1])

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_dtypes(self, triton_backend: Backend, dtype: torch.dtype) -> None:
        for labels in (torch.uint8, torch.int16, torch.int32):
            self.check(triton_backend, torch.randn(1, 5, 2, 2).to(dtype), FEW[0][1], labels)

    @pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
    @pytest.mark.parametrize("values", ADVERSARIAL)
    def test_adversarial(self, triton_backend: Backend, values: str, layout: str) -> None:
        self.check(triton_backend, LAYOUTS[layout](ADVERSARIAL[values](torch.randn(1, 10, 2, 2))), FEW[0][1])

    @pytest.mark.parametrize("sampling", **parametrized(FEW))
    def test_blocking_of_large_images(
        self, triton_backend: Backend, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(logsumexp, "UNITS", 1)
        self.check(triton_backend, torch.randn(1, 5, *sampling.input_size), sampling)

    def test_ties_and_largest_logits(self, triton_backend: Backend) -> None:
        x = torch.randn(1, 1, 2, 2, device=triton_backend.device).expand(1, 12, 2, 2)
        for layout in ("contiguous", "channels_last"):
            assert not fk.upsample_argmax(LAYOUTS[layout](x), (4, 6)).any()
        self.check(triton_backend, torch.randn(1, 4, 2, 2).sign() * 3e38, FEW[0][1])


@warnings
class TestCrossEntropy:
    """Loss and gradient; most options come together, since the tests of the other backends take them one by one."""

    @staticmethod
    def check(backend: Backend, x: torch.Tensor, sampling: Sampling, **options: object) -> None:
        target = test_upsample_cross_entropy.labels_for(x, sampling, options.get("ignore_index", -100))
        test_upsample_cross_entropy.check(backend, x, target, sampling, **options)

    @pytest.mark.parametrize("reduction", ["mean", "none"])
    @pytest.mark.parametrize("sampling", **parametrized(TINY))
    def test_samplings(self, triton_backend: Backend, sampling: Sampling, reduction: str) -> None:
        self.check(triton_backend, 3 * torch.randn(2, 3, *sampling.input_size), sampling, reduction=reduction)

    @pytest.mark.parametrize("reduction", test_upsample_cross_entropy.REDUCTIONS)
    @pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
    @pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
    def test_options(self, triton_backend: Backend, weighted: bool, smoothing: float, reduction: str) -> None:
        weight = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0]) if weighted else None
        x, sampling = torch.randn(1, 5, 2, 2), FEW[0][1]
        self.check(triton_backend, x, sampling, weight=weight, label_smoothing=smoothing, reduction=reduction)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
    def test_dtypes(self, triton_backend: Backend, dtype: torch.dtype) -> None:
        for reduction in ("sum", "none"):
            x = torch.randn(1, 3, 2, 3).to(dtype)
            # The interpreter passes numbers in float32: one that float32 holds exactly.
            self.check(triton_backend, x, FEW[1][1], reduction=reduction, label_smoothing=0.125)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts(self, triton_backend: Backend, layout: str) -> None:
        self.check(triton_backend, LAYOUTS[layout](torch.randn(2, 9, 2, 2)), FEW[0][1])

    @pytest.mark.parametrize("values", ADVERSARIAL)
    def test_adversarial(self, triton_backend: Backend, values: str) -> None:
        for reduction in ("none", "mean"):
            x = ADVERSARIAL[values](torch.randn(1, 4, 2, 2))
            self.check(triton_backend, x, FEW[0][1], reduction=reduction, label_smoothing=0.1)

    @pytest.mark.parametrize("sampling", **parametrized(FEW))
    def test_blocking_of_large_images(
        self, triton_backend: Backend, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Several rows to a program of logsumexp, several input rows to one of the gradient."""
        monkeypatch.setattr(logsumexp, "UNITS", 1)
        monkeypatch.setattr(upsample_cross_entropy, "ENOUGH_WARPS", 1)
        self.check(triton_backend, torch.randn(1, 5, *sampling.input_size), sampling)

    def test_tiles_and_strips_meet(self, triton_backend: Backend) -> None:
        """More columns than a tile has lanes, more classes than a thread takes, labels of small types."""
        sampling = Sampling.interpolate((3, 33), (6, 66))
        x, target = torch.randn(1, 6, 3, 33), torch.randint(0, 6, (1, 6, 66), dtype=torch.uint8)
        target[:, 2] = 255
        test_upsample_cross_entropy.check(triton_backend, x, target, sampling, ignore_index=255)

    @pytest.mark.parametrize("boundary", ["zero", "clamp"])
    def test_far_outside_the_input(self, triton_backend: Backend, boundary: str) -> None:
        sampling = Sampling(Axis(2, 7, 1, -8, 3), Axis(3, 9, 1, -7, 2), boundary)
        self.check(triton_backend, torch.randn(1, 3, 2, 3), sampling)

    def test_gradscaler(self, triton_backend: Backend) -> None:
        """Large incoming gradients meet classes that start 80 below the maximum."""
        x = torch.full((1, 2, 1, 4), -65.8, device=triton_backend.device)
        x[:, 1, :, 0::2], x[:, 1, :, 1::2] = -79.0, 0.0
        target = torch.zeros(1, 2, 32, dtype=torch.long, device=triton_backend.device)
        gradients = []
        for y in (x, x.double()):
            y = y.requires_grad_()
            loss = 65536 * fk.upsample_cross_entropy(y, target, reduction="none")
            gradients.append(torch.autograd.grad(loss.sum(), y)[0].double())
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-5 * gradients[1].abs().max().item())

    def test_a_label_outside_the_classes(self, triton_backend: Backend) -> None:
        x = torch.randn(1, 3, 2, 2, device=triton_backend.device)
        target = torch.full((1, 4, 4), 3, device=triton_backend.device)
        if triton_backend.interpreted:
            with pytest.raises(RuntimeError, match="target\\[0, 0, 0\\] = 3 is neither a class"):
                fk.upsample_cross_entropy(x, target)
        else:
            assert fk.upsample_cross_entropy(x, target).isnan()

    def test_pixel_weight_and_extras(self, triton_backend: Backend) -> None:
        x, target = torch.randn(1, 3, 2, 2, device=triton_backend.device), torch.randint(0, 3, (1, 3, 5))
        x, target = x.requires_grad_(), target.to(triton_backend.device)
        options = {"pixel_weight": torch.rand(1, 3, 5, device=triton_backend.device), "return_extras": True}
        results = []
        for backend in ("triton", "reference"):
            with fk.use_backend(backend):
                extras = fk.upsample_cross_entropy(x, target, label_smoothing=0.125, **options)
                results.append((*extras, torch.autograd.grad(extras.loss, x)[0]))
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)

    def test_empty_and_all_ignored(self, triton_backend: Backend) -> None:
        x = torch.randn(1, 3, 2, 2, device=triton_backend.device, requires_grad=True)
        target = torch.full((1, 4, 4), -100, device=triton_backend.device)
        loss = fk.upsample_cross_entropy(x, target)
        loss.backward()
        assert loss.isnan()
        assert x.grad.equal(torch.zeros_like(x))
        assert fk.upsample_cross_entropy(x[:0], target[:0], reduction="sum") == 0

    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_gradcheck(self, triton_backend: Backend, reduction: str) -> None:
        x = torch.randn(1, 2, 1, 2, dtype=torch.float64, device=triton_backend.device, requires_grad=True)
        target = torch.randint(0, 2, (1, 2, 4), device=triton_backend.device)
        f = lambda x: fk.upsample_cross_entropy(x, target, reduction=reduction, label_smoothing=0.2)  # noqa: E731
        assert torch.autograd.gradcheck(f, x, fast_mode=True)


@warnings
@pytest.mark.parametrize("sampling", **parametrized(FEW))
def test_sigmoid(triton_backend: Backend, sampling: Sampling) -> None:
    for dtype in (torch.float32, torch.float16):
        test_upsample_sigmoid.check(triton_backend, torch.randn(1, 2, *sampling.input_size).to(dtype), sampling)


@warnings
class TestBinaryCrossEntropy:
    @staticmethod
    def check(backend: Backend, x: torch.Tensor, sampling: Sampling, **options: object) -> None:
        target = test_upsample_binary_cross_entropy.labels_for(x, sampling)
        test_upsample_binary_cross_entropy.check(backend, x, target, sampling, ignore_index=255, **options)

    # The gradient visits outputs one by one: small factors only.
    @pytest.mark.parametrize("sampling", **parametrized([case for case in TINY if case[1].output_size[1] < 10]))
    def test_samplings(self, triton_backend: Backend, sampling: Sampling) -> None:
        self.check(triton_backend, 3 * torch.randn(2, 1, *sampling.input_size), sampling)

    @pytest.mark.parametrize("reduction", test_upsample_binary_cross_entropy.REDUCTIONS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
    def test_options(self, triton_backend: Backend, dtype: torch.dtype, reduction: str) -> None:
        x, q = torch.randn(1, 2, 2, 2).to(dtype), torch.tensor([4.0, 0.5])
        self.check(triton_backend, x, FEW[0][1], reduction=reduction, pos_weight=q)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts(self, triton_backend: Backend, layout: str) -> None:
        self.check(triton_backend, LAYOUTS[layout](torch.randn(2, 2, 2, 2)), FEW[0][1])

    @pytest.mark.parametrize("values", ADVERSARIAL)
    def test_adversarial(self, triton_backend: Backend, values: str) -> None:
        self.check(triton_backend, ADVERSARIAL[values](torch.randn(1, 2, 2, 2)), FEW[0][1], reduction="none")

    @pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32], ids=str)
    def test_targets(self, triton_backend: Backend, dtype: torch.dtype) -> None:
        """Two dtypes of labels, and soft ones, of which one is ignored."""
        target = torch.rand(1, 1, 3, 5) if dtype.is_floating_point else torch.rand(1, 1, 3, 5) < 0.3
        options = {}
        if dtype.is_floating_point:
            target[0, 0, 1, 1], options = -1, {"ignore_index": -1}
        x = torch.randn(1, 1, 2, 2)
        test_upsample_binary_cross_entropy.check(triton_backend, x, target.to(dtype), FEW[0][1], **options)

    def test_wrong_labels_and_empty(self, triton_backend: Backend) -> None:
        x = torch.randn(1, 1, 2, 2, device=triton_backend.device)
        target = torch.full((1, 3, 3), 2, device=triton_backend.device)
        if triton_backend.interpreted:
            with pytest.raises(RuntimeError, match=r"= 2 is not a class \(0 to 1\)"):
                fk.upsample_binary_cross_entropy(x, target)
        else:
            assert fk.upsample_binary_cross_entropy(x, target).isnan()
        assert fk.upsample_binary_cross_entropy(x[:0], target[:0], reduction="sum") == 0


@warnings
class TestConfusionMatrix:
    check = staticmethod(test_upsample_confusion_matrix.check)

    @pytest.mark.parametrize("ignore_index", [None, 255, 1])
    @pytest.mark.parametrize("sampling", **parametrized(FEW))
    def test_counts(self, triton_backend: Backend, sampling: Sampling, ignore_index: int | None) -> None:
        x = torch.randn(2, 3, *sampling.input_size, device=triton_backend.device)
        target = torch.randint(0, 3, (2, *sampling.output_size), device=triton_backend.device, dtype=torch.uint8)
        if ignore_index is not None:
            target[:, :1] = ignore_index
        self.check(x, target, sampling, ignore_index)

    def test_regions(self, triton_backend: Backend) -> None:
        """Programs whose pixels have one pair of classes, and one where every pixel is ignored."""
        x = torch.zeros(2, 3, 1, 1, device=triton_backend.device)
        x[0, 2], x[1, 1] = 1, 1
        target = torch.zeros(2, 20, 30, dtype=torch.int64, device=triton_backend.device)
        target[0], target[1, :18] = 1, -1
        counts = fk.upsample_confusion_matrix(x, target, ignore_index=-1)
        assert counts.cpu().equal(torch.tensor([[0, 60, 0], [0, 0, 600], [0, 0, 0]]))
        assert counts.cpu().equal(fk.upsample_confusion_matrix(x, target, ignore_index=-1).cpu())

    def test_wrong_labels_and_empty(self, triton_backend: Backend) -> None:
        x = torch.randn(1, 3, 2, 2, device=triton_backend.device)
        target = torch.zeros(1, 3, 4, dtype=torch.int64, device=triton_backend.device)
        target[0, 1, 2] = -7
        with pytest.raises(RuntimeError, match=r"target\[0, 1, 2\] = -7 is not a class \(0 to 2\)"):
            fk.upsample_confusion_matrix(x, target, ignore_index=None)
        assert not fk.upsample_confusion_matrix(x[:0], target[:0], ignore_index=None).any()


@pytest.fixture(params=["one-tile", "blocks", "split"])
def score_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All classes in a tile; in blocks of 16, through the online softmax; channels split among programs."""
    if request.param == "blocks":
        monkeypatch.setattr(score, "SCORE", {name: {16: (16, 16, 4, 2)} for name in score.SCORE})
    elif request.param == "one-tile":
        monkeypatch.setattr(matmul, "ENOUGH", 1)
    return request.param


@warnings
class TestScores:
    """`wide` has more classes than a block of `score_path`, and channels enough to be split."""

    @staticmethod
    def wide(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        return [t.to(dtype) for t in (torch.randn(1, 520, 3, 6) / 8, torch.randn(37, 520) / 4, torch.randn(37))]

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_softmax_layouts(self, triton_backend: Backend, layout: str) -> None:
        test_score_softmax.test_value_and_gradients(triton_backend, layout, torch.float32, True, False)

    @pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
    def test_softmax_dtypes(self, triton_backend: Backend, dtype: torch.dtype, log: bool) -> None:
        test_score_softmax.test_value_and_gradients(triton_backend, "contiguous", dtype, False, log)

    def test_bfloat16(self, triton_backend: Backend) -> None:
        x, weight, bias = (t.bfloat16() for t in (torch.randn(1, 9, 3, 4), torch.randn(6, 9), torch.randn(6)))
        check_truncated(lambda x: fk.score_softmax(x, weight, bias), x.to(triton_backend.device))

    def test_small_ones(self, triton_backend: Backend) -> None:
        test_score_softmax.test_one_class_one_channel_and_empty(triton_backend)
        test_score_softmax.test_flat_weight_is_the_same(triton_backend)
        test_score_argmax.test_ties_and_nan(triton_backend)
        test_score_argmax.test_not_differentiable(triton_backend)
        test_score_cross_entropy.test_all_ignored_and_empty(triton_backend)
        test_score_cross_entropy.test_only_what_needs_a_gradient_gets_one(triton_backend)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
    def test_argmax(self, triton_backend: Backend, dtype: torch.dtype) -> None:
        for layout in ("contiguous", "channels_last", "transposed"):
            test_score_argmax.test_labels(triton_backend, layout, dtype, True)

    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    @pytest.mark.parametrize("smoothing", [0.0, 0.125])
    @pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
    def test_cross_entropy(self, triton_backend: Backend, weighted: bool, smoothing: float, reduction: str) -> None:
        check = test_score_cross_entropy.test_equals_torch
        check(triton_backend, "contiguous", torch.float32, weighted, smoothing, reduction)
        check(triton_backend, "channels_last", torch.float64, weighted, smoothing, reduction)

    def test_gradcheck(self, triton_backend: Backend) -> None:
        options = {"dtype": torch.float64, "device": triton_backend.device, "requires_grad": True}
        tensors = (torch.randn(1, 3, 1, 2, **options), torch.randn(2, 3, **options), torch.randn(2, **options))
        target = torch.randint(0, 2, (1, 1, 2), device=triton_backend.device)
        assert torch.autograd.gradcheck(fk.score_softmax, tensors, fast_mode=True)
        assert torch.autograd.gradcheck(lambda *t: fk.score_cross_entropy(*t, target), tensors, fast_mode=True)

    @pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
    def test_paths_of_softmax(self, triton_backend: Backend, score_path: str, log: bool) -> None:
        tensors = [t.to(triton_backend.device) for t in self.wide()]
        doubles = [t.double() for t in tensors]
        for values in ((), (torch.inf,), (-torch.inf,), (torch.nan,)):
            for t in (tensors, doubles):
                for value in values:
                    t[2][1] = value
            ours = (fk.score_log_softmax if log else fk.score_softmax)(*tensors)
            expected = reference.score_softmax(*tensors, log)
            check_budget(ours, expected, reference.score_softmax(*doubles, log), tensors[0], gain=100)

    def test_paths_of_cross_entropy(self, triton_backend: Backend, score_path: str) -> None:
        target = torch.randint(0, 37, (1, 3, 6), device=triton_backend.device)
        target[0, 0, 0] = -100
        for weight in (None, torch.rand(37, device=triton_backend.device)):
            results = []
            for dtype in (torch.float32, torch.float64):
                torch.manual_seed(1)
                tensors = [t.to(triton_backend.device).requires_grad_() for t in self.wide(dtype)]
                options = {"class_weight": weight, "label_smoothing": 0.125}
                loss = fk.score_cross_entropy(*tensors, target, **options)
                results.append((loss, *torch.autograd.grad(loss, tensors)))
                with fk.use_backend("reference"):
                    expected = fk.score_cross_entropy(*tensors, target, **options)
                    expected = (expected, *torch.autograd.grad(expected, tensors))
            for ours, oracle in zip(results[0], expected, strict=True):
                torch.testing.assert_close(ours.double(), oracle, rtol=1e-5, atol=1e-5 * oracle.abs().max().item())
            torch.testing.assert_close(results[1], expected, rtol=1e-10, atol=1e-12)

    def test_paths_of_argmax(self, triton_backend: Backend, score_path: str) -> None:
        x, weight, bias = (t.to(triton_backend.device) for t in self.wide())
        assert fk.score_argmax(x, weight, bias).equal(reference.score_argmax(x, weight, bias, torch.int64))
        weight[20], bias[20] = weight[5], bias[5] + 50
        bias[5] += 50
        assert (fk.score_argmax(x, weight, bias) == 5).all()
        bias[30] = torch.nan
        assert (fk.score_argmax(x, weight, bias) == 30).all()

    def test_a_wrong_label(self, triton_backend: Backend) -> None:
        x, weight = torch.randn(1, 3, 2, 2, device=triton_backend.device), torch.randn(4, 3)
        target = torch.full((1, 2, 2), 4, device=triton_backend.device)
        arguments = (x, weight.to(triton_backend.device), None, target)
        if triton_backend.interpreted:
            with pytest.raises(RuntimeError, match=r"target\[0, 0, 0\] = 4 is neither a class"):
                fk.score_cross_entropy(*arguments)
        else:
            assert fk.score_cross_entropy(*arguments).isnan()

    def test_same_bits(self, triton_backend: Backend) -> None:
        tensors = [t.to(triton_backend.device) for t in self.wide()]
        assert fk.score_softmax(*tensors).equal(fk.score_softmax(*tensors))

    def test_tf32_is_asked_for(self) -> None:
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


@warnings
class TestConvTransposeAdd:
    @pytest.mark.parametrize("options", test_conv_transpose_add.OPTIONS)
    def test_options(self, triton_backend: Backend, options: str) -> None:
        test_conv_transpose_add.test_equals_torch(triton_backend, options, "contiguous", torch.float32)

    @pytest.mark.parametrize("options", ["fused", "depthwise"])
    @pytest.mark.parametrize("layout", ["channels_last", "sliced", "batch-inside"])
    def test_layouts(self, triton_backend: Backend, layout: str, options: str) -> None:
        test_conv_transpose_add.test_equals_torch(triton_backend, options, layout, torch.float32)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
    def test_dtypes(self, triton_backend: Backend, dtype: torch.dtype) -> None:
        for options in ("fused", "depthwise"):
            test_conv_transpose_add.test_equals_torch(triton_backend, options, "contiguous", dtype)

    @pytest.mark.parametrize("groups", [1, 4])
    def test_bfloat16(self, triton_backend: Backend, groups: int) -> None:
        weight = torch.randn(4, 4 // groups, 4, 4, device=triton_backend.device).bfloat16()
        x = torch.randn(1, 4, 2, 3, device=triton_backend.device).bfloat16()
        check_truncated(lambda x: fk.conv_transpose_add(x, weight, stride=2, groups=groups), x)

    @pytest.mark.parametrize("options", ["plain", "depthwise", "holes", "partial"])
    def test_values_that_are_not_finite(self, triton_backend: Backend, options: str) -> None:
        test_conv_transpose_add.test_values_that_are_not_finite(triton_backend, options, torch.inf)

    def test_bilinear_weights_and_empty(self, triton_backend: Backend) -> None:
        test_conv_transpose_add.test_bilinear_weight_is_upsample_add(triton_backend)
        test_conv_transpose_add.test_empty_batch(triton_backend)

    @pytest.mark.parametrize("enough", [1, 10**6])
    @pytest.mark.parametrize("groups", [1, 3])
    def test_splits_and_same_bits(
        self, triton_backend: Backend, groups: int, enough: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The sums of the backward whole, and in as many parts as can be; kernels longer and shorter than strides."""
        monkeypatch.setattr(conv_transpose_add, "ENOUGH", enough)
        for kernel, stride, offset in ((3, 2, (1, 0)), (2, 3, (0, 1))):
            results = []
            tensors = [torch.randn(2, 3, 5, 4), torch.randn(3, 3 // groups, kernel, kernel)]
            for dtype, repeat in ((torch.float32, 0), (torch.float32, 1), (torch.float64, 0)):
                x, weight = (t.to(triton_backend.device, dtype).requires_grad_() for t in tensors)
                where = {"stride": stride, "groups": groups, "offset": offset, "output_size": (6, 5)}
                with fk.use_backend("triton" if dtype == torch.float32 or repeat else "reference"):
                    y = fk.conv_transpose_add(x, weight, **where)
                    g = torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape).to(dtype)
                    results.append((y, *torch.autograd.grad(y, (x, weight), g)))
            for ours, again, oracle in zip(*results, strict=True):
                assert ours.equal(again)
                torch.testing.assert_close(ours.double(), oracle, rtol=1e-5, atol=1e-5)

    def test_gradients_of_all_orders(self, triton_backend: Backend) -> None:
        options = {"dtype": torch.float64, "device": triton_backend.device, "requires_grad": True}
        tensors = (torch.randn(1, 2, 1, 2, **options), torch.randn(2, 1, 3, 3, **options))
        for groups in (1, 2):
            f = lambda *t, g=groups: fk.conv_transpose_add(*t, stride=2, groups=g, offset=(1, 0))  # noqa: E731
            assert torch.autograd.gradcheck(f, tensors, fast_mode=True)
            assert torch.autograd.gradgradcheck(f, tensors, fast_mode=True)


@warnings
class TestConvTransposeConcat:
    """The convolution is conv_transpose_add's; here it is one part of the channels."""

    @pytest.mark.parametrize("options", ["unet", "groups", "depthwise"])
    def test_options(self, triton_backend: Backend, options: str) -> None:
        test_conv_transpose_concat.test_equals_torch(triton_backend, options, "contiguous", torch.float32)

    @pytest.mark.parametrize("layout", ["channels_last", "sliced", "batch-inside"])
    def test_layouts(self, triton_backend: Backend, layout: str) -> None:
        test_conv_transpose_concat.test_equals_torch(triton_backend, "crop", layout, torch.float32)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
    def test_dtypes(self, triton_backend: Backend, dtype: torch.dtype) -> None:
        test_conv_transpose_concat.test_equals_torch(triton_backend, "narrow", "contiguous", dtype)

    @pytest.mark.parametrize("groups", [1, 4])
    def test_bfloat16(self, triton_backend: Backend, groups: int) -> None:
        tensors = [
            torch.randn(shape, device=triton_backend.device).bfloat16()
            for shape in ((1, 4, 2, 3), (4, 4 // groups, 2, 2), (1, 3, 4, 6), (4,))
        ]
        check_truncated(lambda x: fk.conv_transpose_concat(x, *tensors[1:], stride=2, groups=groups), tensors[0])

    def test_values_that_are_not_finite(self, triton_backend: Backend) -> None:
        test_conv_transpose_concat.test_values_that_are_not_finite(triton_backend, 4, 3, 3, torch.inf)

    def test_small_ones(self, triton_backend: Backend) -> None:
        test_conv_transpose_concat.test_only_the_gradients_that_are_asked_for(triton_backend)
        test_conv_transpose_concat.test_the_gradient_of_a_whole_skip_is_no_copy(triton_backend)
        test_conv_transpose_concat.test_empty_batch(triton_backend)

    def test_gradients_of_all_orders(self, triton_backend: Backend) -> None:
        options = {"dtype": torch.float64, "device": triton_backend.device, "requires_grad": True}
        shapes = ((1, 2, 1, 2), (2, 1, 2, 2), (1, 1, 3, 5), (2,))
        tensors = tuple(torch.randn(shape, **options) for shape in shapes)
        f = lambda *t: fk.conv_transpose_concat(*t, stride=2, groups=2, skip_offset=(1, 0))  # noqa: E731
        assert torch.autograd.gradcheck(f, tensors, fast_mode=True)
        assert torch.autograd.gradgradcheck(f, tensors, fast_mode=True)


@warnings
class TestChannelSum:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts(self, triton_backend: Backend, layout: str) -> None:
        for shape in ((2, 5, 3, 4), (1, 37, 40, 81), (0, 3, 2, 2)):
            test_channel_sum.test_equals_torch(triton_backend, shape, layout, torch.float32)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_dtypes(self, triton_backend: Backend, dtype: torch.dtype) -> None:
        test_channel_sum.test_equals_torch(triton_backend, (2, 2, 60, 70), "contiguous", dtype)

    @pytest.mark.parametrize("values", ["nan", "inf", "jumps"])
    def test_values(self, triton_backend: Backend, values: str) -> None:
        test_channel_sum.test_values(triton_backend, values)

    def test_same_bits(self, triton_backend: Backend) -> None:
        x = torch.randn(2, 3, 60, 70, device=triton_backend.device)
        assert test_channel_sum.SUM(x).equal(test_channel_sum.SUM(x))

    def test_gradcheck(self, triton_backend: Backend) -> None:
        x = torch.randn(2, 3, 2, 2, dtype=torch.float64, device=triton_backend.device, requires_grad=True)
        assert torch.autograd.gradcheck(lambda t: test_channel_sum.SUM(t * t), x, fast_mode=True)
