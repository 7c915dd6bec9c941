"""fuse and unfuse on home-made models: the same numbers, gradients, keys and errors as before."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from budget import check_budget
from torch import Tensor, nn

import fcn_kernels as fk
from fcn_kernels.deferred import Deferred, deferring


class Head(nn.Module):
    """Two classes of upsampling, an auxiliary output, a skip connection: the shape of many real models."""

    def __init__(self, align_corners: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.score = nn.Conv2d(8, 5, 1)
        self.aux = nn.Conv2d(8, 5, 1)
        self.align_corners = align_corners

    def forward(self, image: Tensor, *, with_aux: bool = True) -> dict[str, Tensor]:
        """Scores at the size of the image."""
        x = self.stem(image).relu()
        y = F.interpolate(self.deep(x), size=x.shape[2:], mode="bilinear", align_corners=self.align_corners)
        y = self.score(x + y)
        options = {"size": image.shape[2:], "mode": "bilinear", "align_corners": self.align_corners}
        out = {"out": F.interpolate(y, **options)}
        if with_aux:
            out["aux"] = F.interpolate(self.aux(x), **options)
        return out


def criterion(outputs: dict[str, Tensor], target: Tensor) -> Tensor:
    losses = {name: F.cross_entropy(x, target, ignore_index=255) for name, x in outputs.items()}
    return losses["out"] + 0.5 * losses["aux"]


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    target = torch.randint(0, 5, (2, 37, 50))
    target[:, :4] = 255
    return torch.randn(2, 3, 37, 50, dtype=dtype), target


def gradients(model: nn.Module, image: Tensor, target: Tensor) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    loss = criterion(model(image), target)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("align_corners", [False, True])
def test_loss_and_every_gradient(align_corners: bool) -> None:
    model = Head(align_corners)
    image, target = batch()
    oracle = gradients(copy.deepcopy(model).double(), image.double(), target)
    reference = gradients(model, image, target)
    report = fk.fuse(model)
    ours = gradients(model, image, target)
    check_budget(ours[0], reference[0], oracle[0], image)
    for mine, theirs, exact in zip(ours[1], reference[1], oracle[1], strict=True):
        check_budget(mine, theirs, exact, image)
    consumers = [consumer for _, consumer in report.seen]
    assert sorted(consumers) == ["add", "cross_entropy", "cross_entropy"]


def test_labels_probabilities_and_one_image() -> None:
    model = Head()
    image, _ = batch(torch.float64)
    with torch.no_grad():
        expected = model.double()(image)["out"]
        report = fk.fuse(model)
        out = model(image)["out"]
        assert type(out) is Deferred
        assert out.shape == expected.shape
        assert torch.equal(out.argmax(1), expected.argmax(1))
        assert torch.equal(out.argmax(dim=-3, keepdim=True), expected.argmax(1, keepdim=True))
        assert torch.equal(out[-1].argmax(0), expected[-1].argmax(0))
        assert [x.argmax(0).equal(y.argmax(0)) for x, y in zip(out, expected, strict=True)] == [True, True]
        fresh = model(image)["out"]
        torch.testing.assert_close(fresh.softmax(1), expected.softmax(1))
        torch.testing.assert_close(F.log_softmax(fresh, dim=1), expected.log_softmax(1))
        torch.testing.assert_close(nn.Softmax2d()(fresh[0]), expected[0].softmax(0))
        assert {"argmax", "softmax", "log_softmax"} <= {consumer for _, consumer in report.seen}


class DecodeHead(nn.Module):
    """Loss and accuracy as mmsegmentation's heads have them: pixel losses, weighted, averaged in its own way."""

    def __init__(self, align_corners: bool, avg_non_ignore: bool) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(6, 5, 1)
        self.align_corners, self.avg_non_ignore = align_corners, avg_non_ignore

    def forward(self, x: Tensor, target: Tensor, pixel_weight: Tensor | None) -> tuple[Tensor, Tensor]:
        size = target.shape[1:]
        scores = F.interpolate(self.conv_seg(x), size=size, mode="bilinear", align_corners=self.align_corners)
        loss = F.cross_entropy(scores, target, reduction="none", ignore_index=255)
        count = (target != 255).sum() if self.avg_non_ignore else target.numel()
        loss = (loss if pixel_weight is None else loss * pixel_weight).sum() / (count + 1e-7)
        _, predicted = scores.topk(1, dim=1)
        correct = predicted.transpose(0, 1).eq(target) & (target != 255)
        return loss, correct.sum() / (target != 255).sum()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("avg_non_ignore", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_heads_like_those_of_mmsegmentation(align_corners: bool, avg_non_ignore: bool, weighted: bool) -> None:
    head = DecodeHead(align_corners, avg_non_ignore).double()
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 5, (2, 33, 40))
    target[:, :4] = 255
    weight = torch.rand(2, 33, 40, dtype=torch.float64) if weighted else None
    wanted = [x, *head.parameters()]
    loss, accuracy = head(x, target, weight)
    grads = torch.autograd.grad(loss, wanted)
    report = fk.fuse(head)
    ours, same = head(x, target, weight)
    torch.testing.assert_close(ours, loss)
    assert torch.equal(same, accuracy)
    torch.testing.assert_close(torch.autograd.grad(ours, wanted), grads)
    assert {consumer for _, consumer in report.seen} == {"cross_entropy", "argmax"}


