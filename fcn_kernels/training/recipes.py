"""How the networks were trained: the released recipe and the paper's.

A summed loss goes with tiny learning rates, a mean with ordinary ones; to mix them up is the classic mistake, so both
come as one object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ..models.fcn import FCN, FCN8s, FCN8sAtOnce, FCN16s, FCN32s, FCNAlexNet, FCNGoogLeNet
from ..models.unet import UNet


@dataclass(frozen=True)
class Recipe:
    """Stochastic gradient descent with momentum.

    Biases learn at twice the rate and do not decay; fixed upsamplings are no parameters at all.
    """

    lr: float
    momentum: float
    weight_decay: float
    reduction: str  # "sum", or "mean" over the pixels of the batch that are not ignored
    batch: int  # images per step, over all processes

    def __post_init__(self) -> None:
        if self.reduction not in ("sum", "mean"):
            raise ValueError(f"Recipe: reduction must be 'sum' or 'mean', got {self.reduction!r}")
        if self.batch < 1:
            raise ValueError(f"Recipe: batch must be at least 1, got {self.batch}")


def _released(lr: float) -> Recipe:
    return Recipe(lr, momentum=0.99, weight_decay=5e-4, reduction="sum", batch=1)


def _paper(lr: float) -> Recipe:
    return Recipe(lr, momentum=0.9, weight_decay=5e-4, reduction="mean", batch=20)


# Of the authors' Caffe networks: the loss is not normalised.
RELEASED: Mapping[type[FCN], Recipe] = {
    FCN32s: _released(1e-10),
    FCN16s: _released(1e-12),
    FCN8s: _released(1e-14),
    FCN8sAtOnce: _released(1e-10),
    FCNAlexNet: Recipe(1e-4, momentum=0.9, weight_decay=5e-4, reduction="mean", batch=20),
}
# Of the paper's section 4.3: minibatches of 20 images.
PAPER: Mapping[type[nn.Module], Recipe] = {
    FCN32s: _paper(1e-4),
    FCN16s: _paper(1e-4),
    FCN8s: _paper(1e-4),
    FCN8sAtOnce: _paper(1e-4),
    FCNAlexNet: _paper(1e-3),
    FCNGoogLeNet: _paper(5e-5),
    # Its own paper: large tiles instead of large batches, and a high momentum; the learning rate is ours.
    UNet: Recipe(1e-3, momentum=0.99, weight_decay=0.0, reduction="mean", batch=1),
}


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    """Weights, and biases at twice the rate without decay."""
    weights = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    return [
        {"params": weights, "lr": recipe.lr, "weight_decay": recipe.weight_decay},
        {"params": biases, "lr": 2 * recipe.lr, "weight_decay": 0.0},
    ]
