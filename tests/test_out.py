"""`out=`: every operator that makes an image or labels writes into a tensor that the caller gives."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

import fcn_kernels as fk
from fcn_kernels import _library, backends


def _x(*size: int) -> torch.Tensor:
    return torch.randn(*size)


# Name: a call of x [2, 5, 6, 7] whose keywords are passed on, and what else it reads.
SKIP = torch.randn(2, 5, 20, 20)
WEIGHT = torch.randn(4, 5)
FILTERS = torch.randn(5, 3, 4, 4)
SIZE = (13, 12)
CALLS: dict[str, tuple[Callable[..., Any], torch.Tensor | None]] = {
    "upsample": (lambda x, **k: fk.upsample(x, SIZE, **k), None),
    "upsample_add": (lambda x, **k: fk.upsample_add(x, SKIP, SIZE, skip_offset=(2, 3), **k), SKIP),
    "upsample_sigmoid": (lambda x, **k: fk.upsample_sigmoid(x, SIZE, **k), None),
    "upsample_softmax": (lambda x, **k: fk.upsample_softmax(x, SIZE, **k), None),
    "upsample_log_softmax": (lambda x, **k: fk.upsample_log_softmax(x, SIZE, **k), None),
    "upsample_argmax": (lambda x, **k: fk.upsample_argmax(x, SIZE, **k), None),
    "score_softmax": (lambda x, **k: fk.score_softmax(x, WEIGHT, **k), WEIGHT),
    "score_log_softmax": (lambda x, **k: fk.score_log_softmax(x, WEIGHT, **k), WEIGHT),
    "score_argmax": (lambda x, **k: fk.score_argmax(x, WEIGHT, **k), WEIGHT),
    "conv_transpose_add": (lambda x, **k: fk.conv_transpose_add(x, FILTERS, stride=2, **k), FILTERS),
    "conv_transpose_concat": (
        lambda x, **k: fk.conv_transpose_concat(x, FILTERS, SKIP, stride=2, output_size=(12, 13), **k),
        SKIP,
    ),
    "conv_transpose_add, bilinear": (
        lambda x, **k: fk.conv_transpose_add(x, fk.nn.bilinear_weight(5, 4, groups=5), SKIP, stride=2, groups=5, **k),
        SKIP,
    ),
}
BACKENDS = ["reference", "cpu"]


def test_docstrings_tell_what_is_raised() -> None:
    for name in fk.__all__:
        function = getattr(fk, name)
        if not inspect.isfunction(function) or "out" not in inspect.signature(function).parameters:
            continue
        raises = function.__doc__.partition("Raises:")[2] or function.__doc__
        assert "Of `out`: TypeError" in raises or "exceptions are those of" in raises, name


@pytest.fixture(params=list(CALLS))
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return CALLS[request.param][0]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", [b for b in BACKENDS if b in {backends.active("upsample", "cpu"), "reference"}])
def test_same_as_a_new_tensor(name: str, layout: torch.memory_format, call: Callable[..., Any]) -> None:
    x = _x(2, 5, 6, 7).contiguous(memory_format=layout)
    with fk.use_backend(name):
        expected = call(x)
        # A slice of a larger batch, whose other images must stay as they are.
        memory_format = layout if expected.dim() == 4 else torch.contiguous_format
        batch = torch.full((4, *expected.shape[1:]), 77, dtype=expected.dtype).contiguous(memory_format=memory_format)
        out = batch[1:3]
        result = call(x, out=out)
    assert result is out
    assert out.equal(expected)
    assert (batch[0] == 77).all()
    assert (batch[3] == 77).all()


def test_one_image_of_more_channels() -> None:
    """The distance between images is free when there is one."""
    x = _x(1, 5, 6, 7)
    channels = torch.zeros(1, 9, *SIZE)
    fk.upsample_softmax(x, SIZE, out=channels[:, 2:7])
    assert channels[:, 2:7].equal(fk.upsample_softmax(x, SIZE))
    assert not channels[:, :2].any()
    assert not channels[:, 7:].any()


def test_refused(call: Callable[..., Any], request: pytest.FixtureRequest) -> None:
    x = _x(2, 5, 6, 7)
    good = call(x)
    before = good.clone()
    with pytest.raises(TypeError, match="out must be a tensor, got list"):
        call(x, out=[good])
    with pytest.raises(TypeError, match=r"(out must be torch.float32, as the result is|dtype must be uint8)"):
        call(x, out=good.to(torch.float64))
    with pytest.raises(ValueError, match=r"out must be \[2, .*, as the result is, got shape \[3, "):
        call(x, out=torch.cat((good, good[:1])))
    with pytest.raises(ValueError, match="contiguous, with strides"):
        call(x, out=good.transpose(-1, -2).contiguous().transpose(-1, -2))
    with pytest.raises(ValueError, match="out is on meta, but x is on cpu"):
        call(x, out=good.to("meta"))
    assert good.equal(before)
    if good.dim() == 4:
        with pytest.raises(ValueError, match="channels_last, as x is"):
            call(x.contiguous(memory_format=torch.channels_last), out=good)


@pytest.mark.parametrize("name", [n for n in CALLS if "argmax" not in n])
def test_shared_memory_is_refused(name: str) -> None:
    call, other = CALLS[name]
    shape = call(_x(2, 5, 6, 7)).shape
    memory = torch.randn(4000)
    out = memory[100 : 100 + shape.numel()].view(shape)
    with pytest.raises(ValueError, match="shares memory with an input"):
        call(memory[: 2 * 5 * 6 * 7].view(2, 5, 6, 7), out=out)
    call(
        memory[4000 - 2 * 5 * 6 * 7 :].view(2, 5, 6, 7), out=memory[: shape.numel()].view(shape)
    )  # a neighbour is none
    if other is not None and other.numel() >= shape.numel():
        with pytest.raises(ValueError, match="shares memory with an input"):
            call(_x(2, 5, 6, 7), out=other.view(-1)[: shape.numel()].view(shape))


def test_gradients_are_refused(call: Callable[..., Any]) -> None:
    x = _x(2, 5, 6, 7).requires_grad_()
    out = call(x).detach()
    if out.dim() == 4:
        with pytest.raises(RuntimeError, match="records no gradient"):
            call(x, out=out)
    with torch.no_grad():
        assert call(x, out=out) is out


def test_labels_take_the_dtype_of_out() -> None:
    x = _x(1, 300, 3, 4)
    for dtype in (torch.int16, torch.int32, torch.int64):
        labels = torch.empty(1, 5, 6, dtype=dtype)
        assert fk.upsample_argmax(x, (5, 6), out=labels).equal(fk.upsample_argmax(x, (5, 6)).to(dtype))
        scores = torch.empty(1, 3, 4, dtype=dtype)
        weight = torch.randn(7, 300)
        assert fk.score_argmax(x, weight, out=scores).equal(fk.score_argmax(x, weight).to(dtype))
    for out in (torch.empty(1, 5, 6, dtype=torch.uint8), torch.empty(1, 5, 6)):
        with pytest.raises((TypeError, ValueError), match=r"300 classes do not fit torch.uint8|dtype must be uint8"):
            fk.upsample_argmax(x, (5, 6), out=out)
    with pytest.raises(TypeError, match=r"out must be torch.int32, as the result is, got torch.int64"):
        fk.upsample_argmax(x, (5, 6), dtype=torch.int32, out=torch.empty(1, 5, 6, dtype=torch.int64))
    assert fk.score_argmax(x, torch.randn(7, 300), dtype=torch.uint8).dtype == torch.uint8
    with pytest.raises(ValueError, match=r"300 classes do not fit torch.uint8"):
        fk.score_argmax(x, torch.randn(300, 300), dtype=torch.uint8)


def test_labels_and_confidence() -> None:
    x = _x(2, 5, 3, 4)
    labels, confidence = torch.empty(2, 5, 6, dtype=torch.uint8), torch.empty(2, 5, 6)
    result = fk.upsample_argmax(x, (5, 6), return_confidence=True, out=(labels, confidence))
    assert result[0] is labels
    assert result[1] is confidence
    expected = fk.upsample_argmax(x, (5, 6), dtype=torch.uint8, return_confidence=True)
    assert labels.equal(expected[0])
    assert confidence.equal(expected[1])
    with pytest.raises(TypeError, match="with return_confidence out must be a pair of tensors, got Tensor"):
        fk.upsample_argmax(x, (5, 6), return_confidence=True, out=labels)
    with pytest.raises(TypeError, match=r"the confidence of out must be torch.float32"):
        fk.upsample_argmax(x, (5, 6), return_confidence=True, out=(labels, confidence.double()))
    memory = torch.zeros(200)
    with pytest.raises(ValueError, match="shares memory"):
        fk.upsample_argmax(
            x,
            (5, 6),
            return_confidence=True,
            out=(memory.view(torch.int32)[:60].view(2, 5, 6), memory[59:119].view(2, 5, 6)),
        )


def test_compiled(call: Callable[..., Any]) -> None:
    """Inside torch.compile the write into `out` is kept, in its place among other operations."""

    def step(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        out.zero_()
        call(x * 2, out=out)
        return out + 1

    torch._dynamo.reset()
    x = _x(2, 5, 6, 7)
    out = call(x)
    with torch.no_grad():
        result = torch.compile(step, backend="aot_eager", fullgraph=True)(x, out)
        expected = call(x * 2)
    # Close, not equal: the bilinear filter is recognised in eager mode only.
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(result, expected + 1)


def test_raw_operators_check_too() -> None:
    """Whoever calls past the Python functions meets the kernels' own checks."""
    x = _x(1, 5, 6, 7)
    encoded = fk.Sampling.interpolate((6, 7), SIZE).encode()
    for out in (torch.empty(1, 5, 13, 11), torch.empty(1, 5, *SIZE, dtype=torch.float64), torch.empty(5, *SIZE)):
        with pytest.raises(RuntimeError):
            torch.ops.fcn_kernels.upsample.out(x, encoded, out=out)
    if backends.active("upsample", "cpu") == "cpu":
        with pytest.raises(RuntimeError, match="laid out"):
            torch.ops.fcn_kernels.upsample.out(x, encoded, out=torch.empty(1, 5, SIZE[1], SIZE[0]).transpose(2, 3))


