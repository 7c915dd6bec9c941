"""Random geometry: every kernel agrees with the reference wherever a sampling may lead, also far outside the input."""

from __future__ import annotations

import pytest
import torch
from budget import check_budget
from conftest import Backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fcn_kernels as fk
from fcn_kernels import Sampling, reference
from fcn_kernels.sampling import Axis

OPERATOR = "upsample_cross_entropy"  # the table has the others wherever it has this one


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    den = draw(st.integers(1, 12))
    num = draw(st.integers(0, 3 * den))
    return Axis(draw(st.integers(1, 7)), draw(st.integers(1, 40)), num, draw(st.integers(-5 * den, 9 * den)), den)


samplings = st.builds(Sampling, axes(), axes(), st.sampled_from(["zero", "clamp"]))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sampling=samplings, channels=st.sampled_from([1, 2, 5, 9, 17]), seed=st.integers(0, 2**31))
def test_all_operators(
    backend: Backend, layout: torch.memory_format, sampling: Sampling, channels: int, seed: int
) -> None:
    torch.manual_seed(seed)
    code = sampling.encode()
    x = torch.randn(2, channels, *sampling.input_size, device=backend.device).contiguous(memory_format=layout)
    size = (2, *sampling.output_size)
    skip = torch.randn(2, channels, size[1] + 1, size[2] + 2, device=backend.device)
    target = torch.randint(0, channels, size, device=backend.device)
    target[torch.rand(size, device=backend.device) < 0.1] = 255
    reached = float(size[1] * size[2])  # all outputs may read one input

    def compare(f, plain, *, gain: float = 1.0) -> None:
        """Value and gradient of f, and of its specification in this dtype and in float64."""
        results = []
        for g, y in ((f, x), (plain, x), (plain, x.double())):
            y = y.clone(memory_format=torch.preserve_format).requires_grad_()
            value = g(y)
            (dx,) = torch.autograd.grad(value, y, torch.ones_like(value))
            results.append((value, dx))
        (value, dx), (expected, expected_dx), (oracle, oracle_dx) = results
        check_budget(value, expected, oracle, x, gain=gain)
        check_budget(dx, expected_dx, oracle_dx, x, gain=reached * gain)

    compare(lambda y: fk.upsample(y, sampling), lambda y: reference.upsample(y, code))
    compare(
        lambda y: fk.upsample_add(y, skip, sampling, skip_offset=(1, 2), skip_scale=0.5),
        lambda y: reference.upsample_add(y, skip, code, (1, 2), 0.5),
    )
    compare(
        lambda y: fk.upsample_log_softmax(y, sampling),
        lambda y: reference.upsample_softmax(y, code, True),
        gain=channels,
    )
    for reduction, kind in (("none", reference.NONE), ("sum", reference.SUM)):
        compare(
            lambda y, r=reduction: fk.upsample_cross_entropy(y, target, sampling, ignore_index=255, reduction=r),
            lambda y, k=kind: reference.upsample_cross_entropy(y, target, None, code, 255, k, 0.0, False)[0],
            gain=1.0 if reduction == "none" else reached,
        )
    compare(lambda y: fk.upsample_sigmoid(y, sampling), lambda y: reference.upsample_sigmoid(y, code))
    binary = torch.where(target[:, None] == 255, 255, target[:, None] % 2).expand(-1, channels, -1, -1)
    for reduction, kind in (("none", reference.NONE), ("sum", reference.SUM)):
        compare(
            lambda y, r=reduction: fk.upsample_binary_cross_entropy(y, binary, sampling, ignore_index=255, reduction=r),
            lambda y, k=kind: reference.upsample_binary_cross_entropy(y, binary, None, code, 255, k, False)[0],
            gain=1.0 if reduction == "none" else reached * channels,
        )
    z = reference.upsample(x.double(), code)
    chosen = z.gather(1, fk.upsample_argmax(x, sampling)[:, None])
    assert (chosen >= z.amax(1, keepdim=True) - 1e-5).all()
