"""Tests and intervals of pairs against SciPy, enumeration and bootstraps written out."""

import itertools

import numpy as np
import pytest
import scipy.stats

from tlflax.report.comparison.paired import exact_p_value, holm, mean_intervals


@pytest.mark.parametrize(
    ('only_first', 'only_second', 'both'),
    [(0, 0, 5), (1, 0, 0), (0, 7, 3), (3, 12, 100), (8, 8, 0), (400, 520, 9), (0, 1200, 0)],
)
def test_p_value_is_mcnemars(only_first, only_second, both):
    right = [(True, False)] * only_first + [(False, True)] * only_second + [(True, True)] * both
    first, second = np.array(right).T
    ours = exact_p_value(first, second, np.arange(len(right)))
    discordant = only_first + only_second
    theirs = scipy.stats.binomtest(only_first, discordant).pvalue if discordant else 1.0
    assert ours == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize('seed', range(5))
def test_p_value_of_units_counts_all_signs(seed):
    """Units of up to 4 images: every choice of signs, written out."""
    rng = np.random.default_rng(seed)
    unit = np.sort(rng.integers(0, 9, 24))
    unit = np.unique(unit, return_inverse=True)[1]
    first, second = rng.random((2, 24)) < [[0.4], [0.7]]
    sums = np.bincount(unit, weights=second.astype(int) - first.astype(int))
    flipped = [np.dot(signs, sums) for signs in itertools.product((-1, 1), repeat=len(sums))]
    theirs = np.mean(np.abs(flipped) >= abs(sums.sum()))
    assert exact_p_value(first, second, unit) == pytest.approx(theirs)


def test_p_values_without_a_difference_are_not_too_small():
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(25), 4)
    shares = {'images': 0, 'units': 0}
    for _ in range(400):
        first, second = rng.random((2, 25)) < 0.7  # one outcome for a unit: copies of one image
        both = np.repeat(first, 4), np.repeat(second, 4)
        shares['units'] += exact_p_value(*both, unit) < 0.05
        shares['images'] += exact_p_value(*both, np.arange(100)) < 0.05
    assert shares['units'] <= 0.05 * 400
    assert shares['images'] > 0.2 * 400  # as if copies were independent


def test_holm_corrects_as_written_out():
    values = [0.01, 0.04, 0.03, 0.005, 0.9]
    # sorted: 0.005 x 5, 0.01 x 4, 0.03 x 3, 0.04 x 2 -> at least the one before, 0.9
    assert holm(values) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.9])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([0.02]) == [0.02]


def test_intervals_are_those_of_a_paired_bootstrap_written_out():
    rng = np.random.default_rng(3)
    values = np.stack([rng.integers(-1, 2, 200), rng.normal(0.1, 1, 200)], 1).astype(float)
    drawn = rng.integers(0, 200, (4000, 200))
    theirs = np.quantile(values[drawn].mean(1), [0.025, 0.975], axis=0).T
    ours = mean_intervals(values, np.arange(200))
    width = (theirs[:, 1] - theirs[:, 0])[:, None]
    assert np.all(np.abs(np.array(ours) - theirs) < 0.05 * width)
    scipys = scipy.stats.bootstrap((values[:, 1],), np.mean, method='percentile', rng=rng)
    np.testing.assert_allclose(ours[1], scipys.confidence_interval, atol=0.05 * width[1, 0])


def test_units_widen_intervals():
    values = np.repeat(np.random.default_rng(1).normal(size=(50, 1)), 4, axis=0)
    alone, together = (
        np.diff(mean_intervals(values, unit)[0])[0]
        for unit in (np.arange(200), np.repeat(np.arange(50), 4))
    )
    assert together == pytest.approx(2 * alone, rel=0.1)
