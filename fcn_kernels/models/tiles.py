"""Labels of images that are too large for one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .fcn import FCN
from .unet import UNet

__all__ = ["predict_tiles"]


@torch.inference_mode()
def predict_tiles(
    model: FCN | UNet,
    image: Tensor,
    transform: Callable[[Tensor], Tensor] | None = None,
    *,
    tile: int = 768,
    dtype: torch.dtype = torch.uint8,
) -> Tensor:
    """``model.predict(transform(image)[None])[0]``, a tile at a time.

    Each tile of tile x tile labels is computed from its pixels and those within the network's reach, on the grid that
    the whole image has: the labels are the same, up to rounding. Memory is that of a forward pass on (tile + 2 reach)^2
    pixels, whatever the image's size.

    Args:
        model: a network in eval mode; a `UNet` with mirrored borders.
        image: [3, H, W] (or as many channels as a `UNet` has), on any device; tiles are moved to the network's.
        transform: from a window of the image to what the network reads, pixel by pixel.
        tile: side of the tiles, rounded up to a multiple of the network's grid.
        dtype: of the labels.

    Returns:
        Labels [H, W] on the image's device.

    Raises:
        ValueError: a tile below 1, an image that is not [3, H, W], a network in training mode, a `UNet` whose output is
            smaller than its image.
    """
    if tile < 1:
        raise ValueError(f"predict_tiles: tile must be at least 1, got {tile}")
    if image.dim() != 3 or image.shape[0] != model.in_channels or 0 in image.shape:
        raise ValueError(f"predict_tiles: image must be [{model.in_channels}, H, W], got shape {list(image.shape)}")
    if isinstance(model, UNet) and model.borders != "mirror":
        raise ValueError("predict_tiles: a UNet needs borders='mirror', so that its labels have the image's size")
    if model.training:
        raise ValueError("predict_tiles: the network is in training mode; call model.eval() first")
    device = next(model.parameters()).device
    labels = torch.empty(image.shape[1:], dtype=dtype, device=image.device)
    for rows, read_rows in _windows(image.shape[1], tile, model):
        for cols, read_cols in _windows(image.shape[2], tile, model):
            part = image[:, read_rows, read_cols].to(device)
            part = part if transform is None else transform(part)
            found = model.predict(part[None], dtype=dtype)[0]
            top, left = rows.start - read_rows.start, cols.start - read_cols.start
            labels[rows, cols] = found[top : top + rows.stop - rows.start, left : left + cols.stop - cols.start]
    return labels


def _windows(size: int, tile: int, model: FCN | UNet) -> Iterator[tuple[slice, slice]]:
    """What is written and what is read for it; reading starts at multiples of the grid."""
    grid = model.grid
    margin = -(-model.reach // grid) * grid
    tile = -(-tile // grid) * grid
    if size <= tile + 2 * margin:
        yield slice(0, size), slice(0, size)
        return
    for start in range(0, size, tile):
        stop = min(start + tile, size)
        yield slice(start, stop), slice(max(0, start - margin), min(size, stop + margin))
