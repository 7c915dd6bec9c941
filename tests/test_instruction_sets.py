"""Every CPU kernel on every instruction set that the extension was built for and this processor has."""

from __future__ import annotations

import pytest
import torch
from budget import check_budget
from cases import ADVERSARIAL, DTYPES, LAYOUTS, SAMPLINGS
from torch import Tensor

import fcn_kernels as fk
from fcn_kernels import Sampling, reference

pytestmark = pytest.mark.usefixtures("on_instruction_set")
CLASSES = 19  # a full vector and a rest in every instruction set


def evaluate(x: Tensor, sampling: Sampling, skip: Tensor, target: Tensor, ops: object) -> dict[str, Tensor]:
    """Value and gradient of every kernel; `ops` is the namespace of the operators or of their specification."""
    code = sampling.encode()
    grad = skip[..., : code[1], : code[6]]
    soft, log = ops.upsample_softmax(x, code, False), ops.upsample_softmax(x, code, True)
    half = x.dtype in (torch.float16, torch.bfloat16)
    weight = torch.linspace(0.5, 2, CLASSES, dtype=torch.float32 if half else x.dtype)
    loss, total, gradient, _ = ops.upsample_cross_entropy(x, target, weight, code, 255, 1, 0.1, True)
    each, _, _, lse = ops.upsample_cross_entropy(x, target, None, code, 255, 0, 0.0, True)
    sigmoid, binary = ops.upsample_sigmoid(x, code), binary_target(x, target)
    two, count, two_gradient = ops.upsample_binary_cross_entropy(x, binary, None, code, 255, 1, True)
    heavy, heavy_count, heavy_gradient = ops.upsample_binary_cross_entropy(x, binary, weight, code, 255, 1, True)
    each_binary = ops.upsample_binary_cross_entropy(x, grad.sigmoid(), None, code, None, 0, False)[0]
    return {
        "upsample": ops.upsample(x, code),
        "upsample_add": ops.upsample_add(x, skip, code, [1, 1], 0.5),
        "upsample_backward": ops.upsample_backward(grad, code),
        "upsample_softmax": soft,
        "upsample_log_softmax": log,
        "upsample_softmax_backward": ops.upsample_softmax_backward(grad, soft, code, False),
        "upsample_log_softmax_backward": ops.upsample_softmax_backward(grad, log, code, True),
        "loss": loss,
        "gradient": gradient / total,
        "upsample_sigmoid": sigmoid,
        "upsample_sigmoid_backward": ops.upsample_sigmoid_backward(grad, sigmoid, code),
        "binary": two,
        "binary_gradient": two_gradient / count,
        "binary_weighted": heavy,
        "binary_weighted_gradient": heavy_gradient / heavy_count,
        "binary_losses": each_binary,
        "binary_losses_backward": ops.upsample_binary_cross_entropy_backward(
            torch.ones_like(each_binary), x, binary, weight, code, 255
        ),
        "losses": each,
        "losses_backward": ops.upsample_cross_entropy_backward(
            torch.ones_like(each), x, target, None, lse, code, 255, 0.0
        ),
    }


def binary_target(x: Tensor, target: Tensor) -> Tensor:
    """Labels 0, 1 and 255 [N, C, H, W] from labels [N, H, W]."""
    each = torch.arange(x.shape[1]).view(1, -1, 1, 1) % 2 == target[:, None] % 2
    return torch.where(target[:, None] == 255, 255, each.long())


def compare(x: Tensor, sampling: Sampling) -> None:
    size = sampling.output_size
    skip = torch.randn(x.shape[0], CLASSES, size[0] + 1, size[1] + 1).to(x.dtype)
    target = torch.randint(0, CLASSES, (x.shape[0], *size))
    target[torch.rand(target.shape) < 0.2] = 255
    ours = evaluate(x, sampling, skip, target, torch.ops.fcn_kernels)
    plain = evaluate(x, sampling, skip, target, reference)
    oracle = evaluate(x.double(), sampling, skip.double(), target, reference)
    reached = float(target[0].numel())  # all outputs may read one input
    for name, value in ours.items():
        check_budget(value, plain[name], oracle[name], x, gain=reached)
    labels = torch.ops.fcn_kernels.upsample_argmax(x, sampling.encode(), torch.int64, False)[0]
    top = oracle["upsample"].topk(2, dim=1).values
    lead = 1e-5 * x.double().abs().max()
    clear = top[:, 0] - top[:, 1] > lead
    assert torch.equal(labels[clear], oracle["upsample"].argmax(1)[clear])


