"""The same bits on every run and for any number of threads, forward and backward.

The reference is composed of PyTorch's operators, whose vector loops end where a thread's share ends: it repeats itself
for the same number of threads only.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import Backend, serving
from torch import Tensor

import fcn_kernels as fk
from fcn_kernels import Sampling

FCN = Sampling.transposed_conv((33, 31), 8, kernel_size=16, offset=31, output_size=(200, 201))


def features(x: Tensor) -> tuple[Tensor, Tensor]:
    """Many channels, and weights of 19 classes that hand their gradient to x too."""
    many = x.repeat(1, 40, 1, 1)
    return many, many[0, :, 0, :19].t() / 17


CALLS: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "upsample": ("upsample", lambda x, t: fk.upsample(x, FCN)),
    "upsample_add": ("upsample_add", lambda x, t: fk.upsample_add(x, x.repeat(1, 1, 7, 7), FCN, skip_offset=(9, 9))),
    "softmax": ("upsample_softmax", lambda x, t: fk.upsample_softmax(x, FCN)),
    "log_softmax": ("upsample_softmax", lambda x, t: fk.upsample_log_softmax(x, (160, 200))),
    "argmax": ("upsample_argmax", lambda x, t: fk.upsample_argmax(x, FCN, return_confidence=True)[1]),
    "cross_entropy-mean": ("upsample_cross_entropy", lambda x, t: fk.upsample_cross_entropy(x, t, FCN)),
    "cross_entropy-resize": (
        "upsample_cross_entropy",
        lambda x, t: fk.upsample_cross_entropy(x, t, label_smoothing=0.1, reduction="sum"),
    ),
    "cross_entropy-none": (
        "upsample_cross_entropy",
        lambda x, t: fk.upsample_cross_entropy(x, t, FCN, reduction="none"),
    ),
    "sigmoid": ("upsample_sigmoid", lambda x, t: fk.upsample_sigmoid(x, FCN)),
    "score_softmax": ("score_softmax", lambda x, t: fk.score_softmax(*features(x))),
    "score_argmax": ("score_argmax", lambda x, t: fk.score_argmax(*features(x))),
    "score_cross_entropy": (
        "score_cross_entropy",
        lambda x, t: fk.score_cross_entropy(*features(x), None, t[:, :33, :31], reduction="sum"),
    ),
    "binary": (
        "upsample_binary_cross_entropy",
        lambda x, t: fk.upsample_binary_cross_entropy(x[:, :1], (t > 3).long(), FCN),
    ),
    # The weights are a part of x, so that its gradient holds theirs.
    "conv_transpose": (
        "conv_transpose_add",
        lambda x, t: fk.conv_transpose_add(x, x[0, :, None, 8:20, 8:18], stride=(3, 4), offset=(5, 6)),
    ),
    "conv_transpose-depthwise": (
        "conv_transpose_add",
        lambda x, t: fk.conv_transpose_add(x, x[0, :, None, 8:24, 8:24], stride=8, groups=7, offset=(3, 0)),
    ),
    # Wide enough for several units in every direction; weight and bias are parts of x here too.
    "conv_transpose_concat": (
        "conv_transpose_concat",
        lambda x, t: fk.conv_transpose_concat(
            x.repeat(1, 8, 1, 1),
            x.flatten()[: 56 * 60 * 4].view(56, 60, 2, 2),
            x.repeat(1, 1, 2, 2),
            x[0, 0].flatten()[:60],
            stride=2,
        ),
    ),
    "conv_transpose_concat-overlapping": (
        "conv_transpose_concat",
        lambda x, t: fk.conv_transpose_concat(
            x, x[0, :, None, 8:11, 8:12], x.repeat(1, 1, 3, 4), x[0, 0, 0, :1], stride=(2, 3), offset=(1, 0)
        ),
    ),
    "binary-none": (
        "upsample_binary_cross_entropy",
        lambda x, t: fk.upsample_binary_cross_entropy(
            x, (t[:, None] > 3).expand(x.shape[0], x.shape[1], 200, 201), FCN, reduction="none"
        ),
    ),
}
CASES = [
    pytest.param(call, backend, id=f"{name}-{backend.name}-{backend.device}")
    for name, (op, call) in CALLS.items()
    for backend in serving(op)
    if not backend.interpreted
]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("call", "chosen"), CASES)
def test_same_bits(call: Callable[[Tensor, Tensor], Tensor], chosen: Backend, layout: str) -> None:
    x = 3 * torch.randn(2, 7, 33, 31, device=chosen.device)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    target = torch.randint(0, 7, (2, 200, 201), device=chosen.device)
    g = None
    seen = []
    threads = torch.get_num_threads()
    try:
        for count in (2, 2) if chosen.name == "reference" else (1, 2, 3, 2):
            torch.set_num_threads(count)
            leaf = x.detach().requires_grad_()
            with fk.use_backend(chosen.name):
                y = call(leaf, target)
                bits = [y.detach()]
                if y.requires_grad:
                    g = torch.randn_like(y) if g is None else g
                    bits += torch.autograd.grad(y, leaf, g)
            seen.append(bits)
    finally:
        torch.set_num_threads(threads)
    assert all(a.equal(b) for bits in seen[1:] for a, b in zip(bits, seen[0], strict=True))
