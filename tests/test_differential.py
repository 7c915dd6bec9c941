"""Every operator, called with what Hypothesis draws, against the reference in float64.

A few cases per operator in the normal suite, always the same ones; `make fuzz` and, for Triton's interpreter, which is
slow, `make fuzz-triton` draw thousands, always others. GPUs have these calls in benchmarks/gpu_check.py.
"""

from __future__ import annotations

import pytest
from against_reference import check_call
from conftest import serving
from drawn_samplings import FULL, INTERPRETED, Limits, limited
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import calls, operators

import fcn_kernels as fk
from fcn_kernels import backends


def test_no_operator_is_forgotten() -> None:
    assert operators() == backends.operators()


def compare(op: str, name: str, data: st.DataObject, limits: Limits) -> None:
    with limited(limits):
        call = data.draw(calls(op))
    with fk.use_backend(name):
        check_call(call)


def cases(interpreted: bool) -> pytest.MarkDecorator:
    found = [
        pytest.param(op, b.name, id=f"{op}-{b.name}")
        for op in operators()
        for b in serving(op)
        if b.device == "cpu" and b.interpreted == interpreted and b.name != "reference"
    ]
    return pytest.mark.parametrize(("op", "name"), found)


drawn = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
few = settings(drawn, max_examples=3) if settings().derandomize else drawn


@cases(interpreted=False)
@drawn
@given(data=st.data())
def test_equals_the_reference(op: str, name: str, data: st.DataObject) -> None:
    compare(op, name, data, FULL)


@pytest.mark.triton
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy reports what the kernels mean to do with infinities
@cases(interpreted=True)
@few
@given(data=st.data())
def test_interpreted_equals_the_reference(op: str, name: str, data: st.DataObject) -> None:
    compare(op, name, data, INTERPRETED)
