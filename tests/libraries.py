"""Libraries that the integrations serve, where they are installed; their tests are skipped, by name, where not."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import pytest
import torch

_schemas: list[torch.library.Library] = []


def library(name: str) -> ModuleType:
    """The imported library; skips the test module where it is not installed."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed", allow_module_level=True)
    if importlib.util.find_spec("torchvision") is not None:
        _name_torchvision_operators()
    return importlib.import_module(name)


def _name_torchvision_operators() -> None:
    """torchvision from PyPI is built for CUDA: beside a CPU torch its operators do not load, and its import then fails
    where it registers fakes for two of them. Segmentation needs neither, so that their names are enough."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        _schemas.append(torch.library.Library("torchvision", "FRAGMENT"))
        for op in ("nms", "qnms"):
            _schemas[0].define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
