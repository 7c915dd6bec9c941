"""The loss of a binary head, forward and backward."""


def test_upsample_binary_cross_entropy(measured):
    # reads x and target; writes the gradient of x
    assert all(result.isfinite().all() for result in measured.values())
