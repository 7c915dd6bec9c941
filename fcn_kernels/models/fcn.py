"""Fully convolutional networks on the fused operators (Long, Shelhamer & Darrell, 2015).

A backbone scores an image coarsely; bilinear transposed convolutions bring the scores back to its size, on the way
adding those of finer layers. Crops are not typed in: they follow from the layers through `CoordinateMap`. Parameter
names and shapes are those of the common PyTorch port (torchfcn), so that its checkpoints load and ours load there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import check_count
from ..nn import bilinear_weight
from ..ops.conv_transpose_add import conv_transpose_add
from ..ops.upsample import upsample
from ..ops.upsample_add import upsample_add
from ..ops.upsample_argmax import upsample_argmax
from ..ops.upsample_confusion_matrix import upsample_confusion_matrix
from ..ops.upsample_cross_entropy import upsample_cross_entropy
from ..ops.upsample_softmax import upsample_softmax
from ..sampling import CoordinateMap, Sampling
from ._dense import DenseConv2d
from ._pooling import max_pool2d
from .backbones import VGG_BLOCKS, VGG_CHANNELS, googlenet_features

__all__ = ["FCN", "FCN8s", "FCN8sAtOnce", "FCN16s", "FCN32s", "FCNAlexNet", "FCNGoogLeNet", "Upscore"]

Upsampling = Literal["fixed", "depthwise", "dense"]


class Upscore(nn.Module):
    """A transposed convolution without bias that starts bilinear, then a crop, then the sum with finer scores.

    Args:
        channels: of input and output.
        kernel_size: 2 stride - 1 or 2 stride.
        stride: the factor.
        upsampling: "fixed": the weight [C, C, k, k] is a buffer, never read and free of cost; "dense": it is learned;
            "depthwise": a learned weight [C, 1, k, k].
    """

    weight: Tensor

    def __init__(self, channels: int, kernel_size: int, stride: int, upsampling: Upsampling = "fixed") -> None:
        super().__init__()
        if upsampling not in ("fixed", "depthwise", "dense"):
            raise ValueError(f"Upscore: upsampling must be 'fixed', 'depthwise' or 'dense', got {upsampling!r}")
        self.channels, self.kernel_size, self.stride = channels, kernel_size, stride
        self.upsampling = upsampling
        weight = bilinear_weight(channels, kernel_size, groups=channels if upsampling == "depthwise" else 1)
        if upsampling == "fixed":
            self.register_buffer("weight", weight)
        else:
            self.weight = nn.Parameter(weight)

    @property
    def fixed(self) -> bool:
        """Whether this is bilinear upsampling, which needs no weight."""
        return self.upsampling == "fixed"

    def sampling(self, x: Tensor, offset: int = 0, output_size: Sequence[int] | None = None) -> Sampling:
        """Where the window of `output_size` at `offset` reads, for a fixed weight."""
        return Sampling.transposed_conv(
            tuple(x.shape[2:]), self.stride, kernel_size=self.kernel_size, offset=offset, output_size=output_size
        )

    def forward(
        self, x: Tensor, skip: Tensor | None = None, *, offset: int = 0, output_size: Sequence[int] | None = None
    ) -> Tensor:
        """[N, C, h, w] to the window of `output_size` at `offset` of the upsampled scores, plus `skip` of that size."""
        if self.fixed:
            sampling = self.sampling(x, offset, output_size)
            return upsample(x, sampling) if skip is None else upsample_add(x, skip, sampling)
        groups = self.channels if self.upsampling == "depthwise" else 1
        weight = self.weight.to(x.dtype)
        return conv_transpose_add(
            x, weight, skip, stride=self.stride, groups=groups, offset=(offset, offset), output_size=output_size
        )

    def full_size(self, x: Tensor) -> tuple[int, int]:
        """(H, W) of the output before any crop."""
        return tuple((n - 1) * self.stride + self.kernel_size for n in x.shape[2:])

    @torch.no_grad()
    def use(self, weight: Tensor) -> str:
        """Takes over a foreign weight [C, C, k, k] or [C, 1, k, k]; returns what `upsampling` then is.

        A layer becomes a more general one where it must: a fixed one stays fixed only if the weight is diagonal and
        bilinear, a depthwise one stays depthwise only if it is diagonal. Otherwise the parameter stays the same object.
        """
        depthwise, dense = ((self.channels, c, self.kernel_size, self.kernel_size) for c in (1, self.channels))
        if weight.shape not in (depthwise, dense):
            raise ValueError(f"Upscore: weight must be {list(dense)} or {list(depthwise)}, got {list(weight.shape)}")
        full = weight.detach().to(self.weight.device)
        if full.shape != dense:
            full = torch.diag_embed(full[:, 0].permute(1, 2, 0)).permute(2, 3, 0, 1)
        diagonal = full.diagonal(dim1=0, dim2=1).permute(2, 0, 1)[:, None]
        is_diagonal = full.count_nonzero() == diagonal.count_nonzero()
        expected = bilinear_weight(self.channels, self.kernel_size, dtype=torch.float64).to(full.device)
        bilinear = (full.double() - expected).abs().max() <= 2 * torch.finfo(full.dtype).eps
        kind = self.upsampling
        if kind != "dense" and not is_diagonal:
            kind = "dense"
        elif kind == "fixed" and not bilinear:
            kind = "depthwise"
        self.become(kind, (diagonal if kind == "depthwise" else full).to(self.weight.dtype))
        return kind

    @torch.no_grad()
    def become(self, upsampling: Upsampling, weight: Tensor) -> None:
        """Takes over `weight` as it is, of the shape that goes with `upsampling`, which this layer's becomes."""
        if upsampling == self.upsampling:
            self.weight.copy_(weight)
            return
        own = weight.to(self.weight.device, self.weight.dtype).clone(memory_format=torch.contiguous_format)
        self.upsampling = upsampling
        del self.weight
        if upsampling == "fixed":
            self.register_buffer("weight", own)
        else:
            self.weight = nn.Parameter(own)

    def extra_repr(self) -> str:
        return f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, {self.upsampling}"


