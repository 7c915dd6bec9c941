"""Same bits under torch.use_deterministic_algorithms, and for every split of a batch. That the number of threads and
the run do not matter is in test_determinism.py; that memory does not, in test_guard_pages.py."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from call import OPS, results
from strategies import examples, operators
from torch import Tensor

import fcn_kernels as fk
from fcn_kernels import reference
from fcn_kernels._library import load_extension

COMPILED = load_extension() is not None


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Also fills fresh tensors with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("op", operators())
def test_deterministic_algorithms(op: str, request: pytest.FixtureRequest) -> None:
    """No error, no warning and no other result."""
    cases = [(call, results(op, OPS, call.args)) for call in examples(op, 5)]
    request.getfixturevalue("deterministic")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call, expected in cases:
            for a, b in zip(results(op, OPS, call.args), expected, strict=True):
                assert same_bits(a, b), call


def test_deterministic_algorithms_backward(deterministic: None) -> None:
    def gradient() -> Tensor:
        x = torch.linspace(-3, 3, 150).view(1, 5, 5, 6).requires_grad_()
        target = (torch.arange(400).view(1, 20, 20) % 5).byte()
        loss = fk.upsample_cross_entropy(x, target) + fk.upsample_softmax(x, (9, 8)).square().sum()
        loss = loss + fk.score_softmax(x, torch.ones(3, 5)).log().mean()
        (loss + fk.conv_transpose_add(x, x[0, :, :3, None, :3] * torch.ones(3, 1), stride=2).square().sum()).backward()
        return x.grad

    assert gradient().equal(gradient())


# Every result that has one entry per image, whatever stands beside it in the batch.
PER_IMAGE = [
    *("conv_transpose_add", "conv_transpose_concat", "score_argmax", "score_softmax", "upsample", "upsample_add"),
    *("upsample_argmax", "upsample_cross_entropy", "upsample_sigmoid", "upsample_softmax", "score_cross_entropy"),
]


@pytest.mark.skipif(not COMPILED, reason="PyTorch's own operators choose their algorithm by the size of the batch")
@pytest.mark.parametrize("op", PER_IMAGE)
def test_splits_of_a_batch(op: str) -> None:
    tried = 0
    for call in examples(op, 25):
        n = call.args[0].shape[0]
        args = list(call.args)
        if op.endswith("cross_entropy"):
            args[6 if op.startswith("score") else 5] = reference.NONE
        parameters = {1, 3} if op.startswith("conv") else {1, 2} if op.startswith("score") else set()
        per_image = [isinstance(a, Tensor) and a.dim() >= 3 and i not in parameters for i, a in enumerate(args)]
        whole = results(op, OPS, args)[0]
        for i in range(n if n > 1 else 0):
            one = results(op, OPS, [a[i : i + 1] if p else a for a, p in zip(args, per_image, strict=True)])[0]
            assert same_bits(one[0], whole[i]), call
            tried += 1
    assert tried >= 6