@pytest.mark.parametrize("name", sorted({backends.active("upsample", "cpu"), "reference"}))
def test_what_was_saved_is_gone(name: str, call: Callable[..., Any]) -> None:
    """A backward pass that wants what `out` held before it was written again raises."""
    x = _x(2, 5, 6, 7)
    out = call(x)
    weight = torch.randn(out.shape, requires_grad=True)
    loss = (out * weight).sum()
    with fk.use_backend(name), torch.no_grad():
        call(x * 2, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_confidence_counts_as_changed() -> None:
    x = _x(2, 5, 3, 4)
    labels, confidence = fk.upsample_argmax(x, (5, 6), return_confidence=True)
    versions = labels._version, confidence._version
    fk.upsample_argmax(x, (5, 6), return_confidence=True, out=(labels, confidence))
    assert labels._version > versions[0]
    assert confidence._version > versions[1]


def test_raw_operators_count_too(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "plain", lambda *args: False)
    x = _x(2, 5, 6, 7)
    out = call(x)
    version = out._version
    call(x, out=out)
    assert out._version > version


def test_inference_tensors_have_no_versions(call: Callable[..., Any]) -> None:
    x = _x(2, 5, 6, 7)
    with torch.inference_mode():
        out = call(x)
        assert call(x * 2, out=out).equal(call(x * 2))
        version = x._version
        assert call(x, out=out).equal(call(x))
    assert x._version == version
