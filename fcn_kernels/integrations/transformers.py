"""Hugging Face transformers: semantic segmentation.

The models need no code of their own: their losses interpolate logits to the labels and take the cross-entropy, which
`fcn_kernels.fuse(model)` fuses where they stand. Here are SegFormer's decoder, the image processors, and what the
Trainer needs to evaluate without full-resolution logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from ..deferred import deferring
from ..fusion import Entry, Fused, Report, fused_class, has_hooks
from ..ops.upsample_add import upsample_add
from ..ops.upsample_argmax import upsample_argmax
from ..ops.upsample_confusion_matrix import upsample_confusion_matrix
from . import untested_version

__all__ = ["confusion_matrices_for_metrics", "label_maps_for_metrics", "post_process_semantic_segmentation"]

TESTED = ("5.23",)


def untested() -> str | None:
    """A warning, if this version of the library was not tested."""
    return untested_version("transformers", TESTED)


class FusedSegformerDecodeHead(Fused):
    """SegFormer's decoder by linearity: one 1x1 convolution per stage at the stage's own resolution, then fused sums.

    The library projects every stage to D channels, upsamples it, concatenates, and mixes the 4 D channels with a 1x1
    convolution. All four steps are linear, and bilinear weights sum to one:

        sum_i V_i up(P_i x_i + b_i) = sum_i up((V_i P_i) x_i + V_i b_i)
    """

    def forward(self: Any, encoder_hidden_states: Sequence[Tensor], **kwargs: Any) -> Tensor:
        projections = _projections(self)
        if torch.compiler.is_compiling() or _why_not_linear(self, projections) is not None:
            return super().forward(encoder_hidden_states, **kwargs)
        states = [self._fcn_as_image(x) for x in encoder_hidden_states]
        size = states[0].shape[2:]
        # The library concatenates the stages in reverse.
        mixing = self.linear_fuse.weight.flatten(1).split(projections[0].out_features, dim=1)[::-1]
        bias = sum(v @ p.bias for v, p in zip(mixing, projections, strict=True) if p.bias is not None)
        mixed = None
        for x, v, p in zip(states, mixing, projections, strict=True):
            with torch.autocast(x.device.type, enabled=False):
                weight = (v @ p.weight)[:, :, None, None]
            # Channels last, as the library's linear projections leave it: dropout then draws the same mask.
            y = F.conv2d(
                x.contiguous(memory_format=torch.channels_last),
                weight,
                bias if mixed is None and isinstance(bias, Tensor) else None,
            )
            if mixed is None:
                mixed = y
            else:
                mixed = mixed + y if y.shape[2:] == size else upsample_add(y, mixed, tuple(size))
        assert mixed is not None
        hidden = self.dropout(self.activation(self.batch_norm(mixed)))
        return self.classifier(hidden)

    def _fcn_as_image(self: Any, x: Tensor) -> Tensor:
        if x.dim() != 3:
            return x
        side = math.isqrt(x.shape[-1])  # as the library has it, for `reshape_last_stage=False`
        return x.reshape(x.shape[0], side, side, -1).permute(0, 3, 1, 2)


def _projections(head: nn.Module) -> list[nn.Module]:
    stages = getattr(head, "linear_projections", None)
    if stages is None:
        stages = getattr(head, "linear_c", ())  # transformers 4
    return [getattr(stage, "proj", stage) for stage in stages]


def _why_not_linear(head: nn.Module, projections: Sequence[nn.Module]) -> str | None:
    if not projections or any(type(p) is not nn.Linear for p in projections) or type(head.linear_fuse) is not nn.Conv2d:
        return "its projections are not plain nn.Linear and nn.Conv2d (adapters?)"
    if head.linear_fuse.bias is not None:
        return "linear_fuse has a bias"
    if any(has_hooks(m) for stage in (head.linear_fuse, *projections) for m in stage.modules()):
        return "hooks read its intermediate results"
    return None


def fuse_module(name: str, module: nn.Module, report: Report) -> None:
    """SegFormer's decoder."""
    if type(module) is not SegformerDecodeHead:
        return
    what = type(module).__name__
    reason = _why_not_linear(module, _projections(module))
    if reason is not None:
        report.left.append(Entry(name, what, reason))
        return
    module.__class__ = fused_class(FusedSegformerDecodeHead, SegformerDecodeHead)
    report.fused.append(Entry(name, what, "1x1 convolutions before upsampling, then fused sums"))


class DeferringPostProcess(Fused):
    """An image processor whose post_process_semantic_segmentation does not write the scores that it upsamples."""

    wraps = ("post_process_semantic_segmentation",)

    @staticmethod
    def wrapped(base: type, name: str) -> Callable:
        original = getattr(base, name)

        def post_process(self: Any, *args: Any, **kwargs: Any) -> Any:
            with deferring(self._fcn_log):
                return original(self, *args, **kwargs)

        return post_process


def fuse_object(thing: Any, report: Report) -> bool:
    """Image processors that make label maps."""
    name = "post_process_semantic_segmentation"
    if not hasattr(type(thing), name):
        return False
    if not isinstance(thing, Fused):
        thing.__class__ = fused_class(DeferringPostProcess, type(thing))
    thing._fcn_log = report.seen
    report.fused.append(Entry("", name, "label maps without full-resolution scores"))
    return True


def post_process_semantic_segmentation(
    outputs: Any, target_sizes: Sequence[Sequence[int]] | Tensor | None = None
) -> list[Tensor]:
    """The method of this name of the SegFormer, BEiT, DPT, MobileViT and MobileNetV2 processors, without the processor.

    Args:
        outputs: with `logits` [N, C, h, w].
        target_sizes: N pairs (H, W), or None for the size of the logits.

    Returns:
        N label maps [H, W] in int64.

    Raises:
        ValueError: as many target sizes as logits are needed.
    """
    logits = outputs.logits.detach()
    if target_sizes is None:
        return list(logits.argmax(dim=1))
    if len(target_sizes) != len(logits):
        raise ValueError(
            f"post_process_semantic_segmentation: target_sizes must have {len(logits)} entries, one for each image of "
            f"the logits, got {len(target_sizes)}"
        )
    sizes = target_sizes.tolist() if isinstance(target_sizes, Tensor) else target_sizes
    return [upsample_argmax(x[None], (int(h), int(w)))[0] for x, (h, w) in zip(logits, sizes, strict=True)]


def label_maps_for_metrics(logits: Any, labels: Tensor) -> Tensor:
    """For ``Trainer(preprocess_logits_for_metrics=...)``: label maps [N, H, W] instead of logits.

    They are uint8 where the classes fit, an eighth of int64 to collect.
    """
    logits = logits[0] if isinstance(logits, (tuple, list)) else logits
    dtype = torch.uint8 if logits.shape[1] <= 256 else torch.int32
    if logits.shape[2:] == labels.shape[1:]:
        return logits.argmax(dim=1).to(dtype)
    return upsample_argmax(logits, tuple(labels.shape[1:]), dtype=dtype)


def confusion_matrices_for_metrics(ignore_index: int = 255) -> Callable[[Any, Tensor], Tensor]:
    """For ``Trainer(preprocess_logits_for_metrics=...)``: one confusion matrix per batch, [1, C, C], and no images.

    ``compute_metrics`` finds them stacked in ``predictions``; their sum over the first axis is the data set's.
    """

    def preprocess(logits: Any, labels: Tensor) -> Tensor:
        logits = logits[0] if isinstance(logits, (tuple, list)) else logits
        return upsample_confusion_matrix(logits, labels, ignore_index=ignore_index)[None]

    return preprocess
