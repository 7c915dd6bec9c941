"""The networks: converted classifiers, geometry, equality with eager PyTorch, weights from elsewhere."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fcn_kernels as fk
from fcn_kernels import models
from fcn_kernels.benchmarking import eager_fcn
from fcn_kernels.nn import bilinear_weight

TINY = {"channels": (6, 8, 8, 10, 12), "hidden": 16}
ON_VGG = [models.FCN32s, models.FCN16s, models.FCN8s, models.FCN8sAtOnce]


def filled(model: nn.Module, spread: float = 1.4) -> nn.Module:
    """Weights that keep the activations' scale, scores included."""
    for name, p in model.named_parameters():
        if "bn" in name:
            nn.init.uniform_(p, 0.5, 1)
        elif p.dim() < 2:
            nn.init.normal_(p, 0, 0.1)
        elif "upscore" not in name:
            nn.init.normal_(p, 0, spread * p[0].numel() ** -0.5)
    return model.eval()


def eager_head(model: models.FCN, x: Tensor, skips: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Dense transposed convolutions, centre numbers of the published networks, sums of whole tensors."""
    crops = {"FCN32s": [19], "FCN16s": [5, 27], "FCN8s": [5, 9, 31], "FCN8sAtOnce": [5, 9, 31]}[type(model).__name__]
    names = {1: ["upscore"], 2: ["upscore2", "upscore16"], 3: ["upscore2", "upscore_pool4", "upscore8"]}[len(crops)]
    for name, crop, skip in itertools.zip_longest(names, crops, skips):
        layer = getattr(model, name)
        weight = bilinear_weight(model.num_classes, layer.kernel_size, dtype=x.dtype)
        x = F.conv_transpose2d(x, weight, stride=layer.stride)
        if skip is None:
            return x[:, :, crop : crop + size[0], crop : crop + size[1]]
        x = x + skip[:, :, crop : crop + x.shape[2], crop : crop + x.shape[3]]
    raise AssertionError("the last upsampling has no skip")


def eager(model: models.FCN, image: Tensor) -> Tensor:
    x, skips = image, []
    for block, count in enumerate(model.blocks, 1):
        for i in range(1, count + 1):
            conv = getattr(model, f"conv{block}_{i}")
            x = F.relu(F.conv2d(x, conv.weight, conv.bias, padding=100 if block == i == 1 else 1))
        x = F.max_pool2d(x, 2, 2, ceil_mode=True)
        if f"pool{block}" in model.skips:
            scale = {"pool3": 0.0001, "pool4": 0.01}[f"pool{block}"] if isinstance(model, models.FCN8sAtOnce) else 1
            skips.insert(0, getattr(model, f"score_pool{block}")(x * scale))
    x = model.score_fr(F.relu(model.fc7(F.relu(model.fc6(x)))))
    return eager_head(model, x, skips, tuple(image.shape[2:]))


@pytest.mark.parametrize(
    ("cls", "tensors", "numbers"),
    [
        (models.FCN32s, 33, 136_152_917),
        (models.FCN16s, 36, 134_815_994),
        (models.FCN8s, 39, 134_489_759),
        (models.FCN8sAtOnce, 39, 134_489_759),
    ],
)
def test_names_and_sizes_of_the_published_networks(cls: type, tensors: int, numbers: int) -> None:
    with torch.device("meta"):
        state = cls().state_dict()
    assert len(state) == tensors
    assert sum(t.numel() for t in state.values()) == numbers
    assert state["fc6.weight"].shape == (4096, 512, 7, 7)
    assert state["score_fr.bias"].shape == (21,)
    assert {k for k in state if k.startswith("upscore")} == {f"{name}.weight" for name, _ in cls.upscores}


def test_sizes_of_the_classifiers() -> None:
    with torch.device("meta"):
        found = {f.__name__: f() for f in (models.vgg11, models.vgg13, models.vgg16, models.vgg19, models.alexnet)}
        found["googlenet"] = models.googlenet()
        found["vgg16_bn"] = models.vgg16(batch_norm=True)
    assert {name: sum(p.numel() for p in m.parameters()) for name, m in found.items()} == {
        "vgg11": 132_863_336,
        "vgg13": 133_047_848,
        "vgg16": 138_357_544,
        "vgg19": 143_667_240,
        "alexnet": 61_100_840,
        "googlenet": 6_624_904,
        "vgg16_bn": 138_365_992,
    }


def test_crops_follow_from_the_layers() -> None:
    with torch.device("meta"):
        found = [models.FCN32s(), models.FCN16s(), models.FCN8s(), models.FCNAlexNet(), models.FCNGoogLeNet()]
        small = models.FCN8s(padding=17, fc6_kernel=3)
    assert [m.crop for m in found] == [19, 27, 31, 18, 106]
    assert [m.skip_crops for m in found[:3]] == [[], [5], [5, 9]]
    assert (small.skip_crops, small.crop) == ([1, 1], 12)
    with pytest.raises(ValueError, match=r"FCN8s: padding = 1 with fc6_kernel = 1 fits no crop .*no crop can align"):
        models.FCN8s(padding=1, fc6_kernel=1, **TINY)


@pytest.mark.parametrize("cls", ON_VGG)
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (33, 50)], ids=str)
def test_equal_to_dense_transposed_convolutions(cls: type, size: tuple[int, int]) -> None:
    model = filled(cls(5, **TINY))
    image = torch.randn(2, 3, *size)
    expected, oracle = eager(model, image), eager(cls_double(model), image.double())
    logits = model(image)
    error = (expected.double() - oracle).abs().max()
    assert oracle.abs().max() > 0.01
    assert (logits.double() - oracle).abs().max() <= 2 * error + 2e-6 * oracle.abs().max()
    top = oracle.topk(2, 1).values
    clear = top[:, 0] - top[:, 1] > 1e-5
    assert torch.equal(model.predict(image)[clear], oracle.argmax(1)[clear])
    torch.testing.assert_close(model.probabilities(image), expected.softmax(1), atol=1e-5, rtol=0)
    target = torch.randint(0, 5, (2, *size))
    target[0, 0, 0] = 255
    options = {"ignore_index": 255, "reduction": "sum"}
    torch.testing.assert_close(model.loss(image, target, **options), F.cross_entropy(expected, target, **options))


def test_the_benchmarks_eager_network_is_the_tests_one() -> None:
    model, image = filled(models.FCN8s(5, **TINY)), torch.randn(2, 3, 45, 60)
    expected = eager(model, image)
    torch.testing.assert_close(eager_fcn.logits(model, image), expected)
    assert torch.equal(eager_fcn.predict(model, image), expected.argmax(1))


def cls_double(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model).double()


@pytest.mark.parametrize("cls", [models.FCNAlexNet, models.FCNGoogLeNet])
def test_other_backbones(cls: type) -> None:
    model = filled(cls(4))
    image = torch.randn(1, 3, 70, 41)
    small = model.scores(image)
    weight = bilinear_weight(4, 63)
    full = F.conv_transpose2d(small, weight, stride=32)
    expected = full[:, :, model.crop : model.crop + 70, model.crop : model.crop + 41]
    assert expected.shape == (1, 4, 70, 41)
    torch.testing.assert_close(model(image), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.predict(image), model(image).argmax(1))


@pytest.mark.parametrize("upsampling", ["depthwise", "dense"])
def test_learned_upsampling_starts_bilinear_and_learns(upsampling: str) -> None:
    fixed = filled(models.FCN8s(5, **TINY))
    learned = models.FCN8s(5, upsampling=upsampling, last_upsampling=upsampling, **TINY).eval()
    learned.load_state_dict({k: v for k, v in fixed.state_dict().items() if not k.startswith("up")}, strict=False)
    image, target = torch.randn(1, 3, 40, 40), torch.randint(0, 5, (1, 40, 40))
    torch.testing.assert_close(learned(image), fixed(image), atol=1e-5, rtol=1e-5)
    assert torch.equal(learned.predict(image), learned(image).argmax(1))
    learned.loss(image, target).backward()
    fixed.loss(image, target).backward()
    assert learned.upscore2.weight.grad.abs().max() > 0
    assert "upscore2.weight" not in dict(fixed.named_parameters())
    torch.testing.assert_close(learned.conv1_1.weight.grad, fixed.conv1_1.weight.grad, atol=1e-5, rtol=1e-3)


def test_gradients_are_those_of_the_eager_network() -> None:
    model = filled(models.FCN8s(5, **TINY)).double()
    image, target = torch.randn(1, 3, 40, 48).double(), torch.randint(0, 5, (1, 40, 48))
    model.loss(image, target).backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    F.cross_entropy(eager(model, image), target).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, msg=name)


def test_layouts_backends_and_autocast() -> None:
    model = filled(models.FCN8s(5, **TINY))
    image = torch.randn(2, 3, 40, 56)
    expected = model(image)
    with fk.use_backend("reference"):
        torch.testing.assert_close(model(image), expected, atol=1e-5, rtol=1e-5)
    last = model.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(image, torch.randint(0, 5, (2, 40, 56)))
    loss.backward()
    assert loss.dtype == torch.float32
    assert model.conv1_1.weight.grad.isfinite().all()


def test_scores_start_at_zero() -> None:
    model = models.FCN8s(5, **TINY).eval()
    assert model(torch.randn(1, 3, 20, 20)).abs().max() == 0


def test_small_images() -> None:
    model = models.FCN8s(5, padding=17, fc6_kernel=3, **TINY).eval()
    with pytest.raises(ValueError, match=r"an image of 9 x 9 pixels leaves 2 x 2 features .* window of 3"):
        model(torch.randn(1, 3, 9, 9))
    for height, width in [(64, 33), (34, 35), (96, 97), (95, 127), (128, 129)]:
        assert model(torch.randn(1, 3, height, width)).shape == (1, 5, height, width)
    with pytest.raises(ValueError, match=r"images must be \[N, 3, H, W\], got shape \[1, 4, 9, 9\]"):
        model(torch.randn(1, 4, 9, 9))
    with pytest.raises(ValueError, match=r"target is \[60, 33\] pixels, the image \[64, 33\]"):
        model.loss(torch.randn(1, 3, 64, 33), torch.zeros(1, 60, 33, dtype=torch.long))


# --- convolutionalize ------------------------------------------------------------------------------------------------


def unpadded() -> nn.Sequential:
    """Without padding, every pixel of the heatmap is the classifier's answer to one window."""
    return filled(
        nn.Sequential(
            nn.Conv2d(3, 8, 5),
            nn.ReLU(),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(8, 12, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(12 * 4 * 4, 20),
            nn.BatchNorm1d(20),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(20, 10),
        )
    )


def test_heatmap_is_the_slid_classifier() -> None:
    classifier = unpadded()
    dense = models.convolutionalize(classifier, 16)
    image = torch.randn(2, 3, 30, 24)
    heatmap = dense(image)
    assert heatmap.shape == (2, 10, 8, 5)
    for y, x in itertools.product(range(8), range(5)):
        window = image[:, :, 2 * y : 2 * y + 16, 2 * x : 2 * x + 16]
        torch.testing.assert_close(heatmap[:, :, y, x], classifier(window), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(dense.probabilities(image), heatmap.softmax(1), atol=1e-6, rtol=1e-5)


def test_a_pool_over_cells_is_dilated() -> None:
    """8x8 features, averaged to 4x4 cells: what follows looks at every second pixel of the dense pool."""
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(6 * 16, 10)
    classifier = filled(nn.Sequential(*layers))
    dense = models.convolutionalize(classifier, 10)
    image = torch.randn(1, 3, 13, 12)
    heatmap = dense(image)
    assert heatmap.shape == (1, 10, 4, 3)
    for y, x in itertools.product(range(4), range(3)):
        expected = classifier(image[:, :, y : y + 10, x : x + 10])
        torch.testing.assert_close(heatmap[:, :, y, x], expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="windows that overlap or differ in size"):
        models.convolutionalize(classifier, 12)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: models.vgg11(7, channels=(4, 6, 8, 8, 8), hidden=12), 224),
        (lambda: models.vgg16(7, batch_norm=True, channels=(4, 6, 8, 8, 8), hidden=12, grid=2), 64),
        (lambda: models.alexnet(7), 224),
        (lambda: models.googlenet(7, transform_input=True), 224),
    ],
    ids=["vgg11", "vgg16_bn", "alexnet", "googlenet"],
)
def test_classifiers_keep_their_scores(make: object, size: int) -> None:
    classifier = filled(make())
    classifier.train()
    dense = models.convolutionalize(classifier, size)
    assert classifier.training
    assert dense.training
    classifier.eval(), dense.eval()
    image = torch.randn(1, 3, size, size)
    torch.testing.assert_close(dense(image).flatten(1), classifier(image), atol=1e-4, rtol=1e-3)
    assert dense(torch.randn(1, 3, size + 64, size + 32)).shape == (1, 7, 3, 2)


