"""What Triton's compiler makes of every kernel in every configuration, without a GPU: registers, spills, access widths.

    python -m fcn_kernels.benchmarking.codegen [--json FILE] [--markdown FILE] [--target NAME]... [--only OPERATOR]...
        [--case PART]

The operators are called on CPU tensors of real shapes, with their launches recorded instead of run; what was recorded
is compiled for every target. The NVIDIA numbers are those of the assembler, read from the machine code. The exit status
is 1 where the code is not what it should be (`faults`), which is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from .. import reference
from ..sampling import Sampling

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
# What a multiprocessor holds: registers are 65536 everywhere, shared memory in KB, 1 KB of it for every block.
SHARED = {"sm_80": 164, "sm_90": 228, "sm_100": 228}
# Kernels that stream: at least 8 bytes to a thread, for float32 in aligned rows, where they read or where they write.
STREAMING = {
    "copy_kernel", "channel_sum_kernel", "class_sum_kernel", "softmax_gradient_kernel", "upsample_add_kernel",
    "upsample_softmax_kernel", "depthwise_kernel",
}  # fmt: skip
# Warps on a multiprocessor that a kernel is planned for, 16 where nothing is said: products and the gradient of the
# cross-entropy live in registers.
PLANNED = {
    "matmul_kernel": 8, "score_kernel": 8, "dense_kernel": 8, "dense_input_kernel": 8, "dense_weight_kernel": 8,
    "gradient_kernel": 8, "upsample_argmax_kernel": 12,
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", "maxnreg")


class Launch(NamedTuple):
    """A kernel as one call of an operator specialises it."""

    operator: str
    case: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int], list]
    options: dict[str, Any]

    def key(self) -> str:
        return repr((self.kernel.__name__, self.signature, self.constants, self.attributes, self.options))


def record(operator: str, case: str, call: Callable[[], Any]) -> list[Launch]:
    """The launches of one call, none of which runs."""
    from triton.runtime.jit import JITFunction

    launches = []

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append(_specialised(operator, case, kernel, args, kwargs))

    with mock.patch.object(JITFunction, "run", run):
        call()
    return launches


def _specialised(operator: str, case: str, kernel: Any, args: tuple, kwargs: dict) -> Launch:
    """By Triton's rules: integers of 1 are constants, multiples of 16 and aligned pointers are marked as such."""
    options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
    values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + _NAMES[value.dtype]
            divisible = value.data_ptr() % 16 == 0
        elif isinstance(value, float):
            signature[parameter.name], divisible = parameter.annotation_type or "fp32", False
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            divisible = value % 16 == 0
        if divisible:
            attributes[i,] = [["tt.divisibility", 16]]
    return Launch(operator, case, kernel, signature, constants, attributes, options)


_NAMES = {
    torch.float32: "fp32", torch.float64: "fp64", torch.float16: "fp16", torch.bfloat16: "bf16", torch.uint8: "u8",
    torch.int16: "i16", torch.int32: "i32", torch.int64: "i64", torch.bool: "i1",
}  # fmt: skip


def cases(operators: list[str] | None = None, part: str = "", hip: bool = False) -> Iterator[Launch]:
    """Every kernel, at the shapes, dtypes and layouts that choose different configurations; each configuration once.

    Restricted to some operators, and to cases whose name contains `part`, where these are given. `hip`: what a torch
    for ROCm chooses.
    """
    version = mock.patch.object(torch.version, "hip", "any" if hip else None)
    seen = set()
    for operator, case, call in _calls():
        if (operators and operator not in operators) or part not in case:
            continue
        with version:
            launches = record(operator, case, call)
        for launch in launches:
            if launch.key() not in seen:
                seen.add(launch.key())
                yield launch


