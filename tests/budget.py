"""The error budget: how far a result may lie from the float64 oracle.

    max |ours - oracle| <= 2 max |reference in the dtype - oracle| + floor

The reference, run in the dtype of the operator, tells what the dtype allows; the maximum over a tensor is the
yardstick, for single elements may be right by luck. The floor knows the conditioning: a relative 2e-6 of the result
(float32), and the rounding of the logits, 4 eps max|x|, which reaches the result with the given gain.
"""

from __future__ import annotations

import torch
from torch import Tensor

RELATIVE = {torch.float32: 2e-6, torch.float64: 4e-15}


def check_budget(
    ours: Tensor, reference: Tensor, oracle: Tensor, x: Tensor, *, gain: float = 1.0, floor: float = 0.0
) -> None:
    """`oracle` is in float64, `reference` in the dtype of `ours`; gain is d result / d logit, at most."""
    assert ours.dtype == reference.dtype, f"dtype {ours.dtype}, the reference has {reference.dtype}"
    assert ours.shape == reference.shape == oracle.shape
    ours, reference, oracle = (t.detach().cpu().double() for t in (ours, reference, oracle))
    assert torch.equal(ours.isnan(), oracle.isnan()), "NaN in other places than the oracle"
    infinite = oracle.isinf() | reference.isinf()  # the reference overflows where the dtype does
    assert torch.equal(ours[infinite], reference[infinite]), "other infinities than the reference"
    finite = oracle.isfinite() & ~infinite
    ours, reference, oracle = ours[finite], reference[finite], oracle[finite]
    if oracle.numel() == 0:
        return
    arithmetic = torch.float64 if x.dtype == torch.float64 else torch.float32
    x = x.detach().double()
    logit = 4 * torch.finfo(arithmetic).eps * x[x.isfinite()].abs().max().item() if x.isfinite().any() else 0.0
    floor += RELATIVE[arithmetic] * oracle.abs().max().item() + logit * gain
    error, allowed = (ours - oracle).abs().max().item(), 2 * (reference - oracle).abs().max().item() + floor
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"