def test_the_largest_score_has_a_gradient() -> None:
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    with deferring({}):
        values, labels = F.interpolate(x, size=(9, 8), mode="bilinear").max(1)
    expected = F.interpolate(x, size=(9, 8), mode="bilinear").max(1)
    assert torch.equal(labels, expected.indices)
    (grad,) = torch.autograd.grad(values.square().sum(), x)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.values.square().sum(), x)[0])


@pytest.mark.parametrize(
    "read",
    [
        lambda y: y.softmax(2),
        lambda y: y.argmax(),
        lambda y: y.max(1).values * 1,
        lambda y: y.topk(1, dim=1).values * 1,
        lambda y: y.topk(2, dim=1).indices.float(),
        lambda y: y.max(2, keepdim=True).values,
        lambda y: y[:, :3].sum(),
        lambda y: torch.cat([y, y], dim=1),
        lambda y: y.cumsum_(1),
        lambda y: torch.from_numpy(y.detach().numpy()),
        lambda y: pickle.loads(pickle.dumps(y.detach())),
        lambda y: copy.deepcopy(y.detach()),
        lambda y: y.flatten(1) @ y.flatten(1).T,
        lambda y: F.conv2d(y, torch.ones(2, 5, 3, 3)),
        lambda y: F.relu(y, inplace=True),
        lambda y: F.interpolate(y, scale_factor=0.5, mode="bilinear") * 1,
        lambda y: torch.tensor(y[0, 1, 2, 3].item()),
        lambda y: y.half().float(),
        lambda y: torch.zeros(2, 5, 32, 40).copy_(y),
    ],
)
def test_anything_else_gets_the_very_tensor(read: object) -> None:
    x = torch.randn(2, 5, 8, 10)
    expected = read(F.interpolate(x, size=(32, 40), mode="bilinear"))
    with deferring({}):
        y = F.interpolate(x, size=(32, 40), mode="bilinear")
        inside = F.interpolate(x, size=(32, 40), mode="bilinear")
        assert torch.equal(read(inside), expected)
    assert type(y) is Deferred
    result = read(y)
    assert type(result) is Tensor
    assert torch.equal(result, expected)


@pytest.mark.parametrize(
    ("factor", "corners", "deferred"), [(1.12, False, False), (1.12, True, True), (1.0, False, True)]
)
def test_an_axis_that_torch_copies_on_some_devices_is_left_alone(factor: float, corners: bool, deferred: bool) -> None:
    x = torch.randn(2, 5, 8, 10)
    with deferring({}):
        y = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=corners)
    assert (type(y) is Deferred) == deferred
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=corners)
    torch.testing.assert_close(y.softmax(1), expected.softmax(1))


