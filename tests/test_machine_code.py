"""What nvcc made of CUDA kernels: no spills, wide accesses where layouts allow them, tensor cores for half types."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from fcn_kernels import _library
from fcn_kernels.benchmarking import machine_code

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = ROOT / "benchmarks/results/cuda-machine-code.json"
LOAD_WIDE = (
    "class_statistics<float, 32, 4>", "cross_entropy_pixels<float, 8, 4>", "float, float, 8, true>",
    "output_levels<float, 8, 4>", "softmax_channels<float, 8, 4>", "softmax_channels<__half, 8, 8>",
    "class_sums<float, 1, 4>", "class_sums<__nv_bfloat16, 32, 8>", "class_winners<float, 32, 4>",
    "argmax_units<float, 8, 4>", "argmax_units<__nv_bfloat16, 8, 8>",
    "channel_sum_parts<float, 4, false>", "channel_sum_parts<__half, 8, true>",
    "forward_contiguous<float, 4, Skip<float> >", "forward_channels_last<__half, 8, Sigmoid>",
    "depthwise_rows<float, 4, true>", "depthwise_pixels<float, 4>", "depthwise_input_pixels<float, 4>",
    "depthwise_weight_pixels<float, 4>", "copy_window<float, 4, true>",
)  # fmt: skip
STORE_WIDE = (
    "softmax_columns<float, 4>", "softmax_columns<__half, 8>", "softmax_columns<double, 2>",
    "softmax_channels<float, 8, 4>", "softmax_channels<__nv_bfloat16, 8, 8>",
    "forward_contiguous<float, 4, Skip<float> >", "forward_contiguous<__half, 8, Identity>",
    "forward_contiguous<double, 2, Sigmoid>", "forward_channels_last<__nv_bfloat16, 8, Skip<__nv_bfloat16> >",
)  # fmt: skip
PRODUCTS = ("score_pixels<", "product_tiles<", "gathered_product<")


def problems(rows):
    """Kernels that keep something in local memory, and vectorised ones without wide accesses."""
    found = [f"{r['kernel']} on {r['architecture']}: {r['stack']} bytes of stack" for r in rows if r["stack"]]
    for row in rows:
        for does, kernels in (("load", LOAD_WIDE), ("store", STORE_WIDE)):
            wanted = row["kernel"].endswith(kernels) or (does == "load" and row["kernel"].startswith(PRODUCTS))
            if wanted and 128 not in row[f"{does}_bits"]:
                found.append(f"{row['kernel']} on {row['architecture']} {does}s {row[f'{does}_bits']} bits")
        halves = "half" in row["kernel"] or "bfloat16" in row["kernel"]
        if row["kernel"].startswith(PRODUCTS) and halves and not row["matrix"]:
            found.append(f"{row['kernel']} on {row['architecture']} multiplies without tensor cores")
    return found


def test_committed_report():
    rows = json.loads(COMMITTED.read_text())
    assert len({row["architecture"] for row in rows}) == 3
    assert {
        "argmax_units", "channel_sum_parts", "class_statistics", "copy_window", "count_pairs", "cross_entropy_gradient",
        "cross_entropy_pixels", "depthwise_rows", "forward_contiguous", "gathered_product", "product_tiles",
        "score_pixels", "softmax_columns",
    } <= {row["kernel"].partition("<")[0] for row in rows}  # fmt: skip
    assert problems(rows) == []


def test_built_extension():
    extension = _library.load_extension()
    if extension is None or extension.built()["cuda_architectures"] is None:
        pytest.skip("the extension holds no CUDA kernels: make cuda builds them")
    binary, written = Path(extension.__file__), ROOT / "build/cuda-machine-code.json"
    if written.exists() and written.stat().st_mtime > binary.stat().st_mtime:  # .ci/run has just read this binary
        rows = json.loads(written.read_text())
    elif machine_code.find_cuobjdump() is None:
        pytest.skip("there is no cuobjdump")
    else:
        rows = machine_code.kernels(binary)
    assert rows
    assert problems(rows) == []


def test_the_dump_is_understood(monkeypatch):
    """One kernel in two architectures, as cuobjdump writes it."""
    name = "_ZN3fcn4scanIfEEvPT_"
    usage = "".join(
        f"\nFatbin elf code:\n================\narch = {arch}\n\nResource usage:\n Common:\n  GLOBAL:0\n"
        f" Function {name}:\n"
        f"  REG:{registers} STACK:8 SHARED:16 LOCAL:4 CONSTANT[0]:900 TEXTURE:0 SURFACE:0 SAMPLER:0\n"
        for arch, registers in (("sm_80", 40), ("sm_90a", 38))
    )
    code = "".join(
        f"\nFatbin elf code:\narch = {arch}\n\tcode for {arch}\n\t\tFunction : {name}\n"
        f"        /*0010*/                   {load} R4, desc[UR4][R2.64] ;  /* 0x0 */\n"
        f"        /*0020*/                   STG.E.64 desc[UR4][R2.64], R4 ;  /* 0x0 */\n" + more
        for arch, load, more in (
            ("sm_80", "LDG.E", ""),
            ("sm_90a", "@P0 LDGSTS.E.BYPASS.128", "        /*0030*/  HMMA.16816.F32 R4, R8, R2, R4 ;  /* 0x0 */\n" * 2),
        )
    )
    monkeypatch.setattr(machine_code, "_dump", lambda option, _: code if option == "--dump-sass" else usage)
    monkeypatch.setattr(machine_code, "_demangled", lambda _tool, _name: "void fcn::scan<(fcn::Kind)2, float>(float*)")
    rows = machine_code.kernels(Path("any"))
    assert {r["kernel"] for r in rows} == {"scan<2, float>"}
    columns = ("architecture", "registers", "stack", "shared", "load_bits", "store_bits", "matrix")
    assert [tuple(row[c] for c in columns) for row in rows] == [
        ("sm_80", 40, 12, 16, [32], [64], 0), ("sm_90a", 38, 12, 16, [128], [64], 2)
    ]  # fmt: skip


@pytest.mark.parametrize("stack", [0, 8])
def test_the_command_writes_its_table_and_fails_where_a_kernel_spills(stack, monkeypatch, tmp_path, capsys):
    row = {
        "kernel": "scan<2, float>", "architecture": "sm_80", "registers": 40, "stack": stack, "shared": 16,
        "load_bits": [32], "store_bits": [64], "matrix": 0,
    }  # fmt: skip
    asked = []
    monkeypatch.setattr(machine_code, "kernels", lambda binary: asked.append(binary) or [row])
    monkeypatch.setattr(sys, "argv", ["machine_code", "some.o", "--json", str(tmp_path / "table.json")])
    with pytest.raises(SystemExit, match="local memory") if stack else nullcontext():
        machine_code.main()
    assert asked == [Path("some.o")]
    assert json.loads((tmp_path / "table.json").read_text()) == [row]
    assert f"40 registers    {stack} B of stack" in capsys.readouterr().out
