"""`fcn-kernels segment`, its pictures and its tiles."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fcn_kernels import cli, images, models
from fcn_kernels.benchmarking import measure, memory

TINY = {"channels": (4, 4, 6, 6, 8), "blocks": (1, 1, 1, 1, 1), "hidden": 8, "padding": 17, "fc6_kernel": 3}


def network(classes: int = 5) -> models.FCN8s:
    model = models.FCN8s(classes, **TINY)
    for name, p in model.named_parameters():
        if "upscore" not in name:
            nn.init.normal_(p, 0, 0.1 if p.dim() < 2 else 1.4 * p[0].numel() ** -0.5)
    return model.eval()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    about = {"name": "fcn8s", "padding": 17, "preprocessing": "torchvision", "class_names": list("abcde")}
    models.save_checkpoint({"model_state_dict": network().state_dict(), "network": about}, tmp_path / "w.pt")
    return tmp_path / "w.pt"


def segment(*arguments: object) -> int:
    return cli.main(["segment", *map(str, arguments)])


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (50, 40)) -> Path:
    pixels = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).convert(mode).save(path)
    return path


# --- tiles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(400, 700), (333, 401), (70, 555)], ids=str)
def test_tiles_give_the_labels_of_the_whole_image(size: tuple[int, int]) -> None:
    model = network().double()
    image = torch.randn(3, *size).double()
    seen = []

    def transform(part: Tensor) -> Tensor:
        seen.append(part.shape)
        return part

    labels = models.predict_tiles(model, image, transform, tile=50)
    assert len(seen) > 1
    assert max(max(s[1:]) for s in seen) <= 64 + 2 * (model.reach + 32)
    assert torch.equal(labels.long(), model.predict(image[None])[0])
    assert len(labels.unique()) > 2


def test_reach_is_that_of_the_published_networks() -> None:
    """The receptive fields of the paper (404, 355), and two strides of 32 for the way back."""
    with torch.device("meta"):
        found = [models.FCN32s(), models.FCN8s(), models.FCNAlexNet(), models.FCNGoogLeNet()]
    assert [m.reach for m in found[:3]] == [202 + 64, 202 + 64, 177 + 64]
    assert [m.grid for m in found] == [32] * 4


def test_reach_holds(weights: Path) -> None:
    model = network().double()
    image = torch.randn(1, 3, 300, 40).double().requires_grad_()
    model(image)[0, :, 150, 20].abs().sum().backward()
    rows = image.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert 0 < 150 - rows.min() <= model.reach
    assert 0 < rows.max() - 150 <= model.reach


def test_tiles_refuse() -> None:
    with pytest.raises(ValueError, match="tile must be at least 1, got 0"):
        models.predict_tiles(network(), torch.zeros(3, 8, 8), tile=0)
    with pytest.raises(ValueError, match=r"must be \[3, H, W\], got shape \[1, 8, 8\]"):
        models.predict_tiles(network(), torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="training mode"):
        models.predict_tiles(network().train(), torch.zeros(3, 8, 8))


# --- pictures --------------------------------------------------------------------------------------------------------


def test_palette_is_that_of_voc() -> None:
    colours = images.palette().tolist()
    assert colours[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert (colours[15], colours[20], colours[255]) == ([192, 128, 128], [0, 64, 128], [224, 224, 192])


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    file = tmp_path / "p.png"
    picture(file)
    assert bytes(images.read_image(file).permute(1, 2, 0).flatten().tolist()) == Image.open(file).tobytes()
    Image.new("L", (3, 2), 77).save(file)
    assert images.read_image(file).tolist() == [[[77] * 3] * 2] * 3
    Image.new("1", (3, 2), 1).save(file)
    assert images.read_image(file).unique().tolist() == [255]
    Image.new("RGBA", (3, 2), (10, 20, 30, 0)).save(file)
    assert images.read_image(file).unique().tolist() == [255]
    Image.new("LA", (3, 2), (10, 255)).save(file)
    assert images.read_image(file).unique().tolist() == [10]
    Image.new("I;16", (3, 2), 257 * 99).save(file)
    assert images.read_image(file).unique().tolist() == [99]
    Image.new("CMYK", (3, 2)).save(tmp_path / "c.jpg")
    assert images.read_image(tmp_path / "c.jpg").shape == (3, 2, 3)
    Image.new("F", (3, 2)).save(tmp_path / "f.tiff")
    with pytest.raises(ValueError, match=r"f.tiff: not a readable image: floating point"):
        images.read_image(tmp_path / "f.tiff")


def test_exif_turns(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 4))
    image.putpixel((0, 0), (200, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "r.png", exif=exif)
    turned = images.read_image(tmp_path / "r.png")
    assert turned.shape == (3, 6, 4)
    assert turned[0, 0, 3] == 200


def test_overlay_and_labels(tmp_path: Path) -> None:
    labels = torch.zeros(300, 4, dtype=torch.uint8)
    labels[270:] = 1
    image = torch.full((3, 300, 4), 100, dtype=torch.uint8)
    mixed = images.overlay(image, labels)
    assert (mixed[:, :270] == 100).all()
    assert mixed[:, 299, 0].tolist() == [114, 50, 50]
    images.save_labels(labels, tmp_path / "l.png")
    read = Image.open(tmp_path / "l.png")
    assert read.mode == "P"
    assert read.tobytes() == bytes(labels.flatten().tolist())
    assert read.convert("RGB").getpixel((0, 299)) == (128, 0, 0)


# --- the command -----------------------------------------------------------------------------------------------------


def test_files_and_folders(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    a = picture(folder / "a.png")
    picture(folder / "a.JPG")
    picture(folder / "deep" / "b.jpeg", "L", (37, 61))
    (folder / "notes.txt").write_text("not a picture")
    broken = picture(folder / "broken.png", size=(200, 200))
    broken.write_bytes(broken.read_bytes()[:5000])
    (folder / "text.png").write_text("no picture at all")
    out = tmp_path / "out"
    assert segment(folder, tmp_path / "missing.png", "--weights", weights, "--out", out) == 1
    printed = capsys.readouterr()
    assert "3 of 6 pictures could not be labelled" in printed.err
    for name in ("broken.png", "text.png", "missing.png"):
        assert f"{name}: not a readable image" in printed.err
    found = {str(p.relative_to(out)) for p in out.rglob("*.*")}
    assert found == {
        "a.png", "a_overlay.jpg", "a.png.png", "a.png_overlay.jpg", "deep/b.png", "deep/b_overlay.jpg", "legend.png"
    }  # fmt: skip
    image = models.torchvision_transform(images.read_image(a))
    expected = network_of(weights).predict(image[None])[0]
    assert torch.frombuffer(bytearray(Image.open(out / "a.png.png").tobytes()), dtype=torch.uint8).tolist() == (
        expected.flatten().tolist()
    )
    assert Image.open(out / "deep" / "b.png").size == (37, 61)


def network_of(weights: Path) -> models.FCN:
    model = network()
    models.load_checkpoint(model, weights)
    return model


def test_nothing_is_begun_when_the_arguments_are_wrong(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture
) -> None:
    a = picture(tmp_path / "a.png")
    names = tmp_path / "names.txt"
    names.write_text("only\ntwo\n")
    garbage = tmp_path / "garbage.pt"
    garbage.write_bytes(b"garbage" * 100)
    other = tmp_path / "other.pt"
    torch.save(models.vgg11(3, channels=(2,) * 5, hidden=4).state_dict(), other)
    empty = tmp_path / "empty"
    empty.mkdir()
    cut = tmp_path / "cut.pt"
    cut.write_bytes(weights.read_bytes()[:4000])
    for arguments, message in [
        ((a, "--weights", weights, "--out", tmp_path), "would be overwritten"),
        ((a, "--weights", weights, "--out", empty, "--names", names), "5 classes, but there are 2 names"),
        ((a, "--weights", garbage, "--out", empty), "garbage.pt: not a readable checkpoint"),
        ((a, "--weights", cut, "--out", empty), "cut.pt: not a readable checkpoint"),
        ((a, "--weights", tmp_path / "none.pt", "--out", empty), "none.pt"),
        ((a, "--weights", other, "--out", empty), "of no network known here"),
        ((a, "--weights", weights, "--out", empty, "--network", "fcn32s"), "is of fcn8s, not of fcn32s"),
        ((a, "--weights", weights, "--out", empty, "--tile", 0), "--tile must be at least 1"),
        ((a, "--weights", weights, "--out", empty, "--opacity", 2), "--opacity must lie in"),
        ((empty, "--weights", weights, "--out", tmp_path / "o"), "no PNG or JPEG files in"),
        ((a, "--weights", weights, "--out", empty, "--device", "foo"), "--device foo cannot be used"),
        ((a, "--weights", weights, "--out", a), "File exists"),
    ]:
        assert segment(*arguments) == 2
        assert message in capsys.readouterr().err
    assert not list(empty.iterdir())


def test_a_device_that_is_not_there(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    a = picture(tmp_path / "a.png")
    assert segment(a, "--weights", weights, "--out", tmp_path / "out", "--device", "cuda") == 2
    assert "--device cuda cannot be used" in capsys.readouterr().err


def test_without_pillow(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = picture(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert segment(a, "--weights", weights, "--out", tmp_path / "out") == 2
    assert "pip install 'fcn_kernels[images]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "option"),
    [
        ("preprocessing", "cafe", "--preprocessing=torchvision"),
        ("preprocessing", ["caffe"], "--preprocessing=torchvision"),
        ("class_names", 5, "--names=names.txt"),
        ("class_names", [1, 2, 3, 4, 5], "--names=names.txt"),
        ("padding", "17", "--padding=17"),
        ("padding", -1, "--padding=17"),
        ("name", ["fcn8s"], "--network=fcn8s"),
    ],
)
def test_what_a_checkpoint_says_wrong_an_option_can_mend(
    key: str, value: object, option: str, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("a\nb\nc\nd\ne\n")
    a = picture(tmp_path / "a.png")
    checkpoint = dict(models.read_checkpoint(weights))
    checkpoint["network"] = {**checkpoint["network"], key: value}
    models.save_checkpoint(checkpoint, weights)
    assert segment(a, "--weights", weights, "--out", "out") == 2
    assert f"the checkpoint says {key} = {value!r}" in capsys.readouterr().err
    assert segment(a, "--weights", weights, "--out", "out", option) == 0


def test_pictures_are_not_for_a_network_of_one_channel(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save(models.UNet(2, width=2, depth=1).state_dict(), tmp_path / "w.pt")
    a = picture(tmp_path / "a.png")
    assert segment(a, "--weights", tmp_path / "w.pt", "--out", tmp_path / "out") == 2
    assert "pictures have 3 channels, the network reads 1" in capsys.readouterr().err


def test_pictures_smaller_than_a_window_are_reported(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture
) -> None:
    picture(tmp_path / "s.png", size=(9, 9))
    good = picture(tmp_path / "t.png")
    assert segment(tmp_path / "s.png", good, "--weights", weights, "--out", tmp_path / "out") == 1
    printed = capsys.readouterr().err
    assert "9 x 9 pixels leaves 2 x 2 features" in printed
    assert "s.png: " in printed
    assert (tmp_path / "out" / "t.png").exists()
    assert not (tmp_path / "out" / "s.png").exists()


@pytest.mark.skipif(not memory.can_measure(), reason="this system does not tell a process's high-water mark")
def test_memory_is_that_of_a_tile_for_a_photograph_of_20_megapixels(tmp_path: Path) -> None:
    """Beyond the memory for a picture of one tile: fewer than 12 bytes a pixel, for the picture, its labels, its
    overlay and what becomes of them. The first convolution of the whole picture would write 64 bytes a pixel."""
    model = models.FCN8s(5, **{**TINY, "channels": (16, 4, 4, 4, 4)})
    about = models.describe(model, preprocessing="torchvision")
    models.save_checkpoint({"model_state_dict": model.state_dict(), "network": about}, tmp_path / "w.pt")
    reach = -(-model.reach // model.grid) * model.grid
    side = 768 + 2 * reach  # what the largest tile reads
    small = picture(tmp_path / "tile.jpg", size=(side, side))
    with Image.open(small) as pixels:
        pixels.resize((5472, 3648), Image.Resampling.NEAREST).save(tmp_path / "photograph.jpg")
    code = "import sys; from fcn_kernels import cli; from fcn_kernels.benchmarking import memory\n"
    code += "for name in ('tile', 'photograph'):\n"
    code += "    cli.main(['segment', f'{name}.jpg', '--weights', 'w.pt', '--out', 'out'])\n"
    code += "    print(memory.high_water_mark())\n"
    environment = measure.environment("exact", 1)
    run = [sys.executable, "-c", code]
    output = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    tile, photograph = (int(line) for line in output.splitlines() if line.isdigit())
    assert Image.open(tmp_path / "out" / "photograph.png").size == (5472, 3648)
    assert photograph - tile < 12 * 5472 * 3648


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: models.FCN32s(3, **TINY), None),
        (lambda: models.FCN16s(3, **TINY), None),
        (lambda: models.FCN8s(3, **TINY), "fcn8s"),
        (lambda: models.FCN8sAtOnce(3, **TINY), "fcn8s_at_once"),
        (lambda: models.FCNAlexNet(3), None),
        (lambda: models.FCNGoogLeNet(3), None),
    ],
)
def test_a_network_is_built_from_its_state_dict(make: object, name: str | None) -> None:
    with torch.device("meta"):
        model = make()
        built = models.build_network(model.state_dict(), name, padding=17)
    assert type(built) is type(model)
    assert built.crop == model.crop
    ours = {k: t.shape for k, t in built.state_dict().items()}
    assert ours == {k: t.shape for k, t in model.state_dict().items()}


def test_defaults_without_a_description(tmp_path: Path) -> None:
    torch.save(models.FCN32s(21, **{**TINY, "padding": 100, "fc6_kernel": 7}).state_dict(), tmp_path / "w.pt")
    parser = argparse.ArgumentParser()
    from fcn_kernels.cli import segment as command

    command.add_arguments(parser)
    args = parser.parse_args(["x.png", "--weights", str(tmp_path / "w.pt"), "--out", "o"])
    model, transform, names = command.prepare(args)
    assert type(model) is models.FCN32s
    assert not model.training
    assert transform is models.caffe_transform
    assert names == images.VOC_CLASSES
