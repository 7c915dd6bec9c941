"""Score maps that look like a network's: features of real photographs, projected to classes.

Speed must be shown on such maps and not on noise alone: neighbouring pixels of a network's scores agree, most regions
have one clear winner, and operators that skip decided regions live on that.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

# Those that scikit-image's wheel contains.
NAMES = ("astronaut", "coffee", "chelsea", "rocket", "stereo_motorcycle", "immunohistochemistry")
_SEED = 20150607


@cache
def photograph(name: str) -> Tensor:  # [3, H, W], values in 0..1
    try:
        from skimage import data
    except ImportError as error:
        raise RuntimeError(
            "the photographs come with scikit-image, which is not installed: pip install 'fcn_kernels[bench]'"
        ) from error
    image = getattr(data, name)()
    image = image[0] if isinstance(image, tuple) else image  # stereo_motorcycle: left, right, disparity
    return torch.from_numpy(image).permute(2, 0, 1).float().div(255)


def photographs(count: int, size: tuple[int, int]) -> Tensor:  # [count, 3, H, W]
    """The first `count` photographs (repeated, mirrored, when there are fewer), scaled and centre-cropped to `size`."""
    images = []
    for index in range(count):
        image = photograph(NAMES[index % len(NAMES)])[None]
        scale = max(size[0] / image.shape[2], size[1] / image.shape[3])
        scaled = tuple(max(s, round(i * scale)) for s, i in zip(size, image.shape[2:], strict=True))
        image = F.interpolate(image, size=scaled, mode="bilinear", antialias=True)
        top, left = ((a - b) // 2 for a, b in zip(scaled, size, strict=True))
        image = image[..., top : top + size[0], left : left + size[1]]
        images.append(image.flip(3) if index // len(NAMES) % 2 else image)
    return torch.cat(images)


def features(images: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, 8, H, W]
    """Colour, contrast and edges by direction, per pixel."""
    grey = images.mean(1, keepdim=True)
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    contrast = (grey - F.avg_pool2d(grey, 9, 1, 4, count_include_pad=False)).abs()
    return torch.cat([images, across.abs(), down.abs(), across * down * 10, contrast, grey * grey], 1)


def score(pooled: Tensor, classes: int, deviation: float) -> Tensor:  # [N, K, h, w] -> [N, classes, h, w]
    """A fixed two-layer random network on pooled features, its scores brought to the given standard deviation.

    It also sees each map blurred, as a network's receptive field is wider than its stride.
    """
    context = [pooled] + [F.avg_pool2d(pooled, k, 1, k // 2, count_include_pad=False) for k in (5, 9)]
    x = torch.cat(context, 1)
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True).clamp_min(1e-6)
    generator = torch.Generator().manual_seed(_SEED)
    hidden = torch.randn(64, x.shape[1], 1, 1, generator=generator)
    output = torch.randn(classes, 64, 1, 1, generator=generator)
    scores = F.conv2d(F.conv2d(x, hidden).relu(), output)
    scores = scores - scores.mean((0, 2, 3), keepdim=True)
    return (scores * (deviation / scores.std())).contiguous()


def head_scores(count: int, classes: int, size: tuple[int, int], stride: int, deviation: float = 4.0) -> Tensor:
    """Scores of a head with the given output stride, [count, classes, size / stride]."""
    return score(F.avg_pool2d(features(photographs(count, size)), stride), classes, deviation)


def fcn8s_scores(count: int, classes: int, side: int = 500, deviation: float = 4.0) -> tuple[Tensor, Tensor, Tensor]:
    """score_fr, score_pool4, score_pool3 with the geometry of VGG16 padded by 100 (side 500: 16, 44 and 88 pixels)."""
    x = F.pad(features(photographs(count, (side, side))), (100, 98, 100, 98))  # conv1_1, 3x3, takes 2 of the 200 away
    pools = []
    for _ in range(5):
        x = F.avg_pool2d(x, 2, ceil_mode=True)
        pools.append(x)
    coarse = F.avg_pool2d(pools[4], 7, 1)  # fc6 is 7x7 and unpadded
    return tuple(score(x, classes, deviation) for x in (coarse, pools[3], pools[2]))


def labels(logits: Tensor, ignore_index: int) -> Tensor:  # [N, C, H, W] -> [N, H, W] int64
    """A ground truth with large regions that the scores mostly, not always, agree with; borders are ignored (VOC)."""
    generator = torch.Generator().manual_seed(_SEED + 1)
    classes = logits.shape[1]
    noise = torch.randn(logits.shape[0], classes, 8, 8, generator=generator).mul_(0.4 * logits.std().item())
    target = (logits + F.interpolate(noise, size=logits.shape[2:], mode="bilinear")).argmax(1)
    border = torch.zeros_like(target, dtype=torch.bool)
    border[:, 1:] |= target[:, 1:] != target[:, :-1]
    border[:, :, 1:] |= target[:, :, 1:] != target[:, :, :-1]
    return target.masked_fill_(border, ignore_index)
