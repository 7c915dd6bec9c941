"""Host builds of CUDA kernels: their indexing and arithmetic are checked without a GPU too."""

import importlib.util
import random
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
LABELS = (torch.uint8, torch.int16, torch.int32, torch.int64)  # in the order of LabelKind
COMPILER = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def host_module(name: str, folder: Path) -> ModuleType:
    """tests/NAME.cpp, which runs kernels of csrc/cuda, as a module."""
    pybind11 = pytest.importorskip("pybind11")
    if COMPILER is None:
        pytest.skip("there is no C++ compiler")
    target = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    folders = [ROOT / "csrc", ROOT / "tests", pybind11.get_include(), sysconfig.get_paths()["include"]]
    command = [COMPILER, "-O1", "-std=c++17", "-shared", "-fPIC", *(f"-I{f}" for f in folders)]
    command += ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    done = subprocess.run(
        [*command, str(ROOT / f"tests/{name}.cpp"), "-o", str(target)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location(name, target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_axis(rng: random.Random, size: int = 7, outputs: int = 140) -> list[int]:
    """Any ratio, any offset: inputs far outside, constant positions, up- and down-sampling."""
    return [
        rng.randint(1, size), rng.randint(1, outputs), rng.randint(0, 6), rng.randint(-40, 40), rng.randint(1, 12)
    ]  # fmt: skip


def random_sampling(rng: random.Random, size: int = 7, outputs: int = 140) -> list[int]:
    return [*random_axis(rng, size, outputs), *random_axis(rng, size, outputs), rng.randint(0, 1)]


def framed(inner: torch.Tensor, fill: float) -> torch.Tensor:
    """A copy of `inner` [N, C, H, W] within a larger tensor of `fill`, which finds out who reads or writes outside."""
    n, c, h, w = inner.shape
    channels_last = inner.is_contiguous(memory_format=torch.channels_last) and not inner.is_contiguous()
    shape = (n, h + 2, w + 2, c + 4) if channels_last else (n, c + 1, h + 2, w + 16)  # rows stay aligned
    whole = torch.full(shape, fill, dtype=inner.dtype)
    image = whole.permute(0, 3, 1, 2) if channels_last else whole
    sides = 1 if channels_last else 8
    window = image[:, :c, 1:-1, sides:-sides]
    window.copy_(inner)
    return window


class Frame:
    """Where a result is written: NaN inside, 7 around it, which must stay."""

    def __init__(self, like: torch.Tensor) -> None:
        self.window = framed(torch.full_like(like, torch.nan), 7)

    def checked(self) -> torch.Tensor:
        whole = torch.empty(0, dtype=self.window.dtype).set_(self.window.untyped_storage())
        assert (whole == 7).sum() >= whole.numel() - self.window.numel()
        assert whole.numel() > self.window.numel()
        return self.window.clone(memory_format=torch.preserve_format)


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Within a part of the largest number, the same NaN and infinities."""
    scale = 1 + torch.nan_to_num(expected, 0, 0, 0).abs().max().item()
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=0, atol=tolerance * scale, check_stride=False, equal_nan=True
    )


class Rows:
    """[N, C, P] values as lines of pixels or of channels, within a larger memory of `fill` that finds out who reads or
    writes outside. `slack` elements move every line away from 16-byte boundaries."""

    def __init__(self, values: torch.Tensor, channel_lines: bool, slack: int, fill: float = torch.nan) -> None:
        self.fill, self.channel_lines = fill, channel_lines
        inner = values.mT if channel_lines else values
        n, lines, length = inner.shape
        chunk = 16 // values.element_size()
        pitch = (length + chunk - 1) // chunk * chunk + chunk + slack
        self.whole = torch.full((n, lines + 2, pitch), fill, dtype=values.dtype)
        window = self.whole[:, 1:-1, slack : slack + length]
        window.copy_(inner)
        self.inside = torch.zeros(self.whole.shape, dtype=torch.bool)
        self.inside[:, 1:-1, slack : slack + length] = True
        self.view = window.mT if channel_lines else window  # [N, C, P]

    def checked(self) -> torch.Tensor:
        """The values, once nothing around them was written."""
        assert (self.whole[~self.inside] == self.fill).all()
        return self.view.clone()
