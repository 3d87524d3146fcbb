"""The factor is the minimum of the cross-entropy, as a general optimizer finds it."""

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from tlflax.models.linear import calibration
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


def predictions(n=300, sharpness=3.0):
    """Probabilities of a model that is too sure of itself, and the labels."""
    rng = np.random.default_rng(2)
    label = rng.integers(0, 4, n)
    logits = sharpness * (rng.normal(size=(n, 4)) + 1.2 * np.eye(4)[label])
    return scipy.special.softmax(logits, axis=1).astype(np.float32), label


def best_temperature(probabilities, label):
    """With a general optimizer, in float64; its logarithm is normal with deviation 1/2 before."""
    logits = np.log(probabilities.astype(np.float64))

    def loss(log_temperature):
        tempered = scipy.special.log_softmax(logits / np.exp(log_temperature), axis=1)
        prior = scipy.stats.norm.logpdf(log_temperature, scale=0.5)
        return -(tempered[np.arange(len(label)), label].sum() + prior)

    return np.exp(scipy.optimize.minimize_scalar(loss, bounds=(-3, 3), method='bounded').x)


def test_temperature_of_probabilities():
    probabilities, label = predictions()
    found = calibration.fit_temperature(probabilities, label)
    np.testing.assert_allclose(found, best_temperature(probabilities, label), rtol=1e-4)
    assert 2 < found < 5
    np.testing.assert_allclose(
        calibration.temper(probabilities, found),
        scipy.special.softmax(np.log(probabilities.astype(np.float64)) / found, axis=1),
        rtol=1e-9,
    )


@pytest.mark.parametrize('sharpness', [1.0, 4.0, 30.0])
def test_a_model_without_mistakes_is_hardly_changed_and_never_worse(sharpness):
    label = np.arange(60) % 3
    probabilities = scipy.special.softmax(sharpness * np.eye(3)[label], axis=1).astype(np.float32)
    found = calibration.fit_temperature(probabilities, label)
    np.testing.assert_allclose(found, best_temperature(probabilities, label), rtol=1e-4)
    after = calibration.cross_entropy(label, calibration.temper(probabilities, found))
    assert after <= calibration.cross_entropy(label, probabilities) + 1e-9
    assert 0.05 < found <= 1
    if sharpness == 30:
        assert found > 0.99


def test_useless_probabilities_become_equal():
    label = np.arange(600) % 3
    probabilities = scipy.special.softmax(-9 * np.eye(3)[label], axis=1).astype(np.float32)
    assert calibration.fit_temperature(probabilities, label) == pytest.approx(20)


def test_rows_have_no_part_in_their_own_temperature():
    probabilities, label = predictions()
    fold = np.arange(300) % 5
    fold[:7] = -1
    found = calibration.cross_fit(probabilities, label, fold)
    assert sorted(found.rows) == list(range(7, 300))
    for number in range(5):
        inside, theirs = fold == number, fold[found.rows] == number
        temperature = best_temperature(probabilities[~inside], label[~inside])
        expected = calibration.temper(probabilities[inside], temperature)
        np.testing.assert_allclose(found.probabilities[theirs], expected, rtol=1e-4)
    assert found.temperature == calibration.fit_temperature(probabilities, label)
    alone = calibration.cross_fit(probabilities[:3], label[:3], np.zeros(3, np.int64))
    assert alone.probabilities.shape == (0, 4)


def test_the_order_of_classes_stays():
    rng = np.random.default_rng(3)
    probabilities = scipy.special.softmax(rng.normal(size=(500, 6)) * 30, axis=1)
    close = np.tile(np.float32([0.5, np.nextafter(np.float32(0.5), 1), 0]), (1, 1))
    for rows in (probabilities.astype(np.float32), close):
        for temperature in (1e-3, 0.7, 40.0, 1e4):
            tempered = calibration.temper(rows, temperature)
            np.testing.assert_array_equal(tempered.argmax(1), rows.argmax(1))
            assert np.isfinite(tempered).all()


def test_many_probabilities_are_thinned(monkeypatch):
    probabilities, label = predictions(4000)
    whole = calibration.fit_temperature(probabilities, label)
    monkeypatch.setattr(calibration, '_FITTED', 8000)
    rows = np.linspace(0, 3999, 2000).astype(int)
    found = calibration.fit_temperature(probabilities, label)
    assert found == calibration.fit_temperature(probabilities[rows], label[rows])
    assert found != whole
    np.testing.assert_allclose(found, whole, rtol=0.1)


def test_cross_entropy():
    probabilities, label = predictions()
    expected = -np.log(probabilities[np.arange(300), label].astype(np.float64)).mean()
    np.testing.assert_allclose(calibration.cross_entropy(label, probabilities), expected)
    certain = np.float32([[1, 0]])
    np.testing.assert_allclose(calibration.cross_entropy(np.array([1]), certain), 87.34, atol=0.01)
