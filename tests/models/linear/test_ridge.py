"""Ridge classifier: scikit-learn's solution, and exactly what refitting without each fold gives."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from tlflax.models.linear import ridge
from tlflax.models.linear.compression import compress


def make_features(n, d, seed=0):
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 3
    x = rng.normal(size=(n, d)) * rng.exponential(size=d) + 3
    x[np.arange(n), label] += 4
    return x.astype(np.float32), label.astype(np.int32)


@pytest.mark.parametrize(('n', 'd'), [(60, 200), (90, 12)], ids=['wide', 'tall'])
def test_path_is_that_of_scikit_learn(n, d):
    x, label = make_features(n, d)
    rows, target = compress(x), np.eye(3)[label]
    fold = np.arange(n) // 3 % 4
    fold[:3] = -1
    points = list(ridge.cross_validate(rows, label, 3, fold))
    assert [point.strength for point in points] == list(ridge.STRENGTHS)
    for point in points:
        alpha = point.strength * n * rows.scale**2
        whole = Ridge(alpha).fit(x.astype(np.float64), target)
        ours = x @ rows.kernel(x, point.weights) + point.bias
        np.testing.assert_allclose(ours, whole.predict(x), atol=2e-4)
        assert np.isnan(point.held_out[:3]).all()
        for held in range(4):
            out = fold == held
            part = Ridge(alpha).fit(x[~out].astype(np.float64), target[~out])
            np.testing.assert_allclose(point.held_out[out], part.predict(x[out]), atol=5e-4)


def test_leave_one_out_is_refitting():
    x, label = make_features(20, 50, seed=1)
    rows = compress(x)
    (point,) = ridge.cross_validate(rows, label, 3, np.arange(20), [1e-2])
    model = Ridge(1e-2 * 20 * rows.scale**2)
    for i in range(20):
        kept = np.arange(20) != i
        model.fit(x[kept].astype(np.float64), np.eye(3)[label[kept]])
        np.testing.assert_allclose(point.held_out[i], model.predict(x[i : i + 1])[0], atol=1e-4)


def test_constant_rows_predict_the_share_of_each_class():
    rows = compress(np.ones((9, 4), np.float32))
    label = np.array([0, 1, 2, 0, 1, 2, 0, 0, 0], np.int32)
    (point,) = ridge.cross_validate(rows, label, 3, np.arange(9) % 3, [1e-2])
    np.testing.assert_allclose(
        point.bias + rows.coordinates @ point.weights, [[5 / 9, 2 / 9, 2 / 9]] * 9
    )


def test_rows_are_left_out_one_by_one_as_folds_are():
    """Folds of one row take the diagonal of H; a fold of two, elsewhere, takes its blocks."""
    x, label = make_features(21, 50, seed=2)
    rows, alone = compress(x), np.arange(21) - 1
    pair = np.where(np.arange(21) < 2, 20, alone)
    one, other = (
        next(ridge.cross_validate(rows, label, 3, fold)).held_out for fold in (alone, pair)
    )
    assert np.isnan(one[0]).all()
    assert not np.isnan(other[0]).any()
    np.testing.assert_allclose(one[2:], other[2:], atol=1e-6)