@pytest.mark.parametrize("sampling", [s for _, s in SAMPLINGS], ids=[name for name, _ in SAMPLINGS])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernels(dtype: torch.dtype, sampling: Sampling) -> None:
    for layout in ("contiguous", "channels_last", "sliced"):
        compare(LAYOUTS[layout](torch.randn(2, CLASSES, *sampling.input_size).to(dtype)), sampling)


@pytest.mark.parametrize("values", ["hot", "very-hot", "jumps", "constant", "offset", "negative-offset", "trained"])
def test_adversarial_values(values: str) -> None:
    sampling = Sampling.interpolate((9, 21), (36, 168))
    compare(ADVERSARIAL[values](torch.randn(1, CLASSES, 9, 21)), sampling)


@pytest.mark.parametrize("values", ["nan", "inf", "minus-inf", "masked-class"])
def test_values_that_are_not_finite(values: str) -> None:
    sampling = Sampling.interpolate((9, 21), (36, 168))
    x = ADVERSARIAL[values](torch.randn(1, CLASSES, 9, 21))
    code = sampling.encode()
    target = torch.randint(1, CLASSES, (1, 36, 168))
    for log in (False, True):
        ours = torch.ops.fcn_kernels.upsample_softmax(x, code, log)
        expected, oracle = (reference.upsample_softmax(y, code, log) for y in (x, x.double()))
        check_budget(ours, expected, oracle, x)
    with fk.use_backend("reference"):
        expected = fk.upsample_cross_entropy(x, target, sampling, reduction="none")
        oracle = fk.upsample_cross_entropy(x.double(), target, sampling, reduction="none")
    check_budget(fk.upsample_cross_entropy(x, target, sampling, reduction="none"), expected, oracle, x)
    ours = torch.ops.fcn_kernels.upsample_sigmoid(x, code)
    check_budget(ours, reference.upsample_sigmoid(x, code), reference.upsample_sigmoid(x.double(), code), x)
    binary = binary_target(x, target)
    for reduction in (reference.NONE, reference.SUM):
        options = (binary, None, code, 255, reduction, True)
        ours = torch.ops.fcn_kernels.upsample_binary_cross_entropy(x, *options)
        expected, oracle = (reference.upsample_binary_cross_entropy(y, *options) for y in (x, x.double()))
        for i in (0, 2):
            check_budget(ours[i], expected[i], oracle[i], x)


