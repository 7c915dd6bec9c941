"""The kernels of 64-bit Arm, where a cross-compiler and an emulator are installed (Debian: g++-aarch64-linux-gnu,
qemu-user): the same program, compiled for this processor and for Arm, must print the same results to rounding."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
CROSS = "aarch64-linux-gnu-"
# Relative to 1 + |value|, by the code of kernels.h: the rounding of the dtype that is stored, with its conditioning.
TOLERANCE = {0: 2e-6, 1: 4e-15, 2: 1e-3, 3: 8e-3}

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="compares with the kernels of x86-64"),
    pytest.mark.skipif(
        not all(map(shutil.which, (f"{CROSS}g++", f"{CROSS}objdump", "qemu-aarch64"))),
        reason="needs aarch64-linux-gnu-g++ and qemu-aarch64",
    ),
]


@pytest.fixture(scope="module")
def programs(builder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The program per instruction set, with the flags of the build; the objects stay beside it."""
    folder = tmp_path_factory.mktemp("kernels")
    flags = [*builder.COMMON, *builder.WARNINGS, "-Werror", f"-I{ROOT / 'csrc'}"]
    sources = [ROOT / "tests" / "kernels_main.cpp", ROOT / "csrc" / "cpu" / "geometry.cpp"]
    sources += sorted((ROOT / "csrc" / "cpu").glob("*.simd.cpp"))
    compilers = {"baseline": ["g++"], "neon": [f"{CROSS}g++", "-static"]}

    def compile_one(job: tuple[str, Path]) -> Path:
        isa, source = job
        target = folder / f"{source.stem}.{isa}.o"
        subprocess.run([*compilers[isa], *flags, f"-DFCN_ISA={isa}", "-c", str(source), "-o", str(target)], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, [(isa, source) for isa in compilers for source in sources]))
    for isa, compiler in compilers.items():
        mine = [str(o) for o in objects if o.suffixes[-2] == f".{isa}"]
        subprocess.run([*compiler, *mine, "-o", str(folder / isa)], check=True)
    return {isa: folder / isa for isa in compilers}


def results(*command: str) -> dict[str, tuple[int, list[float]]]:
    """What the program prints: per line a name of four words, the dtype's code, the values."""
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [line.split() for line in output.splitlines()]
    return {" ".join(words[:4]): (int(words[4]), list(map(float, words[5:]))) for words in lines}


def test_results_agree(programs: dict[str, Path]) -> None:
    ours = results("qemu-aarch64", str(programs["neon"]))
    expected = results(str(programs["baseline"]))
    assert ours.keys() == expected.keys()
    assert len(ours) >= 448
    for name, (code, values) in expected.items():
        assert len(values) == len(ours[name][1]) > 0
        worst = max(abs(a - b) / (1 + abs(b)) for a, b in zip(ours[name][1], values, strict=True))
        assert worst <= TOLERANCE[code], f"{name}: {worst}"


@pytest.mark.parametrize("kernel", ["upsample_cross_entropy", "upsample_softmax"])
def test_code_is_vectorized(programs: dict[str, Path], kernel: str) -> None:
    """Fused multiply-adds on vectors, conversions of half types, and no call of a mathematical function."""
    file = programs["neon"].parent / f"{kernel}.simd.neon.o"
    code = subprocess.run([f"{CROSS}objdump", "-dr", str(file)], check=True, capture_output=True, text=True).stdout
    assert len(re.findall(r"\tfml[as]\tv\d+\.4s", code)) > 100
    assert len(re.findall(r"\tfml[as]\tv\d+\.2d", code)) > 100
    assert re.search(r"\tfcvtl\tv\d+\.4s, v\d+\.4h", code)
    assert not re.search(r"R_AARCH64_CALL26\s+(exp|log|fma)", code)
