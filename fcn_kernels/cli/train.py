"""`fcn-kernels train`: FCN-32s, then 16s, then 8s, or another network, on a folder in the layout of PASCAL VOC."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from .. import images, models, training
from ._options import positive, usable_device

# Their names here: 32s, 16s, 8s, 8s-at-once, alexnet, googlenet, unet.
STAGES = {name.removeprefix("fcn").lstrip("_").replace("_", "-"): name for name in models.NETWORKS}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, help="folder with JPEGImages, SegmentationClass and ImageSets/Segmentation")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoints; a run in it is resumed")
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=["32s", "16s", "8s"], help="each starts from the one before"
    )
    parser.add_argument("--classes", type=positive, default=21, metavar="C", help="background included (default: 21)")
    parser.add_argument("--names", type=Path, metavar="FILE", help="a class name on each line, for the checkpoints")
    parser.add_argument("--init", type=Path, metavar="FILE", help="a classifier's state_dict, in torchvision's layout")
    parser.add_argument("--recipe", choices=("released", "paper"), default="paper", help="summed loss, or mean")
    parser.add_argument("--steps", type=positive, default=100_000, metavar="N", help="per stage (default: 100000)")
    parser.add_argument("--lr", type=float, help="instead of the recipe's learning rate")
    parser.add_argument("--batch", type=positive, metavar="N", help="images per step, instead of the recipe's")
    parser.add_argument("--learn-upsampling", choices=("depthwise", "dense"), help="of the 2x stages (default: fixed)")
    parser.add_argument(
        "--batch-norm", action="store_true", help="in unet: it learns from random weights in fewer steps"
    )
    parser.add_argument(
        "--preprocessing",
        choices=models.TRANSFORMS,
        help="what --init expects (default: torchvision for googlenet and unet, else caffe)",
    )
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    parser.add_argument("--save-every", type=positive, default=1000, metavar="N", help="steps (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the images and of dropout (default: 0)")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, ... (default: cuda where there is a GPU)",
    )
    parser.epilog = "With torchrun the images of a step are divided among the processes."


class Stage(NamedTuple):
    name: str  # as on the command line
    network: type[models.FCN | models.UNet]
    recipe: training.Recipe


class Plan(NamedTuple):
    """What the arguments ask for, checked."""

    stages: list[Stage]
    start: models.FCN | models.UNet  # the first stage's network
    data: training.VOCFolder
    held_out: training.VOCFolder | None
    preprocessing: str
    names: list[str] | None
    device: torch.device


def run(args: argparse.Namespace) -> int:
    """0: trained; 1: it ended on the way; 2: nothing was begun."""
    import torch.distributed as dist

    try:
        plan = prepare(args)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"fcn-kernels train: {error}", file=sys.stderr)
        return 2
    if "RANK" in os.environ:  # torchrun
        if plan.device.type == "cuda":
            torch.cuda.set_device(plan.device)
        dist.init_process_group("nccl" if plan.device.type == "cuda" else "gloo")
    try:
        _train(args, plan, first=int(os.environ.get("RANK", 0)) == 0)
    except (ValueError, OSError) as error:
        print(f"fcn-kernels train: {error}", file=sys.stderr)
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def prepare(args: argparse.Namespace) -> Plan:
    if args.classes > training.voc.IGNORE:
        raise ValueError(f"--classes must be at most {training.voc.IGNORE}, the label of what is not labelled")
    stages = _stages(args)
    usual = "torchvision" if args.stages[0] in ("googlenet", "unet") else "caffe"
    preprocessing = args.preprocessing or usual
    names = None if args.names is None else args.names.read_text(encoding="utf-8").splitlines()
    if names is None and args.classes == len(images.VOC_CLASSES):
        names = list(images.VOC_CLASSES)
    if names is not None and len(names) != args.classes:
        raise ValueError(f"there are {args.classes} classes, but {len(names)} names")
    own = "RANK" in os.environ and args.device.startswith("cuda")  # torchrun: a GPU for each process
    device = usable_device(f"cuda:{os.environ['LOCAL_RANK']}" if own else args.device)
    options = {"num_classes": args.classes, "transform": models.TRANSFORMS[preprocessing]}
    data, held_out = training.VOCFolder(args.data, "train", **options), None
    if (args.data / "ImageSets" / "Segmentation" / "val.txt").exists():
        held_out = training.VOCFolder(args.data, "val", **options)
    start = _network(args, stages[0])
    if args.init is not None:
        models.copy_from_classifier(start, models.state_dict_of(models.read_checkpoint(args.init)))
    args.out.mkdir(parents=True, exist_ok=True)
    return Plan(stages, start, data, held_out, preprocessing, names, device)


def _stages(args: argparse.Namespace) -> list[Stage]:
    recipes = training.RELEASED if args.recipe == "released" else training.PAPER
    stages = []
    for name in args.stages:
        network = models.NETWORKS[STAGES[name]]
        if network not in recipes:
            raise ValueError(f"there is no {args.recipe} recipe for {name}")
        if len(args.stages) > 1 and not hasattr(network, "skips"):
            raise ValueError(f"{name} starts from no other network, and none from it: it must be the only stage")
        recipe = recipes[network]
        lr, batch = (b if a is None else a for a, b in ((args.lr, recipe.lr), (args.batch, recipe.batch)))
        stages.append(Stage(name, network, dataclasses.replace(recipe, lr=lr, batch=batch)))
    if args.init is not None and args.stages == ["unet"]:
        raise ValueError("unet starts from no classifier: leave --init out")
    if args.batch_norm and args.stages != ["unet"]:
        raise ValueError(f"--batch-norm is of unet, not of {', '.join(args.stages)}")
    if args.learn_upsampling and not any(getattr(stage.network, "skips", ()) for stage in stages):
        raise ValueError(f"--learn-upsampling is of the 2x stages, and {', '.join(args.stages)} has none")
    return stages


def _network(args: argparse.Namespace, stage: Stage) -> models.FCN | models.UNet:
    if issubclass(stage.network, models.UNet):
        return stage.network(args.classes, in_channels=3, batch_norm=args.batch_norm, borders="mirror")
    learned = args.learn_upsampling and hasattr(stage.network, "skips")
    return stage.network(args.classes, **({"upsampling": args.learn_upsampling} if learned else {}))


def _train(args: argparse.Namespace, plan: Plan, first: bool) -> None:
    before = None
    for stage in plan.stages:
        model = plan.start
        if before is not None:
            model = _network(args, stage)
            models.copy_from_coarser(model, before)
        trainer = training.Trainer(
            model.to(plan.device),
            plan.data,
            stage.recipe,
            seed=args.seed,
            checkpoint=args.out / f"{STAGES[stage.name]}.pt",
            save_every=args.save_every,
            autocast=torch.bfloat16 if args.bf16 else None,
            about=models.describe(model, preprocessing=plan.preprocessing, class_names=plan.names),
        )
        title = "U-Net" if stage.name == "unet" else f"FCN-{stage.name}"
        with _progress(title, trainer.step, args.steps, first) as report:
            trainer.run(args.steps, report)
        if first and plan.held_out is not None:
            print(f"{title}: {training.evaluate(model, plan.held_out)}", flush=True)
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
