"""Calls of every operator, drawn by Hypothesis: geometry, shapes, dtypes, layouts, labels, values and options.

`calls(op)` draws the arguments of the schema `torch.ops.fcn_kernels.op`. The numbers of a call come from a seed, so
that a case is small to draw and to print.
"""

from __future__ import annotations

import drawn_convolutions
import drawn_scores
import drawn_upsamplings
from call import Call
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fcn_kernels import backends

# In these modules a function with the name of an operator draws its arguments.
_STRATEGIES = {
    name: function
    for module in (drawn_upsamplings, drawn_convolutions, drawn_scores)
    for name, function in vars(module).items()
    if name in backends.operators()
}


def operators() -> list[str]:
    return sorted(_STRATEGIES)


def calls(op: str) -> st.SearchStrategy[Call]:
    """Calls of one operator."""
    return st.composite(_STRATEGIES[op])()


def examples(op: str, count: int, number: int = 0) -> list[Call]:
    """The same `count` calls of an operator every time, or others for another number."""
    found: list[Call] = []

    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=HealthCheck
    )
    @seed(number)
    @given(calls(op))
    def collect(call: Call) -> None:
        found.append(call)

    collect()
    return found
