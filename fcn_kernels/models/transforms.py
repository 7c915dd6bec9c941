"""From 8-bit RGB images to what published weights expect."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["TRANSFORMS", "caffe_transform", "torchvision_transform"]


def _rgb(name: str, image: Tensor) -> Tensor:
    if image.dtype != torch.uint8 or image.dim() not in (3, 4) or image.shape[-3] != 3:
        raise ValueError(
            f"{name}: image must be RGB in uint8, [3, H, W] or [N, 3, H, W], got {image.dtype} {list(image.shape)}"
        )
    return image.float()


def caffe_transform(image: Tensor) -> Tensor:
    """[..., 3, H, W] RGB in uint8 to BGR minus the mean (104.00699, 116.66877, 122.67892), 0 to 255, in float32."""
    mean = torch.tensor((104.00699, 116.66877, 122.67892), device=image.device).view(3, 1, 1)
    return _rgb("caffe_transform", image).flip(-3) - mean


def torchvision_transform(image: Tensor) -> Tensor:
    """[..., 3, H, W] RGB in uint8 to 0..1 minus (0.485, 0.456, 0.406), over (0.229, 0.224, 0.225), in float32."""
    mean = torch.tensor((0.485, 0.456, 0.406), device=image.device).view(3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225), device=image.device).view(3, 1, 1)
    return (_rgb("torchvision_transform", image) / 255 - mean) / std


# By the names that checkpoints and commands use.
TRANSFORMS: Mapping[str, Callable[[Tensor], Tensor]] = {"caffe": caffe_transform, "torchvision": torchvision_transform}
