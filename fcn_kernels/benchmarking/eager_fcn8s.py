"""FCN-8s as one writes it in PyTorch: dense transposed convolutions, whole score maps, then crops and sums.

The weights are those of a `fcn_kernels.models.FCN8s`; the crops are the published numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fcn_kernels.models import FCN8s


def score_maps(model: FCN8s, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The scores of fc7, pool4 and pool3."""
    x, pools = image, []
    for block, count in enumerate(model.blocks, 1):
        for i in range(1, count + 1):
            x = F.relu(getattr(model, f"conv{block}_{i}")(x), inplace=True)
        x = F.max_pool2d(x, 2, 2, ceil_mode=True)
        pools.append(x)
    x = model.dropout(F.relu(model.fc6(x), inplace=True))
    x = model.dropout(F.relu(model.fc7(x), inplace=True))
    return model.score_fr(x), model.score_pool4(pools[3]), model.score_pool3(pools[2])


def head(model: FCN8s, maps: tuple[Tensor, Tensor, Tensor], size: tuple[int, int]) -> Tensor:
    """Logits [N, C, H, W] from the three score maps."""
    x, pool4, pool3 = maps
    for layer, skip, crop in ((model.upscore2, pool4, 5), (model.upscore_pool4, pool3, 9)):
        x = F.conv_transpose2d(x, layer.weight, stride=2)
        x = x + skip[:, :, crop : crop + x.shape[2], crop : crop + x.shape[3]]
    x = F.conv_transpose2d(x, model.upscore8.weight, stride=8)
    return x[:, :, 31 : 31 + size[0], 31 : 31 + size[1]].contiguous()


def logits(model: FCN8s, image: Tensor) -> Tensor:
    """Logits [N, C, H, W]."""
    return head(model, score_maps(model, image), tuple(image.shape[2:]))


@torch.no_grad()
def predict(model: FCN8s, image: Tensor) -> Tensor:
    """Labels [N, H, W]."""
    return logits(model, image).argmax(1)
