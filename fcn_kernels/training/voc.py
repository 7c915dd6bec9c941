"""Folders in the layout of PASCAL VOC: JPEGImages/NAME.jpg, SegmentationClass/NAME.png (palette indices, 255 ignored),
ImageSets/Segmentation/SPLIT.txt."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .. import images
from ..evaluation import IGNORE
from ..models.transforms import caffe_transform


class VOCFolder(torch.utils.data.Dataset):
    """Images and label maps of one split.

    Args:
        root: the folder.
        split: a file of ImageSets/Segmentation; where there is none, every label map.
        num_classes: labels are 0 to num_classes - 1 and 255.
        transform: from [3, H, W] uint8 RGB to what the network reads.

    Raises:
        FileNotFoundError: a folder, a list or a file is missing.
        RuntimeError: Pillow or NumPy is not installed.
        ValueError: no samples; and, by access, a label map of another size or with labels outside the classes.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: str = "train",
        *,
        num_classes: int = 21,
        transform: Callable[[Tensor], Tensor] = caffe_transform,
    ) -> None:
        images.check()
        self.root, self.num_classes, self.transform = Path(root), num_classes, transform
        for folder in ("JPEGImages", "SegmentationClass"):
            if not (self.root / folder).is_dir():
                raise FileNotFoundError(f"VOCFolder: {self.root} has no folder {folder}")
        listed = self.root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if listed.exists():
            self.names = listed.read_text().split()
        elif listed.parent.is_dir():
            raise FileNotFoundError(f"VOCFolder: there is no list {listed}")
        else:
            self.names = sorted(f.stem for f in (self.root / "SegmentationClass").glob("*.png"))
        if not self.names:
            raise ValueError(
                f"VOCFolder: no samples in {listed if listed.exists() else self.root / 'SegmentationClass'}"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """image as the transform makes it, and labels [H, W] in uint8."""
        import numpy
        from PIL import Image

        name = self.names[index]
        picture = next(
            (f for ending in ("jpg", "jpeg", "png") if (f := self.root / "JPEGImages" / f"{name}.{ending}").exists()),
            None,
        )
        if picture is None:
            raise FileNotFoundError(f"VOCFolder: there is no JPEGImages/{name}.jpg")
        with Image.open(picture) as image:
            rgb = torch.from_numpy(numpy.array(image.convert("RGB"))).permute(2, 0, 1)
        file = self.root / "SegmentationClass" / f"{name}.png"
        with Image.open(file) as image:
            if image.mode not in ("P", "L"):
                raise ValueError(f"VOCFolder: {file} must hold palette indices or 8-bit grey, got mode {image.mode}")
            labels = torch.from_numpy(numpy.array(image))
        if labels.shape != rgb.shape[1:]:
            raise ValueError(f"VOCFolder: {file} is {list(labels.shape)} pixels, its image {list(rgb.shape[1:])}")
        wrong = (labels >= self.num_classes) & (labels != IGNORE)
        if wrong.any():
            raise ValueError(
                f"VOCFolder: {file} holds label {int(labels[wrong][0])}, neither a class "
                f"(0 to {self.num_classes - 1}) nor {IGNORE}"
            )
        return self.transform(rgb), labels
