"""Recipes, the loop, resuming after a kill, data parallel, folders, metrics."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fcn_kernels import models, training

TINY = {"channels": (4, 4, 6, 6, 8), "hidden": 8, "padding": 17, "fc6_kernel": 3}
MEAN = training.Recipe(0.02, momentum=0.9, weight_decay=5e-4, reduction="mean", batch=4)

# The program that is killed, resumed, and run on one process and on two: the same in all tests.
PROGRAM = """
import sys, torch
import torch.distributed as dist
sys.path.insert(0, {tests!r})
from test_training import MEAN, Scenes, network
from fcn_kernels.training import Trainer
torch.set_num_threads(1)
steps, dropout, checkpoint = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
if "RANK" in __import__("os").environ:
    dist.init_process_group("gloo")
trainer = Trainer(network(dropout), Scenes(), MEAN, seed=3, checkpoint=checkpoint, save_every=2)
trainer.run(steps, lambda step, loss: print(step, repr(loss), flush=True))
if dist.is_initialized():
    dist.destroy_process_group()
"""


class Scenes:
    """Bright squares on noise, of two sizes, with a border that is not labelled."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(index)
        size = (40, 48) if index % 2 else (36, 33)
        image, labels = torch.randn(3, *size, generator=random), torch.zeros(size, dtype=torch.uint8)
        y, x = (int(torch.randint(4, 16, (), generator=random)) for _ in range(2))
        image[:, y : y + 16, x : x + 16] += 3
        labels[y : y + 16, x : x + 16] = 1
        labels[:2] = 255
        return image, labels


def network(dropout: float = 0.0) -> models.FCN8s:
    torch.manual_seed(11)
    model = models.FCN8s(2, dropout=dropout, **TINY)
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, 0, 1.4 * p[0].numel() ** -0.5)
    return model


def program(tmp_path: Path) -> list[str]:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM.format(tests=str(Path(__file__).parent)))
    return [sys.executable, str(file)]


def losses(output: str) -> list[float]:
    return [float(line.split()[1]) for line in output.splitlines()]


def test_it_learns() -> None:
    trainer = training.Trainer(network(), Scenes(), MEAN)
    seen = []
    trainer.run(40, lambda step, loss: seen.append(loss))
    assert sum(seen[-5:]) < 0.7 * sum(seen[:5])
    metrics = training.evaluate(trainer.model, Scenes())
    assert trainer.model.training
    assert metrics.mean_iu > 0.5


def test_accumulated_gradients_are_those_of_the_batch() -> None:
    """The mean over all pixels of the batch that are not ignored, not the mean of the images' means."""
    model, data = network(), Scenes()
    trainer = training.Trainer(model, data, MEAN)
    chosen = [data[i] for i in trainer.samples(0)]
    pixels = sum(int((labels != 255).sum()) for _, labels in chosen)
    expected = sum(model.loss(x[None], y[None], ignore_index=255, reduction="sum") for x, y in chosen) / pixels
    expected.backward()
    gradient = model.conv3_1.weight.grad.clone()
    assert trainer.run(1) == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(model.conv3_1.weight.grad, gradient, rtol=1e-4, atol=1e-7)


def test_every_epoch_sees_every_sample() -> None:
    trainer = training.Trainer(network(), Scenes(), MEAN)
    chosen = [i for step in range(7) for i in trainer.samples(step)]
    assert [sorted(chosen[e * 7 : (e + 1) * 7]) for e in range(4)] == [list(range(7))] * 4
    assert chosen[:7] != chosen[7:14]


def test_groups_of_parameters() -> None:
    with torch.device("meta"):
        model = models.FCN8s()
    recipe = training.RELEASED[models.FCN8s]
    weights, biases = training.parameter_groups(model, recipe)
    assert (recipe.lr, recipe.reduction, recipe.momentum, recipe.batch) == (1e-14, "sum", 0.99, 1)
    assert (weights["lr"], weights["weight_decay"]) == (1e-14, 5e-4)
    assert (biases["lr"], biases["weight_decay"]) == (2e-14, 0.0)
    assert len(weights["params"]) == len(biases["params"]) == 18  # no upsampling among them
    assert training.PAPER[models.FCN8s].reduction == "mean"
    with pytest.raises(ValueError, match="reduction must be 'sum' or 'mean', got 'none'"):
        training.Recipe(1, 0, 0, "none", 1)


def test_bfloat16() -> None:
    trainer = training.Trainer(network(), Scenes(), MEAN, autocast=torch.bfloat16)
    first = trainer.run(1)
    assert trainer.run(25) < first


