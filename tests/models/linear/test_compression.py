"""Features in few coordinates: from inner products alone, the same model."""

import numpy as np
from sklearn.linear_model import Ridge

from tlflax.models.linear import compression, ridge


def test_inner_products_are_those_of_float64():
    rng = np.random.default_rng(0)
    rows, others = (rng.normal(size=(n, 9000)).astype(np.float32) for n in (5, 7))
    wide, other = rows.astype(np.float64), others.astype(np.float64)
    np.testing.assert_allclose(compression.inner_products(rows), wide @ wide.T, rtol=1e-12)
    np.testing.assert_allclose(
        compression.inner_products(rows, others), wide @ other.T, rtol=1e-9, atol=1e-9
    )


def test_model_from_inner_products_predicts_as_scikit_learn():
    rng = np.random.default_rng(1)
    x, new = rng.normal(size=(30, 400)) + 2, rng.normal(size=(8, 400)) + 2
    label = (np.arange(30) % 3).astype(np.int32)
    rows = compression.from_gram(x @ x.T)
    for point in ridge.cross_validate(rows, label, 3, np.arange(30)):
        model = Ridge(point.strength * 30 * rows.scale**2).fit(x, np.eye(3)[label])
        scores = (new @ x.T) @ (rows.combine @ point.weights) + point.bias
        np.testing.assert_allclose(scores, model.predict(new), atol=1e-5)


def test_rows_of_zeros_have_no_coordinates():
    rows = compression.from_gram(np.zeros((4, 4)))
    assert rows.coordinates.shape == (4, 0)
