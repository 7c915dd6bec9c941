"""Training of the networks in `fcn_kernels.models`: recipes, data, the loop, metrics."""

from ..evaluation import Metrics
from .recipes import PAPER, RELEASED, Recipe, parameter_groups
from .trainer import Trainer, evaluate
from .voc import VOCFolder

__all__ = ["PAPER", "RELEASED", "Metrics", "Recipe", "Trainer", "VOCFolder", "evaluate", "parameter_groups"]
