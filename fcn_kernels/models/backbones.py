"""Classification networks with torchvision's layers and parameter names, so that its checkpoints load.

AlexNet (Krizhevsky, 2014), VGG (Simonyan & Zisserman, 2014) and GoogLeNet (Szegedy et al., 2014), for
[N, 3, H, W] images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["VGG", "AlexNet", "GoogLeNet", "Inception", "alexnet", "googlenet", "vgg11", "vgg13", "vgg16", "vgg19"]

VGG_BLOCKS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
VGG_CHANNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Blocks of 3x3 convolutions, each followed by a 2x2 max pool, then three dense layers.

    Args:
        blocks: the number of convolutions of each block.
        num_classes: outputs of the last dense layer.
        batch_norm: after each convolution.
        channels: of each block.
        hidden: outputs of the first two dense layers.
        grid: the feature map is averaged to grid x grid cells before the dense layers.
        dropout: probability of the two dropout layers.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        num_classes: int = 1000,
        *,
        batch_norm: bool = False,
        channels: Sequence[int] = VGG_CHANNELS,
        hidden: int = 4096,
        grid: int = 7,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if len(blocks) != len(channels):
            raise ValueError(f"VGG: {len(blocks)} blocks need as many channel counts, got {len(channels)}")
        layers: list[nn.Module] = []
        before = 3
        for count, width in zip(blocks, channels, strict=True):
            for _ in range(count):
                layers.append(nn.Conv2d(before, width, 3, padding=1))
                layers += [nn.BatchNorm2d(width)] if batch_norm else []
                layers.append(nn.ReLU(inplace=True))
                before = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((grid, grid))
        self.classifier = nn.Sequential(
            nn.Linear(before * grid * grid, hidden),
            nn.ReLU(True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(True),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(m.bias)
            elif isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, 0, 0.01)
                nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] images to [N, num_classes] scores."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def vgg11(num_classes: int = 1000, *, batch_norm: bool = False, **options: object) -> VGG:
    """8 convolutions and 3 dense layers; options as in `VGG`."""
    return VGG(VGG_BLOCKS["vgg11"], num_classes, batch_norm=batch_norm, **options)


def vgg13(num_classes: int = 1000, *, batch_norm: bool = False, **options: object) -> VGG:
    """10 convolutions and 3 dense layers; options as in `VGG`."""
    return VGG(VGG_BLOCKS["vgg13"], num_classes, batch_norm=batch_norm, **options)


def vgg16(num_classes: int = 1000, *, batch_norm: bool = False, **options: object) -> VGG:
    """13 convolutions and 3 dense layers; options as in `VGG`."""
    return VGG(VGG_BLOCKS["vgg16"], num_classes, batch_norm=batch_norm, **options)


def vgg19(num_classes: int = 1000, *, batch_norm: bool = False, **options: object) -> VGG:
    """16 convolutions and 3 dense layers; options as in `VGG`."""
    return VGG(VGG_BLOCKS["vgg19"], num_classes, batch_norm=batch_norm, **options)


class AlexNet(nn.Module):
    """torchvision's AlexNet: one tower, no response normalisation."""

    def __init__(self, num_classes: int = 1000, *, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] images to [N, num_classes] scores."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def alexnet(num_classes: int = 1000, *, dropout: float = 0.5) -> AlexNet:
    """5 convolutions and 3 dense layers."""
    return AlexNet(num_classes, dropout=dropout)


class _ConvNormRelu(nn.Module):
    def __init__(self, before: int, width: int, **options: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, width, bias=False, **options)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.bn(self.conv(x)))


class Inception(nn.Module):
    """Four parallel branches, concatenated. As in torchvision the third has a 3x3 filter where the paper has 5x5."""

    def __init__(self, before: int, one: int, reduce3: int, three: int, reduce5: int, five: int, pool: int) -> None:
        super().__init__()
        self.branch1 = _ConvNormRelu(before, one, kernel_size=1)
        self.branch2 = nn.Sequential(
            _ConvNormRelu(before, reduce3, kernel_size=1), _ConvNormRelu(reduce3, three, kernel_size=3, padding=1)
        )
        self.branch3 = nn.Sequential(
            _ConvNormRelu(before, reduce5, kernel_size=1), _ConvNormRelu(reduce5, five, kernel_size=3, padding=1)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, 1, padding=1, ceil_mode=True), _ConvNormRelu(before, pool, kernel_size=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


def googlenet_features(padding: int = 3) -> dict[str, nn.Module]:
    """The layers of GoogLeNet up to the average pool, by torchvision's names; `padding` is that of the first one."""
    return {
        "conv1": _ConvNormRelu(3, 64, kernel_size=7, stride=2, padding=padding),
        "maxpool1": nn.MaxPool2d(3, 2, ceil_mode=True),
        "conv2": _ConvNormRelu(64, 64, kernel_size=1),
        "conv3": _ConvNormRelu(64, 192, kernel_size=3, padding=1),
        "maxpool2": nn.MaxPool2d(3, 2, ceil_mode=True),
        "inception3a": Inception(192, 64, 96, 128, 16, 32, 32),
        "inception3b": Inception(256, 128, 128, 192, 32, 96, 64),
        "maxpool3": nn.MaxPool2d(3, 2, ceil_mode=True),
        "inception4a": Inception(480, 192, 96, 208, 16, 48, 64),
        "inception4b": Inception(512, 160, 112, 224, 24, 64, 64),
        "inception4c": Inception(512, 128, 128, 256, 24, 64, 64),
        "inception4d": Inception(512, 112, 144, 288, 32, 64, 64),
        "inception4e": Inception(528, 256, 160, 320, 32, 128, 128),
        "maxpool4": nn.MaxPool2d(2, 2, ceil_mode=True),
        "inception5a": Inception(832, 256, 160, 320, 32, 128, 128),
        "inception5b": Inception(832, 384, 192, 384, 48, 128, 128),
    }


class InputTransform(nn.Module):
    """From torchvision's normalisation to (x - 0.5) / 0.5, which GoogLeNet's published weights expect."""

    def forward(self, x: Tensor) -> Tensor:
        scale = x.new_tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1) / 0.5
        shift = (x.new_tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1) - 0.5) / 0.5
        return x * scale + shift


class GoogLeNet(nn.Module):
    """Inception v1 with batch normalisation, as torchvision's; without its two auxiliary classifiers.

    Args:
        num_classes: outputs of the dense layer.
        transform_input: renormalise the images first, as the published weights expect.
        dropout: before the dense layer.
    """

    def __init__(self, num_classes: int = 1000, *, transform_input: bool = False, dropout: float = 0.2) -> None:
        super().__init__()
        self.transform_input = transform_input
        for name, layer in googlenet_features().items():
            self.add_module(name, layer)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] images to [N, num_classes] scores."""
        if self.transform_input:
            x = InputTransform()(x)
        for name, layer in self.named_children():
            if name == "avgpool":
                break
            x = layer(x)
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        for key in [k for k in state_dict if k.startswith((f"{prefix}aux1.", f"{prefix}aux2."))]:
            del state_dict[key]  # heads of the training only
        super()._load_from_state_dict(state_dict, prefix, *args)


def googlenet(num_classes: int = 1000, *, transform_input: bool = False, dropout: float = 0.2) -> GoogLeNet:
    """9 inception modules and a dense layer."""
    return GoogLeNet(num_classes, transform_input=transform_input, dropout=dropout)
