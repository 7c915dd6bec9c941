"""upsample_argmax on every backend: equal to the oracle outside a tie band of a few ulp, lowest index on exact ties."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from budget import check_budget
from cases import ADVERSARIAL, DTYPES, FEW_SAMPLINGS, LAYOUTS, SAMPLINGS, parametrized
from conftest import Backend

import fcn_kernels as fk
from fcn_kernels import Sampling, reference

OPERATOR = "upsample_argmax"


def check(backend: Backend, x: torch.Tensor, sampling: Sampling, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    x = x.to(backend.device)
    labels = fk.upsample_argmax(x, sampling, dtype=dtype)
    again, confidence = fk.upsample_argmax(x, sampling, dtype=dtype, return_confidence=True)
    assert again.equal(labels)
    assert labels.dtype == dtype
    assert labels.shape == (x.shape[0], *sampling.output_size) == confidence.shape
    assert labels.is_contiguous()
    assert confidence.is_contiguous()
    code = sampling.encode()
    z = reference.upsample(x.double(), code)
    best = z.amax(1)
    arithmetic = torch.float64 if x.dtype == torch.float64 else torch.float32
    finite = x[x.isfinite()]
    band = 8 * torch.finfo(arithmetic).eps * finite.double().abs().max().item() if finite.numel() else 0.0
    chosen = z.gather(1, labels.long()[:, None]).squeeze(1)
    nan = best.isnan()
    assert labels.long()[nan].equal(z.argmax(1)[nan]), "the first NaN wins"
    assert ((chosen >= best - band) | (chosen == best))[~nan].all(), (
        "another class is greater by more than the tie band"
    )
    expected = reference.upsample_argmax(x, code, dtype, True)[1]
    oracle = z.softmax(1).gather(1, z.argmax(1, keepdim=True)).squeeze(1)
    check_budget(confidence, expected, oracle, x)
    return labels


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sampling", **parametrized(SAMPLINGS))
def test_samplings(backend: Backend, sampling: Sampling, dtype: torch.dtype) -> None:
    check(backend, torch.randn(2, 5, *sampling.input_size).to(dtype), sampling)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sampling", **parametrized(FEW_SAMPLINGS))
def test_layouts(backend: Backend, sampling: Sampling, layout: str) -> None:
    check(backend, LAYOUTS[layout](torch.randn(2, 5, *sampling.input_size, device=backend.device)), sampling)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("channels", [1, 2, 19, 21, 150, 256])
def test_channels_and_label_types(backend: Backend, channels: int, dtype: torch.dtype) -> None:
    for layout in ("contiguous", "channels_last"):
        check(backend, LAYOUTS[layout](torch.randn(1, channels, 4, 5)), Sampling.interpolate((4, 5), (23, 33)), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("values", ADVERSARIAL)
def test_adversarial(backend: Backend, values: str, dtype: torch.dtype) -> None:
    for _, sampling in FEW_SAMPLINGS:
        check(backend, ADVERSARIAL[values](torch.randn(1, 5, *sampling.input_size, dtype=dtype)), sampling)


@pytest.mark.parametrize("values", ["normal", *ADVERSARIAL])
def test_tiles_of_few_pixels(backend: Backend, values: str) -> None:
    """Neighbouring tiles are labelled together where each has several candidates, and in smooth parts one by one."""
    x = torch.randn(1, 9, 7, 40)
    x[..., 20:] = torch.arange(9.0)[:, None, None] + torch.linspace(0, 4, 20)
    x = x if values == "normal" else ADVERSARIAL[values](x)
    for sampling in (
        Sampling.interpolate((7, 40), (9, 50)),
        Sampling.interpolate((7, 40), (14, 79), align_corners=True),
        Sampling.transposed_conv((7, 40), 2),
    ):
        check(backend, x, sampling)
        check(backend, x.contiguous(memory_format=torch.channels_last), sampling)


def test_smooth_predictions(backend: Backend) -> None:
    """Most tiles are decided at their corners."""
    x = F.interpolate(torch.randn(1, 21, 4, 4), size=(32, 32), mode="bicubic") * 10
    labels = check(backend, x, Sampling.interpolate(32, 256))
    assert labels.unique().numel() > 3


def test_largest_logits_do_not_overflow(backend: Backend) -> None:
    x = torch.randn(1, 4, 5, 6, device=backend.device).sign() * 3e38
    check(backend, x, Sampling.interpolate((5, 6), (20, 24)))


def test_exact_ties_go_to_the_lowest_class(backend: Backend) -> None:
    x = torch.randn(1, 1, 4, 5, device=backend.device).expand(1, 6, 4, 5)
    for _, sampling in (
        ("resize", Sampling.interpolate((4, 5), (16, 15))),
        ("fcn", Sampling.transposed_conv((4, 5), 8)),
    ):
        assert not fk.upsample_argmax(x, sampling).any()
    x = torch.cat([x[:, :2] - 1, x], 1)  # two losers first
    assert (fk.upsample_argmax(x, (16, 15)) == 2).all()


def test_ties_at_the_corners_only(backend: Backend) -> None:
    """Classes 1 and 2 tie at two corners and win at the others: in between the sum decides."""
    x = torch.full((1, 4, 2, 2), -5.0, device=backend.device)
    x[0, 1] = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    x[0, 2] = torch.tensor([[1.0, 0.0], [2.0, 1.0]])
    labels = check(backend, x, Sampling.interpolate(2, 16))
    assert set(labels.unique().tolist()) == {1, 2}


def test_same_size_is_argmax(backend: Backend) -> None:
    x = torch.randn(3, 7, 8, 9, device=backend.device)
    x[0, 3, 2, 2] = torch.nan
    assert fk.upsample_argmax(x, (8, 9)).equal(x.argmax(1))


def test_not_differentiable(backend: Backend) -> None:
    x = torch.randn(1, 3, 4, 5, device=backend.device, requires_grad=True)
    labels, confidence = fk.upsample_argmax(x, (8, 9), return_confidence=True)
    assert not labels.requires_grad
    assert not confidence.requires_grad
    raw = torch.ops.fcn_kernels.upsample_argmax(x, Sampling.interpolate((4, 5), 8).encode(), torch.int64, True)
    assert not raw[1].requires_grad


def test_empty_batch(backend: Backend) -> None:
    labels, confidence = fk.upsample_argmax(
        torch.randn(0, 3, 4, 5, device=backend.device), (8, 9), return_confidence=True
    )
    assert labels.shape == confidence.shape == (0, 8, 9)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: fk.upsample_argmax(x[0], (4, 4)), ValueError, r"x must be \[N, C, H, W\]"),
        (lambda x: fk.upsample_argmax(x.int(), (4, 4)), TypeError, "x must be float32"),
        (
            lambda x: fk.upsample_argmax(x, (4, 4), dtype=torch.float32),
            TypeError,
            "dtype must be uint8, int16, int32 or int64",
        ),
        (lambda x: fk.upsample_argmax(x, (4, 4), dtype=torch.bool), TypeError, "got torch.bool"),
        (lambda x: fk.upsample_argmax(x, (4, 4), dtype=torch.uint8), ValueError, "257 classes do not fit torch.uint8"),
        (lambda x: fk.upsample_argmax(x, Sampling.interpolate(5, 9)), ValueError, "the sampling reads 5 x 5"),
    ],
)
def test_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        call(torch.randn(2, 257, 5, 6))
    assert str(raised.value).startswith("upsample_argmax: ")
