"""Thin modules around the operators; parameters and state_dicts are those of the torch modules they replace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import reference
from ._checks import (
    FLOATING,
    check_count,
    check_image,
    check_index,
    check_pair,
    check_scale,
    check_smoothing,
    label_dtype,
    reduction_code,
)
from .ops.conv_transpose_concat import conv_transpose_concat
from .ops.score_softmax import score_log_softmax, score_softmax
from .ops.upsample import upsample
from .ops.upsample_add import upsample_add
from .ops.upsample_argmax import upsample_argmax
from .ops.upsample_cross_entropy import upsample_cross_entropy
from .sampling import Sampling

__all__ = [
    "BilinearConvTranspose2d",
    "ConvTransposeConcat",
    "ScoreSoftmax",
    "SkipFusion",
    "UpsampleArgmax",
    "UpsampleCrossEntropyLoss",
    "bilinear_weight",
]


def bilinear_weight(channels: int, kernel_size: int, *, groups: int = 1, dtype: torch.dtype | None = None) -> Tensor:
    """FCN's bilinear filter as a weight of nn.ConvTranspose2d: on the diagonal for groups = 1, or depthwise.

    Raises:
        TypeError: channels or kernel_size is no integer, or dtype is not floating.
        ValueError: channels or kernel_size is below 1, or groups is neither 1 nor channels.
    """
    channels = check_count("bilinear_weight", "channels", channels)
    kernel_size = check_count("bilinear_weight", "kernel_size", kernel_size)
    if dtype is not None and dtype not in FLOATING:
        raise TypeError(f"bilinear_weight: dtype must be float32, float64, float16 or bfloat16, got {dtype}")
    if groups not in (1, channels):
        raise ValueError(f"bilinear_weight: groups must be 1 or channels = {channels}, got {groups}")
    row = reference.bilinear_filter(kernel_size)
    weight = torch.zeros(channels, channels // groups, kernel_size, kernel_size, dtype=dtype)
    diagonal = torch.arange(channels)
    weight[diagonal, diagonal if groups == 1 else 0] = (row[:, None] * row).to(weight.dtype)
    return weight


class BilinearConvTranspose2d(nn.Module):
    """Fixed bilinear upsampling, as a transposed convolution that is followed by a crop.

    Replaces ``nn.ConvTranspose2d(channels, channels, kernel_size, stride, groups=groups, bias=False)`` whose weight is
    the bilinear filter: the state_dict is the same, but the weight is a buffer, gets no gradient and is never read.
    Loading a weight that is anything but the bilinear filter fails: such a layer is a learned one.

    Args:
        channels: of input and output.
        kernel_size: 2 stride - 1 or 2 stride, for both sides; by default 2 stride - stride % 2.
        stride: the factor, of both sides.
        groups: 1 for a dense weight [C, C, k, k], channels for a depthwise one [C, 1, k, k]. The result is the same.
    """

    weight: Tensor

    def __init__(
        self,
        channels: int,
        kernel_size: int | None = None,
        stride: int = 2,
        *,
        groups: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        op = "BilinearConvTranspose2d"
        self.channels = check_count(op, "channels", channels)
        self.stride = stride = check_count(op, "stride", stride)
        self.kernel_size = check_count(
            op, "kernel_size", 2 * stride - stride % 2 if kernel_size is None else kernel_size
        )
        Sampling.transposed_conv(1, stride, kernel_size=self.kernel_size)  # refuses what is not bilinear
        self.groups = groups
        weight = bilinear_weight(self.channels, self.kernel_size, groups=groups, dtype=dtype)
        self.register_buffer("weight", weight.to(device))

    def forward(
        self, x: Tensor, *, offset: int | Sequence[int] = 0, output_size: int | Sequence[int] | None = None
    ) -> Tensor:
        """[N, C, h, w] to the window of `output_size` at `offset`, by default all of the output after the offset."""
        check_image("BilinearConvTranspose2d", "x", x)
        if x.shape[1] != self.channels:
            raise ValueError(f"BilinearConvTranspose2d: x must have {self.channels} channels, got {x.shape[1]}")
        sampling = Sampling.transposed_conv(
            x.shape[2:], self.stride, kernel_size=self.kernel_size, offset=offset, output_size=output_size
        )
        return upsample(x, sampling)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        loaded = state_dict.get(f"{prefix}weight")
        if isinstance(loaded, Tensor) and loaded.shape == self.weight.shape and not loaded.is_meta:
            ours = bilinear_weight(self.channels, self.kernel_size, groups=self.groups, dtype=torch.float64)
            error = (loaded.detach().cpu().double() - ours).abs().max().item()
            if not error <= 2 * torch.finfo(loaded.dtype).eps:
                error_messages = args[-1]
                error_messages.append(
                    f"{prefix}weight is not the bilinear filter (it differs by {error:.3g}), so it was learned: "
                    "use nn.ConvTranspose2d or fcn_kernels.conv_transpose_add"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, groups={self.groups}"


class SkipFusion(nn.Module):
    """FCN's skip fusion: coarse scores upsampled bilinearly, plus a scaled window of finer ones.

    Equivalent PyTorch::

        y = F.conv_transpose2d(x, bilinear, stride=stride, groups=C)
        y + skip_scale * skip[:, :, oy : oy + H, ox : ox + W]

    Args:
        stride: of the transposed convolution.
        kernel_size: 2 stride - 1 or 2 stride; by default 2 stride - stride % 2.
        skip_offset: where the window starts in skip: 5 and 9 in FCN-8s (see `CoordinateMap.crop_offset`).
        skip_scale: a finite factor.
    """

    def __init__(
        self,
        stride: int = 2,
        *,
        kernel_size: int | None = None,
        skip_offset: int | Sequence[int] = 0,
        skip_scale: float = 1.0,
    ) -> None:
        super().__init__()
        Sampling.transposed_conv(1, stride, kernel_size=kernel_size)
        self.stride = stride
        self.kernel_size = kernel_size
        self.skip_offset = check_pair("SkipFusion", "skip_offset", skip_offset, 0)
        self.skip_scale = check_scale("SkipFusion", "skip_scale", skip_scale)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x: [N, C, h, w], skip: [N, C, Hs, Ws]."""
        sampling = Sampling.transposed_conv(x.shape[2:], self.stride, kernel_size=self.kernel_size)
        return upsample_add(x, skip, sampling, skip_offset=self.skip_offset, skip_scale=self.skip_scale)

    def extra_repr(self) -> str:
        size = "" if self.kernel_size is None else f", kernel_size={self.kernel_size}"
        return f"stride={self.stride}{size}, skip_offset={self.skip_offset}, skip_scale={self.skip_scale}"


