"""FCN's skip fusion: 2x upsampling, crop and add."""


def test_upsample_add(measured):
    # reads x and the window of skip; writes y
    assert all(result.isfinite().all() for result in measured.values())
