"""PyTorch's functions that take a computation instead of its result; NotImplemented where they need the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.upsample_add import upsample_add
from ..ops.upsample_binary_cross_entropy import upsample_binary_cross_entropy
from ..ops.upsample_sigmoid import upsample_sigmoid
from .recipes import Maximum, Scored, Upsampled
from .tensor import HANDLERS, Deferred, handles, plain, recipe_of


def _note(recipe: Upsampled | Scored, consumer: str) -> None:
    recipe.site.note(consumer, recipe.describe())


def _half_autocast(x: Tensor) -> bool:
    """Autocast would widen the input of a softmax (on the CPU it does not)."""
    return (
        x.device.type != "cpu" and torch.is_autocast_enabled(x.device.type) and x.dtype in (torch.half, torch.bfloat16)
    )


def _over_classes(x: Deferred, dim: int | None) -> bool:
    return isinstance(dim, int) and -x.ndim <= dim < x.ndim and dim % x.ndim == x._class_dim


def _softmax(name: str, x: Any, dim: Any, dtype: torch.dtype | None) -> Any:
    recipe = recipe_of(x)
    if recipe is None or dtype not in (None, x.dtype) or not _over_classes(x, dim) or _half_autocast(x):
        return NotImplemented
    _note(recipe, name)
    result = getattr(recipe, name)()
    return result if x._class_dim else result[0]


def _make_functional(name: str) -> Callable:
    def handler(input: Any, dim: Any = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Any:
        return _softmax(name, input, dim, dtype)

    return handler


def _make_method(name: str) -> Callable:
    def handler(input: Any, dim: Any = None, dtype: torch.dtype | None = None) -> Any:
        return _softmax(name, input, dim, dtype)

    return handler


for _name in ("softmax", "log_softmax"):
    HANDLERS[getattr(F, _name)] = _make_functional(_name)
    for _function in (getattr(torch, _name), getattr(torch.Tensor, _name), getattr(torch.special, _name)):
        HANDLERS[_function] = _make_method(_name)


@handles(torch.argmax, torch.Tensor.argmax)
def _argmax(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    recipe = recipe_of(input)
    if recipe is None or not _over_classes(input, dim):
        return NotImplemented
    _note(recipe, "argmax")
    labels = recipe.argmax()
    if not input._class_dim:
        return labels if keepdim else labels[0]
    return labels.unsqueeze(1) if keepdim else labels


@handles(torch.max, torch.Tensor.max)
def _max(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    recipe = recipe_of(input)
    if recipe is None or not input._class_dim or not _over_classes(input, dim):
        return NotImplemented
    labels = _argmax(input, dim, keepdim)
    return torch.return_types.max((Deferred.of(Maximum(recipe, keepdim)), labels))


@handles(torch.topk, torch.Tensor.topk)
def _topk(input: Any, k: int, dim: Any = -1, largest: bool = True, sorted: bool = True) -> Any:
    if k != 1 or not largest:
        return NotImplemented
    found = _max(input, dim, True)
    return found if found is NotImplemented else torch.return_types.topk(tuple(found))


def cross_entropy_of(input: Any, target: Any, **options: Any) -> Tensor | None:
    """`upsample_cross_entropy` (or `score_cross_entropy`) of a Deferred whose shape fits the labels, else None."""
    recipe = recipe_of(input)
    if (
        recipe is None
        or not input._class_dim
        or type(target) is not Tensor
        or target.dtype not in (torch.int64, torch.uint8)
        or target.shape != (input.shape[0], *input.shape[2:])
        or target.device != input.device
    ):
        return None
    _note(recipe, "cross_entropy")
    loss = recipe.cross_entropy(target, **options)
    # The operator's loss of half types is float32, as under autocast; plain PyTorch rounds it.
    return loss if torch.is_autocast_enabled(input.device.type) else loss.to(input.dtype)


@handles(F.cross_entropy)
def _cross_entropy(
    input: Any,
    target: Any,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    unusual = size_average is not None or reduce is not None or reduction not in ("none", "mean", "sum")
    if unusual or (weight is not None and (weight.requires_grad or weight.dtype != input.dtype)):
        return NotImplemented
    options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
    loss = cross_entropy_of(input, target, weight=weight, **options)
    return NotImplemented if loss is None else loss


@handles(torch.sigmoid, torch.Tensor.sigmoid, torch.special.expit, F.sigmoid)
def _sigmoid(input: Any) -> Any:
    recipe = recipe_of(input)
    if not isinstance(recipe, Upsampled) or not input._class_dim or _half_autocast(input):
        return NotImplemented
    _note(recipe, "sigmoid")
    return upsample_sigmoid(recipe.x, recipe.sampling)


@handles(F.binary_cross_entropy_with_logits)
def _binary_cross_entropy(
    input: Any,
    target: Any,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Any:
    recipe = recipe_of(input)
    if (
        not isinstance(recipe, Upsampled)
        or not input._class_dim
        or any(option is not None for option in (weight, size_average, reduce))
        or reduction not in ("none", "mean", "sum")
        or type(target) is not Tensor
        or target.dtype != input.dtype
        or target.shape != input.shape
        or target.device != input.device
        or target.requires_grad
        or (pos_weight is not None and (pos_weight.requires_grad or pos_weight.numel() != 1 or input.shape[1] != 1))
    ):
        return NotImplemented
    _note(recipe, "binary_cross_entropy_with_logits")
    pos_weight = None if pos_weight is None else pos_weight.reshape(1)
    loss = upsample_binary_cross_entropy(recipe.x, target, recipe.sampling, pos_weight=pos_weight, reduction=reduction)
    return loss if torch.is_autocast_enabled(input.device.type) else loss.to(input.dtype)


@handles(torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__)
def _add(input: Any, other: Any, *, alpha: float = 1, out: Tensor | None = None) -> Any:
    """Addition reads one image and writes one: with a Deferred on one side that is `upsample_add`."""
    if alpha != 1 or out is not None:
        return NotImplemented
    for coarse, fine in ((input, other), (other, input)):
        recipe = recipe_of(coarse)
        if (
            isinstance(recipe, Upsampled)
            and type(fine) in (Tensor, nn.Parameter, Deferred)
            and fine.shape == recipe.size
        ):
            if fine.dtype != coarse.dtype or fine.device != coarse.device:
                return NotImplemented
            _note(recipe, "add")
            return upsample_add(recipe.x, plain(fine), recipe.sampling)
    return NotImplemented


@handles(torch.conv2d)
def _conv2d(
    input: Any,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Bilinear weights sum to one, so a 1x1 convolution commutes with upsampling, and has fewer pixels before it."""
    recipe = recipe_of(input)
    if (
        not isinstance(recipe, Upsampled)
        or not input._class_dim
        or weight.shape[2:] != (1, 1)
        or groups != 1
        or stride not in (1, (1, 1), [1, 1])
        or padding not in (0, (0, 0), [0, 0], "valid", "same")
        or recipe.x.shape[2:].numel() >= recipe.size[2] * recipe.size[3]
    ):
        return NotImplemented
    _note(recipe, "1x1 convolution")
    return Deferred.of(recipe.on(F.conv2d(recipe.x, weight, bias)))


@handles(torch.Tensor.detach)
def _detach(input: Deferred) -> Any:
    recipe = recipe_of(input)
    return NotImplemented if recipe is None else Deferred._make(recipe.detach(), not input._class_dim)


@handles(torch.Tensor.__getitem__)
def _getitem(input: Any, index: Any) -> Any:
    """One image of a batch."""
    recipe = recipe_of(input)
    if recipe is None or type(index) is not int or not input._class_dim or not -len(input) <= index < len(input):
        return NotImplemented
    if recipe.needs_grad() and torch.is_grad_enabled():
        return NotImplemented
    return Deferred._make(recipe.image(index % len(input)).detach(), single=True)


@handles(torch.Tensor.float)
def _float(input: Any) -> Any:
    return input if recipe_of(input) is not None and input.dtype == torch.float32 else NotImplemented


@handles(torch.Tensor.cpu)
def _cpu(input: Any) -> Any:
    return input if recipe_of(input) is not None and input.device.type == "cpu" else NotImplemented