def _calls() -> Iterator[tuple[str, str, Callable[[], Any]]]:
    from ..backends import triton as kernels

    def op(name: str, *args: Any) -> Callable[[], Any]:
        return lambda: kernels.lazy(name)(*args)

    yield from _scores(op)
    yield from _transposed(op)
    shapes = {
        "VOC 8x": (1, 21, 64, 64, Sampling.interpolate((64, 64), (512, 512))),
        "ADE 4x": (8, 150, 128, 128, Sampling.interpolate((128, 128), (512, 512))),
        "FCN 32x": (1, 21, 16, 16, Sampling.transposed_conv((16, 16), 32, offset=19, output_size=(480, 480))),
    }
    for shape, (n, c, h, w, sampling) in shapes.items():
        code = sampling.encode()
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            for layout in (torch.contiguous_format, torch.channels_last):
                if dtype == torch.float64 and (shape != "VOC 8x" or layout == torch.channels_last):
                    continue
                name = "channels_last" if layout == torch.channels_last else "contiguous"
                case = f"{shape}, {_NAMES[dtype]}, {name}"
                arithmetic = reference.arithmetic_dtype(dtype)
                x = torch.empty((1, c, h, w), dtype=dtype).contiguous(memory_format=layout).expand(n, c, h, w)
                y = torch.empty((1, c, code[1], code[6]), dtype=dtype).contiguous(memory_format=layout)
                yield "upsample", case, op("upsample", x, code)
                yield "upsample_backward", case, op("upsample_backward", y, code)
                yield "upsample_add", case, op("upsample_add", x[:1], y, code, (0, 0), 1.0)
                yield "upsample_softmax", case, op("upsample_softmax", x, code, False)
                yield "upsample_softmax_backward", case, op("upsample_softmax_backward", y, y, code, False)
                yield "upsample_argmax", case, op("upsample_argmax", x, code, torch.int64, True)
                target = torch.zeros((1, code[1], code[6]), dtype=torch.int64).expand(n, -1, -1)
                for loss, options in {
                    "": (None, code, -100, reference.MEAN, 0.0, True),
                    " weighted, smoothed": (torch.empty(c, dtype=arithmetic), code, -100, reference.MEAN, 0.1, True),
                }.items():
                    yield "upsample_cross_entropy", case + loss, op("upsample_cross_entropy", x, target, *options)
                image = torch.empty((1, code[1], code[6]), dtype=arithmetic).expand(n, -1, -1)
                yield (
                    "upsample_cross_entropy_backward",
                    case,
                    op("upsample_cross_entropy_backward", image, x, target, None, image, code, -100, 0.0),
                )
                if (n, layout) == (1, torch.contiguous_format):
                    yield from _binary(op, case, x[:, :1], code)
                    counted = torch.zeros((n, code[1], code[6]), dtype=torch.uint8)
                    yield "upsample_confusion_matrix", case, op("upsample_confusion_matrix", x, counted, code, 255)
                yield "upsample_sigmoid", case, op("upsample_sigmoid", x, code)
                yield "upsample_sigmoid_backward", case, op("upsample_sigmoid_backward", y, y, code)


def _scores(op: Callable) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """The score convolutions: FCN's, whose channels are split, one that fills the GPU, and more classes than a tile."""
    shapes = {"K 4096 C 21": (1, 4096, 21, 16), "K 512 C 150": (8, 512, 150, 64), "K 512 C 2000": (1, 512, 2000, 128)}
    for shape, (n, k, c, side) in shapes.items():
        for dtype, allowed in (
            (torch.float32, "highest"),
            (torch.float32, "high"),
            (torch.bfloat16, "highest"),
            (torch.float64, "highest"),
        ):
            for layout in (torch.contiguous_format, torch.channels_last):
                if layout == torch.channels_last and (dtype == torch.float64 or allowed == "high"):
                    continue
                case = f"{shape}, {'tf32' if allowed == 'high' else _NAMES[dtype]}, "
                case += "channels_last" if layout == torch.channels_last else "contiguous"
                x = torch.empty((1, k, side, side), dtype=dtype).contiguous(memory_format=layout).expand(n, -1, -1, -1)
                weight, bias = torch.empty((c, k), dtype=dtype), torch.empty(c, dtype=dtype)
                p = torch.empty((1, c, side, side), dtype=dtype).contiguous(memory_format=layout).expand(n, -1, -1, -1)
                target = torch.zeros((1, side, side), dtype=torch.int64).expand(n, -1, -1)
                pixel = torch.empty((n, side, side), dtype=reference.arithmetic_dtype(dtype))
                options = (None, -100, reference.MEAN, 0.0)
                calls = {
                    "score_softmax": (x, weight, bias, False),
                    "score_softmax_backward": (p, x, weight, p, False, True, True),
                    "score_argmax": (x, weight, bias, torch.int64),
                    "score_cross_entropy": (x, weight, bias, target, *options, False, False),
                    "score_cross_entropy_backward": (
                        pixel, x, weight, bias, target, None, pixel, -100, 0.0, True, True,
                    ),
                }  # fmt: skip
                for name, arguments in calls.items():
                    yield name, case, _allowing(allowed, op(name, *arguments))


