"""FCN-32s, then 16s, then 8s, in a training loop that hides nothing.

    python examples/train.py                             # scenes of digits; a narrow classifier of digits comes first
    python examples/train.py VOC2012 --init vgg16.pth    # the published widths, on a folder in VOC's layout

`fcn-kernels train` does the same with batches, mixed precision, several processes and exact resuming.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from fcn_kernels import images, models, story, training

NARROW = {
    "blocks": (1, 1, 2, 2, 2),
    "channels": (16, 32, 48, 64, 96),
    "hidden": 128,
    "fc6_kernel": 3,
    "padding": 24,
    "dropout": 0.0,
}


class Digits(story.Scenes):
    """The scenes of `fcn-kernels demo`, as the networks read them."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, labels = super().__getitem__(index)
        return models.torchvision_transform(image), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, help="folder in VOC's layout; by default scenes of digits")
    parser.add_argument("--init", type=Path, help="VGG16's state_dict, in torchvision's layout")
    parser.add_argument("--steps", type=int, default=1000, help="images per network")
    parser.add_argument("--lr", type=float, default=1e-3, help="of Adam")
    parser.add_argument("--narrow", action="store_true", help="narrow networks on a folder, too")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of the checkpoints")
    args = parser.parse_args()

    if args.data is None:
        train, test = Digits("train", args.steps, (256, 256), seed=0), Digits("test", 20, (256, 256), seed=1)
        names = story.CLASSES
    else:
        transform, names = models.torchvision_transform, images.VOC_CLASSES
        train, test = (training.VOCFolder(args.data, split, transform=transform) for split in ("train", "val"))
    options = NARROW if args.narrow or args.data is None else {}

    torch.manual_seed(0)
    classifier = None
    if args.init is not None:
        classifier = torch.load(args.init, weights_only=True)
    elif args.data is None:
        settings = dataclasses.replace(story.QUICK, classifier_steps=min(story.QUICK.classifier_steps, args.steps))
        classifier = story.train_classifier(settings, 0, lambda what, step, steps, loss: None)
    coarser = None
    for make in (models.FCN32s, models.FCN16s, models.FCN8s):
        # The new score layers start at zero, everything else with what was learned before.
        model = make(len(names), **options)
        if coarser is not None:
            models.copy_from_coarser(model, coarser)
        elif classifier is not None:
            models.copy_from_classifier(model, classifier)
        else:
            initialize(model)  # learns, but needs far more steps

        optimizer = torch.optim.Adam(model.parameters(), args.lr)
        order = torch.randperm(len(train)).tolist()
        for step in range(args.steps):
            image, labels = train[order[step % len(order)]]
            loss = model.loss(image[None], labels[None], ignore_index=255)  # logits of the image's size are never made
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if (step + 1) % 100 == 0:
                print(f"{make.__name__}: step {step + 1} of {args.steps}, loss {loss.item():.3f}", flush=True)

        print(f"{make.__name__}: {training.evaluate(model.eval(), test)}", flush=True)
        about = models.describe(model, preprocessing="torchvision", class_names=names)
        file = args.out / f"{about['name']}.pt"
        models.save_checkpoint({"model_state_dict": model.state_dict(), "network": about}, file)
        print(f"{file}: label pictures with fcn-kernels segment IMAGE --weights {file} --out DIR")
        coarser = model


def initialize(model: torch.nn.Module) -> None:
    """Variances that ReLU keeps (He et al., 2015), except for the scores, which start at zero."""
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Conv2d) and not name.startswith("score"):
            torch.nn.init.kaiming_normal_(layer.weight)
            torch.nn.init.zeros_(layer.bias)


if __name__ == "__main__":
    main()
