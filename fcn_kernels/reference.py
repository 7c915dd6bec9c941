"""The executable specification: every operator as readable PyTorch, for any device and floating dtype.

It serves as fallback where no kernel exists, as the oracle of the tests (in float64) and as a baseline. Half types
compute in float32 and are rounded once, at the end. Functions take the arguments of the operator schemas, are
differentiable by plain autograd, never change their inputs and never return them.

Shapes: `x` is [N, C, h, w], results at full resolution are [N, C, H, W] or [N, H, W]. `sampling` is what
`Sampling.encode` returns: h, H, num, off, den, w, W, num, off, den, clamp. A result [N, C, *, *] is channels_last if
the first argument is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

NONE, MEAN, SUM, MEAN_ALL = range(4)


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last if x is stored so and not also contiguous."""
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _like(result: Tensor, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`result` in the dtype (or that of x) and layout of x."""
    return result.to(dtype or x.dtype).contiguous(memory_format=memory_format(x))


# --- bilinear sampling ---------------------------------------------------------------------------------------------


def _taps(axis: Sequence[int], clamp: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per output index: the indices of its two taps and their weights, zero for a tap outside the input."""
    size, out, num, off, den = axis
    position = num * torch.arange(out, device=x.device) + off
    i0 = torch.div(position, den, rounding_mode="floor")
    i1 = i0 + 1
    exact = torch.float32 if x.device.type == "mps" else torch.float64
    f = (position - i0 * den).to(exact) / den
    w0, w1 = (1 - f).to(x.dtype), f.to(x.dtype)
    if not clamp:
        w0 = torch.where((i0 >= 0) & (i0 < size), w0, 0)
        w1 = torch.where((i1 >= 0) & (i1 < size), w1, 0)
    return i0.clamp(0, size - 1), i1.clamp(0, size - 1), w0, w1


def _sample_axis(x: Tensor, dim: int, axis: Sequence[int], clamp: int) -> Tensor:
    """y[o] = w0 x[i0] + w1 x[i1] along `dim`; a tap of weight zero is not read, whatever it holds."""
    shape = [1] * x.dim()
    shape[dim] = -1
    total = 0
    i0, i1, w0, w1 = _taps(axis, clamp, x)
    for i, w in ((i0, w0), (i1, w1)):
        w = w.view(shape)
        total = total + torch.where(w != 0, w * x.index_select(dim, i), 0)
    return total


def _first_outputs(axis: Sequence[int], index: Tensor) -> Tensor:
    """The first output o in [0, out] with floor(pos(o)) >= index."""
    _, out, num, off, den = axis
    distance = index * den - off
    if num == 0:
        return torch.where(distance <= 0, 0, out)
    return -torch.div(-distance, num, rounding_mode="floor").clamp(-out, 0)


def _adjoint_axis(y: Tensor, dim: int, axis: Sequence[int], clamp: int) -> Tensor:
    """The transpose of `_sample_axis` as a gather: input i collects from a contiguous range of outputs, in order."""
    size, out, _, _, _ = axis
    i0, i1, w0, w1 = _taps(axis, clamp, y)
    i = torch.arange(size, device=y.device)
    begin, end = _first_outputs(axis, i - 1), _first_outputs(axis, i + 1)
    if clamp:
        begin = torch.where(i == 0, 0, begin)
        end = torch.where(i == size - 1, out, end)
    longest = max(int((end - begin).max()), 1)
    o = begin[:, None] + torch.arange(longest, device=y.device)
    valid, o = o < end[:, None], o.clamp(max=out - 1)
    w = torch.where(i0[o] == i[:, None], w0[o], 0) + torch.where(i1[o] == i[:, None], w1[o], 0)
    w = torch.where(valid, w, 0).view(1, size, longest, 1)
    y = y.movedim(dim, -2) if dim % y.dim() != y.dim() - 2 else y
    rows = y.reshape(-1, out, y.shape[-1]).index_select(1, o.flatten()).view(-1, size, longest, y.shape[-1])
    x = torch.where(w != 0, w * rows, 0).sum(2).view(*y.shape[:-2], size, y.shape[-1])
    return x.movedim(-2, dim) if dim % x.dim() != x.dim() - 2 else x


def _sampled(x: Tensor, sampling: Sequence[int]) -> Tensor:
    """`upsample` in the arithmetic dtype, not rounded to that of x."""
    x = x.to(arithmetic_dtype(x.dtype))
    x = _sample_axis(x, 2, sampling[:5], sampling[10])
    return _sample_axis(x, 3, sampling[5:10], sampling[10])


def _adjoint(y: Tensor, sampling: Sequence[int]) -> Tensor:
    """The transpose of `_sampled`."""
    y = y.to(arithmetic_dtype(y.dtype))
    y = _adjoint_axis(y, 3, sampling[5:10], sampling[10])
    return _adjoint_axis(y, 2, sampling[:5], sampling[10])


def upsample(x: Tensor, sampling: Sequence[int]) -> Tensor:
    """``F.interpolate(x, (H, W), mode="bilinear")`` if clamped, else a bilinear ``F.conv_transpose2d`` and a crop."""
    return _like(_sampled(x, sampling), x)


def upsample_backward(grad: Tensor, sampling: Sequence[int]) -> Tensor:
    """The adjoint of `upsample`: ``<upsample(x), grad> = <x, upsample_backward(grad)>``."""
    return _like(_adjoint(grad, sampling), grad)


def upsample_add(
    x: Tensor, skip: Tensor, sampling: Sequence[int], skip_offset: Sequence[int], skip_scale: float
) -> Tensor:
    """``upsample(x) + skip_scale * skip[:, :, oy : oy + H, ox : ox + W]``."""
    y = _sampled(x, sampling)
    return _like(y + skip_scale * _window(skip, skip_offset, y.shape[2:]).to(y.dtype), x)


def _window(skip: Tensor, offset: Sequence[int], size: Sequence[int]) -> Tensor:
    return skip[:, :, offset[0] : offset[0] + size[0], offset[1] : offset[1] + size[1]]


# --- softmax and argmax --------------------------------------------------------------------------------------------


def upsample_softmax(x: Tensor, sampling: Sequence[int], log: bool) -> Tensor:
    """``softmax(upsample(x), dim=1)``, or ``log_softmax``."""
    z = _sampled(x, sampling)
    return _like(z.log_softmax(1) if log else z.softmax(1), x)


def upsample_softmax_backward(grad: Tensor, output: Tensor, sampling: Sequence[int], log: bool) -> Tensor:
    """The gradient in x, from the output p: ``A'(p (g - sum p g))``; for the logarithm ``A'(g - exp(p) sum g)``."""
    p, g = output.to(arithmetic_dtype(output.dtype)), grad.to(arithmetic_dtype(output.dtype))
    if log:
        g = g - p.exp() * g.sum(1, keepdim=True)
    else:
        g = p * (g - (p * g).sum(1, keepdim=True))
    return _like(_adjoint(g, sampling), output)


def upsample_argmax(x: Tensor, sampling: Sequence[int], dtype: torch.dtype, confidence: bool) -> tuple[Tensor, Tensor]:
    """``z.argmax(1)`` and ``softmax(z, 1).amax(1)`` of ``z = upsample(x)``; the second is empty unless asked for."""
    z = _sampled(x, sampling)
    labels = z.argmax(1)  # the lowest index wins a tie, NaN wins everything
    sure = z.softmax(1).gather(1, labels[:, None]).squeeze(1) if confidence else z.new_empty(0)
    return labels.to(dtype), sure.contiguous()


def upsample_confusion_matrix(x: Tensor, target: Tensor, sampling: Sequence[int], ignore_index: int | None) -> Tensor:
    """``bincount(target * C + argmax, minlength=C * C).view(C, C)`` over the pixels that are not ignored."""
    labels = upsample_argmax(x, sampling, torch.int64, False)[0]
    return count_labels(labels, target, x.shape[1], ignore_index)


def count_labels(labels: Tensor, target: Tensor, classes: int, ignore_index: int | None) -> Tensor:
    """The confusion matrix of two label images: entry [t, p] counts the pixels of class t that are labelled p."""
    y, kept, bad = split_labels("upsample_confusion_matrix", target, classes, ignore_index)
    if target.device.type != "cpu":  # counts cannot say NaN, and bincount synchronises anyway
        raise_on_bad_label("upsample_confusion_matrix", target, bad, classes, ignore_index)
    return torch.bincount((y * classes + labels)[kept], minlength=classes * classes).view(classes, classes)


# --- cross-entropy -------------------------------------------------------------------------------------------------


def upsample_cross_entropy(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sampling: Sequence[int],
    ignore_index: int,
    reduction: int,
    label_smoothing: float,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``F.cross_entropy(upsample(x), target, weight, ...)`` with its gradient: (loss, total weight, gradient, lse).

    The loss of a pixel of class y is ``-(1 - e) w[y] log p[y] - e / C sum_c w[c] log p[c]`` with ``p = softmax(z)``;
    that of an ignored pixel is zero. The reductions divide by the total weight: 1 for none and sum, the sum of w[y]
    for mean, the number of all pixels for mean_all. `gradient` is that of the undivided sum in x, for with_grad and a
    reduction; `lse` is the log-sum-exp per pixel, for with_grad without a reduction. What is not asked for is empty.
    """
    z = _sampled(x, sampling)
    loss, pixel_weight = _cross_entropy("upsample_cross_entropy", z, target, weight, ignore_index, label_smoothing)
    loss, total = reduce(loss, pixel_weight, reduction)
    gradient, lse = z.new_empty(0), z.new_empty(0)
    if with_grad and reduction == NONE:
        lse = _logsumexp(z)
    elif with_grad:
        g = _cross_entropy_gradient(
            "upsample_cross_entropy", z.detach(), None, target, weight, ignore_index, label_smoothing
        )
        gradient = _like(_adjoint(g, sampling), x, g.dtype)
    return loss, total, gradient, lse


def upsample_cross_entropy_backward(
    grad: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    sampling: Sequence[int],
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """The gradient in x of ``sum(grad * loss)`` without reduction, where ``p = exp(z - lse)``."""
    z = _sampled(x, sampling)
    g = _cross_entropy_gradient("upsample_cross_entropy", z, lse, target, weight, ignore_index, label_smoothing, grad)
    return _like(_adjoint(g, sampling), x)


def _cross_entropy(
    name: str, z: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Loss and weight per pixel of full-resolution logits z."""
    classes = z.shape[1]
    y, kept, bad = split_labels(name, target, classes, ignore_index)
    logp = z.log_softmax(1)
    pixel_weight = torch.ones_like(logp[:, 0]) if weight is None else weight[y]
    loss = -(1 - label_smoothing) * pixel_weight * logp.gather(1, y[:, None]).squeeze(1)
    if label_smoothing > 0:
        smooth = logp if weight is None else logp * weight.view(1, -1, 1, 1)
        loss = loss - label_smoothing / classes * smooth.sum(1)
    loss = torch.where(kept, loss, 0).masked_fill(bad, torch.nan)
    return loss, torch.where(kept, pixel_weight, 0)


def _logsumexp(z: Tensor) -> Tensor:
    """Over the classes; NaN where a logit is infinite, so that ``exp(z - lse)`` is torch's softmax there too."""
    lse = z.detach().logsumexp(1)
    return lse.masked_fill(lse.isinf(), torch.nan)


def _cross_entropy_gradient(
    name: str,
    z: Tensor,
    lse: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    scale: Tensor | None = None,
) -> Tensor:
    """d loss / d z per pixel: ``(a + b) p - a [c == y] - e / C w[c]``, a = (1 - e) w[y], b = e / C sum_c w[c].

    Multiplied by `scale` [N, H, W], if given, where the pixel counts.
    """
    classes = z.shape[1]
    p = z.softmax(1) if lse is None else (z - lse[:, None]).exp()
    y, kept, bad = split_labels(name, target, classes, ignore_index)
    y = y[:, None]
    w = z.new_ones(classes) if weight is None else weight
    a = (1 - label_smoothing) * w[y]
    g = (a + label_smoothing / classes * w.sum()) * p
    g = g - label_smoothing / classes * w.view(1, -1, 1, 1)
    g = g.scatter_add(1, y, -a)
    if scale is not None:
        g = g * scale[:, None].to(g.dtype)
    return torch.where(kept[:, None], g, 0).masked_fill(bad[:, None], torch.nan)


def reduce(loss: Tensor, weight: Tensor, reduction: int) -> tuple[Tensor, Tensor]:
    """The reduced loss and what it was divided by."""
    one = loss.new_ones(())
    if reduction == NONE:
        return loss.contiguous(), one
    total = {MEAN: lambda: _sum(weight), SUM: lambda: one, MEAN_ALL: lambda: one * loss.numel()}[reduction]()
    return _sum(loss) / total, total


def _sum(image: Tensor) -> Tensor:
    """The sum over a label image, row by row: the same bits for any number of threads."""
    while image.dim() > 0:
        image = image.sum(-1)
    return image


def split_labels(name: str, target: Tensor, classes: int, ignore_index: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Labels as int64 (0 where they do not count), the pixels that are not ignored, and those with a wrong label.

    A wrong label raises on the CPU; elsewhere looking would synchronise, and the loss becomes NaN.
    """
    y = target.long()  # first: a uint8 tensor compared with -100 would compare with 156
    kept = torch.ones_like(y, dtype=torch.bool) if ignore_index is None else y != ignore_index
    bad = kept & ((y < 0) | (y >= classes))
    if target.device.type == "cpu":
        raise_on_bad_label(name, y, bad, classes, ignore_index)
    return torch.where(kept & ~bad, y, 0), kept, bad


def raise_on_bad_label(name: str, target: Tensor, bad: Tensor, classes: int, ignore_index: int | None) -> None:
    """Names the first label that is wrong, if any."""
    if not bool(bad.any()):
        return
    at = bad.nonzero()[0].tolist()
    where, value = ", ".join(map(str, at)), int(target[tuple(at)])
    if ignore_index is None:
        raise RuntimeError(
            f"{name}: target[{where}] = {value} is not a class (0 to {classes - 1}); "
            "ignore_index= names a label that does not count"
        )
    raise RuntimeError(
        f"{name}: target[{where}] = {value} is neither a class (0 to {classes - 1}) nor ignore_index ({ignore_index})"
    )


# --- binary heads --------------------------------------------------------------------------------------------------


def upsample_sigmoid(x: Tensor, sampling: Sequence[int]) -> Tensor:
    """``sigmoid(upsample(x))``."""
    return _like(_sampled(x, sampling).sigmoid(), x)


def upsample_sigmoid_backward(grad: Tensor, output: Tensor, sampling: Sequence[int]) -> Tensor:
    """The gradient in x, from the output p: ``A'(g p (1 - p))``."""
    p, g = output.to(arithmetic_dtype(output.dtype)), grad.to(arithmetic_dtype(output.dtype))
    return _like(_adjoint(g * p * (1 - p), sampling), output)


def upsample_binary_cross_entropy(
    x: Tensor,
    target: Tensor,
    pos_weight: Tensor | None,
    sampling: Sequence[int],
    ignore_index: int | None,
    reduction: int,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``F.binary_cross_entropy_with_logits(upsample(x), target, pos_weight=...)``: (loss, total weight, gradient).

    The loss of a pixel with label t is ``-q t log sigmoid(z) - (1 - t) log sigmoid(-z)`` with the channel's pos_weight
    q; that of an ignored pixel is zero. The mean divides by the number of pixels that are not ignored. Target is
    [N, C, H, W].
    """
    z = _sampled(x, sampling)
    t, kept, bad = _binary_target(z, target, ignore_index)
    q = 1 if pos_weight is None else pos_weight.view(1, -1, 1, 1)
    loss = _weighted(q * t, -F.logsigmoid(z)) + _weighted(1 - t, -F.logsigmoid(-z))
    loss = torch.where(kept, loss, 0).masked_fill(bad, torch.nan)
    loss, total = reduce(loss, kept.to(z.dtype), reduction)
    gradient = z.new_empty(0)
    if with_grad and reduction != NONE:
        g = _binary_gradient(z.detach(), target, pos_weight, ignore_index)
        gradient = _like(_adjoint(g, sampling), x, g.dtype)
    return loss, total, gradient


def upsample_binary_cross_entropy_backward(
    grad: Tensor,
    x: Tensor,
    target: Tensor,
    pos_weight: Tensor | None,
    sampling: Sequence[int],
    ignore_index: int | None,
) -> Tensor:
    """The gradient in x of ``sum(grad * loss)`` without reduction."""
    z = _sampled(x, sampling)
    g = _binary_gradient(z, target, pos_weight, ignore_index, grad)
    return _like(_adjoint(g, sampling), x)


def _binary_target(z: Tensor, target: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Target as numbers (0 where it does not count), the pixels that are not ignored, and those with a wrong label."""
    if not target.is_floating_point():
        t, kept, bad = split_labels("upsample_binary_cross_entropy", target, 2, ignore_index)
        return t.to(z.dtype), kept, bad
    kept = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    return torch.where(kept, target, 0).to(z.dtype), kept, torch.zeros_like(kept)


def _weighted(weight: Tensor, value: Tensor) -> Tensor:
    """Their product, zero where the weight is: an infinite value does not count there."""
    return torch.where(weight != 0, weight * value, 0)


def _binary_gradient(
    z: Tensor, target: Tensor, pos_weight: Tensor | None, ignore_index: int | None, scale: Tensor | None = None
) -> Tensor:
    """d loss / d z: ``(1 - t) sigmoid(z) - q t sigmoid(-z)``, times `scale`, if given, where the pixel counts."""
    t, kept, bad = _binary_target(z, target, ignore_index)
    q = 1 if pos_weight is None else pos_weight.view(1, -1, 1, 1)
    g = (1 - t) * z.sigmoid() - q * t * (-z).sigmoid()
    if scale is not None:
        g = g * scale.to(g.dtype)
    return torch.where(kept, g, 0).masked_fill(bad, torch.nan)


def bilinear_filter(kernel_size: int) -> Tensor:
    """A row of FCN's bilinear filter, in float64; the filter is the outer product of two.

    With factor ``f = (k + 1) // 2`` and centre ``c = f - 1`` (k odd) or ``f - 1/2`` the row is ``1 - |i - c| / f``.
    """
    factor = (kernel_size + 1) // 2
    centre = factor - 1 if kernel_size % 2 else factor - 0.5
    return 1 - (torch.arange(kernel_size, dtype=torch.float64) - centre).abs() / factor


# --- learned transposed convolution --------------------------------------------------------------------------------


def conv_transpose_add(
    x: Tensor,
    weight: Tensor,
    skip: Tensor | None,
    stride: Sequence[int],
    groups: int,
    offset: Sequence[int],
    output_size: Sequence[int],
    skip_offset: Sequence[int],
    skip_scale: float,
) -> Tensor:
    """``F.conv_transpose2d(x, weight, stride=stride, groups=groups)``, cropped, plus the scaled window of skip."""
    y = F.conv_transpose2d(x, weight, stride=tuple(stride), groups=groups)
    y = _window(y, offset, output_size)
    if skip is not None:
        dtype = arithmetic_dtype(x.dtype)
        y = y.to(dtype) + skip_scale * _window(skip, skip_offset, output_size).to(dtype)
    return _like(y, x)


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
    """The window of skip, then ``F.conv_transpose2d(x, weight, bias, stride=stride, groups=groups)``, cropped."""
    y = F.conv_transpose2d(x, weight, bias, stride=tuple(stride), groups=groups)
    return _like(torch.cat([_window(skip, skip_offset, output_size), _window(y, offset, output_size)], dim=1), x)


def channel_sum(x: Tensor) -> Tensor:
    """``x.sum((0, 2, 3))`` in the arithmetic dtype."""
    return x.sum((0, 2, 3), dtype=arithmetic_dtype(x.dtype))


def conv_transpose_add_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    groups: int,
    offset: Sequence[int],
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of `conv_transpose_add` in x and weight: a strided convolution of the zero-padded `grad` with the
    weight, and its correlation with x. What is not needed is empty."""
    (sy, sx), (oy, ox), (height, width) = stride, offset, grad.shape[2:]
    full = (x.shape[2] - 1) * sy + weight.shape[2], (x.shape[3] - 1) * sx + weight.shape[3]
    padded = F.pad(grad, (ox, full[1] - ox - width, oy, full[0] - oy - height))
    grad_x, grad_weight = x.new_empty(0), weight.new_empty(0)
    if need_x:
        grad_x = _like(F.conv2d(padded, weight, stride=(sy, sx), groups=groups), x)
    if need_weight:
        grad_weight = torch.nn.grad.conv2d_weight(padded, weight.shape, x, stride=(sy, sx), groups=groups).contiguous()
    return grad_x, grad_weight


# --- score convolution ---------------------------------------------------------------------------------------------


def _scores(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The 1x1 convolution with weight [C, K] in the arithmetic dtype."""
    dtype = arithmetic_dtype(x.dtype)
    weight = weight.to(dtype)[:, :, None, None]
    return F.conv2d(x.to(dtype), weight, None if bias is None else bias.to(dtype))


def score_softmax(x: Tensor, weight: Tensor, bias: Tensor | None, log: bool) -> Tensor:
    """``F.conv2d(x, weight[:, :, None, None], bias).softmax(1)``, or ``log_softmax``."""
    z = _scores(x, weight, bias)
    return _like(z.log_softmax(1) if log else z.softmax(1), x)


def score_softmax_backward(
    grad: Tensor, x: Tensor, weight: Tensor, output: Tensor, log: bool, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients in x, weight and bias, from the output p: those of a matrix product with ``p (g - sum p g)``.

    For the logarithm with ``g - exp(p) sum g``. What is not needed is empty.
    """
    g, p = grad.to(arithmetic_dtype(x.dtype)), output.to(arithmetic_dtype(x.dtype))
    if log:
        g = g - p.exp() * g.sum(1, keepdim=True)
    else:
        g = p * (g - (p * g).sum(1, keepdim=True))
    return _score_gradients(g, x, weight, need_x, need_weight)


def _score_gradients(
    g: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a 1x1 convolution, in x, weight and bias, from that in its result."""
    grad_x, grad_weight = x.new_empty(0), weight.new_empty(0)
    if need_x:
        grad_x = _like(F.conv2d(g, weight.to(g.dtype).t()[:, :, None, None]), x)
    if need_weight:
        grad_weight = torch.einsum("nchw,nkhw->ck", g, x.to(g.dtype)).to(weight.dtype)
    return grad_x, grad_weight, g.sum((0, 2, 3)).to(weight.dtype)


def score_argmax(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``F.conv2d(x, weight[:, :, None, None], bias).argmax(1)`` in an integer dtype."""
    return _scores(x, weight, bias).argmax(1).to(dtype)


def score_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    reduction: int,
    label_smoothing: float,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``F.cross_entropy(F.conv2d(x, weight[:, :, None, None], bias), target, ...)``.

    Returns (loss, total weight, lse, grad_x, grad_weight, grad_bias): the log-sum-exps for the backward pass, or, of a
    reduced loss in the dtype of the arithmetic where x or weight need one, the gradients. The others are empty.
    """
    z = _scores(x, weight, bias)
    loss, pixel_weight = _cross_entropy("score_cross_entropy", z, target, class_weight, ignore_index, label_smoothing)
    loss, total = reduce(loss, pixel_weight, reduction)
    lse = _logsumexp(z)
    if reduction == NONE or x.dtype != z.dtype or not (need_x or need_weight):
        return loss, total, lse, *(x.new_empty(0) for _ in range(3))
    grad = torch.where(total == 0, 0, 1 / total).expand(lse.shape)
    options = (class_weight, lse, ignore_index, label_smoothing, need_x, need_weight)
    return loss, total, lse.new_empty(0), *score_cross_entropy_backward(grad, x, weight, bias, target, *options)


def score_cross_entropy_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    lse: Tensor,
    ignore_index: int,
    label_smoothing: float,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients in x, weight and bias of ``sum(grad * loss)`` without reduction; the scores are computed again.

    `grad` is [N, H, W], one value per pixel; that of an ignored pixel does not count. What is not needed is empty.
    """
    z = _scores(x, weight, bias)
    g = _cross_entropy_gradient(
        "score_cross_entropy", z, lse, target, class_weight, ignore_index, label_smoothing, grad
    )
    return _score_gradients(g, x, weight, need_x, need_weight)