def test_a_killed_run_resumes_exactly(tmp_path: Path) -> None:
    command = program(tmp_path)
    whole = subprocess.run([*command, "8", "0.5", str(tmp_path / "a.pt")], check=True, capture_output=True, text=True)
    killed = subprocess.Popen([*command, "8", "0.5", str(tmp_path / "b.pt")], stdout=subprocess.PIPE, text=True)
    for line in killed.stdout:
        if line.startswith("5 "):
            killed.send_signal(signal.SIGKILL)
            break
    killed.wait()
    done = torch.load(tmp_path / "b.pt", weights_only=True)["step"]
    assert done in (4, 6)  # saved every two steps; the signal may come a moment late
    rest = subprocess.run([*command, "8", "0.5", str(tmp_path / "b.pt")], check=True, capture_output=True, text=True)
    assert losses(rest.stdout) == losses(whole.stdout)[done:]
    a, b = (torch.load(tmp_path / f, weights_only=True)["model_state_dict"] for f in ("a.pt", "b.pt"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_two_processes_are_one_with_the_whole_batch(tmp_path: Path) -> None:
    command = program(tmp_path)
    one = subprocess.run([*command, "4", "0", str(tmp_path / "one.pt")], check=True, capture_output=True, text=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [
        subprocess.Popen(
            [*command, "4", "0", str(tmp_path / "two.pt")],
            env=env | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=900)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert losses(outputs[0]) == losses(outputs[1]) == pytest.approx(losses(one.stdout), rel=1e-4)
    a, b = (torch.load(tmp_path / f, weights_only=True)["model_state_dict"] for f in ("one.pt", "two.pt"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5, msg=name)


def test_another_seed_is_refused(tmp_path: Path) -> None:
    training.Trainer(network(), Scenes(), MEAN, seed=1, checkpoint=tmp_path / "c.pt").run(1)
    with pytest.raises(ValueError, match="was trained with seed 1, not 2"):
        training.Trainer(network(), Scenes(), MEAN, seed=2, checkpoint=tmp_path / "c.pt")


def learned(model: models.FCN8s) -> models.FCN8s:
    """Takes over the weight of somebody's trained deconvolution, so that its layer learns too."""
    weight = model.upscore2.weight.clone()
    weight[0, 1] = 0.1
    assert model.upscore2.use(weight) == "dense"
    return model


def test_a_run_whose_upsampling_became_a_learned_one_resumes(tmp_path: Path) -> None:
    whole = training.Trainer(learned(network()), Scenes(), MEAN)
    whole.run(6)
    training.Trainer(learned(network()), Scenes(), MEAN, checkpoint=tmp_path / "c.pt").run(3)
    again = network()
    assert again.upscore2.fixed
    rest = training.Trainer(again, Scenes(), MEAN, checkpoint=tmp_path / "c.pt")
    assert (again.upscore2.upsampling, again.upscore_pool4.upsampling) == ("dense", "fixed")
    rest.run(6)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name

    training.Trainer(network(), Scenes(), MEAN, checkpoint=tmp_path / "fixed.pt").run(1)
    with pytest.raises(ValueError, match="was trained with a fixed upscore2, not with a dense one"):
        training.Trainer(learned(network()), Scenes(), MEAN, checkpoint=tmp_path / "fixed.pt")


def test_what_cannot_be_resumed_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "c.pt"

    def resume(model: models.FCN) -> None:
        training.Trainer(model, Scenes(), MEAN, checkpoint=file)

    training.Trainer(network(), Scenes(), MEAN, checkpoint=file).run(1)
    with pytest.raises(ValueError, match=r"c\.pt is of another network: .*upscore16"):
        resume(models.FCN16s(2, **TINY))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"c\.pt: not a readable checkpoint"):
        resume(network())
    models.save_checkpoint(network().state_dict(), file)
    with pytest.raises(ValueError, match=r"no training can be resumed from .*c\.pt: it lacks seed, step, optimizer"):
        resume(network())


def test_a_checkpoint_tells_what_network_it_is_of(tmp_path: Path) -> None:
    trainer = training.Trainer(network(), Scenes(), MEAN, checkpoint=tmp_path / "c.pt")
    trainer.run(1)
    assert models.read_checkpoint(tmp_path / "c.pt")["network"] == {"name": "fcn8s", "padding": 17}

    with torch.device("meta"):
        at_once, googlenet, unet = models.FCN8sAtOnce(3), models.FCNGoogLeNet(3), models.UNet(3)
    assert models.describe(at_once) == {"name": "fcn8s_at_once", "padding": 100}
    names = ("a", "b", "c")
    expected = {"name": "fcn_googlenet", "preprocessing": "torchvision", "class_names": ["a", "b", "c"]}
    assert models.describe(googlenet, preprocessing="torchvision", class_names=names) == expected
    assert models.describe(unet) == {"name": "unet"}
    with pytest.raises(ValueError, match="3 classes, got 2 names"):
        models.describe(unet, class_names=("a", "b"))
    with pytest.raises(ValueError, match="preprocessing must be one of caffe, torchvision, got 'cafe'"):
        models.describe(unet, preprocessing="cafe")
    with pytest.raises(ValueError, match="Linear is none of the networks known here"):
        models.describe(nn.Linear(1, 1))


def voc(root: Path, labels: numpy.ndarray, mode: str = "P") -> Path:
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rgb = numpy.zeros((*labels.shape[:2], 3), numpy.uint8)
    rgb[..., 0] = 200
    Image.fromarray(rgb).save(root / "JPEGImages" / "a.png")
    image = Image.fromarray(labels, mode="RGB" if mode == "RGB" else "L")
    if mode == "P":
        image = image.convert("L")
        palette = Image.new("P", image.size)
        palette.putpalette([(7 * i) % 256 for i in range(768)])
        palette.frombytes(image.tobytes())
        image = palette
    image.save(root / "SegmentationClass" / "a.png")
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    return root


def test_voc_folders(tmp_path: Path) -> None:
    labels = numpy.zeros((5, 6), numpy.uint8)
    labels[0], labels[1] = 255, 20
    data = training.VOCFolder(voc(tmp_path / "right", labels))
    assert len(data) == 1
    image, target = data[0]
    assert torch.equal(target, torch.from_numpy(labels))
    torch.testing.assert_close(image[2], torch.full((5, 6), 200 - 122.67892))
    with pytest.raises(FileNotFoundError, match=r"there is no list .*val\.txt"):
        training.VOCFolder(tmp_path / "right", "val")
    with pytest.raises(FileNotFoundError, match="has no folder JPEGImages"):
        training.VOCFolder(tmp_path)
    with pytest.raises(ValueError, match=r"holds label 20, neither a class \(0 to 9\) nor 255"):
        training.VOCFolder(tmp_path / "right", num_classes=10)[0]
    with pytest.raises(ValueError, match="must hold palette indices or 8-bit grey, got mode RGB"):
        training.VOCFolder(voc(tmp_path / "colours", numpy.zeros((5, 6, 3), numpy.uint8), "RGB"))[0]


def test_metrics() -> None:
    metrics = training.Metrics.of(torch.tensor([[6, 2, 0], [1, 3, 0], [0, 0, 0]]))
    assert metrics.pixel_accuracy == pytest.approx(9 / 12)
    assert metrics.mean_accuracy == pytest.approx((6 / 8 + 3 / 4) / 2)
    assert metrics.mean_iu == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert metrics.frequency_weighted_iu == pytest.approx((8 * 6 / 9 + 4 * 3 / 6) / 12)
    assert metrics.iu[2] != metrics.iu[2]


def test_train_command(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    from fcn_kernels.cli import main

    labels = numpy.zeros((40, 33), numpy.uint8)
    labels[4:20, 6:20] = 1
    root = voc(tmp_path / "data", labels)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("a\n")
    for name in ("fcn32s", "fcn16s", "fcn8s"):
        base = models.NETWORKS[name]
        start = lambda self, classes, base=base, **options: base.__init__(self, classes, **options, **TINY)  # noqa: E731
        small = type(base.__name__, (base,), {"__init__": start})
        monkeypatch.setitem(training.PAPER, small, MEAN)
        monkeypatch.setitem(models.NETWORKS, name, small)
    out = tmp_path / "out"
    arguments = [str(root), "--out", str(out), "--classes", "2", "--steps", "3", "--batch", "2"]
    (tmp_path / "names.txt").write_text("nothing\nthing\n")
    arguments += ["--names", str(tmp_path / "names.txt")]
    assert main(["train", *arguments]) == 0
    assert sorted(f.name for f in out.iterdir()) == ["fcn16s.pt", "fcn32s.pt", "fcn8s.pt"]
    printed = capsys.readouterr()
    assert printed.out.count("mean IU") == 3
    about = models.read_checkpoint(out / "fcn16s.pt")["network"]
    assert about == {"name": "fcn16s", "padding": 17, "preprocessing": "caffe", "class_names": ["nothing", "thing"]}
    assert "FCN-8s: step 3 of 3, loss" in printed.err
    assert main(["train", *arguments]) == 0  # nothing is left to do
    assert "step" not in capsys.readouterr().err
    (root / "JPEGImages" / "a.png").unlink()
    assert main(["train", *arguments, "--seed", "1", "--out", str(tmp_path / "again")]) == 1
    assert "there is no JPEGImages/a.jpg" in capsys.readouterr().err


def test_train_begins_nothing_when_the_arguments_are_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fcn_kernels.cli import main

    small = type("FCN32s", (models.FCN32s,), {"__init__": lambda self, n: models.FCN32s.__init__(self, n, **TINY)})
    monkeypatch.setitem(training.PAPER, small, MEAN)
    monkeypatch.setitem(models.NETWORKS, "fcn32s", small)
    root, out = voc(tmp_path / "data", numpy.zeros((40, 33), numpy.uint8)), tmp_path / "out"
    garbage, other, file = tmp_path / "garbage.pt", tmp_path / "other.pt", tmp_path / "file"
    garbage.write_bytes(b"garbage" * 100)
    torch.save({f"features.{i}.weight": torch.ones(1) for i in range(16)}, other)
    file.touch()

    def refused(*arguments: object) -> str:
        stages = () if "--stages" in arguments else ("--stages", "32s")
        try:
            code = main(
                ["train", *map(str, (*arguments, *stages)), *(() if "--out" in arguments else ("--out", str(out)))]
            )
        except SystemExit as ended:  # argparse's
            code = ended.code
        assert code == 2
        return capsys.readouterr().err

    assert "has no folder JPEGImages" in refused(tmp_path)
    assert "garbage.pt: not a readable checkpoint: it is damaged" in refused(root, "--init", garbage)
    assert "none.pt" in refused(root, "--init", tmp_path / "none.pt")
    assert "the classifier 16 and 0 before its last" in refused(root, "--init", other)
    assert "--device foo cannot be used" in refused(root, "--device", "foo")
    assert "--device meta cannot be used" in refused(root, "--device", "meta")
    if not torch.cuda.is_available():
        assert "--device cuda cannot be used" in refused(root, "--device", "cuda")
    assert "File exists" in refused(root, "--out", file)
    for option in ("--save-every", "--steps", "--batch", "--classes"):
        assert f"{option}: must be an integer of at least 1, not '0'" in refused(root, option, 0)
    assert "must be an integer of at least 1, not '-5'" in refused(root, "--steps", -5)
    assert "--classes must be at most 255" in refused(root, "--classes", 256)
    assert "21 classes, but 0 names" in refused(root, "--names", file)
    assert "2x stages, and alexnet has none" in refused(root, "--stages", "alexnet", "--learn-upsampling", "dense")
    assert "2x stages, and 32s has none" in refused(root, "--stages", "32s", "--learn-upsampling", "dense")
    assert "alexnet starts from no other network" in refused(root, "--stages", "32s", "alexnet")
    assert "no released recipe for unet" in refused(root, "--stages", "unet", "--recipe", "released")
    assert "leave --init out" in refused(root, "--stages", "unet", "--init", other)
    assert "--batch-norm is of unet, not of 32s" in refused(root, "--batch-norm")
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "pip install 'fcn_kernels[images]'" in refused(root)
    assert not out.exists()


def test_saving_every_zero_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="save_every must be at least 1, got 0"):
        training.Trainer(network(), Scenes(), MEAN, save_every=0)


@pytest.mark.parametrize("kind", ["digits", "voc"])
def test_the_example(kind: str, tmp_path: Path) -> None:
    arguments = ["--steps", "2", "--out", str(tmp_path)]
    if kind == "digits":
        for library in ("sklearn", "skimage"):
            pytest.importorskip(library)
    else:
        labels = numpy.zeros((40, 33), numpy.uint8)
        labels[4:20, 6:20] = 3
        root = voc(tmp_path / "data", labels)
        (root / "ImageSets" / "Segmentation" / "val.txt").write_text("a\n")
        arguments += [str(root), "--narrow"]
    example = Path(__file__).parent.parent / "examples" / "train.py"
    run = subprocess.run([sys.executable, str(example), *arguments], capture_output=True, text=True, check=True)
    assert run.stdout.count("mean IU") == 3
    checkpoint = models.read_checkpoint(tmp_path / "fcn8s.pt")
    assert checkpoint["network"]["preprocessing"] == "torchvision"
    assert len(checkpoint["network"]["class_names"]) == (11 if kind == "digits" else 21)
    model = models.build_network(checkpoint["model_state_dict"], padding=checkpoint["network"]["padding"])
    models.load_checkpoint(model, checkpoint)
    assert model.score_pool3.weight.any()
