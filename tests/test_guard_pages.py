"""No kernel touches a byte outside its tensors and its scratch, and none uses memory that it has not written.

Every operator runs where a byte before or behind any block of memory, of inputs, outputs and scratch alike, ends the
process, and where fresh memory holds NaN in one run and zeros in another: the bits of the results must not know.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from fcn_kernels._library import load_extension

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.skipif(load_extension() is None, reason="the package was built without C++ kernels"),
    pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("cc"), reason="needs Linux and cc"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("guard") / "guard_pages.so"
    source = HERE / "guard_pages.c"
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", str(source), "-o", str(target)], check=True)
    return target


def run(library: Path, *arguments: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "LD_PRELOAD": str(library)}
    command = [sys.executable, str(HERE / "guarded.py"), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("fault", ["after", "before", "freed"])
def test_one_byte_outside_ends_the_process(library: Path, fault: str) -> None:
    done = run(library, fault)
    assert done.returncode == -signal.SIGSEGV, done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["calls", "hostile"])
def test_every_operator(library: Path, kind: str) -> None:
    profile = settings()
    number = 0 if profile.derandomize else random.randrange(2**31)
    done = run(library, kind, str(profile.max_examples // 2), str(number))
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(re.fullmatch(r"(\d+) cases\n", done.stdout)[1]) >= 150


def test_whole_vectors_of_channels(library: Path) -> None:
    done = run(library, "channels_last")
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == "357 cases\n"
