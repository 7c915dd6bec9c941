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

ROOT = Path(__file__).resolve().parent.parent
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
