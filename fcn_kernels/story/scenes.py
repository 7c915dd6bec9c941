"""Labelled scenes from real data: scikit-learn's handwritten digits on scikit-image's photographs.

Class 0 is the background, class d + 1 the digit d. Digits and photographs are split: what is tested was never trained
on.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..benchmarking.photographs import photograph

CLASSES = ("background", *(f"digit {d}" for d in range(10)))
PHOTOGRAPHS = {
    "train": ("astronaut", "coffee", "rocket", "immunohistochemistry"),
    "test": ("chelsea", "stereo_motorcycle"),
}
_TRAINING_DIGITS = 0.75  # the first three quarters; the others are for tests
_SIDES = (40, 64)  # pixels, the smallest digit and the largest
_BRIGHTNESS = 0.6  # of the photographs; the ink is lighter
_INK = 0.25  # the coverage from which a pixel belongs to the digit
_MARGIN = 0.1  # of a digit's side: so far beyond the ink its label reaches, as an annotator outlines it


class Scenes(torch.utils.data.Dataset):
    """Photographs on which digits lie that do not overlap.

    Args:
        split: "train" or "test".
        count: how many scenes.
        size: (H, W).
        seed: scene i follows from the seed and i.
        trials: how many digits are tried, of which those are drawn that find room; by default enough to fill a scene.
    """

    def __init__(self, split: str, count: int, size: tuple[int, int], seed: int, *, trials: int | None = None) -> None:
        self.split, self.count, self.size, self.seed = split, count, size, seed
        self.trials = size[0] * size[1] // 1000 if trials is None else trials

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """image [3, H, W] and labels [H, W], both uint8."""
        random = _random(self.seed, index)
        image = _background(self.split, self.size, random)
        labels = torch.zeros(self.size, dtype=torch.uint8)
        taken = torch.zeros(self.size, dtype=torch.bool)
        for _ in range(self.trials):
            side = _integer(*_SIDES, random)
            y, x = (_integer(0, n - side, random) for n in self.size)
            if not taken[y : y + side, x : x + side].any():
                _draw(image, labels, self.split, (y, x), side, random)
                taken[y : y + side, x : x + side] = True
        return _bytes(image), labels


class Windows(torch.utils.data.Dataset):
    """Photographs with one digit near the centre, or with none, for classification.

    Args:
        split: "train" or "test".
        count: how many windows.
        side: of a window.
        seed: window i follows from the seed and i.
    """

    def __init__(self, split: str, count: int, side: int, seed: int) -> None:
        self.split, self.count, self.side, self.seed = split, count, side, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """image [3, side, side] in uint8, and its class."""
        random = _random(self.seed, index)
        image = _background(self.split, (self.side, self.side), random)
        if _integer(0, len(CLASSES) - 1, random) == 0:
            return _bytes(image), 0
        side = _integer(*_SIDES, random)
        slack = self.side - side
        aside = min(slack // 2, 16)  # half the distance of neighbouring windows in the heatmap
        y, x = (slack // 2 + _integer(-aside, aside, random) for _ in range(2))
        labels = torch.zeros(self.side, self.side, dtype=torch.uint8)
        category = _draw(image, labels, self.split, (y, x), side, random)
        return _bytes(image), category


@cache
def _digits(split: str) -> tuple[Tensor, Tensor]:  # [D, 10, 10] coverage by ink in 0..1, with an empty rim; [D]
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise RuntimeError(
            "the digits come with scikit-learn, which is not installed: pip install 'fcn_kernels[demo]'"
        ) from error
    data = load_digits()
    ink = F.pad(torch.from_numpy(data.images).float() / 16, (1, 1, 1, 1))
    values = torch.from_numpy(data.target)
    cut = int(_TRAINING_DIGITS * len(values))
    return (ink[:cut], values[:cut]) if split == "train" else (ink[cut:], values[cut:])


def _random(seed: int, index: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + index)


def _integer(low: int, high: int, random: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=random))


def _bytes(image: Tensor) -> Tensor:
    return (255 * image).round().to(torch.uint8)


def _background(split: str, size: tuple[int, int], random: torch.Generator) -> Tensor:
    """A window of a photograph, dimmed, shrunk by 1/2 to 1 as far as it is large enough, perhaps mirrored."""
    names = PHOTOGRAPHS[split]
    image = photograph(names[_integer(0, len(names) - 1, random)])
    scale = 0.5 + 0.5 * float(torch.rand((), generator=random))
    scale = max(scale, size[0] / image.shape[1], size[1] / image.shape[2])
    window = [min(n, round(s / scale)) for s, n in zip(size, image.shape[1:], strict=True)]
    top, left = (_integer(0, n - w, random) for w, n in zip(window, image.shape[1:], strict=True))
    image = image[None, :, top : top + window[0], left : left + window[1]]
    image = F.interpolate(image, size=size, mode="bilinear")[0] * _BRIGHTNESS
    return image.flip(2) if _integer(0, 1, random) else image


def _draw(image: Tensor, labels: Tensor, split: str, place: tuple[int, int], side: int, random: torch.Generator) -> int:
    """Puts one light digit of `side` pixels on image and labels; returns its class."""
    ink, values = _digits(split)
    index = _integer(0, len(values) - 1, random)
    mask = F.interpolate(ink[index][None, None], size=(side, side), mode="bicubic")[0].clamp(0, 1)
    window = (slice(place[0], place[0] + side), slice(place[1], place[1] + side))
    colour = 0.7 + 0.3 * torch.rand(3, 1, 1, generator=random)
    image[(slice(None), *window)].mul_(1 - mask).add_(colour * mask)
    category = int(values[index]) + 1
    reach = round(_MARGIN * side)
    outline = F.max_pool2d(mask, 2 * reach + 1, 1, reach)[0] > _INK
    labels[window] = torch.where(outline, category, labels[window])
    return category
