"""Weights from elsewhere: a classifier's, a coarser network's, a checkpoint's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .fcn import FCN, FCNGoogLeNet, Upscore

__all__ = ["copy_from_classifier", "copy_from_coarser", "load_checkpoint", "save_checkpoint"]


@torch.no_grad()
def copy_from_classifier(model: FCN, classifier: nn.Module | Mapping[str, Tensor]) -> list[str]:
    """Start a network from the weights of a classifier: all but the scores and upsamplings.

    Convolutions are taken in order, ``classifier.0`` becomes fc6 and ``classifier.3`` fc7 (``1``, ``4`` for AlexNet),
    reshaped; GoogLeNet's layers by name. VGG's batch normalisation is folded into the convolutions before it.

    Args:
        model: FCN-32s, 16s, 8s: VGG, with or without batch normalisation. FCNAlexNet: an AlexNet with groups, as the
            authors trained it. FCNGoogLeNet: GoogLeNet.
        classifier: the module, or its state_dict in torchvision's layout.

    Returns:
        The names of the parameters that were set.

    Raises:
        ValueError: with the first tensors that do not fit; nothing is changed then.
    """
    name = "copy_from_classifier"
    source = dict(classifier.state_dict() if isinstance(classifier, nn.Module) else classifier)
    own = model.state_dict()
    if isinstance(model, FCNGoogLeNet):
        pairs = {k: source[k] for k in own if k in source and not k.startswith(("score", "upscore"))}
        missing = [k for k in own if k not in source and not k.startswith(("score", "upscore"))]
        if missing:
            raise ValueError(f"{name}: the classifier lacks {', '.join(missing[:4])}: is it GoogLeNet?")
    else:
        source = _without_batch_norm(source)
        features = [k for k in source if k.startswith("features.") and k.endswith(".weight")]
        targets = [k for k in own if k.startswith("conv") and k.endswith(".weight")]
        dense = [k for k in source if k.startswith("classifier.") and k.endswith(".weight") and source[k].dim() == 2]
        if len(features) != len(targets) or len(dense) < 2:
            raise ValueError(
                f"{name}: {type(model).__name__} has {len(targets)} convolutions and 2 dense layers, "
                f"the classifier {len(features)} and {max(len(dense) - 1, 0)} before its last"
            )
        weights = dict(zip([*targets, "fc6.weight", "fc7.weight"], [*features, *dense[:2]], strict=True))
        pairs = {}
        for ours, theirs in weights.items():
            pairs[ours] = source[theirs]
            pairs[ours.replace("weight", "bias")] = source[theirs.removesuffix("weight") + "bias"]
    wrong = [
        f"{k}: {list(own[k].shape)} here, {list(t.shape)} there"
        for k, t in pairs.items()
        if own[k].numel() != t.numel()
    ]
    if wrong:
        raise ValueError(f"{name}: {'; '.join(wrong[:4])}")
    for key, tensor in pairs.items():
        own[key].copy_(tensor.view(own[key].shape))
    return list(pairs)


def _without_batch_norm(source: dict[str, Tensor], eps: float = 1e-5) -> dict[str, Tensor]:
    """Each ``features.N`` convolution with the normalisation ``features.N+1`` folded in, as it acts in evaluation:
    ``g (w * x + b - m) / sqrt(v + eps) + h``."""
    folded = dict(source)
    for key in [k for k in source if k.startswith("features.") and k.endswith(".running_mean")]:
        norm = key.removesuffix(".running_mean")
        conv = f"features.{int(norm.split('.')[1]) - 1}"
        scale = folded.pop(f"{norm}.weight") / (folded.pop(f"{norm}.running_var") + eps).sqrt()
        mean, shift = folded.pop(key), folded.pop(f"{norm}.bias")
        folded.pop(f"{norm}.num_batches_tracked", None)
        folded[f"{conv}.weight"] = folded[f"{conv}.weight"] * scale.view(-1, 1, 1, 1)
        folded[f"{conv}.bias"] = (folded[f"{conv}.bias"] - mean) * scale + shift
    return folded


@torch.no_grad()
def copy_from_coarser(model: FCN, coarser: FCN | Mapping[str, Tensor]) -> list[str]:
    """Start a network from a coarser one: 16s from 32s, 8s from 16s. Layers of one name; the others keep their start.

    Returns:
        The names of the parameters that were set.

    Raises:
        ValueError: a tensor of one name has two shapes, or nothing has a common name; nothing is changed then.
    """
    source = coarser.state_dict() if isinstance(coarser, nn.Module) else coarser
    own = model.state_dict()
    common = [k for k in own if k in source]
    wrong = [f"{k}: {list(own[k].shape)} here, {list(source[k].shape)} there" for k in common]
    wrong = [text for k, text in zip(common, wrong, strict=True) if own[k].shape != source[k].shape]
    if wrong or not common:
        raise ValueError(f"copy_from_coarser: {'; '.join(wrong[:4]) or 'no layer has a common name'}")
    for key in common:
        own[key].copy_(source[key])
    return common


def load_checkpoint(model: nn.Module, file: str | os.PathLike | Mapping) -> dict[str, str]:
    """Load a state_dict, or a checkpoint dict that holds one, from this package or from torchfcn.

    An upsampling weight is taken for fixed only if it is diagonal and bilinear; else its layer becomes a learned one.

    Args:
        model: the network of the checkpoint.
        file: a path, read with ``weights_only=True``, or what such a file holds: a bare state_dict, or a dict with
            `model_state_dict` (or `state_dict`, or `model`).

    Returns:
        What each upsampling is after loading: "fixed", "depthwise" or "dense".

    Raises:
        ValueError: tensors that are missing, unknown or of another shape, by name; nothing is changed then.
    """
    name = "load_checkpoint"
    state = torch.load(file, map_location="cpu", weights_only=True) if not isinstance(file, Mapping) else file
    for key in ("model_state_dict", "state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{name}: neither a state_dict nor a dict with model_state_dict")
    own = model.state_dict()
    upscores = {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, Upscore)}
    complaints = [f"{k} is missing" for k in own if k not in state] + [f"{k} is unknown" for k in state if k not in own]
    for key, tensor in state.items():
        if key in own and key not in upscores and own[key].shape != tensor.shape:
            complaints.append(f"{key} is {list(tensor.shape)}, the model has {list(own[key].shape)}")
        if key in upscores and tensor.shape[0] != upscores[key].channels:
            complaints.append(f"{key} has {tensor.shape[0]} classes, the model {upscores[key].channels}")
    if complaints:
        more = f" and {len(complaints) - 6} more" if len(complaints) > 6 else ""
        raise ValueError(f"{name}: {'; '.join(complaints[:6])}{more}")
    kinds = {key.removesuffix(".weight"): layer.use(state[key]) for key, layer in upscores.items()}
    model.load_state_dict({k: v for k, v in state.items() if k not in upscores}, strict=False)
    return kinds


def save_checkpoint(state: Mapping, file: str | os.PathLike) -> None:
    """``torch.save`` that never leaves a broken file: written beside it, synced to the disk, then renamed."""
    path = Path(file)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            torch.save(state, out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name, too
    finally:
        os.close(folder)
