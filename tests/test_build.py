"""The build: what was built, what each value of FCN_KERNELS_BUILD does, what a source distribution holds."""

import os
import platform
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from fcn_kernels import _library

ROOT = Path(__file__).resolve().parent.parent
EXTENSION = _library.load_extension()
needs_extension = pytest.mark.skipif(EXTENSION is None, reason=f"no extension: {_library.extension_error()}")


@needs_extension
def test_built_facts():
    facts = EXTENSION.built()
    assert set(facts) == {
        "version", "compiler", "instruction_sets", "torch", "stable_abi", "nvcc", "cuda_architectures"
    }  # fmt: skip
    assert facts["stable_abi"] == "2.11"
    assert facts["instruction_sets"][0] == ("neon" if platform.machine() in ("aarch64", "arm64") else "baseline")
    assert (facts["nvcc"] is None) == (facts["cuda_architectures"] is None)


@needs_extension
def test_instruction_sets_switch_and_agree():
    x = torch.randn(2, 5, 6, 7)
    sampling = [6, 20, 2, -5, 8, 7, 25, 1, 3, 4, 1]
    before = EXTENSION.instruction_set()
    results = {}
    try:
        for name in EXTENSION.built()["instruction_sets"]:
            try:
                EXTENSION.use_instruction_set(name)
            except ValueError:  # this processor does not have it
                continue
            assert EXTENSION.instruction_set() == name
            results[name] = torch.ops.fcn_kernels.upsample(x, sampling)
    finally:
        EXTENSION.use_instruction_set(before)
    plainest = EXTENSION.built()["instruction_sets"][0]
    assert {plainest, before} <= set(results)
    for result in results.values():
        torch.testing.assert_close(result, results[plainest], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r'"avx9" is not built or not supported .*built: (baseline|neon)'):
        EXTENSION.use_instruction_set("avx9")


@needs_extension
def test_extension_needs_no_file_of_the_build_environment():
    """No rpath: torch's libraries are found because torch is imported first, whatever torch that is."""
    if sys.platform != "linux":
        pytest.skip("reads an ELF file")
    dynamic = subprocess.run(["readelf", "-d", EXTENSION.__file__], capture_output=True, text=True, check=True).stdout
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


def test_simd_kernels_include_c_headers_only():
    """An inline function of a C++ header, compiled for AVX-512, could be merged into the baseline's code."""

    def includes(file: Path, seen: set[Path]) -> set[str]:
        if file in seen:
            return set()
        seen.add(file)
        text = file.read_text()
        found = set(re.findall(r"^#include <([^>]+)>", text, re.MULTILINE))
        for local in re.findall(r'^#include "([^"]+)"', text, re.MULTILINE):
            found |= includes((file.parent / local).resolve(), seen)
        return found

    kernels = sorted((ROOT / "csrc/cpu").glob("*.simd.cpp"))
    assert kernels
    for kernel in kernels:
        foreign = {name for name in includes(kernel, set()) if not name.endswith(".h") and name != "cstdint"}
        assert not foreign, f"{kernel.name} includes {foreign}"


def test_unknown_build_mode_is_refused(builder, monkeypatch):
    monkeypatch.setenv("FCN_KERNELS_BUILD", "gpu")
    with pytest.raises(SystemExit, match="FCN_KERNELS_BUILD=gpu: it must be one of auto, none, cpu, cuda"):
        builder.extensions()


def test_none_builds_nothing(builder, monkeypatch):
    monkeypatch.setenv("FCN_KERNELS_BUILD", "none")
    assert builder.extensions() == []


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_auto_says_so_in_one_line_and_cpu_fails(builder, monkeypatch, capsys, compiler):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("FCN_KERNELS_BUILD", "auto")
    assert builder.extensions() == []
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert compiler in lines[0]
    assert "reference serves" in lines[0]
    monkeypatch.setenv("FCN_KERNELS_BUILD", "cpu")
    with pytest.raises(SystemExit, match=f"FCN_KERNELS_BUILD=cpu, but .*{compiler}"):
        builder.extensions()


def test_a_flag_is_given_only_to_compilers_that_know_it(builder):
    if builder.compiler_problem() is not None:
        pytest.skip("needs a C++ compiler")
    assert builder.known(builder.cxx(), ["-O2", "-fno-such-optimization"]) == ["-O2"]


def test_cuda_without_nvcc_fails_and_auto_does_without(builder, monkeypatch):
    monkeypatch.setattr(builder, "find_nvcc", lambda: None)
    monkeypatch.setattr(builder, "compiler_problem", lambda: None)
    monkeypatch.setenv("FCN_KERNELS_BUILD", "cuda")
    with pytest.raises(SystemExit, match="there is no nvcc"):
        builder.extensions()
    monkeypatch.setenv("FCN_KERNELS_BUILD", "auto")
    (extension,) = builder.extensions()
    assert not [s for s in extension.sources if s.endswith(".cu")]


def test_cuda_architectures(builder, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0a Hopper,10.0+PTX")
    architectures = builder.cuda_architectures("nvcc")
    assert architectures == ["8.0", "9.0a", "9.0+PTX", "10.0+PTX"]
    assert builder.gencode(architectures) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_100,code=compute_100",
    ]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "sm_90")
    with pytest.raises(builder.BuildError, match="'sm_90' is neither like"):
        builder.cuda_architectures("nvcc")


def test_a_compile_error_fails_the_build(builder, tmp_path):
    """A compiler that works and a source that does not: never a silent fall-back."""
    if builder.compiler_problem() is not None:
        pytest.skip("there is no compiler")
    for name in ("setup.py", "build_kernels.py", "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "fcn_kernels").mkdir()
    (tmp_path / "fcn_kernels/__init__.py").touch()
    (tmp_path / "csrc/cpu").mkdir(parents=True)
    (tmp_path / "csrc/module.cpp").write_text("this is not C++\n")
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    environment = {**os.environ, "FCN_KERNELS_BUILD": "auto"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "the compilation failed" in done.stderr


def test_without_the_extension_the_reference_serves():
    program = (
        "import sys; sys.modules['fcn_kernels._C'] = None\n"
        "import torch, fcn_kernels\n"
        "from fcn_kernels import backends\n"
        "assert fcn_kernels.upsample(torch.ones(1, 2, 3, 3), (6, 6)).sum() == 72\n"
        "assert backends.active('upsample', 'cpu') == 'reference'\n"
        "from fcn_kernels.cli import main\n"
        "main(['info'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "extension   none: " in done.stdout


def test_source_distribution_holds_everything_that_a_build_needs(tmp_path):
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    environment = {**os.environ, "FCN_KERNELS_BUILD": "none"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"setup.py", "build_kernels.py", "pyproject.toml", "README.md", "LICENSE", "fcn_kernels/py.typed"}
    for pattern in ("csrc/**/*.h", "csrc/**/*.cpp", "csrc/**/*.cu", "csrc/**/*.cuh", "fcn_kernels/**/*.py"):
        needed |= {p.relative_to(ROOT).as_posix() for p in ROOT.glob(pattern)}
    assert needed <= held, sorted(needed - held)
    assert not [name for name in held if name.endswith((".so", ".o", ".pyc"))]
