"""Triton's upsample, upsample_add and upsample_backward: results (on a GPU, else in Triton's interpreter), and the code
that is generated for every architecture, whether there is such a GPU or not.

Triton reads TRITON_INTERPRET at import, and an interpreted kernel cannot be compiled: so the compiler gets a process of
its own, which is this file run as a program.
"""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from fcn_kernels import reference  # noqa: E402
from fcn_kernels.backends.triton import upsample_add as kernels  # noqa: E402
from fcn_kernels.backends.triton.launch import fits_int32  # noqa: E402

pytestmark = pytest.mark.triton
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# h, H, num, off, den, w, W, num, off, den, clamp: the interpreter takes about 20 ms a program, so the sizes are small.
SAMPLINGS = {
    "2x transposed convolution": [3, 7, 1, -1, 2, 4, 9, 1, -1, 2, 0],
    "8x, cropped": [2, 5, 2, 7, 16, 3, 9, 2, 3, 16, 0],
    "ratio, align_corners": [3, 5, 2, 0, 4, 3, 6, 2, 0, 5, 1],
    "down": [7, 3, 14, 5, 6, 8, 3, 16, 7, 6, 1],
    "constant position": [1, 2, 0, -9, 10, 1, 6, 0, 0, 1, 1],
    "outside the input": [4, 4, 1, -20, 3, 4, 6, 1, 5, 3, 0],
}
BOUND = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def close(result: torch.Tensor, oracle: torch.Tensor, scale: float, what: str) -> None:
    """A few roundings of the dtype, relative to the magnitude of what is summed."""
    error = (result.double() - oracle).abs().max().item()
    bound = 2 * BOUND[result.dtype] * max(scale, 1e-30)
    assert error <= bound, f"{what}: error {error:.2e}, bound {bound:.2e}"


def check(sampling: list[int], dtype: torch.dtype, layout: str, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    batch = 2 if layout == "channels_last" else 1

    def image(height: int, width: int) -> torch.Tensor:
        """[batch, 3, height, width] in the layout that is asked for."""
        if layout == "strided":  # a slice of a permuted, larger tensor
            big = torch.randn(height + 1, batch, 2 * width, 4, generator=generator)
            return big.to(device, dtype).permute(1, 3, 0, 2)[:, 1:, 1:, ::2]
        t = torch.randn(batch, 3, height, width, generator=generator).to(device, dtype)
        return t.to(memory_format=torch.channels_last) if layout == "channels_last" else t

    x, grad = image(sampling[0], sampling[5]), image(sampling[1], sampling[6])
    skip = image(sampling[1] + 2, sampling[6] + 3)
    what = f"{sampling} {dtype} {layout}"

    y = kernels.upsample(x, sampling)
    oracle = reference.upsample(x.double(), sampling)
    close(y, oracle, x.double().abs().max().item(), f"upsample {what}")
    assert y.stride() == reference.upsample(x, sampling).stride(), what
    if layout == "contiguous":
        assert torch.equal(y, kernels.upsample(x, sampling)), f"not the same bits twice: {what}"

    fused = kernels.upsample_add(x, skip, sampling, [1, 2], 0.5)
    oracle = reference.upsample_add(x.double(), skip.double(), sampling, [1, 2], 0.5)
    close(fused, oracle, x.double().abs().max().item() + skip.double().abs().max().item(), f"upsample_add {what}")

    dx = kernels.upsample_backward(grad, sampling)
    oracle = reference.upsample_backward(grad.double(), sampling)
    scale = reference.upsample_backward(grad.double().abs(), sampling).max().item()
    close(dx, oracle, scale, f"upsample_backward {what}")
    assert dx.stride() == reference.upsample_backward(grad, sampling).stride(), what


CASES = [
    *((name, torch.float32, "contiguous") for name in SAMPLINGS),
    *(("2x transposed convolution", dtype, "channels_last") for dtype in BOUND),
    ("8x, cropped", torch.float64, "strided"),
    ("ratio, align_corners", torch.bfloat16, "strided"),
]


@pytest.mark.parametrize(("name", "dtype", "layout"), CASES, ids=str)
def test_results(name, dtype, layout):
    check(SAMPLINGS[name], dtype, layout, DEVICE)


def test_a_tap_of_weight_zero_is_not_read():
    identity = [2, 2, 1, 0, 1, 4, 4, 1, 0, 1, 0]
    x = torch.zeros(1, 1, 2, 4, device=DEVICE)
    x[..., 2] = torch.inf
    x[..., 3] = torch.nan
    torch.testing.assert_close(kernels.upsample(x, identity), x, rtol=0, atol=0, equal_nan=True)
    grad = torch.ones(1, 1, 2, 4, device=DEVICE)
    grad[..., 3] = torch.inf
    assert torch.equal(kernels.upsample_backward(grad, identity), grad)


def test_an_empty_batch():
    x = torch.empty(0, 1, 2, 4, device=DEVICE)
    assert kernels.upsample(x, [2, 4, 1, 0, 2, 4, 8, 1, 0, 2, 0]).shape == (0, 1, 4, 8)
    assert kernels.upsample_backward(x, [1, 2, 1, 0, 2, 2, 4, 1, 0, 2, 0]).shape == (0, 1, 1, 2)


def test_positions_that_need_64_bits_are_noticed():
    small = [4, 8, 1, 0, 2, 4, 8, 1, 0, 2, 0]
    assert fits_int32(small, torch.empty(1, 1, 4, 4))
    assert not fits_int32([4, 8, 2**29, 0, 2**30, 4, 8, 1, 0, 2, 0], torch.empty(1, 1, 4, 4))
    far = torch.empty_strided((1, 2, 4, 4), (0, 2**31, 4, 1), device="meta")
    assert not fits_int32(small, far)


TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
ELEMENTS = {"fp32": False, "fp16": False, "bf16": True, "fp64": True}  # whether indices have 64 bits
KERNELS = ("upsample_add_kernel", "upsample_backward_kernel")


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """What the compiler made of every kernel: bytes or registers that spill, and whether the stores are wide."""
    folder = tmp_path_factory.mktemp("triton")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder), "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, __file__, str(folder)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("target", TARGETS)
