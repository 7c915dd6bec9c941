"""Hugging Face's SegFormer, before and after `fcn_kernels.fuse`: a training step, labels of a picture, mean IU.

python examples/transformers_segformer.py                     # random weights, 150 classes, 512 x 512
python examples/transformers_segformer.py --weights FOLDER    # what save_pretrained wrote
"""

from __future__ import annotations

import argparse
import time

import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

import fcn_kernels
from fcn_kernels.evaluation import evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="folder of a pretrained model")
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--size", type=int, default=512)
    args = parser.parse_args()

    if args.weights:
        model = SegformerForSemanticSegmentation.from_pretrained(args.weights)
        args.classes = model.config.num_labels
    else:
        model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=args.classes))
    processor = SegformerImageProcessor(do_resize=False)
    image = torch.randn(1, 3, args.size, args.size)
    labels = torch.randint(0, args.classes, (1, args.size, args.size))

    for name in ("as it is", "fused"):
        if name == "fused":
            print(fcn_kernels.fuse(model))
            fcn_kernels.fuse(processor)
        model.train()
        start = time.perf_counter()
        loss = model(image, labels=labels).loss
        loss.backward()
        step = time.perf_counter() - start
        model.eval()
        start = time.perf_counter()
        with torch.no_grad():
            maps = processor.post_process_semantic_segmentation(model(image), [(args.size, args.size)])
        seconds = time.perf_counter() - start
        print(f"{name}: training step {step:.2f} s, labels of a picture {seconds:.2f} s")
        print(f"{maps[0].unique().numel()} classes occur")

    # Over a data loader: no scores of the size of the pictures, neither on disk nor in memory.
    print(evaluate(model, [(image, labels)], args.classes, ignore_index=255))


if __name__ == "__main__":
    main()
