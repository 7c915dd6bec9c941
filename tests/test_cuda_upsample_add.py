"""The CUDA kernels of upsample_add, compiled for the host and run thread by thread: their indexing is checked without a
GPU too. On a GPU the operators' own tests run them.
"""

import importlib.util
import random
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from fcn_kernels import reference

ROOT = Path(__file__).resolve().parent.parent
COMPILER = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """tests/cuda_on_host.cpp as a module."""
    pybind11 = pytest.importorskip("pybind11")
    target = tmp_path_factory.mktemp("cuda") / f"cuda_on_host{sysconfig.get_config_var('EXT_SUFFIX')}"
    folders = [ROOT / "csrc", pybind11.get_include(), sysconfig.get_paths()["include"]]
    command = [COMPILER, "-O1", "-std=c++17", "-shared", "-fPIC", *(f"-I{f}" for f in folders)]
    command += ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    source = ROOT / "tests/cuda_on_host.cpp"
    done = subprocess.run([*command, str(source), "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("cuda_on_host", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_sampling(rng: random.Random) -> list[int]:
    """Any ratio, any offset, both boundaries: inputs far outside, constant positions, up- and down-sampling."""

    def axis() -> list[int]:
        return [rng.randint(1, 7), rng.randint(1, 140), rng.randint(0, 6), rng.randint(-40, 40), rng.randint(1, 12)]

    return [*axis(), *axis(), rng.randint(0, 1)]


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("seed", range(24))
def test_on_the_host(host, seed):
    rng = random.Random(seed)
    s = random_sampling(rng)
    n, c = rng.randint(1, 2), rng.choice([1, 3, 35])
    h, height, w, width = s[0], s[1], s[5], s[6]
    channels_last = seed % 3 == 0
    layout = {"memory_format": torch.channels_last if channels_last else torch.contiguous_format}
    x = torch.randn(n, c, h, w, dtype=torch.float64).to(**layout)
    skip = torch.randn(n, c, height, width, dtype=torch.float64)
    y = torch.full_like(skip, torch.nan).to(**layout)

    # Fewer blocks than outputs, so that the loops over the grid are run too.
    grid = (
        [-(-width // 8), rng.randint(1, height), n] if channels_last else [-(-width // 128), 1, rng.randint(1, n * c)]
    )
    tensors = [argument for t in (x, skip, y) for argument in (t.data_ptr(), t.stride())]
    host.forward(*tensors, s, n, c, 0.5, channels_last, grid)
    torch.testing.assert_close(
        y, reference.upsample_add(x, skip, s, [0, 0], 0.5), rtol=0, atol=1e-13, check_stride=False
    )

    grad = skip.to(**layout)
    dx = torch.full_like(x, torch.nan)
    grid = [-(-w // 8), rng.randint(1, h), n] if channels_last else [rng.randint(1, 3), 1, 1]
    tensors = [argument for t in (grad, dx) for argument in (t.data_ptr(), t.stride())]
    host.backward(*tensors, s, n, c, channels_last, grid)
    expected = reference.upsample_backward(grad, s)
    tolerance = 1e-13 * (1 + expected.abs().max().item())
    torch.testing.assert_close(dx, expected, rtol=0, atol=tolerance)

    i, j = rng.randrange(h), rng.randrange(w)
    for lanes in (1, 8, 32):
        value = host.shared_gather(grad.data_ptr(), grad.stride(), s, i, j, lanes)
        assert abs(value - expected[0, 0, i, j].item()) <= tolerance
