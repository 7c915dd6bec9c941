"""Evaluation: the confusion matrix of upsampled scores."""


def test_upsample_confusion_matrix(measured):
    # reads x and target
    assert all(result.isfinite().all() for result in measured.values())
