"""Weights from elsewhere: a classifier's, a coarser network's, a checkpoint's."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .._files import replacing
from .fcn import FCN, FCN8s, FCN8sAtOnce, FCN16s, FCN32s, FCNAlexNet, FCNGoogLeNet, Upscore
from .transforms import TRANSFORMS
from .unet import UNet

__all__ = [
    "NETWORKS",
    "build_network",
    "copy_from_classifier",
    "copy_from_coarser",
    "describe",
    "load_checkpoint",
    "read_checkpoint",
    "save_checkpoint",
    "state_dict_of",
]

NETWORKS: dict[str, type[FCN | UNet]] = {
    "fcn32s": FCN32s,
    "fcn16s": FCN16s,
    "fcn8s": FCN8s,
    "fcn8s_at_once": FCN8sAtOnce,
    "fcn_alexnet": FCNAlexNet,
    "fcn_googlenet": FCNGoogLeNet,
    "unet": UNet,
}
_TOKENS = (  # the first tensor that is there tells the network
    ("upscore8.weight", "fcn8s"),
    ("upscore16.weight", "fcn16s"),
    ("inception5b.branch1.conv.weight", "fcn_googlenet"),
    ("down.0.conv1.weight", "unet"),
    ("conv1_1.weight", "fcn32s"),
    ("conv1.weight", "fcn_alexnet"),
)


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
        biases = {o.replace("weight", "bias"): t.removesuffix("weight") + "bias" for o, t in weights.items()}
        missing = [key for key in biases.values() if key not in source]
        if missing:
            raise ValueError(f"{name}: the classifier lacks {', '.join(missing[:4])}")
        pairs = {ours: source[theirs] for ours, theirs in (weights | biases).items()}
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
        mean = folded.pop(key)
        # A normalisation may have no g and h, a convolution before it no b.
        g, h = (folded.pop(f"{norm}.{k}", own) for k, own in (("weight", torch.ones(())), ("bias", torch.zeros(()))))
        missing = [k for k in (f"{norm}.running_var", f"{conv}.weight") if k not in folded]
        if missing:
            raise ValueError(f"copy_from_classifier: the classifier has {key}, but lacks {', '.join(missing)}")
        scale = g / (folded.pop(f"{norm}.running_var") + eps).sqrt()
        folded.pop(f"{norm}.num_batches_tracked", None)
        folded[f"{conv}.weight"] = folded[f"{conv}.weight"] * scale.view(-1, 1, 1, 1)
        folded[f"{conv}.bias"] = (folded.get(f"{conv}.bias", torch.zeros(())) - mean) * scale + h
    return folded


@torch.no_grad()
def copy_from_coarser(model: FCN, coarser: FCN | Mapping[str, Tensor]) -> list[str]:
    """Start a network from a coarser one: 16s from 32s, 8s from 16s. Layers of one name; the others keep their start.

    An upsampling becomes a learned one where the coarser network's was learned (see `Upscore.use`).

    Returns:
        The names of the parameters that were set.

    Raises:
        ValueError: a tensor of one name has two shapes, or nothing has a common name; nothing is changed then.
    """
    source = coarser.state_dict() if isinstance(coarser, nn.Module) else coarser
    own = model.state_dict()
    upscores = {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, Upscore)}
    for key, layer in upscores.items():
        if key in source and source[key].shape[0] != layer.channels:
            raise ValueError(f"copy_from_coarser: {key} has {source[key].shape[0]} classes, the model {layer.channels}")
    upsamplings = [k for k in upscores if k in source]
    common = [k for k in own if k in source and k not in upscores]
    wrong = [f"{k}: {list(own[k].shape)} here, {list(source[k].shape)} there" for k in common]
    wrong = [text for k, text in zip(common, wrong, strict=True) if own[k].shape != source[k].shape]
    if wrong or not common:
        raise ValueError(f"copy_from_coarser: {'; '.join(wrong[:4]) or 'no layer has a common name'}")
    for key in common:
        own[key].copy_(source[key])
    for key in upsamplings:
        upscores[key].use(source[key])
    return [*common, *upsamplings]


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
    state = state_dict_of(read_checkpoint(file))
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
    with replacing(file) as out:
        torch.save(state, out)


def describe(
    model: FCN | UNet, *, preprocessing: str | None = None, class_names: Sequence[str] | None = None
) -> dict[str, object]:
    """What a checkpoint's entry `network` tells, so that `fcn-kernels segment` needs no flags.

    Args:
        model: of a class in `NETWORKS`.
        preprocessing: a key of `TRANSFORMS`: what the images went through that it was trained on.
        class_names: a name for each class.

    Returns:
        "name", and as far as they are known "padding", "preprocessing" and "class_names".

    Raises:
        ValueError: another class of network, another preprocessing, or names that are not as many as the classes.
    """
    names = {network: name for name, network in NETWORKS.items()}
    name = next((names[cls] for cls in type(model).__mro__ if cls in names), None)
    if name is None:
        raise ValueError(f"describe: {type(model).__name__} is none of the networks known here ({', '.join(NETWORKS)})")
    if preprocessing is not None and preprocessing not in TRANSFORMS:
        raise ValueError(f"describe: preprocessing must be one of {', '.join(TRANSFORMS)}, got {preprocessing!r}")
    about: dict[str, object] = {"name": name}
    if hasattr(model, "conv1_1"):
        about["padding"] = model.conv1_1.padding[0]
    if preprocessing is not None:
        about["preprocessing"] = preprocessing
    if class_names is not None:
        if len(class_names) != model.num_classes:
            raise ValueError(f"describe: the network has {model.num_classes} classes, got {len(class_names)} names")
        about["class_names"] = list(class_names)
    return about


def build_network(state: Mapping[str, Tensor], name: str | None = None, *, padding: int = 100) -> FCN | UNet:
    """A network of the layers, widths and classes of a state_dict; its weights are still to be loaded.

    Args:
        state: names and shapes tell 32s, 16s, 8s, AlexNet, GoogLeNet and U-Net (made with mirrored borders) apart.
        name: a key of `NETWORKS`, where the names do not tell: "fcn8s_at_once" has those of "fcn8s".
        padding: of the first convolution, for the networks on VGG.

    Raises:
        ValueError: the state_dict is of another network.
    """
    found = next((network for key, network in _TOKENS if key in state), None)
    scores = "score.bias" if found == "unet" else "score_fr.bias"
    if found is None or scores not in state:
        raise ValueError(
            f"build_network: this state_dict is of no network known here ({', '.join(NETWORKS)}); its first tensors "
            f"are {', '.join(list(state)[:4]) or 'none'}"
        )
    name = found if name is None else name
    if name not in NETWORKS:
        raise ValueError(f"build_network: name must be one of {', '.join(NETWORKS)}, got {name!r}")
    if name.removesuffix("_at_once") != found:
        raise ValueError(f"build_network: this state_dict is of {found}, not of {name}")
    classes = state[scores].shape[0]
    if found == "unet":
        width, in_channels = state["down.0.conv1.weight"].shape[:2]
        depth = sum(f"up.{level}.weight" in state for level in range(len(state)))
        norm = "down.0.norm1.weight" in state
        return UNet(classes, in_channels=in_channels, width=width, depth=depth, batch_norm=norm, borders="mirror")
    if not issubclass(NETWORKS[name], FCN32s | FCN16s | FCN8s):
        return NETWORKS[name](classes)
    firsts = [f"conv{block}_1.weight" for block in range(1, 6)]
    missing = [key for key in (*firsts, "fc6.weight") if key not in state]
    if missing:
        raise ValueError(f"build_network: {', '.join(missing)} missing from this state_dict of {name}")
    return NETWORKS[name](
        classes,
        padding=padding,
        blocks=[sum(f"conv{block}_{i}.weight" in state for i in range(1, 10)) for block in range(1, 6)],
        channels=[state[key].shape[0] for key in firsts],
        hidden=state["fc6.weight"].shape[0],
        fc6_kernel=state["fc6.weight"].shape[2],
    )


def read_checkpoint(file: str | os.PathLike | Mapping) -> Mapping:
    """What a checkpoint file holds, read with ``weights_only=True``: nothing in it is executed.

    Raises:
        ValueError: it is not a file of torch.save, or is truncated.
    """
    if isinstance(file, Mapping):
        return file
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged bytes raise what they happen to hit
        raise ValueError(f"{os.fspath(file)}: not a readable checkpoint: {_why_unreadable(error)}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{os.fspath(file)}: holds a {type(content).__name__}, neither a state_dict nor a checkpoint")
    return content


def _why_unreadable(error: Exception) -> str:
    """A line. For a pickle torch's own recommends to try again with ``weights_only=False``, which executes it."""
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            return "it is damaged, or not written by torch.save"
        return f"it holds {found[1]}, and only tensors and plain values are read"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def state_dict_of(checkpoint: Mapping) -> Mapping[str, Tensor]:
    """The state_dict that a checkpoint is, or holds as `model_state_dict`, `state_dict` or `model`."""
    for key in ("model_state_dict", "state_dict", "model"):
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    if not all(isinstance(v, Tensor) for v in checkpoint.values()):
        raise ValueError("load_checkpoint: neither a state_dict nor a dict with model_state_dict")
    return checkpoint