class FCN(nn.Module):
    """What the networks share: heads on their small scores. A subclass gives `scores`, `last` and `crop`.

    Images are [N, 3, H, W] of any size from 1 x 1, contiguous or channels_last.
    """

    num_classes: int
    in_channels = 3
    crop: int  # of the last upsampling, which puts its pixel 0 on the image's
    reach: int  # an output pixel depends on image pixels at most this far away
    grid: int  # the product of the strides: images that differ by a shift of this many pixels see the same grid
    last_name: str  # the attribute of the last upsampling

    def scores(self, image: Tensor) -> Tensor:
        """[N, C, h, w]: what the last upsampling reads."""
        raise NotImplementedError

    @property
    def last(self) -> Upscore:
        """The last upsampling."""
        return getattr(self, self.last_name)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, C, H, W], which `predict`, `probabilities` and `loss` do without."""
        return self.last(self._checked_scores(image), offset=self.crop, output_size=tuple(image.shape[2:]))

    @torch.no_grad()
    def predict(
        self, image: Tensor, *, dtype: torch.dtype = torch.int64, return_confidence: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Labels [N, H, W], on request with the winner's probability; options as in `upsample_argmax`."""
        x, sampling = self._head(image)
        return upsample_argmax(x, sampling, dtype=dtype, return_confidence=return_confidence)

    def probabilities(self, image: Tensor) -> Tensor:
        """Class probabilities [N, C, H, W]."""
        return upsample_softmax(*self._head(image))

    def loss(self, image: Tensor, target: Tensor, **options: object) -> Tensor:
        """Cross-entropy with labels [N, H, W]; options as in `upsample_cross_entropy`."""
        if target.shape[-2:] != image.shape[-2:]:
            raise ValueError(
                f"{type(self).__name__}.loss: target is {list(target.shape[-2:])} pixels, "
                f"the image {list(image.shape[-2:])}"
            )
        x, sampling = self._head(image)
        return upsample_cross_entropy(x, target, sampling, **options)

    def crop_target(self, target: Tensor) -> Tensor:
        """The part of the labels that the loss reads: all."""
        return target

    @torch.no_grad()
    def confusion_matrix(self, image: Tensor, target: Tensor, *, ignore_index: int | None = 255) -> Tensor:
        """[C, C] int64 counts: entry [t, p] of class t labelled p; see `upsample_confusion_matrix`."""
        x, sampling = self._head(image)
        return upsample_confusion_matrix(x, target, sampling, ignore_index=ignore_index)

    def _head(self, image: Tensor) -> tuple[Tensor, Sampling]:
        """What the fused heads read: small scores; with a learned last layer its output, pixel for pixel."""
        x, size = self._checked_scores(image), tuple(image.shape[2:])
        if self.last.fixed:
            return x, self.last.sampling(x, self.crop, size)
        return self.last(x, offset=self.crop, output_size=size), Sampling.interpolate(size, size)

    def _checked_scores(self, image: Tensor) -> Tensor:
        if image.dim() != 4 or image.shape[1] != 3 or 0 in image.shape[2:]:
            raise ValueError(f"{type(self).__name__}: images must be [N, 3, H, W], got shape {list(image.shape)}")
        return self.scores(image)