def test_what_cannot_be_converted() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(3, 4, 3)
            self.classifier = nn.Linear(4 * 36, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(self.features(x).flatten(1)) + x.mean()

    with pytest.raises(ValueError, match=r"misses the classifier's scores.*Odd does more than its children"):
        models.convolutionalize(Odd(), 8)
    with pytest.raises(ValueError, match=r"has no nn\.Linear"):
        models.convolutionalize(nn.Sequential(nn.Conv2d(3, 4, 3)), 8)
    with pytest.raises(ValueError, match="Softmax among the dense layers is not known to be element-wise"):
        models.convolutionalize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5), nn.Softmax(1)), 8)
    with pytest.raises(ValueError, match=r"nn.Linear with 145 inputs does not fit a map of 6 x 6"):
        models.convolutionalize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(145, 5)), 8)


# --- weights ---------------------------------------------------------------------------------------------------------


def test_from_the_classifier_to_8s() -> None:
    classifier = filled(models.vgg16(9, **TINY))
    coarse = models.FCN32s(5, **TINY)
    set_names = models.copy_from_classifier(coarse, classifier)
    assert len(set_names) == 30
    assert torch.equal(coarse.conv5_3.weight, classifier.features[28].weight)
    assert torch.equal(coarse.fc6.weight.flatten(1), classifier.classifier[0].weight)
    assert torch.equal(coarse.fc7.bias, classifier.classifier[3].bias)
    nn.init.normal_(coarse.score_fr.weight)
    finer = models.FCN16s(5, **TINY)
    assert "score_pool4.weight" not in models.copy_from_coarser(finer, coarse)
    image = torch.randn(1, 3, 20, 20)
    # A zero score adds nothing, so the finer network starts where the coarse one stands, up to the way of upsampling.
    torch.testing.assert_close(finer.eval().scores(image), finer.upscore2(coarse.eval().scores(image)))
    models.copy_from_coarser(models.FCN8s(5, **TINY), finer)

    with pytest.raises(ValueError, match="13 convolutions and 2 dense layers, the classifier 8 and 2"):
        models.copy_from_classifier(coarse, models.vgg11(9, **TINY))
    with pytest.raises(ValueError, match=r"fc6.weight: \[16, 12, 7, 7\] here, \[16, 48\] there"):
        models.copy_from_classifier(coarse, models.vgg16(9, grid=2, **TINY))
    with pytest.raises(ValueError, match=r"score_fr.weight: \[6, 16, 1, 1\] here, \[5, 16, 1, 1\] there"):
        models.copy_from_coarser(models.FCN16s(6, **TINY), coarse)


