"""What the tests of the Triton kernels share. They run on a GPU, else in Triton's interpreter, which takes about a
tenth of a millisecond for an operation on a tile of any size, so that the images are tiny.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import fcn_kernels as fk
from fcn_kernels import Sampling

pytest.importorskip("triton")  # where it is missing, so are the tests that import this module

# The interpreter computes as numpy does, which reports what the kernels mean to do with infinities.
TRITON = [pytest.mark.triton, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

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