# (Cin, Cout, groups, kernel, stride): strides below, at and above the vectors' lengths, and prime to them; kernels that
# are multiples of the stride, leave a partial tap, or leave holes; one channel, full blocks of channels and rests.
CONVOLUTIONS = {
    "bilinear": (19, 19, 19, (4, 4), (2, 2)),
    "dense": (5, 7, 1, (16, 16), (8, 8)),
    "groups": (6, 4, 2, (3, 5), (2, 3)),
    "more-outputs": (3, 15, 3, (9, 6), (4, 3)),
    "holes": (2, 3, 1, (2, 3), (3, 5)),
    "stride-1": (4, 1, 1, (3, 2), (1, 1)),
    "wide": (2, 2, 2, (7, 40), (3, 17)),
    "many-taps": (1, 2, 1, (1, 11), (1, 2)),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conv_transpose(dtype: torch.dtype, case: str) -> None:
    inputs, outputs, groups, kernel, stride = CONVOLUTIONS[case]
    for layout, size in (("contiguous", (5, 21)), ("channels_last", (3, 9)), ("sliced", (1, 1))):
        x = LAYOUTS[layout](torch.randn(2, inputs, *size).to(dtype))
        weight = LAYOUTS[layout](torch.randn(inputs, outputs // groups, *kernel).to(dtype))
        full = [(i - 1) * s + k for i, s, k in zip(size, stride, kernel, strict=True)]
        offset = [min(1, full[0] - 1), min(2, full[1] - 1)]
        crop = [full[0] - offset[0], max(full[1] - offset[1] - 1, 1)]
        skip = LAYOUTS[layout](torch.randn(2, outputs, crop[0] + 1, crop[1] + 2).to(dtype))
        grad = LAYOUTS[layout](torch.randn(2, outputs, *crop).to(dtype))
        results = []
        for ops, cast in ((torch.ops.fcn_kernels, dtype), (reference, dtype), (reference, torch.float64)):
            x_, weight_, skip_, grad_ = (t.to(cast) for t in (x, weight, skip, grad))
            y = ops.conv_transpose_add(x_, weight_, skip_, stride, groups, offset, crop, [1, 2], 0.5)
            gradients = ops.conv_transpose_add_backward(grad_, x_, weight_, stride, groups, offset, True, True)
            results.append((y, *gradients))
        for ours, plain, oracle in zip(*results, strict=True):
            check_budget(ours, plain, oracle, x, gain=float(oracle.abs().max()))


# (channels, kernel, stride, size, offset, columns cropped at the right): depthwise filters on planes, in several blocks
# of rows. Rows of the gradient are lines as they stand without a crop at the sides, those of x at stride 1 too.
PLANES = {
    "stride-1": (3, (3, 3), (1, 1), (21, 32), (0, 0), 0),
    "stride-1-rest": (3, (2, 2), (1, 1), (19, 37), (0, 0), 0),
    "stride-2": (5, (4, 4), (2, 2), (21, 37), (0, 0), 0),
    "stride-2-crop": (5, (4, 4), (2, 2), (21, 37), (1, 3), 2),
    "rows-without-a-tap": (2, (2, 6), (3, 3), (18, 23), (2, 0), 0),
    "stride-8-crop": (2, (16, 16), (8, 8), (17, 9), (31, 5), 7),
    "past-the-cache": (3, (16, 16), (8, 8), (65, 140), (3, 7), 1),  # 13 MB in float32
}


# The same on pixels: fewer channels than lanes, a vector and a rest, more than a unit's; more steps than are unrolled.
PIXELS = {
    "stride-1": (21, (2, 2), (1, 1), (19, 37), (0, 0), 0),
    "many-taps": (17, (4, 3), (1, 1), (9, 14), (1, 1), 1),
    "stride-2": (3, (4, 4), (2, 2), (21, 37), (0, 0), 0),
    "stride-2-crop": (19, (4, 4), (2, 2), (21, 37), (1, 3), 2),
    "many-channels": (150, (4, 4), (2, 2), (5, 6), (1, 0), 1),
    "a-partial-tap": (5, (5, 7), (2, 3), (9, 11), (1, 4), 2),
    "columns-without-a-tap": (9, (2, 2), (3, 4), (18, 23), (2, 0), 1),
    "stride-8-crop": (16, (16, 16), (8, 8), (9, 9), (31, 5), 7),
    "a-crop-within-an-interval": (8, (16, 16), (8, 8), (3, 3), (9, 10), 18),
    "past-the-cache": (24, (8, 8), (4, 4), (41, 71), (3, 7), 1),  # 8.9 MB in float32
}
DEPTHWISE = [("contiguous", case) for case in PLANES.values()] + [("channels_last", case) for case in PIXELS.values()]


@pytest.mark.parametrize(
    ("layout", "case"), DEPTHWISE, ids=[f"planes-{n}" for n in PLANES] + [f"pixels-{n}" for n in PIXELS]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_depthwise(dtype: torch.dtype, layout: str, case: tuple) -> None:
    channels, kernel, stride, size, offset, cropped = case
    full = [(i - 1) * s + k for i, s, k in zip(size, stride, kernel, strict=True)]
    crop = [full[0] - offset[0], full[1] - offset[1] - cropped]
    weight, bias = torch.randn(channels, 1, *kernel).to(dtype), torch.randn(channels).to(dtype)
    skip = LAYOUTS[layout](torch.randn(2, channels, crop[0] + 1, crop[1] + 2).to(dtype))
    grad = LAYOUTS[layout](torch.randn(2, channels, *crop).to(dtype))
    # Jumps of 1e4 sum to more than float16 holds, in PyTorch's partial sums even where the whole does fit.
    for values in ("hot", "tiny" if dtype == torch.float16 else "jumps", "zero"):
        x = LAYOUTS[layout](ADVERSARIAL[values](torch.randn(2, channels, *size)).to(dtype))
        results = []
        for ops, cast in ((torch.ops.fcn_kernels, dtype), (reference, dtype), (reference, torch.float64)):
            x_, weight_, skip_, grad_ = (t.to(cast) for t in (x, weight, skip, grad))
            where = list(stride), channels, list(offset)
            y = ops.conv_transpose_add(x_, weight_, skip_, *where, crop, [1, 2], 0.5)
            beside = ops.conv_transpose_concat(x_, weight_, skip_, bias.to(cast), *where, crop, [1, 2])
            results.append((y, beside, *ops.conv_transpose_add_backward(grad_, x_, weight_, *where, True, True)))
        taps = float(weight.double().abs().sum() / channels)
        # Roundings of a sum over all pixels; in float64 mostly those of the oracle, which takes them one by one.
        pixels = x[:, 0].numel() ** (1.0 if dtype == torch.float64 else 0.5)
        for ours, plain, oracle, gain in zip(*results, (taps, taps, taps, max(taps, pixels)), strict=True):
            check_budget(ours, plain, oracle, x, gain=gain)


# (Cin, Cout, groups, kernel = stride, size): full tiles of rows and of pixels, rests, and more than one of each block.
PATCHES = {
    "unet": (40, 24, 1, (2, 2), (5, 21)),
    "groups": (34, 4, 2, (3, 2), (4, 9)),
    "four": (16, 18, 1, (4, 4), (3, 33)),
    "one": (70, 33, 1, (1, 1), (6, 7)),
    "narrow": (6, 4, 2, (3, 5), (4, 9)),
    "deep": (300, 140, 1, (2, 2), (12, 13)),
    "large": (18, 1, 1, (200, 4), (2, 3)),
}


@pytest.mark.parametrize("case", PATCHES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conv_transpose_without_overlap(dtype: torch.dtype, case: str) -> None:
    inputs, outputs, groups, stride, size = PATCHES[case]
    for layout in ("contiguous", "channels_last", "sliced"):
        x = LAYOUTS[layout](torch.randn(2, inputs, *size).to(dtype))
        weight = (torch.randn(inputs, outputs // groups, *stride) * inputs**-0.5).to(dtype)
        bias = torch.randn(outputs).to(dtype)
        crop = [i * s - 1 for i, s in zip(size, stride, strict=True)]
        skip = LAYOUTS[layout](torch.randn(2, outputs, crop[0] + 1, crop[1] + 2).to(dtype))
        grad = LAYOUTS[layout](torch.randn(2, outputs, *crop).to(dtype))
        results = []
        for ops, cast in ((torch.ops.fcn_kernels, dtype), (reference, dtype), (reference, torch.float64)):
            x_, weight_, skip_, bias_, grad_ = (t.to(cast) for t in (x, weight, skip, bias, grad))
            where = stride, groups, [1, 0], crop
            results.append(
                (
                    ops.conv_transpose_add(x_, weight_, skip_, *where, [1, 2], 0.5),
                    ops.conv_transpose_concat(x_, weight_, skip_, bias_, *where, [1, 2]),
                    ops.conv_transpose_concat(x_, weight_, skip_, None, *where, [0, 1]),
                    *ops.conv_transpose_add_backward(grad_, x_, weight_, stride, groups, [1, 0], True, True),
                )
            )
        for ours, plain, oracle in zip(*results, strict=True):
            check_budget(ours, plain, oracle, x, gain=float(oracle.abs().max()))
        exact = grad.double().sum((0, 2, 3))
        ours = torch.ops.fcn_kernels.channel_sum(grad)
        check_budget(ours, exact.to(ours.dtype), exact, grad, gain=grad[:, 0].numel() ** 0.5)


def evaluate_scores(
    x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, outputs: list[Tensor], target: Tensor, ops: object
) -> dict[str, Tensor]:
    """Value and gradients of every operator on scores; the softmax's from given outputs, whose rounding is theirs."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    arithmetic = torch.float32 if half else x.dtype
    class_weight = torch.linspace(0.5, 2, weight.shape[0], dtype=arithmetic)
    results = {}
    for log in (False, True):
        results[f"softmax {log}"] = ops.score_softmax(x, weight, bias, log)
        gradients = ops.score_softmax_backward(grad, x, weight, outputs[log], log, True, True)
        results |= {f"softmax {log} {name}": g for name, g in zip("xwb", gradients, strict=True)}
    for reduction in (reference.NONE, reference.MEAN):
        options = (target, class_weight, 255, reduction, 0.1)
        loss, total, lse, *_ = ops.score_cross_entropy(x, weight, bias, *options, False, False)
        results |= {f"loss {reduction}": loss, f"total {reduction}": total, f"lse {reduction}": lse}
    one_pass = ops.score_cross_entropy(x, weight, bias, target, class_weight, 255, reference.MEAN, 0.1, True, True)
    results |= {f"one pass {i}": t for i, t in enumerate(one_pass) if t.numel() > 0 and not half}
    pixel_grad = torch.linspace(-1, 1, target.numel(), dtype=arithmetic).reshape(target.shape)
    gradients = ops.score_cross_entropy_backward(
        pixel_grad, x, weight, bias, target, class_weight, lse, 255, 0.1, True, True
    )
    return results | {f"cross-entropy {name}": g for name, g in zip("xwb", gradients, strict=True)}


SMALL, LARGE = (
    (9, 21),
    (71, 59),
)  # as many pixels as the longest blocks of scores need in every instruction set, and a rest


# One channel and class, odd ones, more than one chunk of channels, tiles of all sizes, chunks and groups of classes.
@pytest.mark.parametrize(
    ("channels", "classes", "size"),
    [
        (1, 1, SMALL),
        (5, 2, SMALL),
        (300, 19, SMALL),
        (270, 41, SMALL),
        (33, 600, SMALL),
        (70, 19, LARGE),
        (3, 64, LARGE),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores(dtype: torch.dtype, channels: int, classes: int, size: tuple[int, int]) -> None:
    weight = (torch.randn(classes, channels) * channels**-0.5).to(dtype)
    bias = torch.randn(classes).to(dtype)
    target = torch.randint(0, classes, (2, *size))
    target[torch.rand(target.shape) < 0.2] = 255 if classes <= 255 else 0
    for layout in ("contiguous", "channels_last", "sliced", "every-other-pixel"):
        x = LAYOUTS[layout](torch.randn(2, channels, *size).to(dtype))
        grad = torch.randn(2, classes, *size).to(dtype)
        outputs = [reference.score_softmax(x, weight, bias, log) for log in (False, True)]
        ours = evaluate_scores(x, weight, bias, grad, outputs, target, torch.ops.fcn_kernels)
        plain = evaluate_scores(x, weight, bias, grad, outputs, target, reference)
        doubles = [t.double() for t in (x, weight, bias, grad, *outputs)]
        oracle = evaluate_scores(*doubles[:4], doubles[4:], target, reference)
        for name, value in ours.items():
            check_budget(value, plain[name], oracle[name], x, gain=target.numel() if name[-2] == " " else 3.0)
        labels = torch.ops.fcn_kernels.score_argmax(x, weight, bias, torch.int64)
        scores = oracle["softmax True"]
        clear = scores.amax(1) - scores.gather(1, labels[:, None])[:, 0]
        assert clear.max() <= 1e-5 * (1 if dtype == torch.float64 else 10)


@pytest.mark.parametrize("size", [(5, 9), LARGE], ids=["small", "large"])
@pytest.mark.parametrize("values", ["nan", "inf", "minus-inf", "jumps", "very-hot"])
def test_score_values(values: str, size: tuple[int, int]) -> None:
    x = ADVERSARIAL[values](torch.randn(1, 6, *size))
    weight, target = torch.eye(7, 6), torch.randint(0, 7, (1, *size))
    weight[6] = 0.5
    for log in (False, True):
        ours = torch.ops.fcn_kernels.score_softmax(x, weight, None, log)
        check_budget(ours, *(reference.score_softmax(y, weight.to(y), None, log) for y in (x, x.double())), x)
    ours = torch.ops.fcn_kernels.score_cross_entropy(x, weight, None, target, None, 255, 0, 0.0, False, False)
    plain, oracle = (
        reference.score_cross_entropy(y, weight.to(y), None, target, None, 255, 0, 0.0, False, False)
        for y in (x, x.double())
    )
    for i in (0, 2):
        check_budget(ours[i], plain[i], oracle[i], x)
    labels = [ops.score_argmax(x, weight, None, torch.int16) for ops in (torch.ops.fcn_kernels, reference)]
    assert labels[0].equal(labels[1])
