"""What the launches of all Triton kernels share."""

import contextlib
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...reference import MEAN, MEAN_ALL, memory_format


def empty_image(
    like: Tensor, height: int, width: int, dtype: torch.dtype | None = None, channels: int | None = None
) -> Tensor:
    """[N, C, height, width], channels_last if `like` is that and not contiguous, else contiguous."""
    size = (like.shape[0], like.shape[1] if channels is None else channels, height, width)
    return torch.empty(size, dtype=dtype or like.dtype, device=like.device, memory_format=memory_format(like))


def fits_int32(sampling: Sequence[int], *tensors: Tensor) -> bool:
    """Whether positions and the offsets within one image can be computed in 32 bits."""
    bounds = [0]
    for size, out, num, off, den in (sampling[:5], sampling[5:10]) if sampling else ():
        bounds.append(num * out + abs(off))
        bounds.append((size + 1) * den + abs(off) + num)
    for t in tensors:
        bounds.append(sum((n + 1024) * abs(stride) for n, stride in zip(t.shape[1:], t.stride()[1:], strict=True)))
    return max(bounds) < 2**31


def device_of(x: Tensor) -> contextlib.AbstractContextManager:
    """Makes the device of x current: Triton launches on the current one."""
    if x.device.type == "cpu":
        return contextlib.nullcontext()  # the interpreter
    return torch.get_device_module(x.device.type).device(x.device)


def accumulator(x: Tensor) -> tl.dtype:
    """The type of the arithmetic."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def index_type(sampling: Sequence[int], *tensors: Tensor) -> tl.dtype:
    """The type of positions and of offsets within one image."""
    return tl.int32 if fits_int32(sampling, *tensors) else tl.int64


def image_blocks(x: Tensor, y: Tensor) -> tuple[int, int]:
    """Channels and columns of a tile of a streaming kernel: lanes run along the innermost dimension."""
    channels_last = x.stride(1) == 1 and y.stride(1) == 1 and x.shape[1] > 1
    block_c = min(64 if channels_last else 4, triton.next_power_of_2(x.shape[1]))
    return block_c, max(8, 512 // block_c) if channels_last else 128


def registers(warps: int) -> dict:
    """As many registers as let `warps` share one of NVIDIA's multiprocessors, at most 255.

    Without that its assembler would rather spill a few than lose a block.
    """
    nvidia = torch.version.hip is None and getattr(torch.version, "xpu", None) is None
    return {"maxnreg": min(255, 2048 // warps)} if nvidia else {}


def reduced(partial: Tensor, reduction: int, pixels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The reduced loss and what it was divided by, from the programs' sums of loss and weight."""
    value, total = partial.sum(0).unbind()
    if reduction == MEAN_ALL:
        total = torch.full_like(value, float(pixels))
    elif reduction != MEAN:
        total = torch.ones_like(value)
    return (value / total).to(dtype), total.to(dtype)
