"""`fcn-kernels segment`: label the pixels of pictures with a trained network."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fcn_kernels import images, models

from ._options import usable_device

LEGEND = "legend.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="PNG or JPEG files, or folders of them")
    parser.add_argument("--weights", required=True, type=Path, metavar="W", help="a state_dict or checkpoint file")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the results go; made if needed")
    parser.add_argument(
        "--network", choices=models.NETWORKS, help="by default what the checkpoint says, or its tensors tell"
    )
    parser.add_argument("--padding", type=int, help="of the first convolution (default: the checkpoint's, or 100)")
    parser.add_argument(
        "--preprocessing",
        choices=models.TRANSFORMS,
        help="what the weights expect (default: the checkpoint's; or torchvision for GoogLeNet, U-Net, else caffe)",
    )
    parser.add_argument("--names", type=Path, help="a text file with a class name on each line, for the legend")
    parser.add_argument("--opacity", type=float, default=0.5, help="of the colours in the overlay (default 0.5)")
    parser.add_argument(
        "--tile", type=int, default=768, help="side of the tiles that a large image is computed in (default 768)"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")


def run(args: argparse.Namespace) -> int:
    """0: all pictures are labelled; 1: some could not be; 2: nothing was begun."""
    try:
        model, transform, names = prepare(args)
        jobs = plan(args.images, args.out)
        args.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"fcn-kernels segment: {error}", file=sys.stderr)
        return 2
    failed, counts = 0, torch.zeros(len(names), dtype=torch.int64)
    for number, (source, target) in enumerate(jobs, 1):
        start = time.perf_counter()
        try:
            image = images.read_image(source)
            labels = models.predict_tiles(model, image, transform, tile=args.tile)
            target.parent.mkdir(parents=True, exist_ok=True)
            images.save_labels(labels, target)
            images.save_image(images.overlay(image, labels, args.opacity), _overlay_of(target))
        except (ValueError, OSError, RuntimeError) as error:  # the last where memory runs out, say
            failed += 1
            reason = str(error) if str(source) in str(error) else f"{source}: {error}"
            print(f"[{number}/{len(jobs)}] {reason}", file=sys.stderr)
            continue
        found = torch.bincount(labels.flatten(), minlength=len(names))
        counts += found
        seconds = time.perf_counter() - start
        size = f"{image.shape[2]} x {image.shape[1]}"
        print(f"[{number}/{len(jobs)}] {source}: {size}, {seconds:.1f} s: {_shares(found, names)}", flush=True)
    if failed < len(jobs):
        images.save_legend(names, args.out / LEGEND, (counts / counts.sum()).tolist())
    if failed:
        print(f"{failed} of {len(jobs)} pictures could not be labelled", file=sys.stderr)
    return 1 if failed else 0


def prepare(args: argparse.Namespace) -> tuple[models.FCN | models.UNet, Callable[[Tensor], Tensor], Sequence[str]]:
    """The network, ready; what its images go through; the names of its classes."""
    if not 0 <= args.opacity <= 1:
        raise ValueError(f"--opacity must lie in [0, 1], got {args.opacity}")
    if args.tile < 1:
        raise ValueError(f"--tile must be at least 1, got {args.tile}")
    images.check()
    device = usable_device(args.device)
    checkpoint = models.read_checkpoint(args.weights)
    about = checkpoint.get("network", {})
    about = about if isinstance(about, Mapping) else {}
    state = models.state_dict_of(checkpoint)
    network = args.network or _said(about, "name", "--network", lambda v: v in tuple(models.NETWORKS))
    padding = args.padding
    if padding is None:
        padding = _said(about, "padding", "--padding", lambda v: type(v) is int and v >= 0, 100)
    model = models.build_network(state, network, padding=padding)
    if model.num_classes > 256:
        raise ValueError(f"a palette PNG holds 256 classes, the network has {model.num_classes}")
    if getattr(model, "in_channels", 3) != 3:
        raise ValueError(f"pictures have 3 channels, the network reads {model.in_channels}")
    models.load_checkpoint(model, state)
    usual = "torchvision" if isinstance(model, (models.FCNGoogLeNet, models.UNet)) else "caffe"
    known = tuple(models.TRANSFORMS)
    preprocessing = args.preprocessing or _said(about, "preprocessing", "--preprocessing", known.__contains__, usual)
    transform = models.TRANSFORMS[preprocessing]
    if args.names is not None:
        names = args.names.read_text(encoding="utf-8").splitlines()
    else:
        voc = model.num_classes == len(images.VOC_CLASSES)
        usual_names = images.VOC_CLASSES if voc else [f"class {k}" for k in range(model.num_classes)]
        names = _said(about, "class_names", "--names", _are_names, usual_names)
    if len(names) != model.num_classes:
        raise ValueError(f"the network has {model.num_classes} classes, but there are {len(names)} names")
    model = model.to(device).eval()
    if device.type == "cpu":  # else oneDNN holds two more copies of conv1_2's maps
        model = model.to(memory_format=torch.channels_last)
    return model, transform, names


def _said(about: Mapping, key: str, option: str, known: Callable[[object], bool], default: object = None) -> object:
    """What the checkpoint says of its network, or the default where it says nothing."""
    value = about.get(key)
    if value is None:
        return default
    if not known(value):
        raise ValueError(f"the checkpoint says {key} = {value!r}, which is of no use here: give {option}")
    return value


def _are_names(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


def plan(inputs: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """Each picture and the palette PNG that it becomes: its place below the folder given, or its name."""
    found: list[tuple[Path, Path]] = []
    for given in inputs:
        if given.is_dir():
            inside = sorted(p for p in given.rglob("*") if p.suffix.lower() in images.SUFFIXES and p.is_file())
            found += [(p, p.relative_to(given)) for p in inside if out.resolve() not in p.resolve().parents]
        else:
            found.append((given, Path(given.name)))
    if not found:
        raise ValueError(f"no PNG or JPEG files in {', '.join(map(str, inputs))}")
    jobs: dict[Path, Path] = {}
    for source, name in found:
        target = out / name.with_suffix(".png")
        if target in jobs:  # a.jpg and a.png
            target = out / name.with_name(f"{name.name}.png")
        if target in jobs or target == out / LEGEND:
            raise ValueError(f"{source} and {jobs.get(target, 'the legend')} would both become {target}")
        jobs[target] = source
    written = {p.resolve() for t in jobs for p in (t, _overlay_of(t))} | {(out / LEGEND).resolve()}
    for source, _ in found:
        if source.resolve() in written:
            raise ValueError(f"{source} would be overwritten by a result: choose another --out than {out}")
    return [(source, target) for target, source in jobs.items()]


def _overlay_of(target: Path) -> Path:
    return target.with_name(f"{target.stem}_overlay.jpg")


def _shares(counts: Tensor, names: Sequence[str]) -> str:
    """The three commonest classes."""
    order = counts.argsort(descending=True)[:3].tolist()
    total = counts.sum().item()
    return ", ".join(f"{names[k]} {100 * counts[k].item() / total:.1f} %" for k in order if counts[k] > 0)
