"""Whether methods compute the same thing: within an error budget for numbers, outside a tie band for labels.

The oracle is eager PyTorch in float64. A fused operator may err twice as much as eager PyTorch does in the same dtype,
plus a floor that knows the conditioning: an error of a few ulp of the largest logit cannot be told from another
rounding of the input. Rivals are only asked to do the same job.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fcn_kernels.benchmarking.workload import Method, Tensors, Workload, call_of

_SINGLE = torch.finfo(torch.float32).eps


def in_double(tensors: Tensors) -> Tensors:
    return {
        name: t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t
        for name, t in tensors.items()
    }


def _error(value: Tensor, oracle: Tensor) -> float:
    return (value.detach().double() - oracle.detach().double()).abs().max().item()


def _floor(name: str, value: Tensor, oracle: Tensor, tensors: Tensors) -> float:
    """`(2e-6 + eps of the result's dtype) * scale + 4 * eps32 * largest logit`, the last in units of the result.

    A gradient sums over the output pixels that read an input pixel, each divided by the number of valid ones.
    """
    inputs = [t for t in tensors.values() if t.is_floating_point() and t.dim() == 4]
    conditioning = 4 * _SINGLE * max(t.detach().abs().max().item() for t in inputs)
    if name.startswith("gradient of "):
        x = tensors[name.removeprefix("gradient of ")]
        if x.dim() == 4:  # an image; a weight's gradient is a sum over the pixels
            conditioning /= x.shape[0] * x.shape[2] * x.shape[3]
    scale = oracle.detach().abs().max().item()
    return (2e-6 + torch.finfo(value.dtype).eps) * scale + conditioning


def _labels_disagree(labels: Tensor, oracle: Tensor, logits: Tensor, band: float) -> str | None:
    """Labels may differ where the oracle's lead of one class over the other is a rounding error, below `band`."""
    if labels.shape != oracle.shape:
        return f"labels have shape {tuple(labels.shape)}, not {tuple(oracle.shape)}"
    chosen = logits.gather(1, labels[:, None].long())[:, 0]
    lead = logits.amax(1) - chosen
    wrong = int((lead > band).sum())
    if wrong:
        return f"{wrong} labels are wrong, one by {lead.max().item():.3g} (tie band {band:.3g})"
    return None


def _counts_disagree(counts: Tensor, oracle: Tensor, logits: Tensor, band: float) -> str | None:
    """A pixel may be counted for another class where two lead by a rounding error: it is then missing in one place."""
    best = logits.topk(2, dim=1).values
    ties = int((best[:, 0] - best[:, 1] <= band).sum())
    moved = int((counts - oracle).abs().sum())
    if moved > 2 * ties:
        return f"{moved / 2:g} pixels are counted in the wrong place, {ties} may be (tie band {band:.3g})"
    return None


class Agreement:
    """Compares methods of a workload on given inputs with the oracle, which is computed once."""

    def __init__(self, workload: Workload, tensors: Tensors) -> None:
        eager = workload.method("eager")
        self.tensors = tensors
        double = in_double(tensors)
        self.oracle = call_of(eager, double)()
        self.reference = call_of(eager, tensors)()
        self.logits = None
        if workload.logits is not None:
            self.logits = workload.logits(**double)

    def _band(self, method: Method) -> float:
        """Rivals may round logits to the dtype of the inputs; the fused operators compute in float32."""
        halves = [torch.finfo(t.dtype).eps for t in self.tensors.values() if t.is_floating_point()]
        eps = _SINGLE if method.role == "fused" else max(_SINGLE, *halves)
        return 8 * eps * self.logits.abs().max().item()

    def complaints(self, method: Method, results: Tensors) -> list[str]:
        """What is wrong with these results of `method`, in sentences; nothing if they agree."""
        found = []
        for name, oracle in self.oracle.items():
            value = results[name]
            if value.shape != oracle.shape:
                found.append(f"{name} has shape {tuple(value.shape)}, not {tuple(oracle.shape)}")
                continue
            if not value.is_floating_point():
                disagree = _labels_disagree if value.dim() == 3 else _counts_disagree
                complaint = disagree(value, oracle, self.logits, self._band(method))
                found += [complaint] if complaint else []
                continue
            error, floor = _error(value, oracle), _floor(name, value, oracle, self.tensors)
            budget = 2 * _error(self.reference[name], oracle) + floor
            if method.role != "fused":
                budget += 1e-3 * oracle.abs().max().item()
            if not error <= budget:  # also where the error is NaN
                found.append(f"{name} is off by {error:.3g}, the budget is {budget:.3g}")
        return found
