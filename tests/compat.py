"""One wheel per Python, installed and tested with several versions of torch, each in an environment of its own.

    python tests/compat.py PYTHON TORCH [TORCH ...]     e.g. python3.13 2.13.0 2.11.0 newest

The wheel is built with the first torch and used with all. Environments and wheels are kept in build/compat. At the end
the same Python gets the package without compiled kernels. Downloads torch as PyPI has it, which may be gigabytes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMPAT = ROOT / "build" / "compat"
TOOLS = [
    "setuptools>=77",
    "wheel",
    "ninja",
    "pybind11>=2.12",
    "numpy",
    "pytest>=8",
    "hypothesis",
    "pillow",
    "expecttest",
]
COMPILED = [
    "differential",
    "raw_operators",
    "concurrency",
    "determinism",
    "reproducibility",
    "library",
    "out",
    "segment",
    "transforms",
]
PURE = ["backends", "library", "models", "upsample_cross_entropy", "conv_transpose_add"]


def run(*command: str | Path, cwd: Path = COMPAT, **variables: str) -> None:
    print("+", *command, flush=True)
    subprocess.run(list(map(str, command)), check=True, cwd=cwd, env={**os.environ, **variables})


def environment(python: str, torch: str) -> Path:
    """The folder of the programs of an environment with this torch."""
    folder = COMPAT / f"{Path(python).name}-torch-{torch}"
    if not (folder / "bin" / "python").exists():
        run(python, "-m", "venv", folder)
    wanted = "torch" if torch == "newest" else f"torch=={torch}"
    run(folder / "bin" / "python", "-m", "pip", "install", "-q", wanted, *TOOLS)
    return folder / "bin"


def test(programs: Path, names: list[str]) -> None:
    """With the installed package: pytest's own program does not put the sources into sys.path."""
    facts = "sys.version.split()[0], torch.__version__, fcn_kernels.backends.active('upsample', 'cpu')"
    run(programs / "python", "-c", f"import sys, torch, fcn_kernels; print({facts})")
    tests = [ROOT / "tests" / f"test_{name}.py" for name in names]
    run(
        programs / "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-x",
        "-o",
        "pythonpath=",
        "--package",
        programs.parent,
        "-k",
        "not triton",
        *tests,
    )


def main() -> None:
    python, *torches = sys.argv[1:]
    COMPAT.mkdir(parents=True, exist_ok=True)
    built = environment(python, torches[0])
    wheels = COMPAT / f"wheels-{Path(python).name}"
    shutil.rmtree(wheels, ignore_errors=True)
    pip = ("-m", "pip", "-q", "--disable-pip-version-check")
    # A folder of its own: the objects of the sources' folder belong to another environment.
    base = COMPAT / f"objects-{Path(python).name}"
    wheel = ("setup.py", "-q", "build", "--build-base", base, "bdist_wheel", "-d", wheels, "-b", base / "wheel")
    run(built / "python", *wheel, cwd=ROOT, PATH=f"{built}:{os.environ['PATH']}", FCN_KERNELS_BUILD="cpu")
    (file,) = wheels.glob("*.whl")
    for torch in torches:
        programs = environment(python, torch)
        run(programs / "python", *pip, "install", "--no-deps", "--force-reinstall", file)
        test(programs, COMPILED)
    pure = (*pip, "install", "--no-build-isolation", "--no-deps", "--force-reinstall", ROOT)
    run(built / "python", *pure, FCN_KERNELS_BUILD="none")
    test(built, PURE)


if __name__ == "__main__":
    main()
