"""U-Net's up-convolutions beside their skips, forward and backward."""


def test_conv_transpose_concat(measured):
    # reads x, skip, the arriving gradient; writes y and the gradients of x, weight, bias and skip
    assert all(result.isfinite().all() for result in measured.values())
