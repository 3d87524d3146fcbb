"""Cross-validated logistic regression is that of scikit-learn, fitted without each fold."""

import numpy as np
import pytest
import scipy.special
from sklearn.linear_model import LogisticRegression

from tlflax.models.linear import logistic_regression
from tlflax.models.linear.compression import compress


@pytest.mark.parametrize(('n', 'd'), [(60, 200), (90, 12)], ids=['wide', 'tall'])
def test_each_fold_is_scikit_learn_without_it(n, d):
    rng = np.random.default_rng(0)
    label = (np.arange(n) % 3).astype(np.int32)
    x = (rng.normal(size=(n, d)) + 2 * np.eye(3, d)[label]).astype(np.float32)
    fold = np.arange(n) // 3 % 4
    fold[:3] = -1
    rows = compress(x)
    wide = x.astype(np.float64) / rows.scale
    strengths = (1e-1, 1e-3)
    points = list(logistic_regression.cross_validate(rows, label, 3, fold, strengths))
    assert [point.strength for point in points] == list(strengths)
    for point in points:
        model = LogisticRegression(C=1 / (point.strength * n), tol=1e-8, max_iter=10_000)
        ours = x @ rows.kernel(x, point.weights) + point.bias
        expected = model.fit(wide, label).predict_proba(wide)
        np.testing.assert_allclose(scipy.special.softmax(ours, 1), expected, atol=2e-3)
        assert np.isnan(point.held_out[:3]).all()
        for held in range(4):
            out = fold == held
            model.C = 1 / (point.strength * (~out).sum())
            expected = model.fit(wide[~out], label[~out]).predict_proba(wide[out])
            ours = scipy.special.softmax(point.held_out[out], 1)
            np.testing.assert_allclose(ours, expected, atol=2e-3)


def test_many_rows_converge_from_zero():
    """XLA's gradient at constant zeros was NaN in a batched program of this size."""
    rng = np.random.default_rng(0)
    label = (np.arange(602) % 10).astype(np.int32)
    x = (rng.normal(size=(602, 1300)) + 10 * np.eye(10, 1300)[label]).astype(np.float32)
    fold = np.arange(602) // 10 % 5
    (point,) = logistic_regression.cross_validate(compress(x), label, 10, fold, (1e-2,))
    assert (point.held_out.argmax(1) == label).mean() > 0.9
