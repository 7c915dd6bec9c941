"""Shapes, layouts and values that every operator has to stand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fcn_kernels import Sampling

# (id, sampling): zero and clamped boundaries, FCN's own crops, ragged and equal sizes, one pixel, down-sampling, gaps.
SAMPLINGS = [
    ("resize", Sampling.interpolate((5, 7), (20, 28))),
    ("ragged", Sampling.interpolate((5, 7), (13, 37))),
    ("wide", Sampling.interpolate((2, 3), (67, 131))),
    ("corners", Sampling.interpolate((5, 7), (17, 25), align_corners=True)),
    ("factor", Sampling.interpolate((5, 7), scale_factor=(2.6, 1.7))),
    ("down", Sampling.interpolate((13, 17), (5, 4))),
    ("down-corners", Sampling.interpolate((13, 17), (6, 1), align_corners=True)),
    ("same", Sampling.interpolate((5, 7), (5, 7))),
    ("one-to-many", Sampling.interpolate((1, 1), (6, 9))),
    ("many-to-one", Sampling.interpolate((4, 6), (1, 1))),
    ("fcn-2x", Sampling.transposed_conv((5, 7), 2, kernel_size=4)),
    ("fcn-8x", Sampling.transposed_conv((9, 10), 8, kernel_size=16, offset=31, output_size=(33, 41))),
    ("fcn-32x", Sampling.transposed_conv((2, 3), 32, kernel_size=64, offset=19, output_size=(40, 77))),
    ("odd-kernel", Sampling.transposed_conv((5, 7), 3, kernel_size=5, offset=(1, 2))),
    ("stride-1", Sampling.transposed_conv((5, 7), 1)),
    ("two-strides", Sampling.transposed_conv((5, 3), (2, 5), kernel_size=(3, 10), offset=(0, 4))),
]
FEW_SAMPLINGS = [case for case in SAMPLINGS if case[0] in ("ragged", "corners", "down", "fcn-2x", "fcn-32x")]

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def _filler(x: Tensor) -> float:
    """Between the values of a view lies what must not be read."""
    return torch.nan if x.dtype.is_floating_point else 99


def _sliced(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    big = torch.full((n + 1, c + 2, h + 3, w + 2), _filler(x), dtype=x.dtype, device=x.device)
    view = big[1:, 1:-1, 2:-1, 1:-1]
    view.copy_(x)
    return view


def _every_other_pixel(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    big = torch.full((n, c, 2 * h, 2 * w), _filler(x), dtype=x.dtype, device=x.device)
    view = big[:, :, ::2, ::2]
    view.copy_(x)
    return view


# The same values, stored in other ways.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": _sliced,
    "sliced-channels-last": lambda x: _sliced(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "every-other-pixel": _every_other_pixel,
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "batch-inside": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "expanded": lambda x: x[:1].expand(x.shape),
}


def _jumps(x: Tensor) -> Tensor:
    return x.sign() * 1e4


def _with(value: float) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 0, 0, 0] = value
        x[:, -1, -1, :] = value
        x[:, :, x.shape[2] // 2, x.shape[3] // 2] = value
        return x

    return change


def _one_minus_infinity(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0] = -torch.inf  # a class that is masked out
    return x


# Logits that break careless softmaxes, made of standard normal ones.
ADVERSARIAL: dict[str, Callable[[Tensor], Tensor]] = {
    "hot": lambda x: 10 * x,
    "very-hot": lambda x: 100 * x,
    "jumps": _jumps,
    "constant": lambda x: torch.full_like(x, 3.25),
    "zero": torch.zeros_like,
    "offset": lambda x: x + 1e6,
    "negative-offset": lambda x: x - 1e6,
    "tiny": lambda x: 1e-30 * x,
    "nan": _with(torch.nan),
    "inf": _with(torch.inf),
    "minus-inf": _with(-torch.inf),
    "masked-class": _one_minus_infinity,
    "trained": lambda x: (
        x * torch.tensor([9.0, 1.0, 3.0])[: x.shape[1]].repeat(x.shape[1])[: x.shape[1]].view(-1, 1, 1)
    ),
}


def layout_rule(x: Tensor) -> torch.memory_format:
    """How a result [N, C, *, *] of x is stored."""
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def parametrized(cases: list[tuple[str, Sampling]]) -> dict:
    """Arguments of pytest.mark.parametrize."""
    return {"argvalues": [s for _, s in cases], "ids": [name for name, _ in cases]}
