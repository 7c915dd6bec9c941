"""FCN-8s as a program of torch.export, as a package of AOTInductor and in ONNX Runtime, with the same label maps.

python examples/export_fcn8s.py --size 256 --out build/export
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

import fcn_kernels
from fcn_kernels import models


class Labels(nn.Module):
    """What is deployed: a picture in, its label map out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network.predict(image, dtype=torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("build/export"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    network = models.FCN8s(num_classes=21, channels=(8, 16, 32, 64, 64), hidden=64)  # by default VGG16's widths
    module, image = Labels(network).eval(), torch.randn(2, 3, args.size, args.size)
    with torch.no_grad():
        expected = module(image)
        program = torch.export.export(module, (image,))

        torch.export.save(program, args.out / "fcn8s.pt2")
        runs = {"torch.export": torch.export.load(args.out / "fcn8s.pt2").module()}

        package = torch._inductor.aoti_compile_and_package(program, package_path=str(args.out / "fcn8s_package.pt2"))
        runs["AOTInductor"] = torch._inductor.aoti_load_package(package)

        fcn_kernels.export.to_onnx(module, (image,), args.out / "fcn8s.onnx", input_names=["image"], verbose=False)
        session = onnxruntime.InferenceSession(args.out / "fcn8s.onnx", providers=["CPUExecutionProvider"])
        runs["ONNX Runtime"] = lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])

        for name, run in {"eager": module, **runs}.items():
            run(image)
            start = time.perf_counter()
            labels = run(image)
            elapsed = time.perf_counter() - start
            same = (labels == expected).float().mean().item()
            print(f"{name}: {1000 * elapsed:.1f} ms, {100 * same:.3f} % of the labels as in eager")


if __name__ == "__main__":
    main()
