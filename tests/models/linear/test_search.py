"""The search of a strength: the best of the whole path, found without walking all of it."""

import functools
import itertools

import numpy as np
import pytest
import scipy.special
from sklearn.metrics import log_loss

from tlflax.models.linear import logistic_regression, ridge
from tlflax.models.linear.compression import compress
from tlflax.models.linear.search import search


def solver(model, rows, label, fold):
    return functools.partial(model.cross_validate, rows, label, 3, fold)


def make_features(n=90, d=150, noise=1.0):
    rng = np.random.default_rng(0)
    label = (np.arange(n) % 3).astype(np.int32)
    x = (noise * rng.normal(size=(n, d)) + 3 * np.eye(3, d)[label]).astype(np.float32)
    return compress(x), label, np.arange(n) // 3 % 5 - (np.arange(n) < 3)


@pytest.mark.parametrize('model', [ridge, logistic_regression])
def test_finds_the_best_of_the_path(model):
    rows, label, fold = make_features()
    strengths = tuple(np.logspace(0, -4, 9))
    found = search(solver(model, rows, label, fold), label, fold, strengths)
    out = fold >= 0
    assert np.isnan(found.probabilities()[~out]).all()
    probabilities = found.probabilities()[out]
    np.testing.assert_allclose(log_loss(label[out], probabilities), found.loss, rtol=1e-6)
    assert found.accuracy == (probabilities.argmax(1) == label[out]).mean()
    for point in model.cross_validate(rows, label, 3, fold, strengths):
        factors = np.logspace(-2, 2, 30)
        tried = [scipy.special.softmax(f * point.held_out[out], 1) for f in factors]
        assert min(log_loss(label[out], p) for p in tried) >= 0.99 * found.loss - 1e-3


def test_path_goes_on_while_the_best_is_its_last():
    rows, label, fold = make_features()
    strengths = tuple(np.logspace(-1, -4, 7))
    whole = search(solver(ridge, rows, label, fold), label, fold, strengths)
    found = search(solver(ridge, rows, label, fold), label, fold, strengths[:2])
    np.testing.assert_allclose(found.best.strength, whole.best.strength)


def test_same_answer_twice():
    rows, label, fold = make_features()
    one, other = (
        search(solver(logistic_regression, rows, label, fold), label, fold, [1e-1, 1e-2, 1e-3])
        for _ in range(2)
    )
    assert one.losses == other.losses
    np.testing.assert_array_equal(one.best.weights, other.best.weights)


def test_a_path_above_the_bar_ends_where_it_gains_little():
    rows, label, fold = make_features()
    strengths = tuple(np.logspace(2, -4, 13))
    solve = solver(ridge, rows, label, fold)
    whole = search(solve, label, fold, strengths)
    ended = search(solve, label, fold, strengths, whole.loss / 2)
    losses = list(ended.losses.values())
    gains = [after / before for before, after in itertools.pairwise(whole.losses.values())]
    expected = next(k + 2 for k, gain in enumerate(gains) if k >= 2 and gain > 0.9)
    assert len(losses) == expected < len(whole.losses)
    high = search(solve, label, fold, strengths, 2.0)
    assert high.losses == whole.losses
