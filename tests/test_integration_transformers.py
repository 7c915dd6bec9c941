"""Hugging Face transformers: small random models before and after fuse; losses, logits, gradients, label maps."""

from __future__ import annotations

import copy
import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from budget import check_budget
from libraries import library
from peaks import peak, training_peaks
from torch import Tensor, nn

import fcn_kernels as fk

hf = library("transformers")

from fcn_kernels.integrations import transformers as integration  # noqa: E402

CLASSES = 6
VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
BEIT = {**VIT, "image_size": 64, "patch_size": 16, "out_indices": [1, 2, 3, 4], "use_auxiliary_head": True}
BACKBONE = {
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "out_features": [f"stage{i}" for i in (1, 2, 3, 4)],
}


def configurations(classes: int = CLASSES) -> dict[str, tuple[str, Any]]:
    """Class of the model and its configuration."""
    common = {"num_labels": classes, "semantic_loss_ignore_index": 255}
    return {
        "segformer": (
            "SegformerForSemanticSegmentation",
            hf.SegformerConfig(hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=32, depths=[1] * 4, **common),
        ),
        "beit": ("BeitForSemanticSegmentation", hf.BeitConfig(**BEIT, pool_scales=[1, 2], **common)),
        "data2vec": (
            "Data2VecVisionForSemanticSegmentation",
            hf.Data2VecVisionConfig(**BEIT, pool_scales=[1, 2], **common),
        ),
        "dpt": (
            "DPTForSemanticSegmentation",
            hf.DPTConfig(
                **VIT,
                image_size=64,
                patch_size=16,
                backbone_out_indices=[0, 1, 2, 3],
                neck_hidden_sizes=[8, 8, 16, 16],
                fusion_hidden_size=16,
                **common,
            ),
        ),
        "mobilevit": (
            "MobileViTForSemanticSegmentation",
            hf.MobileViTConfig(image_size=64, aspp_out_channels=16, atrous_rates=[1, 2, 3], **common),
        ),
        "mobilevitv2": (
            "MobileViTV2ForSemanticSegmentation",
            hf.MobileViTV2Config(
                image_size=64, width_multiplier=0.5, aspp_out_channels=16, atrous_rates=[1, 2, 3], **common
            ),
        ),
        "mobilenet_v2": (
            "MobileNetV2ForSemanticSegmentation",
            hf.MobileNetV2Config(image_size=64, depth_multiplier=0.35, **common),
        ),
        "upernet": (
            "UperNetForSemanticSegmentation",
            hf.UperNetConfig(
                backbone_config=hf.ConvNextConfig(**BACKBONE),
                hidden_size=16,
                pool_scales=[1, 2],
                auxiliary_channels=8,
                auxiliary_in_channels=24,
                num_labels=classes,
                loss_ignore_index=255,
            ),
        ),
    }


def small(name: str, classes: int = CLASSES) -> nn.Module:
    kind, config = configurations(classes)[name]
    torch.manual_seed(0)
    model = getattr(hf, kind)(config)
    with torch.no_grad():  # random initial scores are tiny: spread them, so that errors are seen
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(3)
    return model


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    labels = torch.randint(0, CLASSES, (2, 64, 64))
    labels[:, :5] = 255
    return torch.randn(2, 3, 64, 64), labels


