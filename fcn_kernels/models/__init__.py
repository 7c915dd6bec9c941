"""From a classifier to FCN-8s and U-Net: backbones, their conversion, and the networks on the fused operators."""

from .backbones import VGG, AlexNet, GoogLeNet, alexnet, googlenet, vgg11, vgg13, vgg16, vgg19
from .convolutionalize import Convolutionalized, convolutionalize
from .fcn import FCN, FCN8s, FCN8sAtOnce, FCN16s, FCN32s, FCNAlexNet, FCNGoogLeNet, Upscore
from .tiles import predict_tiles
from .transforms import TRANSFORMS, caffe_transform, torchvision_transform
from .unet import UNet
from .weights import (
    NETWORKS,
    build_network,
    copy_from_classifier,
    copy_from_coarser,
    describe,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    state_dict_of,
)

__all__ = [
    "FCN",
    "NETWORKS",
    "TRANSFORMS",
    "VGG",
    "AlexNet",
    "Convolutionalized",
    "FCN8s",
    "FCN8sAtOnce",
    "FCN16s",
    "FCN32s",
    "FCNAlexNet",
    "FCNGoogLeNet",
    "GoogLeNet",
    "UNet",
    "Upscore",
    "alexnet",
    "build_network",
    "caffe_transform",
    "convolutionalize",
    "copy_from_classifier",
    "copy_from_coarser",
    "describe",
    "googlenet",
    "load_checkpoint",
    "predict_tiles",
    "read_checkpoint",
    "save_checkpoint",
    "state_dict_of",
    "torchvision_transform",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
]
