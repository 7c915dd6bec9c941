"""The story of FCN, run from its beginning: a classifier of digits becomes FCN-32s, 16s and 8s on scenes of digits.

U-Net learns the same scenes.
"""

from .networks import LONG, QUICK, Settings, classifier_accuracy, train_classifier, train_stages, train_unet
from .scenes import CLASSES, Scenes, Windows

__all__ = [
    "CLASSES",
    "LONG",
    "QUICK",
    "Scenes",
    "Settings",
    "Windows",
    "classifier_accuracy",
    "train_classifier",
    "train_stages",
    "train_unet",
]
