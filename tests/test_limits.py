"""The far ends: offsets beyond 2^31 elements, thousands of classes, strides 1 and 64, memory that runs out."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from against_reference import check_call
from call import OPS, Call
from cases import layout_rule
from torch import Tensor

import fcn_kernels as fk
from fcn_kernels import Sampling

RESIZE = Sampling.interpolate((4, 5), (9, 11)).encode()
FAR = 2**30 + 8  # elements; twice as far is beyond 2^31


@pytest.fixture(scope="module")
def memory() -> Tensor:
    """4.1 GiB of addresses, of which a test touches a few pages."""
    try:
        return torch.empty(2 * FAR + 4096, dtype=torch.float16)
    except RuntimeError:
        pytest.skip("this machine does not give out 4.1 GiB of addresses")


def far(memory: Tensor, x: Tensor) -> Tensor:
    """x with its last dimension but one, or its channels or batch, further apart than 2^31 elements in all."""
    _, c, h, w = x.shape
    d = next(i for i in (0, 1, 2) if x.shape[i] == 3)
    strides = [c * h * w, h * w, w, 1]
    strides[d] = FAR
    view = memory.as_strided(x.shape, strides)
    view.copy_(x)
    return view


PIXELS = torch.randint(0, 5, (2, 9, 11))
WEIGHT = torch.randn(4, 3).half()
FILTERS = torch.randn(3, 2, 3, 4).half()
# Every kernel that reads an image: a call of x, which has 3 images, 3 channels or 3 rows.
READS = {
    "upsample": lambda x: OPS.upsample(x, code(x)),
    "upsample_add": lambda x: OPS.upsample_add(
        torch.ones_like(x[:, :, :1, :1]), x, [1, h(x), 1, 0, 2, 1, 5, 1, 0, 2, 1], [0, 0], 2.0
    ),
    "upsample_backward": lambda x: OPS.upsample_backward(x, [2, h(x), 1, 0, 3, 3, 5, 1, 0, 2, 1]),
    "upsample_softmax": lambda x: OPS.upsample_softmax(x, code(x), False),
    "upsample_softmax_backward": lambda x: OPS.upsample_softmax_backward(
        x, x, [2, h(x), 1, 0, 3, 3, 5, 1, 0, 2, 1], True
    ),
    "upsample_argmax": lambda x: OPS.upsample_argmax(x, code(x), torch.uint8, True)[1],
    "upsample_sigmoid": lambda x: OPS.upsample_sigmoid(x, code(x)),
    "upsample_cross_entropy": lambda x: OPS.upsample_cross_entropy(x, labels(x), None, code(x), -100, 1, 0.0, True)[2],
    "upsample_binary_cross_entropy": lambda x: OPS.upsample_binary_cross_entropy(
        x, labels(x)[:, None].expand(-1, x.shape[1], -1, -1), None, code(x), None, 1, True
    )[2],
    "upsample_confusion_matrix": lambda x: OPS.upsample_confusion_matrix(x, labels(x), code(x), None),
    "channel_sum": lambda x: OPS.channel_sum(x),
    "score_softmax": lambda x: OPS.score_softmax(x, weight(x), None, False),
    "score_argmax": lambda x: OPS.score_argmax(x, weight(x), None, torch.int64),
    "score_cross_entropy": lambda x: OPS.score_cross_entropy(
        x, weight(x), None, torch.zeros(x.shape[0], *x.shape[2:]).long(), None, -100, 1, 0.0, True, True
    )[2],
    "conv_transpose_add": lambda x: OPS.conv_transpose_add(
        x, filters(x), None, [2, 2], 1, [0, 0], [2 * h(x) + 1, 11], [0, 0], 1.0
    ),
    "conv_transpose_add, without overlap": lambda x: OPS.conv_transpose_add(
        x, filters(x)[:, :, :2, :2], None, [2, 2], 1, [0, 0], [2 * h(x), 10], [0, 0], 1.0
    ),
    "conv_transpose_add_backward": lambda x: OPS.conv_transpose_add_backward(
        torch.ones(x.shape[0], 2, 2 * h(x) + 1, 11).half(), x, filters(x), [2, 2], 1, [0, 0], True, True
    )[1],
    "conv_transpose_concat": lambda x: OPS.conv_transpose_concat(
        torch.ones(x.shape[0], 3, h(x), 5).half(), FILTERS[:, :, :1, :1], x, None, [1, 1], 1, [0, 0], [h(x), 5], [0, 0]
    ),
}


def h(x: Tensor) -> int:
    return x.shape[2]


def code(x: Tensor) -> list[int]:
    return Sampling.interpolate((h(x), 5), (9, 11)).encode()


def labels(x: Tensor) -> Tensor:
    return torch.arange(x.shape[0] * 99).view(-1, 9, 11) % min(x.shape[1], 2)


def weight(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, 4 * x.shape[1]).view(4, -1).half()


def filters(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, x.shape[1] * 24).view(-1, 2, 3, 4).half()


@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (1, 3, 4, 5), (2, 4, 3, 5)], ids=["images", "channels", "rows"])
@pytest.mark.parametrize("name", READS)
def test_strides_beyond_two_to_the_31(memory: Tensor, name: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).half()
    expected = READS[name](x)
    assert READS[name](far(memory, x)).equal(expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_ten_thousand_classes(layout: torch.memory_format) -> None:
    classes = 10_000
    x = torch.randn(1, classes, 2, 3).contiguous(memory_format=layout)
    target = torch.randint(0, classes, (1, 4, 9))
    code = Sampling.interpolate((2, 3), (4, 9)).encode()
    for call in (
        Call("upsample_softmax", (x, code, True), (2.0,), x),
        Call("upsample_argmax", (x, code, torch.int16, True), (0.0, 2.0), x),
        Call("upsample_cross_entropy", (x, target, None, code, -100, 1, 0.1, True), (4.0, 1.0, 36.0, 1.0), x),
        Call("score_softmax", (x[:, :7], torch.randn(classes, 7), None, False), (8.0,), x),
        Call("score_argmax", (x[:, :7], torch.randn(classes, 7), None, torch.int32), (0.0,), x),
    ):
        result = check_call(call)[0]
        assert result.dim() != 4 or result.is_contiguous(memory_format=layout_rule(call.args[0]))
    with pytest.raises(ValueError, match=r"10000 classes do not fit torch\.uint8"):
        fk.upsample_argmax(x, (4, 9), dtype=torch.uint8)


@pytest.mark.parametrize("stride", [1, 64])
@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
def test_strides_of_one_and_sixty_four(stride: int, size: tuple[int, int]) -> None:
    x = torch.randn(1, 3, *size)
    weight = fk.nn.bilinear_weight(3, 2 * stride - stride % 2, groups=3)
    expected = F.conv_transpose2d(x, weight, stride=stride, groups=3)
    torch.testing.assert_close(fk.upsample(x, Sampling.transposed_conv(size, stride)), expected)
    learned = torch.randn(3, 2, stride, stride)
    torch.testing.assert_close(
        fk.conv_transpose_add(x, learned, stride=stride), F.conv_transpose2d(x, learned, stride=stride)
    )
    wide = torch.randn(3, 2, stride + 3, stride + 1)
    torch.testing.assert_close(
        fk.conv_transpose_add(x, wide, stride=stride), F.conv_transpose2d(x, wide, stride=stride), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["upsample", "upsample_softmax", "upsample_argmax", "upsample_cross_entropy"])
def test_one_pixel(name: str) -> None:
    """A map of one pixel gives the same everywhere, and one pixel of many maps is a value of the input."""
    x = torch.randn(2, 5, 1, 1)
    call = {
        "upsample": lambda x, size: fk.upsample(x, size),
        "upsample_softmax": lambda x, size: fk.upsample_softmax(x, size),
        "upsample_argmax": lambda x, size: fk.upsample_argmax(x, size)[:, None],
        "upsample_cross_entropy": lambda x, size: fk.upsample_cross_entropy(
            x, torch.ones(2, *size, dtype=torch.uint8), reduction="none"
        )[:, None],
    }[name]
    one = call(x, (1, 1))
    assert one.shape[2:] == (1, 1)
    torch.testing.assert_close(call(x, (17, 33)), one.expand(-1, -1, 17, 33))
    torch.testing.assert_close(call(x.expand(-1, -1, 7, 9), (1, 1)), one)


MEMORY = """
    import resource, torch, fcn_kernels as fk
    torch.set_num_threads(1)
    x, target = torch.randn(1, 4, 64, 64), torch.zeros(1, 1, 1, dtype=torch.uint8)
    weight = torch.randn(4, 8, 2, 2)
    calls = [
        lambda n: fk.upsample(x, (n, n)),
        lambda n: fk.upsample_softmax(x, (n, n)),
        lambda n: fk.upsample_argmax(x, (2 * n, 2 * n)),
        lambda n: fk.upsample_cross_entropy(x, target.expand(1, 2 * n, 4 * n), (2 * n, 4 * n), reduction="none"),
        lambda n: fk.upsample_cross_entropy(x, target.expand(1, 4 * n, 8 * n), (4 * n, 8 * n)),
        lambda n: fk.score_softmax(x, torch.zeros(1, 4).expand(n * n // 512, 4)),
        lambda n: fk.conv_transpose_add(x.expand(n // 4, -1, -1, -1), weight, stride=2),
        lambda n: fk.conv_transpose_add(x, weight, stride=(n, n), output_size=(3, 3)),
        lambda n: fk.upsample_confusion_matrix(
            x[:, :1, :2, :2].expand(1, n, 2, 2), torch.zeros(1, 4, 4, dtype=torch.uint8), ignore_index=None),
    ]
    for call in calls:
        call(64)
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**28, now + 2**28))
    messages = []
    for call in calls:
        try:
            call(8192)
        except RuntimeError as error:
            messages.append(str(error).splitlines()[0])
        else:
            raise AssertionError("there was memory enough")
        call(64)
    print("\\n".join(messages))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the addresses of a process")
def test_no_memory() -> None:
    """An exception that says so, and a process that goes on."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(MEMORY)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    messages = done.stdout.splitlines()
    assert len(messages) == 9
    assert all("can't allocate memory" in m or "not enough memory" in m for m in messages), messages
