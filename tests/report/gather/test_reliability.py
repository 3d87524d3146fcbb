"""The reliability diagram: its gaps are the calibration error, its counts NumPy's."""

import math

import numpy as np
import pytest
import scipy.stats

from tlflax.report.gather.reliability import reliability
from tlflax.train.metrics.scores import calibration_error


@pytest.mark.parametrize('n', [1, 40, 3000])
@pytest.mark.parametrize('classes', [2, 7])
def test_bins(n, classes):
    rng = np.random.default_rng(n)
    probabilities = rng.dirichlet(np.full(classes, 0.3), n)
    labels = np.where(rng.random(n) < 0.7, probabilities.argmax(1), rng.integers(0, classes, n))
    bins = reliability(labels, probabilities)
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    gap = 0.0
    for number, one in enumerate(bins):
        assert (one.low, one.high) == (number / 15, (number + 1) / 15)
        inside = (confidence > one.low) & (confidence <= one.high)
        assert one.count == inside.sum()
        if not one.count:
            assert math.isnan(one.confidence)
            assert math.isnan(one.accuracy)
            assert one.interval is None
            continue
        assert one.confidence == pytest.approx(confidence[inside].mean())
        assert one.accuracy == right[inside].mean()
        test = scipy.stats.binomtest(int(right[inside].sum()), one.count)
        assert one.interval == pytest.approx(test.proportion_ci(method='wilson'))
        gap += one.count / n * abs(one.accuracy - one.confidence)
    assert sum(one.count for one in bins) == n
    assert gap == pytest.approx(calibration_error(labels, probabilities), abs=1e-12)


def test_no_images_and_float32():
    assert [one.count for one in reliability(np.zeros(0, int), np.zeros((0, 3)))] == [0] * 15
    one = np.array([[1.0, 0.0]], np.float32)
    last = reliability(np.array([0]), one)[-1]
    assert (last.count, last.confidence, last.accuracy) == (1, 1.0, 1.0)
