"""FCN-32s, 16s and 8s as one writes them in PyTorch: dense transposed convolutions, whole score maps, then crops and
sums.

The weights are those of a network of `fcn_kernels.models`; the crops are by default the published numbers of FCN-8s.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fcn_kernels.models import FCN8s, FCN16s, FCN32s

PUBLISHED = (5, 9, 31)


def score_maps(model: FCN32s | FCN16s | FCN8s, image: Tensor) -> tuple[Tensor, ...]:
    """The scores of fc7 and of the skips, coarse to fine."""
    x, pools = image, {}
    for block, count in enumerate(model.blocks, 1):
        for i in range(1, count + 1):
            x = F.relu(getattr(model, f"conv{block}_{i}")(x), inplace=True)
        x = pools[f"pool{block}"] = F.max_pool2d(x, 2, 2, ceil_mode=True)
    for dense in (model.fc6, model.fc7):
        x = model.dropout(F.relu(F.conv2d(x, dense.weight, dense.bias), inplace=True))
    return (model.score_fr(x), *(getattr(model, f"score_{pool}")(pools[pool]) for pool in model.skips))


def head(
    model: FCN32s | FCN16s | FCN8s,
    maps: tuple[Tensor, ...],
    size: tuple[int, int],
    crops: tuple[int, ...] = PUBLISHED,
) -> Tensor:
    """Logits [N, C, H, W] from the score maps; a crop for each upsampling."""
    x, *skips = maps
    for (name, stride), skip, crop in zip(model.upscores, skips, crops, strict=False):
        x = F.conv_transpose2d(x, getattr(model, name).weight, stride=stride)
        skip = skip[:, :, crop : crop + x.shape[2], crop : crop + x.shape[3]]
        x = x[:, :, : skip.shape[2], : skip.shape[3]] + skip
    name, stride = model.upscores[-1]
    x, crop = F.conv_transpose2d(x, getattr(model, name).weight, stride=stride), crops[-1]
    return x[:, :, crop : crop + size[0], crop : crop + size[1]].contiguous()


def logits(model: FCN32s | FCN16s | FCN8s, image: Tensor, crops: tuple[int, ...] = PUBLISHED) -> Tensor:
    """Logits [N, C, H, W]."""
    return head(model, score_maps(model, image), tuple(image.shape[2:]), crops)


@torch.no_grad()
def predict(model: FCN8s, image: Tensor) -> Tensor:
    """Labels [N, H, W]."""
    return logits(model, image).argmax(1)