@pytest.mark.parametrize("constants", [True, False], ids=["constants", "neither weights nor biases"])
def test_batch_normalisation_is_folded(constants: bool) -> None:
    classifier = filled(models.vgg16(9, batch_norm=True, **TINY))
    for m in classifier.features if not constants else ():
        if isinstance(m, nn.BatchNorm2d):
            m.weight = m.bias = None
        elif isinstance(m, nn.Conv2d):
            m.bias = None
    for m in classifier.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean, 0, 0.2)
            nn.init.uniform_(m.running_var, 0.5, 2)
    model = models.FCN32s(9, **TINY)
    models.copy_from_classifier(model, classifier)
    model.conv1_1.padding = (1, 1)
    x = image = torch.randn(1, 3, 224, 224)
    for block, count in enumerate(model.blocks, 1):
        for i in range(1, count + 1):
            x = F.relu(getattr(model, f"conv{block}_{i}")(x))
        x = F.max_pool2d(x, 2)
    torch.testing.assert_close(x, classifier.features(image), atol=1e-5, rtol=1e-4)
    state = classifier.state_dict()
    del state["features.1.running_var"]
    with pytest.raises(ValueError, match=r"has features.1.running_mean, but lacks features.1.running_var"):
        models.copy_from_classifier(model, state)


