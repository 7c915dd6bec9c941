"""Upsampled images that are not written until something needs their pixels.

Inside `deferring()`, bilinear ``F.interpolate`` returns a `Deferred`: a tensor of the full shape that remembers the
small one. Consumers that have a fused operator take the small one (cross-entropy, softmax, log_softmax, argmax,
addition, 1x1 convolution); any other function makes PyTorch's own full tensor first, once, and gets the numbers it
would have got.
"""

from .consumers import cross_entropy_of
from .mode import defer_score, deferring
from .recipes import Log, Site
from .tensor import Deferred

__all__ = ["Deferred", "Log", "Site", "cross_entropy_of", "defer_score", "deferring"]
