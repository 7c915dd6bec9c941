"""Triton kernels, one file per operator. Nothing here imports triton before a kernel is called."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

# operator -> the module beside this file that has a function of its name
KERNELS = {
    "channel_sum": "channel_sum",
    "conv_transpose_add": "conv_transpose_add",
    "conv_transpose_add_backward": "conv_transpose_add",
    "conv_transpose_concat": "conv_transpose_concat",
    "score_softmax": "score_softmax",
    "score_softmax_backward": "score_softmax",
    "score_argmax": "score_argmax",
    "score_cross_entropy": "score_cross_entropy",
    "score_cross_entropy_backward": "score_cross_entropy",
    "upsample": "upsample_add",
    "upsample_backward": "upsample_add",
    "upsample_add": "upsample_add",
    "upsample_softmax": "upsample_softmax",
    "upsample_softmax_backward": "upsample_softmax",
    "upsample_argmax": "upsample_argmax",
    "upsample_confusion_matrix": "upsample_confusion_matrix",
    "upsample_cross_entropy": "upsample_cross_entropy",
    "upsample_cross_entropy_backward": "upsample_cross_entropy",
    "upsample_binary_cross_entropy": "upsample_binary_cross_entropy",
    "upsample_binary_cross_entropy_backward": "upsample_binary_cross_entropy",
    "upsample_sigmoid": "upsample_sigmoid",
    "upsample_sigmoid_backward": "upsample_sigmoid",
}


def lazy(op: str) -> Callable[..., Any]:
    """The operator's Triton function; its module is imported by the first call."""

    def call(*args: Any, **kwargs: Any) -> Any:
        module = importlib.import_module(f"{__name__}.{KERNELS[op]}")
        return getattr(module, op)(*args, **kwargs)

    return call
