"""The two pictures of the story, with matplotlib."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from .scenes import CLASSES


def _pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise RuntimeError(
            "the figures need matplotlib, which is not installed: pip install 'fcn_kernels[demo]'"
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def check() -> None:
    """Raises RuntimeError, with what to do, where a figure cannot be drawn."""
    _pyplot()


def _colours() -> Tensor:  # [11, 3] in uint8: black, and ten that differ more than the first of PASCAL VOC's
    bright = torch.tensor(_pyplot().get_cmap("tab10").colors)
    return torch.cat([torch.zeros(1, 3), 255 * bright]).round().to(torch.uint8)


def _picture(t: Tensor):  # [3, H, W] or labels [H, W], uint8, as an array [H, W, 3]
    return (_colours()[t.long()] if t.dim() == 2 else t.permute(1, 2, 0)).numpy()


def save_labels_figure(
    path: str | os.PathLike, rows: list[tuple[Tensor, dict[str, Tensor], Tensor]], titles: Mapping[str, str]
) -> None:
    """Rows of (image, labels by network, truth): the input, what each network makes of it, and the truth."""
    pyplot = _pyplot()
    columns = 2 + len(titles)
    figure, axes = pyplot.subplots(
        len(rows), columns, figsize=(2.2 * columns, 2.2 * len(rows) + 0.7), squeeze=False, layout="constrained"
    )
    for line, (image, labels, truth) in zip(axes, rows, strict=True):
        for axis, picture in zip(line, [image, *(labels[name] for name in titles), truth], strict=True):
            axis.imshow(_picture(picture), interpolation="nearest")
            axis.set_axis_off()
    for axis, title in zip(axes[0], ["input", *titles.values(), "truth"], strict=True):
        axis.set_title(title, fontsize=11)
    present = sorted(set(torch.cat([truth.flatten() for _, _, truth in rows]).tolist()) - {0})
    colours = [pyplot.Rectangle((0, 0), 1, 1, color=(_colours()[k] / 255).tolist()) for k in present]
    figure.legend(colours, [CLASSES[k].removeprefix("digit ") for k in present], loc="outside lower center", ncols=10)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def save_heatmap_figure(path: str | os.PathLike, image: Tensor, probabilities: Tensor, window: int) -> None:
    """The scene, and on it the heatmap: per window the digit that is likeliest, if one is likelier than none."""
    pyplot = _pyplot()
    confidence, label = probabilities.max(0)
    height, width = image.shape[1:]
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 11 * height / width / 2 + 0.4), layout="constrained")
    for axis in axes:
        axis.imshow(_picture(image), interpolation="nearest")
        axis.set_axis_off()
    axes[0].set_title("input", fontsize=11)
    axes[1].set_title("1 - p(background), and the likeliest digit", fontsize=11)
    rows, columns = label.shape
    left, top = window / 2 - 16, window / 2 - 16  # each pixel of the heatmap on the 32 pixels at its window's centre
    extent = (left, left + 32 * columns, top + 32 * rows, top)
    axes[1].imshow(1 - probabilities[0].numpy(), extent=extent, cmap="inferno", alpha=0.65, vmin=0, vmax=1)
    for y in range(rows):
        for x in range(columns):
            if label[y, x] > 0 and confidence[y, x] > 0.5:
                text = CLASSES[label[y, x]].removeprefix("digit ")
                place = (left + 32 * x + 16, top + 32 * y + 16)
                axes[1].text(*place, text, ha="center", va="center", fontsize=9, color="black", weight="bold")
    axes[1].set(xlim=(0, width), ylim=(height, 0))
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
