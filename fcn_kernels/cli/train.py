"""`fcn-kernels train`: FCN-32s, then 16s, then 8s, or another network, on a folder in the layout of PASCAL VOC."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from pathlib import Path

import torch

from .. import models

# Their names here: 32s, 16s, 8s, 8s-at-once, alexnet, googlenet, unet.
STAGES = {name.removeprefix("fcn").lstrip("_").replace("_", "-"): name for name in models.NETWORKS}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, help="folder with JPEGImages, SegmentationClass and ImageSets/Segmentation")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoints; a run in it is resumed")
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=["32s", "16s", "8s"], help="each starts from the one before"
    )
    parser.add_argument("--classes", type=int, default=21, metavar="C")
    parser.add_argument("--names", type=Path, metavar="FILE", help="a class name on each line, for the checkpoints")
    parser.add_argument("--init", type=Path, metavar="FILE", help="a classifier's state_dict, in torchvision's layout")
    parser.add_argument("--recipe", choices=("released", "paper"), default="paper", help="summed loss, or mean")
    parser.add_argument("--steps", type=int, default=100_000, metavar="N", help="per stage")
    parser.add_argument("--lr", type=float, help="instead of the recipe's learning rate")
    parser.add_argument("--batch", type=int, metavar="N", help="images per step, instead of the recipe's")
    parser.add_argument("--learn-upsampling", choices=("depthwise", "dense"), help="of the 2x stages (default: fixed)")
    parser.add_argument(
        "--transform",
        choices=models.TRANSFORMS,
        help="what --init expects (default: caffe; torchvision for unet)",
    )
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    parser.add_argument("--save-every", type=int, default=1000, metavar="N", help="steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.epilog = "With torchrun the images of a step are divided among the processes."


def run(args: argparse.Namespace) -> int:
    import torch.distributed as dist

    device = torch.device(args.device)
    if "RANK" in os.environ:  # torchrun
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        _train(args, device, first=int(os.environ.get("RANK", 0)) == 0)
    except (FileNotFoundError, ValueError) as error:
        print(f"fcn-kernels train: {error}", file=sys.stderr)
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def _train(args: argparse.Namespace, device: torch.device, first: bool) -> None:
    from .. import images, training

    alone = args.stages == ["unet"] and args.init is None
    if "unet" in args.stages and not alone:
        raise ValueError("unet starts from no other network: it must be the only stage, without --init")
    usual = "torchvision" if alone else "caffe"
    preprocessing = args.transform or usual
    transform = models.TRANSFORMS[preprocessing]
    names = None if args.names is None else args.names.read_text(encoding="utf-8").splitlines()
    if names is None and args.classes == len(images.VOC_CLASSES):
        names = images.VOC_CLASSES
    data = training.VOCFolder(args.data, "train", num_classes=args.classes, transform=transform)
    held_out = None
    if (args.data / "ImageSets" / "Segmentation" / "val.txt").exists():
        held_out = training.VOCFolder(args.data, "val", num_classes=args.classes, transform=transform)
    args.out.mkdir(parents=True, exist_ok=True)
    before = None
    for stage in args.stages:
        cls = models.NETWORKS[STAGES[stage]]
        recipes = training.RELEASED if args.recipe == "released" else training.PAPER
        if cls not in recipes:
            raise ValueError(f"there is no {args.recipe} recipe for {stage}")
        recipe = dataclasses.replace(
            recipes[cls],
            lr=recipes[cls].lr if args.lr is None else args.lr,
            batch=recipes[cls].batch if args.batch is None else args.batch,
        )
        learned = {"upsampling": args.learn_upsampling} if args.learn_upsampling and hasattr(cls, "skips") else {}
        if cls is models.UNet:
            learned = {"in_channels": 3, "borders": "mirror"}
        model = cls(args.classes, **learned)
        about = models.describe(model, preprocessing=preprocessing, class_names=names)
        if before is not None:
            models.copy_from_coarser(model, before)
        elif args.init is not None:
            models.copy_from_classifier(model, torch.load(args.init, map_location="cpu", weights_only=True))
        trainer = training.Trainer(
            model.to(device),
            data,
            recipe,
            seed=args.seed,
            checkpoint=args.out / f"{STAGES[stage]}.pt",
            save_every=args.save_every,
            autocast=torch.bfloat16 if args.bf16 else None,
            about=about,
        )
        name = "U-Net" if alone else f"FCN-{stage}"
        with _progress(name, trainer.step, args.steps, first) as report:
            trainer.run(args.steps, report)
        if first and held_out is not None:
            print(f"{name}: {training.evaluate(model, held_out)}", flush=True)
        before = model


@contextlib.contextmanager
def _progress(name: str, begun: int, steps: int, first: bool):
    """A bar on a terminal, a line every hundred steps elsewhere."""
    bar = None
    if first and sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            bar = tqdm(total=steps, initial=begun, desc=name, file=sys.stderr)

    def report(step: int, loss: float) -> None:
        if bar is not None:
            bar.update(1)
            bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
        elif first and (step % 100 == 0 or step == steps):
            print(f"{name}: step {step} of {steps}, loss {loss:.4g}", file=sys.stderr, flush=True)

    try:
        yield report
    finally:
        if bar is not None:
            bar.close()
