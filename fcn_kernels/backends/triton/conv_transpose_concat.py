"""conv_transpose_concat in Triton: the window of skip and the transposed convolution, each written to its channels.

The convolution is conv_transpose_add's (which says what it counts), into the last channels of the result, with the bias
in the place of the window: one value per channel, read with strides of zero. The window is a copy, one read and one
write. U-Net's widest stage, N = 1, 128 channels to 64 beside 64, 256 x 256 to 512 x 512 in float32: 34 MB of x, 67 MB
of skip and 134 MB of the result, 55 us at an H200's 4.3 TB/s; 4.3 GFLOP, 64 us in exact float32 and less on tensor
cores. These are counts: no GPU has run it yet. The backward is composed of conv_transpose_add_backward and channel_sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .conv_transpose_add import transposed
from .launch import device_of, empty_image, image_blocks, index_type


@triton.jit
def copy_kernel(
    x, y,
    C, H, W, x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w,
    INDEX: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One program: one row of one image, BLOCK_W columns, BLOCK_C channels."""
    tiles = tl.cdiv(W, BLOCK_W)
    pid = tl.program_id(0)
    n = (pid // (tiles * H)).to(tl.int64)
    row = tl.cast(pid // tiles % H, INDEX)
    column = (pid % tiles * BLOCK_W + tl.arange(0, BLOCK_W))[None, :].to(INDEX)
    c = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C))[:, None].to(INDEX)
    wanted = (c < C) & (column < W)
    value = tl.load(x + n * x_n + (c * x_c + row * x_h + column * x_w), mask=wanted)
    tl.store(y + n * y_n + (c * y_c + row * y_h + column * y_w), value, mask=wanted)


def conv_transpose_concat(
    x: Tensor,
    weight: Tensor,
    skip: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    groups: int,
    offset: Sequence[int],
    output_size: Sequence[int],
    skip_offset: Sequence[int],
) -> Tensor:
    """A window of skip beside a transposed convolution; see fcn_kernels.reference.conv_transpose_concat."""
    (H, W), (top, left), first = output_size, skip_offset, skip.shape[1]
    y = empty_image(x, H, W, channels=first + weight.shape[1] * groups)
    _copy(skip[:, :, top : top + H, left : left + W], y[:, :first])
    up = y[:, first:]
    constant = None if bias is None else bias[:, None, None].expand(up.shape)
    transposed(x, weight, constant, up, stride, groups, offset)
    return y


def _copy(x: Tensor, y: Tensor) -> None:
    """y = x, of any strides."""
    if y.numel() == 0:
        return
    n, c, H, W = y.shape
    block_c, block_w = image_blocks(x, y)
    grid = (n * H * triton.cdiv(W, block_w), triton.cdiv(c, block_c))
    with device_of(y):
        copy_kernel[grid](
            x, y, c, H, W, *x.stride(), *y.stride(),
            INDEX=index_type((), x, y), BLOCK_C=block_c, BLOCK_W=block_w,
        )  # fmt: skip