def _transposed(op: Callable) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Learned upsampling: FCN's fusion and its last stage, U-Net's, and one that streams."""
    shapes = {  # N, Cin, Cout, side, kernel, stride, groups
        "21 to 21, 2x": (1, 21, 21, 32, 4, 2, 1),
        "21 to 21, 32x": (1, 21, 21, 16, 64, 32, 1),
        "512 to 256, 2x": (2, 512, 256, 32, 2, 2, 1),
        "21 depthwise, 8x": (1, 21, 21, 64, 16, 8, 21),
        "150 depthwise, 2x": (8, 150, 150, 128, 4, 2, 150),
    }
    for shape, (n, inputs, outputs, side, kernel, stride, groups) in shapes.items():
        for dtype, allowed in (
            (torch.float32, "highest"),
            (torch.float32, "high"),
            (torch.bfloat16, "highest"),
            (torch.float64, "highest"),
        ):
            for layout in (torch.contiguous_format, torch.channels_last):
                if allowed == "high" and (groups > 1 or layout == torch.channels_last):
                    continue
                if layout == torch.channels_last and dtype == torch.float64:
                    continue
                case = f"{shape}, {'tf32' if allowed == 'high' else _NAMES[dtype]}, "
                case += "channels_last" if layout == torch.channels_last else "contiguous"
                large = side * stride
                x = torch.empty((1, inputs, side, side), dtype=dtype).contiguous(memory_format=layout)
                y = torch.empty((1, outputs, large, large), dtype=dtype).contiguous(memory_format=layout)
                x, y = x.expand(n, -1, -1, -1), y.expand(n, -1, -1, -1)
                weight = torch.empty((inputs, outputs // groups, kernel, kernel), dtype=dtype)
                crop = (kernel - stride) // 2
                where = ((stride, stride), groups, (crop, crop))
                size = ((large, large), (0, 0), 1.0)
                calls = {
                    "conv_transpose_add": (x, weight, y, *where, *size),
                    "conv_transpose_add_backward": (y, x, weight, *where, True, True),
                }
                for name, arguments in calls.items():
                    yield name, case, _allowing(allowed, op(name, *arguments))
                if allowed == "highest":
                    channels = "channels_last" if layout == torch.channels_last else "contiguous"
                    yield from _concatenated(op, f"{shape}, {_NAMES[dtype]}, {channels}", x, y, weight, *where)


def _concatenated(
    op: Callable, case: str, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, *where: Any
) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """U-Net's fusion beside features as many as those of y, and the gradient of its bias."""
    bias = torch.empty(y.shape[1], dtype=y.dtype)
    arguments = (x, weight, y[:1].expand(y.shape), bias, *where, y.shape[2:], (0, 0))
    yield "conv_transpose_concat", case, op("conv_transpose_concat", *arguments)
    yield "channel_sum", case, op("channel_sum", y)


def _allowing(precision: str, call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            return call()
        finally:
            torch.set_float32_matmul_precision(before)

    return run


def _binary(op: Callable, case: str, x: torch.Tensor, code: list[int]) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    size = (x.shape[0], 1, code[1], code[6])
    grad = torch.empty(size, dtype=reference.arithmetic_dtype(x.dtype))
    for target in (torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.float32)):
        kind = f"{case}, {_NAMES[target.dtype]} target"
        arguments = (target, None, code, 255)
        yield (
            "upsample_binary_cross_entropy",
            kind,
            op("upsample_binary_cross_entropy", x, *arguments, reference.MEAN, True),
        )
        yield (
            "upsample_binary_cross_entropy_backward",
            kind,
            op("upsample_binary_cross_entropy_backward", grad, x, *arguments),
        )


