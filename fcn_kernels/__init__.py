"""Fused operators for fully convolutional segmentation: heads without full-resolution logits."""

from importlib import import_module as _import_module
from typing import Any as _Any

from . import nn
from ._library import load_extension as _load_extension
from .backends import register_triton as _register_triton
from .backends import use_backend
from .fusion import fuse, unfuse
from .ops.check_labels import check_labels
from .ops.conv_transpose_add import conv_transpose_add
from .ops.conv_transpose_concat import conv_transpose_concat
from .ops.score_argmax import score_argmax
from .ops.score_cross_entropy import score_cross_entropy
from .ops.score_softmax import score_log_softmax, score_softmax
from .ops.upsample import upsample
from .ops.upsample_add import upsample_add
from .ops.upsample_argmax import upsample_argmax
from .ops.upsample_binary_cross_entropy import upsample_binary_cross_entropy
from .ops.upsample_confusion_matrix import upsample_confusion_matrix
from .ops.upsample_cross_entropy import upsample_cross_entropy
from .ops.upsample_sigmoid import upsample_sigmoid
from .ops.upsample_softmax import upsample_log_softmax, upsample_softmax
from .sampling import CoordinateMap, Sampling

__version__ = "0.1.0"

__all__ = [
    "CoordinateMap",
    "Sampling",
    "check_labels",
    "compile_pass",
    "conv_transpose_add",
    "conv_transpose_concat",
    "export",
    "fuse",
    "nn",
    "score_argmax",
    "score_cross_entropy",
    "score_log_softmax",
    "score_softmax",
    "unfuse",
    "upsample",
    "upsample_add",
    "upsample_argmax",
    "upsample_binary_cross_entropy",
    "upsample_confusion_matrix",
    "upsample_cross_entropy",
    "upsample_log_softmax",
    "upsample_sigmoid",
    "upsample_softmax",
    "use_backend",
]

_load_extension()
_register_triton()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> _Any:
    if name == "compile_pass":  # on demand: it imports torch's compiler
        from .inductor import compile_pass

        return compile_pass
    if name == "export":  # likewise
        return _import_module(".export", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