def test_an_upsampling_becomes_as_general_as_its_weight() -> None:
    bilinear = bilinear_weight(5, 4)
    diagonal, mixed = bilinear * 1.5, bilinear + 0.01
    for start, weight, kind in [
        ("fixed", bilinear, "fixed"),
        ("fixed", diagonal, "depthwise"),
        ("fixed", mixed, "dense"),
        ("depthwise", bilinear, "depthwise"),
        ("depthwise", mixed, "dense"),
        ("dense", diagonal, "dense"),
    ]:
        layer = models.Upscore(5, 4, 2, start)
        before = layer.weight
        assert layer.use(weight) == kind
        assert (layer.weight is before) == (kind == start)  # an optimizer still has it
        x = torch.randn(1, 5, 6, 7)
        torch.testing.assert_close(layer(x), F.conv_transpose2d(x, weight, stride=2), atol=1e-5, rtol=1e-5)

    learning = models.FCN8s(5, upsampling="depthwise", **TINY)
    names = models.copy_from_coarser(learning, models.FCN16s(5, **TINY))
    assert "upscore2.weight" in names
    assert learning.upscore2.upsampling == "depthwise"
    with pytest.raises(ValueError, match=r"upscore2.weight has 6 classes, the model 5"):
        models.copy_from_coarser(learning, {"upscore2.weight": torch.zeros(6, 6, 4, 4)})


