"""The examples with other people's libraries run as they stand, on small pictures; fused and plain losses agree."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from libraries import library

EXAMPLES = Path(__file__).parents[1] / "examples"
RUNS = {
    "transformers_segformer": ("transformers", ["--classes", "7", "--size", "64"]),
    "torchvision_fcn": ("torchvision", ["--model", "deeplabv3_mobilenet_v3_large", "--size", "64"]),
    "export_fcn8s": ("onnxruntime", ["--size", "64"]),
    "segmentation_models_pytorch_fpn": ("segmentation_models_pytorch", ["--classes", "5", "--size", "64"]),
}
for needed in {package for package, _ in RUNS.values()}:
    library(needed)
library("onnxscript")


@pytest.mark.parametrize("name", list(RUNS))
def test_example(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # for the files that examples write
    monkeypatch.setattr(sys, "argv", [name, *RUNS[name][1]])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    text = capsys.readouterr().out
    assert re.search(r"mean IU \d|labels as in eager", text)
    for same in re.findall(r"([\d.]+) % of the labels", text):
        assert float(same) > 99.9
    losses = [float(v) for v in re.findall(r"loss (\d+\.\d+)", text)]
    if losses:  # two decimals fewer than a float has
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