def step(model: nn.Module, image: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    model.train()
    model.zero_grad()
    torch.manual_seed(2)  # dropout
    out = model(pixel_values=image.to(next(model.parameters()).dtype), labels=labels, **options)
    out.loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return out.loss.detach(), out.logits.detach() * 1, grads


NAMES = ["segformer", "beit", "data2vec", "dpt", "mobilevit", "mobilevitv2", "mobilenet_v2", "upernet"]


@pytest.mark.parametrize("name", NAMES)
def test_loss_logits_and_every_gradient(name: str) -> None:
    model = small(name)
    image, labels = batch()
    state = copy.deepcopy(model.state_dict())
    exact = step(copy.deepcopy(model).double(), image, labels)
    model.load_state_dict(state)  # batch norm has counted
    reference = step(model, image, labels)
    model.load_state_dict(state)
    report = fk.fuse(model)
    ours = step(model, image, labels)
    assert "cross_entropy" in {consumer for _, consumer in report.seen}
    check_budget(ours[0], reference[0], exact[0], reference[1])
    check_budget(ours[1], reference[1], exact[1], reference[1])
    assert ours[2].keys() == reference[2].keys()
    largest = max(g.abs().max().item() for g in exact[2].values())
    for key, grad in ours[2].items():
        # A gradient that is zero but for rounding (a bias in front of a batch norm) is as large as its terms' rounding.
        check_budget(grad, reference[2][key], exact[2][key], image, floor=1e-5 * largest)


@pytest.mark.parametrize("name", NAMES)
def test_in_float64_nothing_but_rounding_differs(name: str) -> None:
    model = small(name).double()
    image, labels = batch()
    state = copy.deepcopy(model.state_dict())
    reference = step(model, image, labels)
    model.load_state_dict(state)
    fk.fuse(model)
    ours = step(model, image, labels)
    torch.testing.assert_close(ours[0], reference[0], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(ours[1], reference[1], atol=1e-10, rtol=1e-10)
    for key, grad in ours[2].items():
        torch.testing.assert_close(
            grad, reference[2][key], atol=1e-10, rtol=1e-10, msg=lambda m, key=key: f"{key}: {m}"
        )


@pytest.mark.parametrize("name", NAMES)
def test_peak_memory_of_a_training_step(name: str) -> None:
    model, (image, labels) = small(name, 150).train(), batch()

    def step() -> None:
        model.zero_grad(set_to_none=False)
        model(pixel_values=image, labels=labels).loss.backward()

    before, after = training_peaks(step, lambda: fk.fuse(model))
    assert before - after > 2 * 4 * 150 * labels.numel()  # logits at full resolution, their softmax, their gradient


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_signature_and_class_stay(name: str) -> None:
    model = small(name)
    keys, kinds = list(model.state_dict()), [type(m) for m in model.modules()]
    assert fk.fuse(model)
    assert list(model.state_dict()) == keys
    assert isinstance(model, kinds[0])
    assert type(model).__name__ == kinds[0].__name__  # what save_pretrained writes
    fk.unfuse(model)
    assert [type(m) for m in model.modules()] == kinds


def test_the_shared_loss_with_auxiliary_logits_and_num_items() -> None:
    loss = importlib.import_module("transformers.loss.loss_utils").ForSemanticSegmentationLoss

    class Model(nn.Module):
        def forward(self, logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
            return loss(logits, labels, 255, **options)

    _, labels = batch()
    logits, aux = torch.randn(2, CLASSES, 8, 8, requires_grad=True), torch.randn(2, CLASSES, 4, 4, requires_grad=True)
    model = Model()
    for options in ({}, {"num_items_in_batch": torch.tensor(7000)}, {"num_items_in_batch": 7000}):
        options = {**options, "auxiliary_logits": aux}
        expected = model(logits, labels, **options)
        grads = torch.autograd.grad(expected, [logits, aux])
        report = fk.fuse(model)
        ours = model(logits, labels, **options)
        assert sum(count for count, _ in report.seen.values()) == 2
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(torch.autograd.grad(ours, [logits, aux]), grads)
        fk.unfuse(model)


PROCESSORS = ["Segformer", "Beit", "DPT", "MobileViT", "MobileNetV2"]


@pytest.mark.parametrize("name", PROCESSORS)
def test_processors_return_the_same_label_maps(name: str) -> None:
    processor = getattr(hf, f"{name}ImageProcessor")()
    outputs = SimpleNamespace(logits=torch.randn(3, CLASSES, 16, 16, dtype=torch.float64))
    sizes = [(64, 64), (37, 90), (1, 5)]
    variants = [None, sizes, [(64, 64)] * 3]
    expected = [processor.post_process_semantic_segmentation(outputs, target_sizes=v) for v in variants]
    report = fk.fuse(processor)
    for v, theirs in zip(variants, expected, strict=True):
        ours = processor.post_process_semantic_segmentation(outputs, target_sizes=v)
        ours_without = integration.post_process_semantic_segmentation(outputs, v)
        assert len(ours) == len(ours_without) == len(theirs) == 3
        for x, y, z in zip(ours, theirs, ours_without, strict=True):
            assert x.dtype == y.dtype == z.dtype == torch.int64
            assert torch.equal(x, y)
            assert torch.equal(z, y)
    assert [consumer for _, consumer in report.seen] == ["argmax"]
    with pytest.raises(ValueError, match=r"as many target sizes"):
        processor.post_process_semantic_segmentation(outputs, target_sizes=sizes[:2])
    with pytest.raises(ValueError, match=r"target_sizes must have 3 entries"):
        integration.post_process_semantic_segmentation(outputs, sizes[:2])
    for x, y in zip(
        integration.post_process_semantic_segmentation(outputs, torch.tensor(sizes)), expected[1], strict=True
    ):
        assert torch.equal(x, y)
    assert type(fk.unfuse(processor)) is getattr(hf, f"{name}ImageProcessor")


def test_peak_memory_of_post_processing() -> None:
    processor = hf.SegformerImageProcessor()
    outputs = SimpleNamespace(logits=torch.randn(2, 150, 16, 16))
    found = []
    for _ in range(2):
        found.append(peak(lambda: processor.post_process_semantic_segmentation(outputs, [(64, 64)] * 2)))
        fk.fuse(processor)
    assert found[0] > 4 * 150 * 64 * 64  # the scores of one image
    assert found[1] < found[0] / 4


def test_segmentation_scores_on_request() -> None:
    processor = hf.SegformerImageProcessor()
    outputs = SimpleNamespace(logits=torch.randn(1, CLASSES, 16, 16))
    options = {"target_sizes": [(64, 64)], "return_segmentation_scores": True}
    (expected,) = processor.post_process_semantic_segmentation(outputs, **options)
    fk.fuse(processor)
    (ours,) = processor.post_process_semantic_segmentation(outputs, **options)
    assert torch.equal(ours.segmentation, expected.segmentation)
    assert torch.equal(ours.segmentation_scores * 1, expected.segmentation_scores)


def test_segformer_decoder_with_adapters_or_hooks_is_left_alone() -> None:
    class Adapter(nn.Linear):
        pass

    model = small("segformer")
    model.decode_head.linear_fuse.register_forward_hook(lambda *_: None)
    report = fk.fuse(model)
    assert "hooks" in next(e.action for e in report.left if e.where == "decode_head")
    model = small("segformer")
    image, _ = batch()
    model.eval()
    with torch.no_grad():
        expected = model(image).logits
        assert fk.fuse(model)
        stage = model.decode_head.linear_projections[0]
        stage.proj.__class__ = Adapter  # after fuse: noticed when it runs
        assert torch.equal(model(image).logits, expected)


def test_half_precision_training_step() -> None:
    model = small("segformer")
    image, labels = batch()
    with torch.autocast("cpu", torch.bfloat16):
        expected = step(model, image, labels)
        fk.fuse(model)
        ours = step(model, image, labels)
    assert ours[0].dtype == expected[0].dtype
    torch.testing.assert_close(ours[0], expected[0], atol=0.02, rtol=0.02)


class Images(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        labels = torch.randint(0, CLASSES, (64, 64), generator=generator)
        labels[:3] = 255
        return {"pixel_values": torch.randn(3, 64, 64, generator=generator), "labels": labels}


def trainer(tmp_path: Any, model: nn.Module, **options: Any) -> Any:
    arguments = hf.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        learning_rate=1e-3,
        optim="sgd",
        remove_unused_columns=True,
    )
    return hf.Trainer(model, arguments, train_dataset=Images(), eval_dataset=Images(), **options)


@pytest.mark.parametrize("name", ["segformer", "upernet"])
def test_trainer_trains_alike_and_evaluates_without_logits(name: str, tmp_path: Any) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    kept = {}
    for fused in (False, True):
        model = small(name)
        if fused:
            fk.fuse(model)
        matrices = []

        def metrics(prediction: Any, matrices: list = matrices) -> dict[str, float]:
            matrices.append(torch.as_tensor(prediction.predictions).sum(0))
            return {}

        run = trainer(
            tmp_path,
            model,
            preprocess_logits_for_metrics=integration.confusion_matrices_for_metrics(255),
            compute_metrics=metrics,
        )
        train = run.train()
        loss = run.evaluate()["eval_loss"]
        run.preprocess_logits_for_metrics = integration.label_maps_for_metrics
        labels = run.predict(Images()).predictions
        kept[fused] = (train.training_loss, loss, labels, matrices[0])
        model.save_pretrained(tmp_path / str(fused))
        assert hf.AutoConfig.from_pretrained(tmp_path / str(fused)).architectures == [type(model).__name__]
    for before, after in zip(kept[False][:2], kept[True][:2], strict=True):
        assert after == pytest.approx(before, rel=1e-5)
    assert kept[True][2].dtype.name == "uint8"
    assert kept[True][2].shape == (6, 64, 64)
    assert (kept[True][2] != kept[False][2]).mean() < 1e-3  # ties
    assert kept[True][3].sum() == kept[False][3].sum() == 6 * 61 * 64
    assert (kept[True][3] - kept[False][3]).abs().sum() <= 40


def test_an_untested_version_gives_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration, "TESTED", ("1.0",))
    with pytest.warns(UserWarning, match=r"was tested with transformers 1.0, and this is 5") as caught:
        fk.fuse(small("mobilenet_v2"))
    assert len(caught) == 1
