"""The factor is the minimum of the cross-entropy, as a general optimizer finds it."""

import numpy as np
import scipy.optimize
import scipy.special

from tlflax.models.linear.calibration import fit_factor, log_softmax


def test_factor_minimizes_cross_entropy():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 200)
    scores = (rng.normal(size=(200, 4)) + 1.5 * np.eye(4)[label]).astype(np.float32) * 30

    def loss(log_factor):
        wide = scipy.special.log_softmax(np.exp(log_factor) * scores.astype(np.float64), axis=1)
        return -(wide[np.arange(200), label].sum() + wide.mean()) / 201

    expected = scipy.optimize.minimize_scalar(loss, bounds=(-9, 3), method='bounded')
    np.testing.assert_allclose(np.log(fit_factor(scores, label)), expected.x, atol=1e-4)


def test_scale_of_scores_does_not_matter():
    rng = np.random.default_rng(1)
    label = rng.integers(0, 3, 50)
    scores = (rng.normal(size=(50, 3)) + np.eye(3)[label]).astype(np.float32)
    assert np.isclose(fit_factor(8 * scores, label) * 8, fit_factor(scores, label), rtol=1e-6)


def test_separated_scores_stay_below_certainty():
    label = np.arange(30) % 3
    scores = np.eye(3, dtype=np.float32)[label]
    probability = np.exp(log_softmax(fit_factor(scores, label) * scores))[0, 0]
    assert np.isclose(probability, (30 + 1 / 3) / 31)


def test_useless_scores_become_equal_probabilities():
    label = np.arange(30) % 3
    scores = -np.eye(3, dtype=np.float32)[label]
    np.testing.assert_allclose(
        np.exp(log_softmax(fit_factor(scores, label) * scores)), 1 / 3, rtol=1e-6
    )