def compiled(launch: Launch, target: str) -> Any:
    """The kernel for a target; no GPU is needed."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    options = {name: value for name, value in launch.options.items() if value is not None}
    return triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)


def inspect(binary: Any, target: str) -> dict[str, Any]:
    """Registers, spills and shared memory, and how often each kind of instruction stands in the code."""
    shared = binary.metadata.shared
    if TARGETS[target][0] == "hip":
        text = binary.asm["amdgcn"]
        spills = sum(map(int, re.findall(r"\.[sv]gpr_spill_count:\s+(\d+)", text)))
        registers = max(map(int, re.findall(r"\.vgpr_count:\s+(\d+)", text)))
        names = re.findall(r"^\s+([a-z]\w+)", text, re.MULTILINE)
    else:
        usage, names = _disassembled(binary.asm["cubin"])
        registers = int(re.search(r"REG:(\d+)", usage).group(1))
        # A stack frame that no instruction touches holds no spills.
        touched = any(re.match(r"STL|LDL", name) for name in names)
        spills = sum(map(int, re.findall(r"(?:STACK|LOCAL):(\d+)", usage))) if touched else 0
    warps = binary.metadata.num_warps
    occupancy = {}
    if TARGETS[target][0] == "cuda":
        occupancy["resident_warps"] = resident_warps(registers, shared, warps, target)
    counts = Counter()
    for name in names:
        counts[_kind(name)] += 1
    return {
        "registers": registers,
        "spilled_bytes": spills,
        "shared_bytes": shared,
        "warps": warps,
        **occupancy,
        "instructions": sum(counts.values()),
        "load_bits": _widths(names, r"LDG|global_load|buffer_load"),
        "store_bits": _widths(names, r"STG|global_store|buffer_store"),
        **{kind: counts[kind] for kind in ("exponentials", "matrix products", "shuffles") if counts[kind]},
    }


def resident_warps(registers: int, shared: int, warps: int, target: str) -> int:
    """How many warps an NVIDIA multiprocessor holds at once: registers are given out by 8 to a thread."""
    by_registers = 65536 // (-(-registers // 8) * 8 * 32) // warps
    by_shared = SHARED[target] * 1024 // (shared + 1024)
    return min(by_registers, by_shared, 32, 64 // warps) * warps


def faults(row: dict[str, Any]) -> list[str]:
    """What the code of an NVIDIA target should be and is not; of the others, only whether a block fits."""
    if TARGETS[row["target"]][0] == "hip":
        return ["a block does not fit"] if row["shared_bytes"] > 65536 else []
    found = []
    if row["spilled_bytes"]:
        found.append(f"{row['spilled_bytes']} bytes are spilled")
    planned = PLANNED.get(row["kernel"], 16)
    if row["resident_warps"] < planned:
        found.append(f"{row['resident_warps']} resident warps, planned are {planned}")
    if row["tensor_cores"] and not row.get("matrix products"):
        found.append("no tensor cores")
    aligned_float32 = "fp32" in row["case"] and "contiguous" in row["case"]
    if row["kernel"] in STREAMING and aligned_float32 and max(row["load_bits"] + row["store_bits"]) < 64:
        found.append("accesses of less than 8 bytes")
    return found


def _multiplies(constants: dict[str, Any]) -> bool:
    """Whether the kernel has a product for tensor cores: of half types or TF32, and not read from another's parts."""
    if constants.get("SPLIT") or "PRECISION" not in constants:
        return False
    kind = str(constants["DTYPE"])
    return kind in ("fp16", "bf16") or (kind == "fp32" and constants["PRECISION"] == "tf32")


