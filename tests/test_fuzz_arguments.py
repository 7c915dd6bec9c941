"""The cases of fuzz_arguments.py without Atheris: some strings of bytes, what such found, and what is a finding."""

from __future__ import annotations

import resource
from functools import partial

import pytest
import torch
from fuzz_arguments import DOCUMENTED, Functions, documented, functions, limited_memory, one, some, torch_refuses

import fcn_kernels as fk
from fcn_kernels._library import load_extension


@pytest.fixture(scope="module")
def found() -> Functions:
    return functions()


@pytest.mark.filterwarnings("ignore")  # of torch's, about what is experimental
def test_a_result_or_a_documented_exception(found: Functions) -> None:
    some(found)


def test_every_public_function_is_called(found: Functions) -> None:
    functions = {name for name in fk.__all__ if name.startswith(("upsample", "score", "conv", "check"))}
    assert functions <= found.keys()
    for f, calls in found.values():
        for args, options in calls[:2]:
            f(*args, **options)  # right as they stand


@pytest.mark.parametrize("error", [AttributeError("x"), MemoryError(), RuntimeError(""), ValueError("std::bad_alloc")])
def test_what_is_a_finding(error: Exception) -> None:
    def fails(_: object) -> None:
        raise error

    with pytest.raises(AssertionError, match="f: "):
        one({"f": (fails, [((1,), {})])}, b"")


def test_what_torch_refuses_is_no_finding_and_what_reaches_an_operator_may_be(found: Functions) -> None:
    """An integer of 65 bits never arrives; what the operator's own code says of arguments that do is not torch's."""
    name = "ops.upsample_add"
    op, ((args, _), *_) = found[name]
    for i, wrong in ((0, 3), (2, [2**64] * 11), (2, [1j]), (3, None), (4, "x")):
        refused = (*args[:i], wrong, *args[i + 1 :])
        with pytest.raises(RuntimeError, match=r"fcn_kernels::upsample_add\(\) Expected a value of type") as raised:
            op(*refused)
        assert torch_refuses(name, refused, raised.value)
        assert not torch_refuses(name, args, raised.value)
        assert not torch_refuses(name, refused, RuntimeError("std::bad_alloc"))
    assert documented(name, args) == DOCUMENTED
    assert documented(name, (None, *args[1:])) == documented(name, (args[0].to("meta"), *args[1:])) == (Exception,)


def test_the_frames_that_torch_writes_below_a_sentence_are_not_compared(found: Functions) -> None:
    """Its parser iterates over a tensor where it expects integers, and says where it was called when that fails."""
    name = "ops.upsample_add"
    op, ((args, _), *_) = found[name]
    refused = (*args[:3], torch.empty(()).expand(2**58, 0), *args[4:])
    with pytest.raises(RuntimeError, match=r"bad_alloc\n\nAt:\n") as raised:
        op(*refused)
    assert torch_refuses(name, refused, raised.value)


def test_a_case_has_its_memory_whatever_was_allocated_before() -> None:
    """And what surrounds it is not limited: torch's own convolutions end the process where memory runs out."""
    before, kept = resource.getrlimit(resource.RLIMIT_AS), []

    def takes(size: int) -> None:
        kept.append(torch.empty(size, dtype=torch.uint8))

    def run(size: int) -> None:
        one({"f": (takes, [((size,), {})])}, b"", partial(limited_memory, 2**30))

    run(3 * 2**28)
    run(3 * 2**28)
    assert len(kept) == 2
    run(2**31)  # documented: there is no memory
    assert len(kept) == 2
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    takes(2**31)


def test_a_binary_target_that_is_no_tensor() -> None:
    with pytest.raises(TypeError, match="upsample_binary_cross_entropy: target must be a tensor, got dtype"):
        fk.upsample_binary_cross_entropy(torch.randn(1, 1, 2, 2), torch.float32, (4, 4))


def test_integers_beyond_a_float() -> None:
    x, huge = torch.randn(1, 2, 3, 4), 10**400
    target = torch.zeros(1, 3, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="interpolate: scale_factor must be finite, got an integer of 1329 bits"):
        fk.Sampling.interpolate((3, 4), scale_factor=(huge, 2))
    with pytest.raises(ValueError, match="input size must be from 1 to 2147483647"):
        fk.Sampling.interpolate(huge, scale_factor=0.3)
    with pytest.raises(ValueError, match="upsample_add: skip_scale must be finite"):
        fk.upsample_add(x, x, (3, 4), skip_scale=huge)
    with pytest.raises(ValueError, match="upsample_cross_entropy: label_smoothing must be finite"):
        fk.upsample_cross_entropy(x, target, label_smoothing=huge)


@pytest.mark.skipif(load_extension() is None, reason="the package was built without C++ kernels")
def test_many_images_without_a_pixel() -> None:
    """Took minutes: a row was looked at per image."""
    none = torch.empty(()).expand(2**31, 3, 2**16, 0)
    assert torch.ops.fcn_kernels.channel_sum(none).equal(torch.zeros(3))
    with pytest.raises(RuntimeError, match=r"not enough memory for a tensor of \[1099511627776\]"):
        torch.ops.fcn_kernels.channel_sum(torch.empty(()).expand(0, 2**40, 1, 1))