def test_gradients_reach_code_below_python() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            return 2 * grad

    x = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    with deferring({}):
        y = F.interpolate(x, scale_factor=2.5, mode="bilinear")
    assert y.requires_grad
    (grad,) = torch.autograd.grad(Double.apply(y).square().sum(), x)
    z = F.interpolate(x, scale_factor=2.5, mode="bilinear")
    (expected,) = torch.autograd.grad((2 * z).square().sum(), x)
    torch.testing.assert_close(grad, expected)


def test_a_value_made_without_gradients_still_has_them() -> None:
    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    with deferring({}):
        y = F.interpolate(x, scale_factor=2, mode="bilinear")
    with torch.no_grad():
        y.sum()
    with torch.inference_mode():
        y.sum()
    y.square().sum().backward()
    assert x.grad.abs().sum() > 0
    with torch.no_grad(), deferring({}):
        y = F.interpolate(x, scale_factor=2, mode="bilinear")
    assert not y.requires_grad
    assert not (y * 1).requires_grad


def test_inputs_that_change_in_place() -> None:
    x = torch.randn(1, 3, 4, 4)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear")
    with deferring({}):
        first = x.clone()
        y = F.interpolate(first, scale_factor=2, mode="bilinear")
        first.relu_()  # seen: the value is made before
        second = x.clone()
        z = F.interpolate(second, scale_factor=2, mode="bilinear")
    assert torch.equal(y * 1, expected)
    second.relu_()
    with pytest.raises(RuntimeError, match=r"was changed in place before its result was read"):
        z.argmax(1)
    with torch.inference_mode(), deferring({}):
        third = x.clone()
        y = F.interpolate(third[:, :2], scale_factor=2, mode="bilinear")
        torch.add(third, 1, out=third)
        assert torch.equal(y * 1, expected[:, :2])


def test_wrong_arguments_are_reported_by_torch() -> None:
    x = torch.randn(1, 3, 4, 4)
    with deferring({}):
        with pytest.raises(ValueError, match=r"only one of size or scale_factor"):
            F.interpolate(x, size=8, scale_factor=2, mode="bilinear")
        with pytest.raises(RuntimeError, match=r"greater than 0"):
            F.interpolate(x, size=0, mode="bilinear")
        y = F.interpolate(x, size=8, mode="bilinear")
        for others in (F.interpolate(x, size=8), F.interpolate(x, size=8, mode="bilinear", antialias=True)):
            assert type(others) is Tensor
    with pytest.raises(ValueError, match=r"batch_size"):
        F.cross_entropy(y, torch.zeros(2, 8, 8, dtype=torch.int64))
    soft = torch.rand(1, 3, 8, 8)
    expected = F.cross_entropy(F.interpolate(x, size=8, mode="bilinear"), soft)
    assert torch.equal(F.cross_entropy(y, soft), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_keep_torch_result_types(dtype: torch.dtype) -> None:
    x = torch.randn(1, 3, 4, 4).to(dtype)
    target = torch.zeros(1, 8, 8, dtype=torch.int64)
    with deferring({}):
        y, z = (F.interpolate(x, size=8, mode="bilinear") for _ in range(2))
    assert F.cross_entropy(y, target).dtype == dtype
    assert y.softmax(1).dtype == dtype
    if dtype == torch.bfloat16:
        with torch.autocast("cpu", dtype):
            assert F.cross_entropy(z, target).dtype == torch.float32


def test_one_by_one_convolution_moves_before_upsampling() -> None:
    log: dict = {}
    x, conv = torch.randn(2, 6, 5, 7, dtype=torch.float64, requires_grad=True), nn.Conv2d(6, 3, 1).double()
    expected = conv(F.interpolate(x, size=(20, 21), mode="bilinear"))
    with deferring(log):
        y = conv(F.interpolate(x, size=(20, 21), mode="bilinear"))
    assert type(y) is Deferred
    torch.testing.assert_close(y * 1, expected)
    wanted = [x, conv.weight, conv.bias]
    grads = torch.autograd.grad(y.square().sum(), wanted)
    torch.testing.assert_close(grads, torch.autograd.grad(expected.square().sum(), wanted))
    with deferring(log):  # fewer pixels after than before: left where it is
        assert type(conv(F.interpolate(x, size=(2, 3), mode="bilinear"))) is Tensor


def bilinear_layer(groups: int = 1, **options: int) -> nn.ConvTranspose2d:
    layer = nn.ConvTranspose2d(4, 4, 8, stride=4, groups=groups, **options)
    with torch.no_grad():
        layer.weight.copy_(fk.nn.bilinear_weight(4, 8, groups=groups))
    return layer


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("padding", "output_padding", "bias"), [(0, 0, True), (2, 0, False), (3, 2, True)])
def test_bilinear_transposed_convolution(groups: int, padding: int, output_padding: int, bias: bool) -> None:
    layer = bilinear_layer(groups, padding=padding, output_padding=output_padding, bias=bias)
    layer.weight.requires_grad_(False)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), layer).double()
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    expected = model(x)
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    grads = torch.autograd.grad(expected.square().sum(), wanted)
    keys, ids = list(model.state_dict()), [id(p) for p in model.parameters()]
    report = fk.fuse(model)
    assert [e.where for e in report.fused] == ["1"]
    y = model(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), wanted), grads)
    assert list(model.state_dict()) == keys
    assert [id(p) for p in model.parameters()] == ids
    with torch.no_grad():
        layer.weight.mul_(2)  # no longer bilinear: the layer notices
    torch.testing.assert_close(
        model(x), F.conv_transpose2d(model[0](x), layer.weight, layer.bias, 4, padding, output_padding, groups)
    )


