"""U-Net: its published shapes, equality with eager PyTorch, sizes, borders, tiles, training."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import fcn_kernels as fk
from fcn_kernels import models, training


def tiny(**options: object) -> models.UNet:
    torch.manual_seed(5)
    return models.UNet(**{"num_classes": 3, "in_channels": 3, "width": 4, "depth": 2} | options).eval()


def eager(model: models.UNet, x: Tensor) -> Tensor:
    """The layers one by one: plain transposed convolutions, centre crops, torch.cat."""
    skips = []
    for level, block in enumerate(model.down):
        x = F.relu(block.norm2(block.conv2(F.relu(block.norm1(block.conv1(x))))))
        if level < model.depth:
            skips.append(x)
            x = F.max_pool2d(x, 2)
    for up, block in zip(model.up, model.merge, strict=True):
        x, skip = F.conv_transpose2d(x, up.weight, up.bias, stride=2), skips.pop()
        oy, ox = ((s - t) // 2 for s, t in zip(skip.shape[2:], x.shape[2:], strict=True))
        x = torch.cat([skip[:, :, oy : oy + x.shape[2], ox : ox + x.shape[3]], x], 1)
        x = F.relu(block.norm2(block.conv2(F.relu(block.norm1(block.conv1(x))))))
    return model.score(x)


def test_published_shapes() -> None:
    with torch.device("meta"):
        model = models.UNet()
        shapes = []
        for layer in model.merge:
            layer.register_forward_pre_hook(lambda _, inputs: shapes.append(list(inputs[0].shape[1:])))
        assert model(torch.zeros(1, 1, 572, 572)).shape == (1, 2, 388, 388)
        assert model.down[-1].conv1.weight.shape == (1024, 512, 3, 3)
    assert shapes == [[1024, 56, 56], [512, 104, 104], [256, 200, 200], [128, 392, 392]]
    assert sum(p.numel() for p in model.parameters()) == 31_030_658
    assert (model.margin, model.grid) == (92, 16)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("depth", "size", "batch_norm"),
    [(1, (18, 24), False), (2, (44, 64), False), (3, (92, 108), False), (2, (44, 64), True)],
)
def test_equals_eager(depth: int, size: tuple[int, int], batch_norm: bool, layout: torch.memory_format) -> None:
    model = tiny(depth=depth, dropout=0.0, batch_norm=batch_norm).to(memory_format=layout)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(norm.weight, 0.5, 2)
            torch.nn.init.normal_(norm.bias)
    image = torch.randn(2, 3, *size).contiguous(memory_format=layout)
    expected, logits = eager(model, image), model(image)
    assert logits.shape[2:] == tuple(side - 2 * model.margin for side in size)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.probabilities(image), expected.softmax(1), atol=1e-5, rtol=0)
    top = expected.topk(2, 1).values
    clear = top[:, 0] - top[:, 1] > 1e-4
    assert torch.equal(model.predict(image)[clear], expected.argmax(1)[clear])
    labels, confidence = model.predict(image, dtype=torch.uint8, return_confidence=True)
    assert labels.dtype == torch.uint8
    torch.testing.assert_close(confidence, expected.softmax(1).amax(1), atol=1e-5, rtol=0)

    target = torch.randint(0, 3, (2, *size))
    target[:, model.margin] = 255  # the first row that counts
    parameters = list(model.parameters())
    part = target[:, model.margin : -model.margin, model.margin : -model.margin]
    loss = model.loss(image, target, ignore_index=255)
    oracle = F.cross_entropy(expected, part, ignore_index=255)
    torch.testing.assert_close(loss, oracle)
    assert model.loss(image, part, ignore_index=255).equal(loss)
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(oracle, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=2e-6 * theirs.abs().max().item() + 1e-7, rtol=1e-3)

    counts = model.confusion_matrix(image, target)
    assert counts.sum() == (part != 255).sum()
    assert counts.sum(1).equal(torch.bincount(part[part != 255], minlength=3))
    assert counts.sum(0).equal(torch.bincount(model.predict(image)[part != 255], minlength=3))


def test_batch_norm_is_of_every_convolution_but_the_heads() -> None:
    model = tiny(batch_norm=True)
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m is not model.score]
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [n.num_features for n in norms] == [c.out_channels for c in convolutions]
    before = model.down[0].norm1.running_mean.clone()
    model.train()(torch.randn(2, 3, 44, 44))
    assert not model.down[0].norm1.running_mean.equal(before)
    assert set(tiny().state_dict()) == {k for k in model.state_dict() if "norm" not in k}  # older checkpoints load


def test_reference_backend() -> None:
    model, image = tiny(), torch.randn(1, 3, 44, 52)
    with fk.use_backend("reference"):
        expected = model(image)
    torch.testing.assert_close(model(image), expected)


def output_side(side: int, depth: int) -> int | None:
    for _ in range(depth):
        side -= 4
        if side < 2 or side % 2:
            return None
        side //= 2
    side -= 4
    for _ in range(depth):
        if side < 1:
            return None
        side = 2 * side - 4
    return side if side > 0 else None


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_valid_sides_are_those_that_the_layers_take(depth: int) -> None:
    with torch.device("meta"):
        model = models.UNet(depth=depth, width=1)
    valid = [side for side in range(1, 400) if output_side(side, depth)]
    assert [side for side in range(1, 400) if model.valid_side(side) == side] == valid
    assert all(output_side(side, depth) == side - 2 * model.margin for side in valid)
    assert all(model.valid_side(below + 1) == above for below, above in itertools.pairwise(valid))
    assert model.valid_side(1) == valid[0]


BAD = [
    (lambda: models.UNet()(torch.zeros(1, 1, 500, 572)), "the height of 500 must be 492 or 508: .*188 . 16 k pixels"),
    (
        lambda: models.UNet()(torch.zeros(1, 1, 600, 9)),
        "height of 600 must be 588 or 604 and the width of 9 must be 188,",
    ),
    (
        lambda: models.UNet()(torch.zeros(1, 3, 572, 572)),
        r"images must be \[N, 1, H, W\], got shape \[1, 3, 572, 572\]",
    ),
    (lambda: models.UNet(depth=0), "depth must be at least 1, got 0"),
    (lambda: models.UNet(width=0), "width must be at least 1, got 0"),
    (lambda: models.UNet(borders="same"), "borders must be 'valid' or 'mirror', got 'same'"),
    (
        lambda: tiny().loss(torch.zeros(1, 3, 44, 44), torch.zeros(1, 5, 4, dtype=torch.long)),
        r"target is \[5, 4\] pixels; it must be \[44, 44\] as the image, or \[4, 4\] as the output",
    ),
    (lambda: models.predict_tiles(tiny(), torch.zeros(3, 8, 8)), "a UNet needs borders='mirror'"),
    (lambda: models.predict_tiles(tiny(borders="mirror"), torch.zeros(1, 8, 8)), r"must be \[3, H, W\]"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_refused(call, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        call()


def test_labels_outside_the_classes_are_refused() -> None:
    model, image, target = tiny(), torch.zeros(1, 3, 44, 44), torch.full((1, 44, 44), 7)
    with pytest.raises(RuntimeError, match="7"):
        model.confusion_matrix(image, target)
    with pytest.raises(RuntimeError, match="7"):
        model.loss(image, target)


@pytest.mark.parametrize("size", [(1, 1), (2, 30), (33, 47)])
def test_mirrored_borders(size: tuple[int, int]) -> None:
    """Any size, and what the valid network says about the image that was extended by hand."""
    model = tiny(borders="mirror")
    image = torch.randn(2, 3, *size)
    logits = model(image)
    assert logits.shape == (2, 3, *size)
    m, extended = model.margin, numpy.asarray(image)
    behind = [model.valid_side(side + 2 * m) - side - m for side in size]
    extended = numpy.pad(extended, ((0, 0), (0, 0), (m, behind[0]), (m, behind[1])), mode="reflect")
    model.borders = "valid"
    expected = model(torch.from_numpy(extended))[:, :, : size[0], : size[1]]
    torch.testing.assert_close(logits, expected)
    model.borders = "mirror"
    target = torch.randint(0, 3, (2, *size))
    torch.testing.assert_close(model.loss(image, target), F.cross_entropy(expected, target))
    assert model.confusion_matrix(image, target).sum() == target.numel()


def test_tiles_give_the_labels_of_the_whole() -> None:
    model, image = tiny(borders="mirror").double(), torch.rand(3, 150, 90).double()
    seen = []

    def transform(part: Tensor) -> Tensor:
        seen.append(part.shape)
        return part

    labels = models.predict_tiles(model, image, transform, tile=30)
    assert len(seen) > 6
    assert torch.equal(labels.long(), model.predict(image[None])[0])
    assert len(labels.unique()) > 1


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_reach_is_exact(depth: int) -> None:
    """How far the farthest pixel is that an output depends on, over all places of the grid."""
    model = tiny(depth=depth, in_channels=1).double()
    for p in model.parameters():
        p.data.abs_()  # so that nothing cancels, and every unit is active
    side = model.valid_side(2 * model.reach + 2 * model.grid)
    farthest = 0
    for place in range(model.grid):
        image = (1 + torch.rand(16, 1, side, side, dtype=torch.float64)).requires_grad_()
        output = model(image)
        at = output.shape[2] // 2 // model.grid * model.grid + place
        (grad,) = torch.autograd.grad(output[:, 0, at, at].sum(), image)
        rows = grad.sum((0, 1, 3)).nonzero().flatten() - at - model.margin
        farthest = max(farthest, -int(rows[0]), int(rows[-1]))
    assert farthest == model.reach


# --- training --------------------------------------------------------------------------------------------------------


class Scenes:
    """Bright squares on noise; at the border there are labels too, of which an output without borders sees nothing."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(index)
        image = torch.randn(3, self.size, self.size, generator=random)
        labels = torch.zeros(self.size, self.size, dtype=torch.uint8)
        y, x = (int(torch.randint(20, 36, (), generator=random)) for _ in range(2))
        image[:, y : y + 20, x : x + 20] += 2
        labels[y : y + 20, x : x + 20] = 1
        labels[0] = 255
        return image, labels


