"""From a classifier to FCN-8s: backbones, their conversion, and the networks on the fused operators."""

from .backbones import VGG, AlexNet, GoogLeNet, alexnet, googlenet, vgg11, vgg13, vgg16, vgg19
from .convolutionalize import Convolutionalized, convolutionalize
from .fcn import FCN, FCN8s, FCN8sAtOnce, FCN16s, FCN32s, FCNAlexNet, FCNGoogLeNet, Upscore
from .transforms import caffe_transform, torchvision_transform
from .weights import copy_from_classifier, copy_from_coarser, load_checkpoint, save_checkpoint

__all__ = [
    "FCN",
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
    "Upscore",
    "alexnet",
    "caffe_transform",
    "convolutionalize",
    "copy_from_classifier",
    "copy_from_coarser",
    "googlenet",
    "load_checkpoint",
    "save_checkpoint",
    "torchvision_transform",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
]