WRITERS = {
    "data": lambda w: w.data.mul_(2),
    "numpy": lambda w: w.detach().numpy().__imul__(2),
    "one element": lambda w: w.data[3, -1, 7, 2].add_(0.01),
    "beside the diagonal": lambda w: w.data[-1, 0, 3, 3].add_(0.01),
    "inference": lambda w: w.mul_(2),
}


@pytest.mark.parametrize("writer", list(WRITERS))
@pytest.mark.parametrize("groups", [1, 4])
def test_a_bilinear_weight_is_noticed_to_change_whoever_writes(groups: int, writer: str) -> None:
    with torch.inference_mode(writer == "inference"):
        model = nn.Sequential(bilinear_layer(groups)).requires_grad_(False)
        x = torch.randn(2, 4, 6, 5)
        assert fk.fuse(model)
        torch.testing.assert_close(model(x), F.conv_transpose2d(x, model[0].weight, model[0].bias, 4, groups=groups))
        WRITERS[writer](model[0].weight)
        expected = F.conv_transpose2d(x, model[0].weight, model[0].bias, 4, groups=groups)
        torch.testing.assert_close(model(x), expected)


def test_a_bilinear_weight_in_float64_under_autocast_is_refused_as_torch_refuses_it() -> None:
    layer = bilinear_layer().requires_grad_(False).double()
    x = torch.randn(1, 4, 3, 3)
    for _ in range(2):  # as it was, and fused
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match=r"dtype|type"):
            layer(x)
        fk.fuse(layer)


def test_trainable_bilinear_weight_gets_its_gradient() -> None:
    layer = bilinear_layer()
    report = fk.fuse(layer)
    assert "trainable" in report.fused[0].action
    layer(torch.randn(1, 4, 3, 3)).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize(("groups", "out"), [(1, 3), (4, 4), (2, 6)])
def test_learned_transposed_convolution_with_a_large_stride(groups: int, out: int) -> None:
    layer = nn.ConvTranspose2d(4, out, 16, stride=8, padding=4, groups=groups, dtype=torch.float64)
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    wanted = [x, layer.weight, layer.bias]
    expected = layer(x)
    grads = torch.autograd.grad(expected.square().sum(), wanted)
    assert fk.fuse(layer).fused[0].action == "conv_transpose_add"
    y = layer(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), wanted), grads)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.ConvTranspose2d(4, 4, 8, stride=4), "it was learned"),
        (nn.ConvTranspose2d(4, 4, 5, stride=4), "not 2 s - 1 or 2 s"),
        (nn.ConvTranspose2d(4, 6, 8, stride=4), "mixes channels"),
        (nn.ConvTranspose2d(4, 4, (8, 6), stride=4), "not square"),
    ],
)
def test_what_is_not_bilinear_is_left_alone_with_its_reason(layer: nn.Module, reason: str) -> None:
    report = fk.fuse(nn.Sequential(layer))
    assert not report
    assert reason in report.left[0].action
    assert reason in str(report)
    assert type(layer) is nn.ConvTranspose2d


