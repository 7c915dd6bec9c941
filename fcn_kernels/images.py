"""Pictures from and to files: RGB in, palette PNGs, overlays and legends out. Needs Pillow and NumPy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._files import replacing

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "SUFFIXES",
    "VOC_CLASSES",
    "check",
    "overlay",
    "palette",
    "read_image",
    "save_image",
    "save_labels",
    "save_legend",
]

SUFFIXES = (".png", ".jpg", ".jpeg")
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def _pillow():
    try:
        import numpy  # noqa: F401
        import PIL.Image
        import PIL.ImageDraw
        import PIL.ImageOps
    except ImportError as error:
        raise RuntimeError(
            f"pictures need Pillow and NumPy, of which one is missing ({error}): pip install 'fcn_kernels[images]'"
        ) from error
    return PIL


def check() -> None:
    """Raises RuntimeError, with what to do, where pictures can be neither read nor written."""
    _pillow()


def palette() -> Tensor:
    """[256, 3] colours in uint8, those of PASCAL VOC: bits 0, 3, 6 ... of the class become the high bits of red, 1, 4,
    7 ... of green, 2, 5 ... of blue."""
    label = torch.arange(256)[:, None]
    channel = torch.arange(3)
    colours = torch.zeros(256, 3, dtype=torch.int64)
    for bit in range(8):
        colours |= ((label >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours.to(torch.uint8)


def read_image(path: str | os.PathLike) -> Tensor:
    """An image file as RGB [3, H, W] in uint8, turned as its EXIF orientation says.

    Grey becomes RGB, 16 bits become 8 by scaling, transparent pixels lie on white.

    Raises:
        ValueError: the file is no image, is truncated, or has values that are neither 8 nor 16 bits.
    """
    pil = _pillow()
    try:
        with pil.Image.open(path) as file:
            pil.ImageOps.exif_transpose(file, in_place=True)
            file.load()
            return _rgb(file)
    except (OSError, SyntaxError, ValueError, EOFError, pil.Image.DecompressionBombError) as error:
        raise ValueError(f"{os.fspath(path)}: not a readable image: {error}") from error


def _rgb(image: Image.Image) -> Tensor:
    pil = _pillow()
    if image.mode.startswith("I"):  # 16 bits, or integers that may hold them
        values = torch.frombuffer(bytearray(image.convert("I").tobytes()), dtype=torch.int32)
        if int(values.min()) < 0 or int(values.max()) > 65535:
            raise ValueError(f"values from {int(values.min())} to {int(values.max())} are not 16 bits")
        grey = ((values.long() * 255 + 32767) // 65535).to(torch.uint8)
        return grey.view(1, image.height, image.width).expand(3, -1, -1).contiguous()
    if image.mode == "F":
        raise ValueError("floating point values have no known range")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        colours = image.convert("RGBA")
        image = pil.Image.new("RGBA", image.size, (255, 255, 255, 255))
        image.alpha_composite(colours)
    image = image if image.mode == "RGB" else image.convert("RGB")  # which copies RGB, too
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3).permute(2, 0, 1).contiguous()


def overlay(image: Tensor, labels: Tensor, opacity: float = 0.5, background: int | None = 0) -> Tensor:
    """The colours of labels [H, W] over an image [3, H, W], both uint8; the class `background` stays as it is.

    Computed in bands of rows: no full-size copy in another type."""
    colours = palette().to(torch.float32)
    result = image.clone()
    for top in range(0, image.shape[1], 256):
        band = labels[top : top + 256].long()
        part = result[:, top : top + 256]
        mixed = (1 - opacity) * part + opacity * colours[band].permute(2, 0, 1)
        keep = torch.zeros_like(band, dtype=torch.bool) if background is None else band == background
        part.copy_(torch.where(keep, part, mixed.round().to(torch.uint8)))
    return result


def save_labels(labels: Tensor, path: str | os.PathLike) -> None:
    """Labels [H, W] in uint8 as a palette PNG whose pixel values are the labels."""
    pil = _pillow()
    image = pil.Image.frombytes("P", (labels.shape[1], labels.shape[0]), _bytes(labels))
    image.putpalette(_bytes(palette()))
    _save(image, path)


def save_image(image: Tensor, path: str | os.PathLike) -> None:
    """[3, H, W] in uint8 as PNG or JPEG, as the suffix says."""
    pil = _pillow()
    pixels = _bytes(image.permute(1, 2, 0))
    _save(pil.Image.frombytes("RGB", (image.shape[2], image.shape[1]), pixels), path)


def save_legend(names: Sequence[str], path: str | os.PathLike, shares: Sequence[float] | None = None) -> None:
    """A PNG with each class's colour, number and name, and the share of the pixels that it got."""
    pil = _pillow()
    lines = [f"{k}  {name}" for k, name in enumerate(names)]
    if shares is not None:
        lines = [f"{line}  {100 * share:.1f} %" for line, share in zip(lines, shares, strict=True)]
    image = pil.Image.new("RGB", (60 + 8 * max(map(len, lines)), 20 * len(lines) + 8), "white")
    draw = pil.ImageDraw.Draw(image)
    for k, (line, colour) in enumerate(zip(lines, palette().tolist(), strict=False)):
        top = 20 * k + 4
        draw.rectangle((6, top + 2, 36, top + 16), fill=tuple(colour), outline="black")
        draw.text((44, top + 4), line, fill="black")
    _save(image, path)


def _bytes(t: Tensor) -> bytes:
    return t.cpu().contiguous().flatten().numpy().tobytes()


def _save(image: Image.Image, path: str | os.PathLike) -> None:
    jpeg = Path(path).suffix.lower() in (".jpg", ".jpeg")
    with replacing(path) as out:
        image.save(out, format="JPEG", quality=92) if jpeg else image.save(out, format="PNG")