def _disassembled(cubin: bytes) -> tuple[str, list[str]]:
    """Resource usage and the names of all instructions, by the tools that Triton brings."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run([tool, *options, file.name], capture_output=True, text=True, check=True).stdout
            for tool, options in ((tools / "cuobjdump", ["--dump-resource-usage"]), (tools / "nvdisasm", ["-c"]))
        )
    return usage, re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]+)", code, re.MULTILINE)


def _kind(name: str) -> str:
    if name.startswith(("MUFU.EX2", "v_exp_f32")):
        return "exponentials"
    if re.match(r"HMMA|HGMMA|QGMMA|IMMA|DMMA|UTC\w*MMA|v_mfma", name):
        return "matrix products"
    return "shuffles" if name.startswith(("SHFL", "ds_bpermute")) else "other"


def _widths(names: list[str], pattern: str) -> list[int]:
    """The access widths in bits that occur."""
    widths = set()
    for name in names:
        if re.match(pattern, name):
            found = re.search(r"\.(?:U?(8|16|64|128)|S(8|16))\b|dwordx(\d)|_(?:u?(byte|short))|b(\d+)", name)
            if found is None:
                widths.add(32)
            else:
                bits, signed, words, small, b = found.groups()
                widths.add(
                    int(bits or signed or b or 0) or (32 * int(words) if words else {"byte": 8, "short": 16}[small])
                )
    return sorted(widths)


def table(targets: list[str], operators: list[str] | None = None, part: str = "") -> list[dict[str, Any]]:
    """A row for every configuration and target."""
    rows = []
    for target in targets:
        for launch in cases(operators, part, TARGETS[target][0] == "hip"):
            row = {"operator": launch.operator, "kernel": launch.kernel.__name__, "case": launch.case, "target": target}
            row |= {"tensor_cores": _multiplies(launch.constants)} | inspect(compiled(launch, target), target)
            rows.append(row)
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """The extremes of every kernel over its configurations, as a table in Markdown."""
    targets = [name for name in TARGETS if any(row["target"] == name for row in rows)]
    lines = [
        "Of every kernel, over its configurations: the most registers of a thread; KB of shared memory of a block;",
        "bytes that are spilled; and, of NVIDIA's, the fewest warps that a multiprocessor holds.",
        "",
        f"| kernel | configurations | {' | '.join(targets)} |",
        f"|---|---|{'---|' * len(targets)}",
    ]
    for kernel in sorted({row["kernel"] for row in rows}):
        cells, count = [], 0
        for target in targets:
            of = [row for row in rows if (row["kernel"], row["target"]) == (kernel, target)]
            cell = f"{max(r['registers'] for r in of)}; {max(r['shared_bytes'] for r in of) / 1024:.3g}"
            cell += f"; {max(r['spilled_bytes'] for r in of)}"
            if "resident_warps" in of[0]:
                cell += f"; {min(r['resident_warps'] for r in of)}"
            cells.append(cell)
            count = max(count, len(of))
        lines.append(f"| `{kernel.removesuffix('_kernel')}` | {count} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the table as data")
    parser.add_argument("--markdown", type=Path, help="write a table of the extremes of every kernel")
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: all")
    parser.add_argument("--only", action="append", help="an operator; default: all")
    parser.add_argument("--case", default="", help="a part of the names of the cases")
    arguments = parser.parse_args()
    rows = table(arguments.target or list(TARGETS), arguments.only, arguments.case)
    if arguments.json:
        import triton

        facts = {"triton": triton.__version__, "torch": torch.__version__}
        lines = ",\n".join(json.dumps(row) for row in rows)
        arguments.json.write_text(f'{{"provenance": {json.dumps(facts)}, "rows": [\n{lines}\n]}}\n')
    if arguments.markdown:
        arguments.markdown.write_text(summary(rows))
    amiss = [f"{r['kernel']}, {r['case']}, {r['target']}: {'; '.join(faults(r))}" for r in rows if faults(r)]
    if amiss:
        raise SystemExit("\n".join(amiss))
    if arguments.json or arguments.markdown:
        return
    print(
        f"{'kernel':<30}{'case':<46}{'target':<8}{'regs':>5}{'spills':>7}{'shared':>7}{'warps':>6}{'mma':>5}"
        "  loads / stores"
    )
    for r in rows:
        products = r.get("matrix products", 0)
        print(
            f"{r['kernel']:<30}{r['case']:<46}{r['target']:<8}{r['registers']:>5}{r['spilled_bytes']:>7}"
            f"{r['shared_bytes']:>7}{r['warps']:>6}{products:>5}  {r['load_bits']} / {r['store_bits']}"
        )


if __name__ == "__main__":
    if "triton" in sys.modules or os.environ.get("TRITON_INTERPRET"):
        raise SystemExit("codegen: an interpreted kernel cannot be compiled; unset TRITON_INTERPRET")
    main()
