"""Learned transposed convolutions with crop and skip, forward and backward."""


def test_conv_transpose_add(measured):
    # reads x, skip, the arriving gradient; writes y and the gradients of x, weight and skip
    assert all(result.isfinite().all() for result in measured.values())
