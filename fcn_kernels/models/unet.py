"""U-Net on the fused operators (Ronneberger, Fischer & Brox, 2015): skips that concatenate instead of adding."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import reference
from .._checks import check_count
from ..nn import ConvTransposeConcat
from ..ops.score_argmax import score_argmax
from ..ops.score_cross_entropy import score_cross_entropy
from ..ops.score_softmax import score_softmax
from ._pooling import max_pool2d

__all__ = ["UNet"]

Borders = Literal["valid", "mirror"]


class _Convolutions(nn.Module):
    """Two 3x3 convolutions without padding, each with ReLU: 4 pixels less per side."""

    def __init__(self, before: int, width: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3)
        self.conv2 = nn.Conv2d(width, width, 3)
        self.norm1, self.norm2 = (nn.BatchNorm2d(width) if batch_norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(x)), inplace=True)


class UNet(nn.Module):
    """U-Net: unpadded 3x3 convolutions, 2x2 up-convolutions, and skips that are cropped and concatenated.

    A contracting path of `depth` pools doubles the width at each; the expanding path halves it again. Every pixel of
    the output has seen all of its surroundings, so the output is smaller than the image: 388 for a side of 572. Up to
    its features the network is `conv_transpose_concat` and ordinary convolutions; its heads are the `score` operators,
    and `predict`, `probabilities` and `loss` never write the logits.

    Args:
        num_classes: of the scores.
        in_channels: of the images; published with 1.
        width: channels after the first convolution; published with 64, thus 1024 at the bottom.
        depth: number of pools, and of up-convolutions; published with 4.
        dropout: probability, element by element, at the end of the contracting path.
        batch_norm: between each 3x3 convolution and its ReLU; published without, but from random weights it learns in
            far fewer steps with it.
        borders: "valid": images have a size that all pools divide (see `valid_side`), and the output covers their
            centre, without `margin` pixels on every side. "mirror": images of any size are continued by their mirror
            image, as the paper extrapolates them, and the output has their size.

    Raises:
        ValueError: fewer than one class, channel or pool; unknown borders.
    """

    def __init__(
        self,
        num_classes: int = 2,
        *,
        in_channels: int = 1,
        width: int = 64,
        depth: int = 4,
        dropout: float = 0.5,
        batch_norm: bool = False,
        borders: Borders = "valid",
    ) -> None:
        super().__init__()
        options = {"num_classes": num_classes, "in_channels": in_channels, "width": width, "depth": depth}
        for name, value in options.items():
            check_count("UNet", name, value)
        if borders not in ("valid", "mirror"):
            raise ValueError(f"UNet: borders must be 'valid' or 'mirror', got {borders!r}")
        self.num_classes, self.in_channels, self.depth, self.borders = num_classes, in_channels, depth, borders
        widths = [width << level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            _Convolutions(before, after, batch_norm)
            for before, after in zip([in_channels, *widths], widths, strict=False)
        )
        self.dropout = nn.Dropout(dropout)
        self.up = nn.ModuleList(ConvTransposeConcat(2 * w, w) for w in reversed(widths[:-1]))
        self.merge = nn.ModuleList(_Convolutions(2 * w, w, batch_norm) for w in reversed(widths[:-1]))
        self.score = nn.Conv2d(width, num_classes, 1)
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                # Of every output's inputs, so that activations keep their scale; an up-convolution has one tap.
                taps = layer.kernel_size[0] * layer.kernel_size[1] if isinstance(layer, nn.Conv2d) else 1
                nn.init.normal_(layer.weight, 0, (2 / (layer.in_channels * taps)) ** 0.5)
                nn.init.zeros_(layer.bias)
        self.grid = 2**depth  # images that differ by a shift of this many pixels see the same grid
        # Two convolutions take 4 pixels; at the level below they weigh twice as much: 4 (1 + 2 + ... ) on each path.
        self.margin = 6 * self.grid - 4  # pixels that the output lacks on each side: 92
        self.reach = self._reach()  # an output pixel depends on image pixels at most this far away

    # --- sizes -------------------------------------------------------------------------------------------------------

    def valid_side(self, at_least: int) -> int:
        """The smallest side of an image, at_least or more, that all pools divide and that leaves an output."""
        least = self.grid * (4 * (self.grid - 1) // self.grid + 1) + 4 * (self.grid - 1)  # at the bottom's output
        least += 4 * self.grid  # its two convolutions
        return max(least, least + -(-(at_least - least) // self.grid) * self.grid)

    def crop_target(self, target: Tensor) -> Tensor:
        """The labels [..., H, W] that the output of an image of that size is compared with."""
        if self.borders == "mirror":
            return target
        m = self.margin
        return target[..., m : target.shape[-2] - m, m : target.shape[-1] - m]

    def _reach(self) -> int:
        farthest = 0
        for pixel in range(self.grid):  # [begin, end) is what this output pixel reads, level by level
            begin, end = pixel, pixel + 1
            for _ in range(self.depth):
                begin, end = begin // 2, (end + 3) // 2 + 1  # two convolutions, an up-convolution
            end += 4
            for _ in range(self.depth):
                begin, end = 2 * begin, 2 * end + 4
            farthest = max(farthest, pixel + self.margin - begin, end - 1 - pixel - self.margin)
        return farthest

    # --- what the network computes -----------------------------------------------------------------------------------

    def features(self, image: Tensor) -> Tensor:
        """[N, width, H, W]: what the last convolution scores."""
        x, skips = self._with_borders(image), []
        for level, layer in enumerate(self.down):
            x = layer(x)
            if level < self.depth:
                skips.append(x)
                x = max_pool2d(x, 2, 2)
        x = self.dropout(x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(up(x, skips.pop()))
        if self.borders == "mirror":
            x = x[:, :, : image.shape[2], : image.shape[3]]
        return x

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, C, H, W], which `predict`, `probabilities` and `loss` do without."""
        return self.score(self.features(image))

    @torch.no_grad()
    def predict(
        self, image: Tensor, *, dtype: torch.dtype = torch.int64, return_confidence: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Labels [N, H, W], on request with the winner's probability."""
        if return_confidence:
            confidence, labels = self.probabilities(image).max(1)
            return labels.to(dtype), confidence
        return score_argmax(self.features(image), self.score.weight, self.score.bias).to(dtype)

    def probabilities(self, image: Tensor) -> Tensor:
        """Class probabilities [N, C, H, W]."""
        return score_softmax(self.features(image), self.score.weight, self.score.bias)

    def loss(self, image: Tensor, target: Tensor, **options: object) -> Tensor:
        """Cross-entropy with labels [N, H, W] of the image's size, of which the output's part counts, or of that part.

        Options as in `score_cross_entropy`.
        """
        features = self.features(image)
        target = self._output_part(target, image, features, "loss")
        return score_cross_entropy(features, self.score.weight, self.score.bias, target, **options)

    @torch.no_grad()
    def confusion_matrix(self, image: Tensor, target: Tensor, *, ignore_index: int | None = 255) -> Tensor:
        """[C, C] int64 counts: entry [t, p] of class t labelled p; target as in `loss`."""
        labels = self.predict(image)
        target = self._output_part(target, image, labels, "confusion_matrix")
        return reference.count_labels(labels, target, self.num_classes, ignore_index)

    def _output_part(self, target: Tensor, image: Tensor, output: Tensor, method: str) -> Tensor:
        size, whole = output.shape[-2:], image.shape[-2:]
        if target.shape[-2:] == size:
            return target
        if target.shape[-2:] != whole:
            raise ValueError(
                f"UNet.{method}: target is {list(target.shape[-2:])} pixels; it must be {list(whole)} as the image, "
                f"or {list(size)} as the output"
            )
        return self.crop_target(target)

    def _with_borders(self, image: Tensor) -> Tensor:
        if image.dim() != 4 or image.shape[1] != self.in_channels or 0 in image.shape[2:]:
            raise ValueError(f"UNet: images must be [N, {self.in_channels}, H, W], got shape {list(image.shape)}")
        sides = image.shape[2:]
        if self.borders == "mirror":
            rows, columns = (
                _mirrored(side, self.margin, self.valid_side(side + 2 * self.margin), image.device) for side in sides
            )
            if image.is_contiguous(memory_format=torch.channels_last):
                return image[:, :, rows[:, None], columns].contiguous(memory_format=torch.channels_last)
            return image[:, :, rows[:, None], columns]
        wrong = []
        for name, side in zip(("height", "width"), sides, strict=True):
            above = self.valid_side(side)
            if above != side:
                below = above - self.grid
                near = f"{below} or {above}" if self.valid_side(below) == below else f"{above}, the smallest"
                wrong.append(f"the {name} of {side} must be {near}")
        if wrong:
            raise ValueError(
                f"UNet: {' and '.join(wrong)}: unpadded convolutions and {self.depth} pools leave sides of "
                f"{self.valid_side(1)} + {self.grid} k pixels; borders='mirror' takes images of any size"
            )
        return image


def _mirrored(side: int, before: int, total: int, device: torch.device) -> Tensor:
    """Indices of `total` pixels that begin `before` pixels before the image and bounce off its first and last pixel."""
    index = torch.arange(-before, total - before, device=device)
    if side == 1:
        return torch.zeros_like(index)
    index = index.remainder(2 * side - 2)
    return torch.minimum(index, 2 * side - 2 - index)
