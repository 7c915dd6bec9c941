"""Fused operators for fully convolutional segmentation: the full-resolution logits are never written."""

from ._library import load_extension as _load_extension
from .ops.upsample import upsample
from .ops.upsample_add import upsample_add
from .ops.upsample_argmax import upsample_argmax
from .ops.upsample_cross_entropy import upsample_cross_entropy
from .ops.upsample_softmax import upsample_log_softmax, upsample_softmax
from .sampling import CoordinateMap, Sampling

__version__ = "0.1.0"

__all__ = [
    "CoordinateMap",
    "Sampling",
    "upsample",
    "upsample_add",
    "upsample_argmax",
    "upsample_cross_entropy",
    "upsample_log_softmax",
    "upsample_softmax",
]

_load_extension()