def test_compiles_without_spills(generated, target, element, kernel):
    report = generated[f"{target} {element} {kernel}"]
    assert report["spills"]
    assert not any(report["spills"])
    if kernel == "upsample_add_kernel" and element == "fp32":
        assert report["wide_stores"]


def compile_report(folder: str) -> dict:
    """Compiles every kernel for every target; no GPU is needed."""
    from triton.backends.compiler import GPUTarget

    reports = {}
    for name, (backend, arch, warp) in TARGETS.items():
        for element, wide_index in ELEMENTS.items():
            for kernel in KERNELS:
                binary = compiled(getattr(kernels, kernel), GPUTarget(backend, arch, warp), element, wide_index)
                if backend == "hip":
                    text = binary.asm["amdgcn"]
                    spills = re.findall(r"\.[sv]gpr_spill_count:\s+(\d+)", text)
                    stores = r"global_store_(dwordx|b(64|128))"
                else:
                    text, spills = binary.asm["ptx"], local_memory(binary.asm["cubin"], folder)
                    stores = r"st\.global[\w:.]*\.v[24]"
                report = {"spills": [int(n) for n in spills], "wide_stores": bool(re.search(stores, text))}
                reports[f"{name} {element} {kernel}"] = report
    return reports


def compiled(kernel, target, element: str, wide_index: bool):
    """The kernel as a contiguous launch compiles it, where offsets and the output's width are divisible by 16."""
    from triton.compiler import ASTSource

    tensors = ("x", "skip", "y", "grad", "output", "pixel", "dx")
    constants = {
        "CLAMP": False,
        "SKIP": True,
        "SIGMOID": False,
        "DERIVATIVE": "identity",
        "ACC": tl.float64 if element == "fp64" else tl.float32,
        "INDEX": tl.int64 if wide_index else tl.int32,
        "BLOCK_C": 4,
        "BLOCK_W": 128,
        "CHUNKS": 4,
        **{f"{tensor}_w": 1 for tensor in tensors},
    }
    divisible = {"W", *tensors, *(f"{tensor}_{dim}" for tensor in tensors for dim in "nch")}
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in tensors:
            signature[name] = f"*{element}"
        else:
            stride = name.partition("_")[0] in tensors  # sizes and positions fit 32 bits where an offset does not
            signature[name] = "fp64" if name == "scale" else "i64" if wide_index and stride else "i32"
        if name in divisible:
            attributes[(i,)] = [["tt.divisibility", 16]]
    used = {name: value for name, value in constants.items() if name in kernel.arg_names}
    return triton.compile(ASTSource(kernel, signature, used, attributes), target=target)


def local_memory(cubin: bytes, folder: str) -> list[str]:
    """Bytes of stack and of local memory per thread, by the cuobjdump that Triton brings."""
    tool = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
    file = os.path.join(folder, "kernel.cubin")
    with open(file, "wb") as f:
        f.write(cubin)
    command = [tool, "--dump-resource-usage", file]
    return re.findall(
        r"(?:STACK|LOCAL):(\d+)", subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )


if __name__ == "__main__":
    print(json.dumps(compile_report(sys.argv[1])))
