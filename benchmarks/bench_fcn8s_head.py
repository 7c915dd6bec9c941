"""FCN-8s after its scores: two fusions, 8x upsampling, crop; then loss and gradients, labels or probabilities."""


def test_fcn8s_head(measured):
    # reads and writes the scores of three stages (the gradients too), the target, labels or probabilities
    assert all(result.isfinite().all() for result in measured.values())
