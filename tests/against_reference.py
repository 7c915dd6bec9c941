"""Runs a drawn call on the backend in use and compares every result with the reference in float64."""

from __future__ import annotations

from collections import Counter

import torch
from budget import check_budget
from call import OPS, Call, results
from torch import Tensor

from fcn_kernels import reference

tried: Counter[str] = Counter()  # calls that were compared, per operator


def check_call(call: Call) -> tuple[Tensor, ...]:
    """Runs the call on the backend in use, compares with the reference, and returns the results."""
    op, args = call.op, call.args
    tried[op] += 1
    ours, plain = results(op, OPS, args), results(op, reference, args)
    for mine, theirs in zip(ours, plain, strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        assert mine.is_contiguous() == theirs.is_contiguous()
        assert mine.dim() != 4 or reference.memory_format(mine) == reference.memory_format(theirs)
    doubles = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    if op == "upsample_confusion_matrix":
        x, target, code, ignored = args
        labels = OPS.upsample_argmax(x, code, torch.int64, False)[0]
        assert ours[0].equal(reference.count_labels(labels, target, x.shape[1], ignored))
        return ours
    if op in ("upsample_argmax", "score_argmax"):
        z = reference._sampled(doubles[0], args[1]) if op == "upsample_argmax" else reference._scores(*doubles[:3])
        _check_labels(ours[0], plain[0], z, call)
        if op == "score_argmax":
            return ours
    if op == "score_cross_entropy" and call.scale.dtype != reference.arithmetic_dtype(call.scale.dtype):
        doubles[-2:] = False, False  # of half types it gives the log-sum-exps instead of the gradients
    oracle = results(op, reference, doubles)
    scale = call.scale
    if "softmax" in op or "cross_entropy" in op:  # probabilities are about 1, however small the logits
        scale = torch.cat([scale.flatten(), scale.new_ones(1)])
    for i, gain in enumerate(call.gains):
        if not (op == "upsample_argmax" and i == 0):
            check_budget(ours[i], plain[i], oracle[i], scale, gain=gain)
    return ours


def _check_labels(labels: Tensor, plain: Tensor, z: Tensor, call: Call) -> None:
    """The label of the largest logit, or of one that roundings cannot tell from it."""
    arithmetic = reference.arithmetic_dtype(call.scale.dtype)
    finite = z.isfinite().all(1)
    assert labels[~finite].equal(plain[~finite])
    band = 16 * torch.finfo(arithmetic).eps * z[z.isfinite()].abs().max().item() if finite.any() else 0.0
    chosen = z.gather(1, labels.long()[:, None]) if labels.numel() else z[:, :1]
    assert (chosen >= z.amax(1, keepdim=True) - band)[finite[:, None]].all(), "not the largest logit"
