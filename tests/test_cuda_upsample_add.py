"""The CUDA kernels of upsample_add and upsample_sigmoid, compiled for the host and run thread by thread: their indexing
is checked without a GPU too. On a GPU the operators' own tests run them.
"""

import random

import pytest
import torch
from cuda_host import host_module, random_sampling

from fcn_kernels import reference


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return host_module("cuda_on_host", tmp_path_factory.mktemp("cuda"))


@pytest.mark.parametrize("seed", range(24))
def test_on_the_host(host, seed):
    rng = random.Random(seed)
    s = random_sampling(rng)
    n, c = rng.randint(1, 2), rng.choice([1, 4, 35])
    h, height, w, width = s[0], s[1], s[5], s[6]
    channels_last = seed % 3 == 0
    layout = {"memory_format": torch.channels_last if channels_last else torch.contiguous_format}
    x = torch.randn(n, c, h, w, dtype=torch.float64).to(**layout)
    skip = torch.randn(n, c, height, width, dtype=torch.float64)
    if rng.random() < 0.5:
        skip = skip.to(**layout)

    # Fewer blocks than outputs, so that the loops over the grid are run too.
    def grid(rows, columns, items):
        if channels_last:
            return [-(-columns // 8), rng.randint(1, rows), n]
        return [-(-columns // 64), 1, rng.randint(1, items)]

    def pointers(*tensors):
        return [argument for t in tensors for argument in ((0, [0] * 4) if t is None else (t.data_ptr(), t.stride()))]

    whole = c if channels_last else width
    for wide in {False, whole % 2 == 0}:
        blocks = grid(height, width * c if channels_last else width, n * c)
        for skip_wide in {False, wide and skip.is_contiguous(**layout)}:
            y = torch.full((n, c, height, width), torch.nan, dtype=torch.float64).to(**layout)
            host.forward(*pointers(x, skip, y), s, n, c, 0.5, channels_last, wide, skip_wide, blocks)
            torch.testing.assert_close(
                y, reference.upsample_add(x, skip, s, [0, 0], 0.5), rtol=0, atol=1e-13, check_stride=False
            )
        y = torch.full((n, c, height, width), torch.nan, dtype=torch.float64).to(**layout)
        host.forward(*pointers(x, None, y), s, n, c, 0.5, channels_last, wide, False, blocks)
        torch.testing.assert_close(y, reference.upsample_sigmoid(x, s), rtol=0, atol=1e-13, check_stride=False)

    grad = skip.to(**layout)
    dx = torch.full_like(x, torch.nan)
    blocks = [-(-w // 8), rng.randint(1, h), n] if channels_last else [rng.randint(1, 3), 1, 1]
    host.backward(*pointers(grad, dx), s, n, c, channels_last, blocks)
    expected = reference.upsample_backward(grad, s)
    tolerance = 1e-13 * (1 + expected.abs().max().item())
    torch.testing.assert_close(dx, expected, rtol=0, atol=tolerance)

    i, j = rng.randrange(h), rng.randrange(w)
    for lanes in (1, 8, 32):
        value = host.shared_gather(grad.data_ptr(), grad.stride(), s, i, j, lanes)
        assert abs(value - expected[0, 0, i, j].item()) <= tolerance
