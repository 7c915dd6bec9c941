"""What a call costs when there is nothing to compute: microseconds at tiny sizes, against native calls."""

import pytest
import torch
import torch.nn.functional as F

import fcn_kernels

X = torch.randn(1, 2, 2, 2)
LEAF = X.clone().requires_grad_()
SKIP = torch.randn(1, 2, 4, 4)
TARGET = torch.zeros(1, 4, 4, dtype=torch.long)
SAMPLING = fcn_kernels.Sampling.interpolate((2, 2), (4, 4))
CODE = SAMPLING.encode()


def native(x):
    return F.interpolate(x, size=(4, 4), mode="bilinear")


def backward(loss):
    LEAF.grad = None
    loss.backward()


CALLS = {
    "upsample_add": {
        "operator": lambda: torch.ops.fcn_kernels.upsample_add(X, SKIP, CODE, [0, 0], 1.0),
        "function": lambda: fcn_kernels.upsample_add(X, SKIP, SAMPLING),
        "function, recording": lambda: fcn_kernels.upsample_add(LEAF, SKIP, SAMPLING),
        "native": lambda: native(X) + SKIP,
        "native, recording": lambda: native(LEAF) + SKIP,
    },
    "upsample_argmax": {
        "operator": lambda: torch.ops.fcn_kernels.upsample_argmax(X, CODE, torch.int64, False),
        "function": lambda: fcn_kernels.upsample_argmax(X, SAMPLING),
        "native": lambda: native(X).argmax(1),
    },
    "upsample_cross_entropy": {
        "operator": lambda: torch.ops.fcn_kernels.upsample_cross_entropy(X, TARGET, None, CODE, -100, 1, 0.0, False),
        "function": lambda: fcn_kernels.upsample_cross_entropy(X, TARGET),
        "function, recording": lambda: fcn_kernels.upsample_cross_entropy(LEAF, TARGET),
        "function, forward + backward": lambda: backward(fcn_kernels.upsample_cross_entropy(LEAF, TARGET)),
        "native": lambda: F.cross_entropy(native(X), TARGET),
        "native, recording": lambda: F.cross_entropy(native(LEAF), TARGET),
        "native, forward + backward": lambda: backward(F.cross_entropy(native(LEAF), TARGET)),
    },
}


@pytest.mark.parametrize(
    ("operator", "call"), [(operator, call) for operator, calls in CALLS.items() for call in calls]
)
def test_overhead(benchmark, operator, call):
    # reads and writes nothing worth mentioning
    benchmark.group = f"overhead of {operator}"
    if "recording" in call or "backward" in call:
        benchmark(CALLS[operator][call])
    else:
        with torch.no_grad():
            benchmark(CALLS[operator][call])
