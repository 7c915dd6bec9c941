"""torchvision: its segmentation models need no code of their own. Here is which version was tested."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..fusion import Report
from . import untested_version

__all__: list[str] = []

TESTED = ("0.29",)


def untested() -> str | None:
    """A warning, if this version of the library was not tested."""
    return untested_version("torchvision", TESTED)


def fuse_module(name: str, module: nn.Module, report: Report) -> None:
    """Nothing: upsampling in the models' forward is deferred as in any other."""


def fuse_object(thing: Any, report: Report) -> bool:
    """Nothing but modules."""
    return False
