"""Every operator, called with what Hypothesis draws, against the reference in float64.

A few cases per operator in the normal suite, always the same ones; `make fuzz` draws thousands, always others. Triton's
interpreter is left out for its slowness, GPUs have these calls in benchmarks/gpu_check.py.
"""

from __future__ import annotations

import pytest
from conftest import serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import calls, check_call, operators

import fcn_kernels as fk
from fcn_kernels import backends


def test_no_operator_is_forgotten() -> None:
    assert operators() == backends.operators()


CASES = [
    pytest.param(op, b.name, id=f"{op}-{b.name}")
    for op in operators()
    for b in serving(op)
    if b.device == "cpu" and not b.interpreted and b.name != "reference"
]


@pytest.mark.parametrize(("op", "name"), CASES)
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_equals_the_reference(op: str, name: str, data: st.DataObject) -> None:
    call = data.draw(calls(op))
    with fk.use_backend(name):
        check_call(call)
