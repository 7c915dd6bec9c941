"""The code of Triton's kernels, compiled without a GPU: no spills, wide accesses, tensor cores; a few configurations.

`python -m fcn_kernels.benchmarking.codegen` makes the table of all. Compiling needs a process of its own: here triton
may have been imported as an interpreter.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from fcn_kernels.benchmarking import codegen

pytestmark = pytest.mark.triton


def rows(folder: Path, operator: str, case: str, *targets: str) -> list[dict]:
    file = folder / "table.json"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "fcn_kernels.benchmarking.codegen", "--json", str(file), "--only", operator]
    command += ["--case", case, *(a for target in targets for a in ("--target", target))]
    environment["TRITON_CACHE_DIR"] = str(folder)
    subprocess.run(command, env=environment, check=True)
    found = json.loads(file.read_text())["rows"]
    assert {row["target"] for row in found} == set(targets)
    for row in found:
        assert not codegen.faults(row), row
        assert row["spilled_bytes"] == 0, row
    return found


@pytest.mark.parametrize(
    ("arithmetic", "targets"), [("bf16", ["sm_80", "sm_90", "sm_100", "gfx942"]), ("tf32", ["sm_90"])]
)
def test_scores_use_tensor_cores(tmp_path: Path, arithmetic: str, targets: list[str]) -> None:
    found = rows(tmp_path, "score_softmax", f"K 512 C 150, {arithmetic}, contiguous", *targets)
    for row in found:
        assert row["matrix products"] > 0, row
        assert max(row["load_bits"]) >= 64, row


def test_exact_float32_scores_do_not_spill(tmp_path: Path) -> None:
    found = rows(tmp_path, "score_softmax", "K 512 C 150, fp32, contiguous", "sm_80", "gfx942")
    assert all(max(row["load_bits"]) >= 64 for row in found)


def test_depthwise_upsampling_streams(tmp_path: Path) -> None:
    found = rows(tmp_path, "conv_transpose_add", "150 depthwise, 2x, fp32, contiguous", "sm_90", "sm_100")
    for row in found:
        assert max(row["store_bits"]) >= 64, row
        assert row["registers"] <= 64, row  # eight blocks of four warps


def test_channels_are_copied_and_summed_in_wide_accesses(tmp_path: Path) -> None:
    found = rows(tmp_path, "conv_transpose_concat", "512 to 256, 2x, fp32, contiguous", "sm_80", "gfx942")
    copies = [row for row in found if row["kernel"] == "copy_kernel"]
    assert len(copies) == 2
    for row in copies:
        assert max(row["load_bits"]) >= 64, row
        assert max(row["store_bits"]) >= 64, row
    for row in rows(tmp_path, "channel_sum", "512 to 256, 2x, fp32, contiguous", "sm_90"):
        assert max(row["load_bits"]) >= 64, row


@pytest.mark.parametrize(
    ("operator", "case"),
    [("conv_transpose_add", "21 to 21, 2x, bf16"), ("conv_transpose_add_backward", "512 to 256, 2x, tf32")],
)
def test_dense_upsampling_uses_tensor_cores(tmp_path: Path, operator: str, case: str) -> None:
    assert all(row["matrix products"] > 0 for row in rows(tmp_path, operator, case + ", contiguous", "sm_90"))


def test_what_is_amiss_is_named() -> None:
    """One warp of 32 registers fits 64 times, but a multiprocessor takes 32 blocks; registers are given out by 8."""
    assert codegen.resident_warps(32, 0, 1, "sm_90") == 32
    assert codegen.resident_warps(128, 0, 4, "sm_90") == 16
    assert codegen.resident_warps(129, 0, 4, "sm_90") == 12
    assert codegen.resident_warps(32, 100 * 1024, 4, "sm_80") == 4
    good = {
        "kernel": "upsample_add_kernel", "case": "VOC 8x, fp32, contiguous", "target": "sm_80", "spilled_bytes": 0,
        "resident_warps": 16, "tensor_cores": False, "load_bits": [32], "store_bits": [32, 64], "shared_bytes": 0,
    }  # fmt: skip
    assert codegen.faults(good) == []
    for change, fault in (
        ({"spilled_bytes": 8}, "8 bytes are spilled"),
        ({"resident_warps": 12}, "12 resident warps, planned are 16"),
        ({"tensor_cores": True}, "no tensor cores"),
        ({"store_bits": [32]}, "accesses of less than 8 bytes"),
        ({"target": "gfx942", "shared_bytes": 65537}, "a block does not fit"),
    ):
        assert codegen.faults(good | change) == [fault]
    table = codegen.summary([good | {"registers": 40}, good | {"registers": 48, "case": "FCN 32x, bf16, contiguous"}])
    assert "| `upsample_add` | 2 | 48; 0; 0; 16 |" in table


def test_the_tables_are_what_tuning_writes() -> None:
    spec = importlib.util.spec_from_file_location("tune", Path(__file__).parents[1] / "benchmarks" / "tune.py")
    tune = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tune)
    text = Path(tune.configurations.__file__).read_text()
    assert text == tune.render(re.search(r"; ((?:not yet )?measured.*)\.$", text, re.MULTILINE).group(1))


def test_committed_table_of_all_configurations():
    table = json.loads((Path(__file__).resolve().parent.parent / "benchmarks/results/triton-codegen.json").read_text())
    assert {row["target"] for row in table["rows"]} == set(codegen.TARGETS)
    assert [(row["kernel"], row["case"], codegen.faults(row)) for row in table["rows"] if codegen.faults(row)] == []
