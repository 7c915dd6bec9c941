"""`fcn-kernels info`: what is built, which backend serves each operator, and why another does not."""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import fcn_kernels
from fcn_kernels import _library, backends

DEVICES = ("cpu", "cuda", "xpu")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for machines instead of the tables")


def run(args: argparse.Namespace) -> int:
    facts = collect()
    print(json.dumps(facts, indent=2) if args.json else report(facts))
    return 0


def collect() -> dict:
    """Everything that the report says, as plain data."""
    return {
        "fcn_kernels": fcn_kernels.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "extension": _extension(),
        "devices": [_device(device) for device in DEVICES],
        "operators": [
            _row(op, direction, device, dtype)
            for op in backends.operators()
            if not op.endswith("_backward")
            for direction in ("forward", "backward")
            for device in DEVICES
            for dtype in backends.DTYPES
        ],
    }


def _version(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return version(package)
    except PackageNotFoundError:  # installed under another name: pytorch-triton-rocm, pytorch-triton-xpu
        return str(getattr(importlib.import_module(package), "__version__", "unknown"))


def _extension() -> dict:
    extension = _library.load_extension()
    if extension is None:
        return {"loaded": False, "reason": _library.extension_error()}
    in_use = extension.instruction_set()
    return {"loaded": True, "file": extension.__file__, "instruction_set": in_use, **extension.built()}


def _device(device: str) -> dict:
    obstacle = backends.device_obstacle(device)
    names = []
    if obstacle is None and device != "cpu":
        module = torch.get_device_module(device)
        names = [module.get_device_name(i) for i in range(module.device_count())]
    return {"device": device, "available": obstacle is None, "reason": obstacle, "names": names}


def _row(op: str, direction: str, device: str, dtype: torch.dtype) -> dict:
    """One operator, direction, device and dtype: the kernel's operator, the active backend, the others' reasons."""
    kernel = op if direction == "forward" else backends.backward_of(op)
    found = [] if kernel is None else backends.candidates(kernel, device, dtype)
    return {
        "operator": op,
        "direction": direction,
        "device": device,
        "dtype": str(dtype).removeprefix("torch."),
        "kernel": kernel,
        "active": next((c.backend for c in found if c.reason is None), None),
        "unable": {c.backend: c.reason for c in found if c.reason is not None},
        "first": next((c.note for c in found if c.note is not None), None),
    }


def report(facts: dict) -> str:
    """The facts for people."""
    rows = facts["operators"]
    sections = {
        "Active backend": _table(rows, facts["devices"]),
        "CUDA C++ or Triton": _preferences(rows),
        "Why not": _reasons(rows),
    }
    return "\n\n".join([_heading(facts), *(f"{title}\n{text}" for title, text in sections.items())])


def _heading(facts: dict) -> str:
    ext = facts["extension"]
    lines = [
        f"fcn_kernels {facts['fcn_kernels']}, Python {facts['python']}, torch {facts['torch']}, "
        f"triton {facts['triton'] or 'not installed'}"
    ]
    if ext["loaded"]:
        lines += [
            f"extension   {ext['file']}",
            f"            {ext['compiler']}, torch {ext['torch']} headers, stable ABI of torch {ext['stable_abi']}",
            f"CPU part    {', '.join(ext['instruction_sets'])}; in use: {ext['instruction_set']}",
            f"CUDA part   nvcc {ext['nvcc']}: {', '.join(ext['cuda_architectures'])}"
            if ext["cuda_architectures"]
            else "CUDA part   not built",
        ]
    else:
        lines.append(f"extension   none: {ext['reason']}")
    for d in facts["devices"]:
        state = ", ".join(d["names"]) or "available" if d["available"] else f"none: {d['reason']}"
        lines.append(f"{d['device']:<12}{state}")
    return "\n".join(lines)


def _table(rows: list[dict], devices: list[dict]) -> str:
    """operator x direction, one column per device; dtypes are named where they differ."""
    columns = [d["device"] if d["available"] else f"{d['device']} (absent)" for d in devices]
    lines = [["operator", "direction", *columns]]
    for op in dict.fromkeys(row["operator"] for row in rows):
        for direction in ("forward", "backward"):
            mine = [r for r in rows if r["operator"] == op and r["direction"] == direction]
            if mine[0]["kernel"] is None:
                cells = ["-" for _ in DEVICES]
            else:
                cells = [_cell([r for r in mine if r["device"] == device]) for device in DEVICES]
            note = mine[0]["kernel"] if mine[0]["kernel"] not in (None, op, f"{op}_backward") else ""
            lines.append([op if direction == "forward" else "", direction + (f" ({note})" if note else ""), *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    dtypes = ", ".join(dict.fromkeys(row["dtype"] for row in rows))
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*text, f"for {dtypes}; -: not differentiable, or composed of PyTorch operators"])


def _cell(rows: list[dict]) -> str:
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(row["active"] or "none", []).append(row["dtype"])
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{backend} ({', '.join(dtypes)})" for backend, dtypes in groups.items())


def _preferences(rows: list[dict]) -> str:
    """What decides on NVIDIA GPUs where both backends can serve, each once, with the operators that it concerns."""
    groups: dict[str, dict[str, None]] = {}
    for row in rows:
        if row["first"] is not None:
            groups.setdefault(row["first"], {})[row["kernel"]] = None
    kernels = {row["kernel"] for row in rows} - {None}
    return "\n".join(f"{reason} ({_listed(set(concerned), kernels)})" for reason, concerned in groups.items())


def _listed(concerned: set[str], kernels: set[str]) -> str:
    others = sorted(kernels - concerned)
    names = sorted(concerned) if len(concerned) <= len(others) else ["all but", *others] if others else ["all"]
    return ", ".join(names).replace("all but, ", "all but ")


def _reasons(rows: list[dict]) -> str:
    """The reasons, each once, with the operators that it concerns; a backend on a foreign device needs none."""
    groups: dict[tuple[str, str, str], dict[str, None]] = {}
    for row in rows:
        for backend, reason in row["unable"].items():
            foreign = backend in ("cpu", "cuda") and backend != row["device"]
            if not foreign:
                groups.setdefault((row["device"], backend, reason), {})[row["kernel"]] = None
    kernels = {row["kernel"] for row in rows} - {None}
    lines = []
    for (device, backend, reason), concerned in groups.items():
        lines.append(f"{backend} on {device}: {reason} ({_listed(set(concerned), kernels)})")
    return "\n".join(sorted(lines)) or "nothing: every backend serves every operator"