def test_googlenet_by_name() -> None:
    model, classifier = models.FCNGoogLeNet(3), models.googlenet(4)
    assert len(models.copy_from_classifier(model, classifier)) == len(model.state_dict()) - 3
    assert torch.equal(model.inception4e.branch2[1].conv.weight, classifier.inception4e.branch2[1].conv.weight)


def test_checkpoints(tmp_path: Path) -> None:
    model = filled(models.FCN8s(5, **TINY))
    image = torch.randn(1, 3, 20, 24)
    file = tmp_path / "model.pt"
    models.save_checkpoint({"model_state_dict": model.state_dict(), "epoch": 3}, file)
    assert [f.name for f in tmp_path.iterdir()] == ["model.pt"]
    copy = models.FCN8s(5, **TINY).eval()
    kinds = models.load_checkpoint(copy, file)
    assert kinds == dict.fromkeys(["upscore2", "upscore_pool4", "upscore8"], "fixed")
    assert torch.equal(copy(image), model(image))

    learned = dict(model.state_dict())
    learned["upscore2.weight"] = learned["upscore2.weight"] * 1.25
    learned["upscore8.weight"] = learned["upscore8.weight"] + 0.01
    assert models.load_checkpoint(copy, learned) == {
        "upscore2": "depthwise", "upscore_pool4": "fixed", "upscore8": "dense"
    }  # fmt: skip
    reference = models.FCN8s(5, upsampling="dense", last_upsampling="dense", **TINY).eval()
    assert set(models.load_checkpoint(reference, learned).values()) == {"dense"}
    torch.testing.assert_close(copy(image), reference(image), atol=1e-5, rtol=1e-5)
    assert set(copy.state_dict()) == set(model.state_dict())

    before = {k: v.clone() for k, v in copy.state_dict().items()}
    wrong = {k: v for k, v in model.state_dict().items() if k != "fc7.bias"} | {"fc8.bias": torch.zeros(1)}
    wrong["score_fr.weight"] = torch.zeros(21, 16, 1, 1)
    message = (
        r"fc7.bias is missing; fc8.bias is unknown; score_fr.weight is \[21, 16, 1, 1\], the model has \[5, 16, 1, 1\]"
    )
    with pytest.raises(ValueError, match=message):
        models.load_checkpoint(copy, wrong)
    assert all(torch.equal(before[k], v) for k, v in copy.state_dict().items())
    with pytest.raises(ValueError, match="neither a state_dict"):
        models.load_checkpoint(copy, {"weights": 3})


def test_a_killed_save_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    models.save_checkpoint({"step": torch.tensor(0)}, file)
    code = (
        "import sys, torch\n"
        "from fcn_kernels.models import save_checkpoint\n"
        "print('ready', flush=True)\n"
        "i = 0\n"
        "while True:\n"
        "    i += 1\n"
        "    save_checkpoint({'step': torch.full((200_000,), i)}, sys.argv[1])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE)
    process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    steps = torch.load(file, weights_only=True)["step"]
    assert (steps == steps.flatten()[0]).all()


def test_transforms() -> None:
    image = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    caffe = models.caffe_transform(image)
    torch.testing.assert_close(caffe[0], image[2].float() - 104.00699)
    torch.testing.assert_close(caffe[2], image[0].float() - 122.67892)
    torch.testing.assert_close(models.torchvision_transform(image)[1], (image[1] / 255 - 0.456) / 0.224)
    with pytest.raises(ValueError, match=r"RGB in uint8, .* got torch.float32 \[3, 4, 5\]"):
        models.caffe_transform(image.float())
    with pytest.raises(ValueError, match=r"got torch.uint8 \[1, 4, 5\]"):
        models.torchvision_transform(image[:1])


def test_max_pooling_keeps_no_indices_for_the_backward_pass():
    """Bit for bit PyTorch's, without its int64 tensors."""
    model = filled(models.FCN8s(5, **TINY))
    image, target = torch.rand(1, 3, 40, 52), torch.randint(0, 5, (1, 40, 52))

    def step(pool) -> tuple[list[Tensor], int]:
        kept = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(models.fcn, "max_pool2d", pool)
            with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
                loss = model.loss(image, target)
        images = [t for t in kept if t.dim() == 4 and t.dtype == torch.int64]
        return list(torch.autograd.grad(loss, list(model.parameters()))), len(images)

    ours, indices = step(models.fcn.max_pool2d)
    expected, expected_indices = step(F.max_pool2d)
    assert (indices, expected_indices) == (0, 5)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
