"""Every operator, direction and dtype: one group for each workload and kind of inputs."""


def test_operator(measured):
    assert all(result.isfinite().all() for result in measured.values())