@pytest.mark.parametrize(
    ("borders", "size", "batch_norm"), [("valid", 68, False), ("mirror", 60, False), ("mirror", 60, True)]
)
def test_it_learns(borders: str, size: int, batch_norm: bool) -> None:
    torch.manual_seed(2)
    model = models.UNet(2, in_channels=3, width=8, depth=2, batch_norm=batch_norm, borders=borders)
    recipe = training.Recipe(0.03, momentum=0.9, weight_decay=5e-4, reduction="mean", batch=3)
    seen = []
    trainer = training.Trainer(model, Scenes(size), recipe)
    trainer.run(80, lambda step, loss: seen.append(loss))
    assert sum(seen[-5:]) < 0.2 * sum(seen[:5])
    assert training.evaluate(model, Scenes(size)).mean_iu > 0.8


def test_the_mean_of_a_batch_counts_the_pixels_of_the_output() -> None:
    model, data = tiny(num_classes=2, dropout=0.0), Scenes(68)
    recipe = training.Recipe(0.01, momentum=0.0, weight_decay=0.0, reduction="mean", batch=2)
    trainer = training.Trainer(model, data, recipe)
    images, targets = zip(*(data[i] for i in trainer.samples(0)), strict=True)
    expected = model.loss(torch.stack(images), torch.stack(targets), ignore_index=255)
    assert trainer.run(1) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_checkpoints_tell_the_network(batch_norm: bool, tmp_path: Path) -> None:
    model = tiny(num_classes=5, depth=3, batch_norm=batch_norm, borders="mirror")
    models.save_checkpoint({"model_state_dict": model.state_dict()}, tmp_path / "unet.pt")
    copy = models.build_network(models.state_dict_of(models.read_checkpoint(tmp_path / "unet.pt")))
    assert models.load_checkpoint(copy, tmp_path / "unet.pt") == {}
    image = torch.randn(1, 3, 30, 41)
    assert copy.eval()(image).equal(model(image))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_command_line(batch_norm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on a folder in VOC's layout, then label a picture of it."""
    norm = ["--batch-norm"] if batch_norm else []
    from fcn_kernels.cli import main

    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / "voc" / folder).mkdir(parents=True)
    for name in ("a", "b"):
        noise = numpy.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=numpy.uint8)
        Image.fromarray(noise).save(tmp_path / "voc" / "JPEGImages" / f"{name}.jpg")
        Image.fromarray(noise[..., 0] // 128, "L").save(tmp_path / "voc" / "SegmentationClass" / f"{name}.png")
    (tmp_path / "voc" / "ImageSets" / "Segmentation" / "train.txt").write_text("a\nb\n")
    monkeypatch.setattr(models.UNet.__init__, "__kwdefaults__", models.UNet.__init__.__kwdefaults__ | {"width": 2})
    run = ["train", str(tmp_path / "voc"), "--out", str(tmp_path / "run"), "--classes", "2"]
    assert main([*run, "--stages", "32s", "unet", "--steps", "1"]) == 2
    assert main([*run, "--stages", "unet", "--steps", "2", *norm]) == 0
    keys = models.state_dict_of(models.read_checkpoint(tmp_path / "run" / "unet.pt"))
    assert any(key.endswith("running_mean") for key in keys) == batch_norm
    picture = str(tmp_path / "voc" / "JPEGImages" / "a.jpg")
    assert main(["segment", picture, "--weights", str(tmp_path / "run" / "unet.pt"), "--out", str(tmp_path / "s")]) == 0
    assert Image.open(tmp_path / "s" / "a.png").size == (40, 30)
