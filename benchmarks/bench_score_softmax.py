"""Class probabilities of 1x1 score convolutions."""


def test_score_softmax(measured):
    # reads x and weight; writes the probabilities
    assert all(result.isfinite().all() for result in measured.values())