@pytest.mark.parametrize("softmax", [nn.Softmax2d(), nn.Softmax(dim=1), nn.LogSoftmax(dim=-3)])
def test_one_by_one_convolution_and_softmax(softmax: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1), softmax)
    x = torch.randn(2, 3, 9, 9)
    expected = model(x)
    grads = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    report = fk.fuse(model)
    y = model(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), list(model.parameters())), grads)
    assert [e.where for e in report.fused] == ["2"]
    assert list(report.seen) == [("1x1 convolution", "log_softmax" if "Log" in type(softmax).__name__ else "softmax")]


def test_hooked_scores_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(8, 5, 1), nn.Softmax2d())
    model[0].register_forward_hook(lambda *_: None)
    report = fk.fuse(model)
    assert not report
    assert "hooks" in report.left[0].action


def test_upsample_modules_and_losses_in_other_peoples_loops() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.UpsamplingBilinear2d(scale_factor=4))
    x, target = torch.randn(2, 3, 8, 8), torch.randint(0, 5, (2, 32, 32))
    loss = nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.rand(5))
    expected = loss(model(x), target)
    report = fk.fuse(model)
    torch.testing.assert_close(loss(model(x), target), expected)
    assert [consumer for _, consumer in report.seen] == ["cross_entropy"]
    assert "seen" in str(report)


def test_nothing_to_fuse_is_an_empty_report() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Upsample(scale_factor=2, mode="nearest"))
    report = fk.fuse(model)
    assert not report
    assert len(report) == 0
    assert str(report) == "Sequential: nothing to fuse"
    assert type(model) is nn.Sequential
    with pytest.raises(TypeError, match=r"must be an nn.Module"):
        fk.fuse("model")


def test_unfuse_gives_the_original_back() -> None:
    model = nn.Sequential(Head(), bilinear_layer())
    before = [(type(m), set(vars(m))) for m in model.modules()]
    assert fk.fuse(model)
    assert fk.fuse(model)  # twice changes nothing more
    assert [type(m) for m in model.modules()] != [kind for kind, _ in before]
    assert fk.unfuse(model) is model
    assert [(type(m), set(vars(m))) for m in model.modules()] == before


def test_fused_models_copy_pickle_and_keep_their_signature() -> None:
    model = Head()
    image, target = batch()
    fk.fuse(model)
    assert isinstance(model, Head)
    assert type(model).__name__ == "Head"
    assert "with_aux" in str(inspect.signature(model.forward))
    loss = criterion(model(image), target)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert type(other(image)["out"]) is Deferred
        assert torch.equal(criterion(other(image), target), loss)
        assert type(fk.unfuse(other)) is Head


def test_a_replaced_forward_is_left_alone() -> None:
    model = Head()
    model.forward = model.forward
    report = fk.fuse(model)
    assert not report
    assert "replaced on the instance" in report.left[0].action


def test_tracers_see_the_original() -> None:
    model = Head().requires_grad_(False)
    image, _ = batch()
    expected = model(image)["out"]
    fk.fuse(model)
    compiled = torch.compile(lambda x: model(x)["out"], fullgraph=True, backend="eager")
    result = compiled(image)
    assert type(result) is Tensor
    torch.testing.assert_close(result, expected)
    with pytest.warns(DeprecationWarning, match="torch.jit.trace"):
        traced = torch.jit.trace(lambda x: model(x)["out"], image)
    assert torch.equal(traced(image), expected)
    vmapped = torch.func.vmap(lambda x: model(x[None])["out"][0])(image)
    torch.testing.assert_close(vmapped, expected)
