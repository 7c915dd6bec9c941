"""What the compiler made of every CUDA kernel, read from the built extension, without a GPU: registers, memory, widths
of loads, instructions of the tensor cores.

    python -m fcn_kernels.benchmarking.machine_code [--json FILE] [FILE.so or FILE.o]

`stack` counts bytes of local memory of a thread: spilled registers and arrays that did not fit into registers. It needs
cuobjdump, of the CUDA toolkit or of Triton.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import _library

_RESOURCES = re.compile(r"Function (\S+):\s*\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_ARCHITECTURE = re.compile(r"^arch = (sm_\w+)", re.MULTILINE)
_ACCESS = re.compile(r"\b(LDG|STG)(?:STS)?\.(\S+)")  # LDGSTS: straight into shared memory
_MATRIX = re.compile(r"\b[HD]MMA\.")


def find_cuobjdump() -> str | None:
    """cuobjdump on PATH, of the toolkit, or of Triton."""
    candidates = [shutil.which("cuobjdump"), "/usr/local/cuda/bin/cuobjdump"]
    triton = find_spec("triton")
    if triton is not None and triton.origin:
        candidates.append(str(Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"))
    return next((c for c in candidates if c and Path(c).is_file()), None)


def kernels(binary: Path) -> list[dict[str, Any]]:
    """Every kernel of a binary for every architecture that it holds machine code for."""
    found = []
    sections = re.split(r"(?=^Fatbin elf code:)", _dump("--dump-resource-usage", binary), flags=re.MULTILINE)
    for section in sections:
        architecture = _ARCHITECTURE.search(section)
        for name, registers, stack, shared, local in _RESOURCES.findall(section) if architecture else ():
            row = {"kernel": _readable(name), "architecture": architecture[1], "registers": int(registers)}
            found.append(row | {"stack": int(stack) + int(local), "shared": int(shared)})
    code = _instructions(binary)
    for row in found:
        seen = code.get((row["architecture"], row["kernel"]), Counter())
        for name, access in (("load_bits", "LDG"), ("store_bits", "STG")):
            row[name] = sorted(bits for kind, bits in seen if kind == access)
        row["matrix"] = seen["MMA", 0]
    return sorted(found, key=lambda row: (row["kernel"], row["architecture"]))


def _instructions(binary: Path) -> dict[tuple[str, str], Counter]:
    """By architecture and kernel: accesses to global memory by kind and width, and products on tensor cores."""
    found: dict[tuple[str, str], Counter] = {}
    architecture, seen = "", Counter()
    for line in _dump("--dump-sass", binary).splitlines():
        if line.startswith("arch = "):
            architecture = line.removeprefix("arch = ")
        elif "Function :" in line:
            seen = found.setdefault((architecture, _readable(line.rpartition(" ")[2])), Counter())
        elif access := _ACCESS.search(line):
            width = next((int(w) for w in ("128", "64", "16", "8") if re.search(rf"\b[US]?{w}\b", access[2])), 32)
            seen[access[1], width] += 1
        elif _MATRIX.search(line):
            seen["MMA", 0] += 1
    return found


def _dump(option: str, binary: Path) -> str:
    tool = find_cuobjdump()
    if tool is None:
        raise RuntimeError("there is no cuobjdump: it comes with the CUDA toolkit and with Triton")
    return subprocess.run([tool, option, str(binary)], capture_output=True, text=True, check=True).stdout


def _readable(mangled: str) -> str:
    """name<template arguments> of a kernel, whatever translation unit it stands in."""
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    name = mangled
    if tool is not None:
        name = _demangled(tool, mangled)
    name = re.sub(r"^void |fcn::|\(anonymous namespace\)::|_GLOBAL__N__\w+::", "", name)
    return re.sub(r"\(\w+\)(?=\d)|\(.*", "", name)  # (Lines)2 is an argument of a template


_names: dict[str, str] = {}


def _demangled(tool: str, mangled: str) -> str:
    if mangled not in _names:
        _names[mangled] = subprocess.run([tool, mangled], capture_output=True, text=True, check=True).stdout.strip()
    return _names[mangled]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", nargs="?", type=Path, help="default: the extension module")
    parser.add_argument("--json", type=Path, help="write the table there")
    arguments = parser.parse_args()
    binary = arguments.binary
    if binary is None:
        extension = _library.load_extension()
        if extension is None:
            sys.exit(f"there is no extension: {_library.extension_error()}")
        binary = Path(extension.__file__)
    table = kernels(binary)
    for row in table:
        print(f"{row['architecture']:8} {row['registers']:4} registers {row['stack']:4} B of stack "
              f"{row['shared']:6} B shared  loads {row['load_bits']} stores {row['store_bits']}  "
              f"{row['matrix']:3} products  {row['kernel']}")  # fmt: skip
    if arguments.json:
        lines = ",\n".join(json.dumps(row) for row in table)
        arguments.json.write_text(f"[\n{lines}\n]\n")
    if any(row["stack"] for row in table):
        sys.exit("some kernels keep registers or arrays in local memory")


if __name__ == "__main__":
    main()
