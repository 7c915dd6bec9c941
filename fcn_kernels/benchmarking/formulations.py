"""The same jobs in PyTorch's own operators: what a user would write today, in its fastest forms.

A bilinear transposed convolution has two: interpolation of the zero-padded input, or a depthwise transposed
convolution. (The dense one of the original networks costs C times as much and is no rival.)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = 255


def interpolate(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class Window(NamedTuple):
    """What a bilinear transposed convolution, kernel 2s, even stride s, cropped from `offset`, is in interpolation.

    Output o reads position (o + offset + 1/2)/s - 1 of x; interpolation of x from row `first` on reads, for its output
    o', position first + (o' + 1/2)/s - 1/2: hence o' = o + offset - s/2 - s first. Only the rows that the window needs
    are taken, and zeros where it leaves x.
    """

    start: int  # of x
    stop: int
    before: int  # rows of zeros
    after: int
    skip: int  # outputs that are interpolated in vain

    @classmethod
    def of(cls, length: int, out: int, stride: int, offset: int) -> Window:
        first = math.floor((offset + 0.5) / stride - 1)
        last = math.ceil((out - 1 + offset + 0.5) / stride - 1)
        skip = offset - stride // 2 - first * stride
        return cls(max(first, 0), min(last + 1, length), max(-first, 0), max(last - length + 1, 0), skip)


def padded_interpolate(x: Tensor, stride: int, offset: int, size: tuple[int, int]) -> Tensor:
    """Bilinear transposed convolution, kernel 2s, even stride s, cropped to `size` from `offset`."""
    rows, columns = (Window.of(length, out, stride, offset) for length, out in zip(x.shape[2:], size, strict=True))
    x = x[..., rows.start : rows.stop, columns.start : columns.stop]
    pads = [columns.before, columns.after, rows.before, rows.after]  # F.pad lists the last axis first
    if any(pads):
        x = F.pad(x, pads)
    x = F.interpolate(x, scale_factor=float(stride), mode="bilinear", align_corners=False)
    return x[..., rows.skip : rows.skip + size[0], columns.skip : columns.skip + size[1]]


def bilinear_filters(channels: int, stride: int, like: Tensor) -> Tensor:  # [channels, 1, 2s, 2s]
    ramp = 1 - (torch.arange(2 * stride, dtype=like.dtype) - (stride - 0.5)).abs() / stride
    return (ramp[:, None] * ramp).expand(channels, 1, -1, -1).contiguous()


def depthwise_deconvolution(x: Tensor, filters: Tensor, offset: int, size: tuple[int, int]) -> Tensor:
    x = F.conv_transpose2d(x, filters, stride=filters.shape[-1] // 2, groups=x.shape[1])
    return x[..., offset : offset + size[0], offset : offset + size[1]]


def cropped(skip: Tensor, offset: int, size: tuple[int, int]) -> Tensor:
    return skip[..., offset : offset + size[0], offset : offset + size[1]]


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target, ignore_index=IGNORE)


def cross_entropy_rows(logits: Tensor, target: Tensor) -> Tensor:
    """Of channels_last logits: pixels are rows, the softmax runs along memory. Much faster for many classes."""
    return F.cross_entropy(logits.permute(0, 2, 3, 1).flatten(0, 2), target.flatten(), ignore_index=IGNORE)


def confusion_matrix(labels: Tensor, target: Tensor, classes: int) -> Tensor:
    """Row: label, column: prediction; as the reference scripts of segmentation libraries count."""
    valid = target != IGNORE
    return torch.bincount(classes * target[valid] + labels[valid], minlength=classes**2).view(classes, classes)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def fcn8s_logits(fr: Tensor, pool4: Tensor, pool3: Tensor, size: tuple[int, int]) -> Tensor:
    """The end of FCN-8s after its three scores: two fusions, 8x, crops 5, 9 and 31."""
    side = 2 * fr.shape[2] + 2, 2 * fr.shape[3] + 2
    x = padded_interpolate(fr, 2, 0, side) + cropped(pool4, 5, side)
    side = 2 * side[0] + 2, 2 * side[1] + 2
    x = padded_interpolate(x, 2, 0, side) + cropped(pool3, 9, side)
    return padded_interpolate(x, 8, 31, size)


def fcn8s_logits_depthwise(fr: Tensor, pool4: Tensor, pool3: Tensor, size: tuple[int, int]) -> Tensor:
    filters = {stride: bilinear_filters(fr.shape[1], stride, fr) for stride in (2, 8)}
    side = 2 * fr.shape[2] + 2, 2 * fr.shape[3] + 2
    x = depthwise_deconvolution(fr, filters[2], 0, side) + cropped(pool4, 5, side)
    side = 2 * side[0] + 2, 2 * side[1] + 2
    x = depthwise_deconvolution(x, filters[2], 0, side) + cropped(pool3, 9, side)
    return depthwise_deconvolution(x, filters[8], 31, size)
