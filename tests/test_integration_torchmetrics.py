"""The metric in the manner of torchmetrics, beside torchmetrics' own numbers."""

from __future__ import annotations

import pickle

import torch
from libraries import library

import fcn_kernels as fk

torchmetrics = library("torchmetrics")


def test_agrees_with_torchmetrics_and_merges() -> None:
    from fcn_kernels.integrations.torchmetrics import MeanIoU

    metric = MeanIoU(4)
    theirs = torchmetrics.classification.MulticlassJaccardIndex(4, ignore_index=255, average="none")
    for _ in range(3):
        x, y = torch.randn(2, 4, 6, 7), torch.randint(0, 4, (2, 24, 28))
        y[:, :2] = 255
        metric.update(x, y)
        theirs.update(fk.upsample_argmax(x, (24, 28)), y)
    torch.testing.assert_close(torch.tensor(metric.metrics().iu), theirs.compute(), rtol=1e-6, atol=0)
    torch.testing.assert_close(metric.compute(), theirs.compute().mean(), rtol=1e-6, atol=0)
    again = pickle.loads(pickle.dumps(metric))
    assert again.compute() == metric.compute()
    value = metric(x, y)  # torchmetrics' forward: the value of the batch, added to the state
    assert 0 <= value <= 1
    assert metric.confusion.sum() > again.confusion.sum()
    metric.reset()
    assert not metric.confusion.any()