def _zero(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


class _FCNOnVGG(FCN):
    """VGG16's convolutions, its dense layers as convolutions, and skips from pool4 and pool3.

    Args:
        num_classes: of the scores.
        upsampling: of the 2x stages, see `Upscore`. The paper learns them, the released networks fix them.
        last_upsampling: of the last stage; both fix it.
        padding: of the first convolution. 100 serves images of any size; less is quicker on small ones.
        blocks, channels: convolutions per block, and their width.
        hidden: width of fc6 and fc7.
        fc6_kernel: side of the feature map that the classifier's first dense layer saw.
        dropout: probability, element by element, after fc6 and fc7.

    Raises:
        ValueError: a combination of padding and fc6_kernel that no crop can align.
    """

    skips: tuple[str, ...] = ()  # the pools that are scored, coarse to fine
    skip_scales: tuple[float, ...] = ()  # of the features before scoring
    upscores: tuple[tuple[str, int], ...]  # attribute and stride, in order of use

    def __init__(
        self,
        num_classes: int = 21,
        *,
        upsampling: Upsampling = "fixed",
        last_upsampling: Upsampling = "fixed",
        padding: int = 100,
        blocks: Sequence[int] = VGG_BLOCKS["vgg16"],
        channels: Sequence[int] = VGG_CHANNELS,
        hidden: int = 4096,
        fc6_kernel: int = 7,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if len(blocks) != 5 or len(channels) != 5:
            raise ValueError(f"{type(self).__name__}: blocks and channels must have 5 entries each")
        self.num_classes = check_count(type(self).__name__, "num_classes", num_classes)
        self.blocks = tuple(blocks)
        before = 3
        path = CoordinateMap()
        pools = {}
        for b, (count, width) in enumerate(zip(blocks, channels, strict=True), 1):
            for i in range(1, count + 1):
                pad = padding if b == i == 1 else 1
                setattr(self, f"conv{b}_{i}", nn.Conv2d(before, width, 3, padding=pad))
                path = path.conv(3, padding=pad)
                before = width
            path = pools[f"pool{b}"] = path.pool(2, 2)
        self.fc6 = DenseConv2d(before, hidden, fc6_kernel)
        self.fc7 = DenseConv2d(hidden, hidden, 1)
        self.dropout = nn.Dropout(dropout)
        self.score_fr = _zero(nn.Conv2d(hidden, num_classes, 1))
        path = path.conv(fc6_kernel)
        convolutions = [[(3, 1)] * count + [(2, 2)] for count in blocks]
        self.reach, self.grid = _reach([layer for block in convolutions for layer in block] + [(fc6_kernel, 1)])

        self.skip_crops = []
        for pool, (name, stride) in zip(self.skips, self.upscores, strict=False):
            width = channels[int(pool[-1]) - 1]
            setattr(self, f"score_{pool}", _zero(nn.Conv2d(width, num_classes, 1)))
            setattr(self, name, Upscore(num_classes, 2 * stride, stride, upsampling))
            path = path.deconv(2 * stride, stride)
            self.skip_crops.append(self._aligned(pools[pool], path, padding, fc6_kernel))
        self.last_name, stride = self.upscores[-1]
        setattr(self, self.last_name, Upscore(num_classes, 2 * stride, stride, last_upsampling))
        self.crop = self._aligned(path.deconv(2 * stride, stride), CoordinateMap(), padding, fc6_kernel)

    def _aligned(self, path: CoordinateMap, reference: CoordinateMap, padding: int, fc6_kernel: int) -> int:
        """`CoordinateMap.crop_offset`, which does not know what the layers are called."""
        try:
            return path.crop_offset(reference)
        except ValueError as error:
            options = f"padding = {padding} with fc6_kernel = {fc6_kernel}"
            raise ValueError(f"{type(self).__name__}: {options} fits no crop ({error})") from None

    def scores(self, image: Tensor) -> Tensor:
        x, pools = image, {}
        for b, count in enumerate(self.blocks, 1):
            for i in range(1, count + 1):
                x = F.relu(getattr(self, f"conv{b}_{i}")(x), inplace=True)
            x = pools[f"pool{b}"] = max_pool2d(x, 2, 2, ceil_mode=True)
        if min(x.shape[2:]) < self.fc6.kernel_size[0]:
            raise ValueError(
                f"{type(self).__name__}: an image of {image.shape[2]} x {image.shape[3]} pixels leaves {x.shape[2]} x "
                f"{x.shape[3]} features after pool5, fewer than fc6's window of {self.fc6.kernel_size[0]}: "
                "it needs a larger image or a larger padding"
            )
        x = self.dropout(F.relu(self.fc6(x), inplace=True))
        x = self.dropout(F.relu(self.fc7(x), inplace=True))
        x = self.score_fr(x)
        scales = self.skip_scales or (1.0,) * len(self.skips)
        for pool, (name, _), crop, scale in zip(self.skips, self.upscores, self.skip_crops, scales, strict=False):
            upscore, score = getattr(self, name), getattr(self, f"score_{pool}")
            # Scored inside the crop window only; a 1x1 convolution commutes with the crop. With a small fc6 the finer
            # map may end before the upsampled one, which is then cut there.
            window = pools[pool][:, :, crop:, crop:]
            size = tuple(map(min, upscore.full_size(x), window.shape[2:]))
            window = window[:, :, : size[0], : size[1]]
            skip = F.conv2d(window, score.weight if scale == 1 else score.weight * scale, score.bias)
            x = upscore(x, skip, output_size=size)
        return x


class FCN32s(_FCNOnVGG):
    __doc__ = (_FCNOnVGG.__doc__ or "").replace(", and skips from pool4 and pool3", "; one upsampling by 32")
    upscores = (("upscore", 32),)


class FCN16s(_FCNOnVGG):
    __doc__ = (_FCNOnVGG.__doc__ or "").replace("skips from pool4 and pool3", "a skip from pool4")
    skips = ("pool4",)
    upscores = (("upscore2", 2), ("upscore16", 16))


class FCN8s(_FCNOnVGG):
    __doc__ = _FCNOnVGG.__doc__
    skips = ("pool4", "pool3")
    upscores = (("upscore2", 2), ("upscore_pool4", 2), ("upscore8", 8))


class FCN8sAtOnce(FCN8s):
    __doc__ = (_FCNOnVGG.__doc__ or "").replace("pool4 and pool3", "pool4 and pool3, scaled for training in one stage")
    skip_scales = (0.01, 0.0001)


class FCNAlexNet(FCN):
    """The authors' AlexNet (CaffeNet's: pool, then response normalisation; groups of 2), upsampled by 32 at once.

    Args:
        num_classes: of the scores.
        last_upsampling: see `Upscore`.
        dropout: probability, element by element, after fc6 and fc7.
    """

    last_name = "upscore"

    def __init__(self, num_classes: int = 21, *, last_upsampling: Upsampling = "fixed", dropout: float = 0.5) -> None:
        super().__init__()
        self.num_classes = check_count(type(self).__name__, "num_classes", num_classes)
        self.conv1 = nn.Conv2d(3, 96, 11, stride=4, padding=100)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.fc6 = DenseConv2d(256, 4096, 6)
        self.fc7 = DenseConv2d(4096, 4096, 1)
        self.norm = nn.LocalResponseNorm(5, 1e-4, 0.75)
        self.dropout = nn.Dropout(dropout)
        self.score_fr = _zero(nn.Conv2d(4096, num_classes, 1))
        self.upscore = Upscore(num_classes, 63, 32, last_upsampling)
        self.reach, self.grid = _reach([(11, 4), (3, 2), (5, 1), (3, 2), (3, 1), (3, 1), (3, 1), (3, 2), (6, 1)])
        path = CoordinateMap().conv(11, 4, 100).pool(3, 2).conv(5, padding=2).pool(3, 2)
        path = path.conv(3, padding=1).conv(3, padding=1).conv(3, padding=1).pool(3, 2).conv(6)
        self.crop = path.deconv(63, 32).crop_offset(CoordinateMap())

    def scores(self, image: Tensor) -> Tensor:
        x = self.norm(_pool(F.relu(self.conv1(image))))
        x = self.norm(_pool(F.relu(self.conv2(x))))
        x = F.relu(self.conv4(F.relu(self.conv3(x))))
        x = _pool(F.relu(self.conv5(x)))
        x = self.dropout(F.relu(self.fc6(x)))
        x = self.dropout(F.relu(self.fc7(x)))
        return self.score_fr(x)


class FCNGoogLeNet(FCN):
    """GoogLeNet without its average pool and dense layer, scored and upsampled by 32.

    The paper's network was never released: this one is our own design, with torchvision's layers and names, a padding
    of 100 and the crop that follows, 106.

    Args:
        num_classes: of the scores.
        last_upsampling: see `Upscore`.
        dropout: probability, element by element, before the scores.
    """

    last_name = "upscore"

    def __init__(self, num_classes: int = 21, *, last_upsampling: Upsampling = "fixed", dropout: float = 0.2) -> None:
        super().__init__()
        self.num_classes = check_count(type(self).__name__, "num_classes", num_classes)
        features = googlenet_features(padding=100)
        self._names = tuple(features)
        for name, layer in features.items():
            self.add_module(name, layer)
        self.dropout = nn.Dropout(dropout)
        self.score_fr = _zero(nn.Conv2d(1024, num_classes, 1))
        self.upscore = Upscore(num_classes, 63, 32, last_upsampling)
        inception = [(3, 1)]  # its widest branch
        self.reach, self.grid = _reach(
            [(7, 2), (3, 2), (3, 1), (3, 2), *inception * 2, (3, 2), *inception * 5, (2, 2), *inception * 2]
        )
        path = CoordinateMap().conv(7, 2, 100).pool(3, 2).pool(3, 2).pool(3, 2).pool(2, 2)  # the rest keeps its place
        self.crop = path.deconv(63, 32).crop_offset(CoordinateMap())

    def scores(self, image: Tensor) -> Tensor:
        x = image
        for name in self._names:
            x = getattr(self, name)(x)
        return self.score_fr(self.dropout(x))


def _reach(layers: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Half the receptive field of (kernel, stride) layers plus twice their stride, and that stride.

    A window of k pixels at distance d widens the field by (k - 1) d. The way back from a stride s to the pixels reads,
    at each stage, up to that stage's stride aside: s + s / 2 + ... < 2 s.
    """
    field, distance = 1, 1
    for kernel, stride in layers:
        field += (kernel - 1) * distance
        distance *= stride
    return field // 2 + 2 * distance, distance


def _pool(x: Tensor) -> Tensor:
    return max_pool2d(x, 3, 2, ceil_mode=True)
