"""torchvision's FCN and DeepLabV3 with the criterion of its reference script, before and after `fcn_kernels.fuse`.

python examples/torchvision_fcn.py --model deeplabv3_resnet50 --size 520
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import segmentation

import fcn_kernels
from fcn_kernels.evaluation import evaluate

MODELS = ("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large")


def criterion(outputs: dict[str, Tensor], target: Tensor) -> Tensor:
    """As references/segmentation/train.py has it; it does not know that what it reads is deferred."""
    losses = {name: F.cross_entropy(x, target, ignore_index=255) for name, x in outputs.items()}
    return losses["out"] + 0.5 * losses["aux"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--size", type=int, default=520)
    args = parser.parse_args()

    torch.manual_seed(0)
    model = getattr(segmentation, args.model)(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    image, target = torch.randn(2, 3, args.size, args.size), torch.randint(0, 21, (2, args.size, args.size))
    target[:, :8] = 255
    for name in ("as it is", "fused"):
        if name == "fused":
            print(fcn_kernels.fuse(model))
        model.train()
        model.zero_grad()
        torch.manual_seed(1)  # dropout
        outputs = model(image)
        start = time.perf_counter()
        loss = criterion(outputs, target)
        heads = list(model.classifier[-1].parameters())
        torch.autograd.grad(loss, heads, retain_graph=True)
        print(f"{name}: loss {loss.item():.6f}; criterion and its gradient {time.perf_counter() - start:.3f} s")
    print(evaluate(model, [(image, target)], 21))


if __name__ == "__main__":
    main()
