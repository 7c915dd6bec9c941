"""segmentation_models_pytorch: FPN with its soft cross-entropy, before and after `fcn_kernels.fuse`.

python examples/segmentation_models_pytorch_fpn.py --size 512
"""

from __future__ import annotations

import argparse
import time

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.losses import SoftCrossEntropyLoss

import fcn_kernels
from fcn_kernels.evaluation import evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--size", type=int, default=512)
    args = parser.parse_args()

    torch.manual_seed(0)
    model = smp.FPN("resnet18", encoder_weights=None, classes=args.classes)
    criterion = SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=255)
    image = torch.randn(1, 3, args.size, args.size)
    target = torch.randint(0, args.classes, (1, args.size, args.size))
    target[:, :8] = 255
    for name in ("as it is", "fused"):
        if name == "fused":
            print(fcn_kernels.fuse(model))
            fcn_kernels.fuse(criterion)
        model.train()
        model.zero_grad()
        torch.manual_seed(1)  # dropout
        start = time.perf_counter()
        loss = criterion(model(image), target)
        loss.backward()
        print(f"{name}: loss {loss.item():.6f}; training step {time.perf_counter() - start:.2f} s")
    print(evaluate(model, [(image, target)], args.classes))


if __name__ == "__main__":
    main()