class ConvTransposeConcat(nn.ConvTranspose2d):
    """U-Net's skip fusion: a transposed convolution, behind the centre window of finer features.

    An nn.ConvTranspose2d without padding in all other respects. Equivalent PyTorch::

        y = super().forward(x)
        oy, ox = [(s - t) // 2 for s, t in zip(skip.shape[2:], y.shape[2:])]
        torch.cat([skip[:, :, oy : oy + y.shape[2], ox : ox + y.shape[3]], y], dim=1)

    Args:
        in_channels, out_channels, kernel_size, stride, groups, bias: as of nn.ConvTranspose2d.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 2,
        stride: int | Sequence[int] = 2,
        *,
        groups: int = 1,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, groups=groups, bias=bias, dtype=dtype, device=device
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x: [N, in_channels, h, w], skip: [N, C, Hs, Ws] to [N, C + out_channels, H, W]."""
        check_image("ConvTransposeConcat", "x", x)
        check_image("ConvTransposeConcat", "skip", skip)
        size = [(n - 1) * s + k for n, s, k in zip(x.shape[2:], self.stride, self.kernel_size, strict=True)]
        margins = [have - want for have, want in zip(skip.shape[2:], size, strict=True)]
        if min(margins) < 0:
            raise ValueError(
                f"ConvTransposeConcat: skip has {skip.shape[2]} x {skip.shape[3]} pixels, fewer than the "
                f"{size[0]} x {size[1]} that x of {x.shape[2]} x {x.shape[3]} becomes"
            )
        return conv_transpose_concat(
            x,
            self.weight,
            skip,
            self.bias,
            stride=self.stride,
            groups=self.groups,
            skip_offset=[margin // 2 for margin in margins],
        )


class ScoreSoftmax(nn.Conv2d):
    """A 1x1 score convolution with softmax (or log_softmax) over the classes; an nn.Conv2d in all other respects."""

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        bias: bool = True,
        log: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(in_channels, classes, 1, bias=bias, dtype=dtype, device=device)
        self.log = log

    def forward(self, x: Tensor) -> Tensor:
        """[N, K, H, W] features to [N, C, H, W] probabilities."""
        return (score_log_softmax if self.log else score_softmax)(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, log={self.log}"


class UpsampleCrossEntropyLoss(nn.Module):
    """nn.CrossEntropyLoss of upsampled logits; see `fcn_kernels.upsample_cross_entropy` for the options."""

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        reduction_code("UpsampleCrossEntropyLoss", reduction)
        self.register_buffer("weight", weight)
        self.ignore_index = check_index("UpsampleCrossEntropyLoss", "ignore_index", ignore_index)
        self.reduction = reduction
        self.label_smoothing = check_smoothing("UpsampleCrossEntropyLoss", label_smoothing)

    def forward(
        self,
        x: Tensor,
        target: Tensor,
        sampling: Sampling | Sequence[int] | None = None,
        *,
        pixel_weight: Tensor | None = None,
    ) -> Tensor:
        """x: [N, C, h, w] logits, target: [N, H, W] labels; sampling None means the target's size."""
        return upsample_cross_entropy(
            x,
            target,
            sampling,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            pixel_weight=pixel_weight,
        )

    def extra_repr(self) -> str:
        options = f"ignore_index={self.ignore_index}, reduction={self.reduction!r}"
        return f"{options}, label_smoothing={self.label_smoothing}"


class UpsampleArgmax(nn.Module):
    """Labels of upsampled logits; see `fcn_kernels.upsample_argmax`.

    Args:
        sampling: a `Sampling` or an output size (H, W), unless the call gives one.
        dtype: of the labels.
        return_confidence: also return the winner's softmax probability.
    """

    def __init__(
        self,
        sampling: Sampling | Sequence[int] | None = None,
        *,
        dtype: torch.dtype = torch.int64,
        return_confidence: bool = False,
    ) -> None:
        super().__init__()
        if sampling is not None and not isinstance(sampling, Sampling):
            sampling = check_pair("UpsampleArgmax", "sampling", sampling, 1)
        self.sampling = sampling
        self.dtype = label_dtype("UpsampleArgmax", dtype, None, 1)
        self.return_confidence = return_confidence

    def forward(self, x: Tensor, sampling: Sampling | Sequence[int] | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """[N, C, h, w] logits to [N, H, W] labels."""
        sampling = self.sampling if sampling is None else sampling
        if sampling is None:
            raise ValueError("UpsampleArgmax: no sampling was given, neither to the module nor to the call")
        return upsample_argmax(x, sampling, dtype=self.dtype, return_confidence=self.return_confidence)

    def extra_repr(self) -> str:
        return f"{self.sampling}, dtype={self.dtype}, return_confidence={self.return_confidence}"
