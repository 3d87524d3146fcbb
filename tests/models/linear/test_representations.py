"""Representations, against NumPy in float64 and scikit-learn's scaler."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler, normalize

from tlflax.models.linear import representations
from tlflax.models.linear.representations import Part

X = np.random.default_rng(0).normal(size=(6, 60)).astype(np.float32)
ROWS = X[:, 10:40].astype(np.float64)


@pytest.mark.parametrize(
    ('normalization', 'expected'),
    [
        ('raw', ROWS),
        ('row', normalize(ROWS)),
        ('power', normalize(np.sign(ROWS) * np.abs(ROWS) ** 0.5)),
        ('standard', StandardScaler().fit_transform(ROWS)),
    ],
)
def test_normalizations(normalization, expected):
    whole = (Part(10, 40, normalization, weight=2.0),)
    fitted = representations.fit(whole, jnp.asarray(X))
    found = representations.apply(whole, jnp.asarray(X), fitted)
    np.testing.assert_allclose(found, 2 * expected, atol=2e-5)


def test_parts_are_concatenated():
    whole = (Part(0, 3, 'standard'), Part(3, 27, 'row', 0.5))
    fitted = representations.fit(whole, jnp.asarray(X))
    assert fitted[1] is None
    found = representations.apply(whole, jnp.asarray(X), fitted)
    assert found.shape == (6, 3 + 24)
    np.testing.assert_allclose(np.linalg.norm(found[:, 3:], axis=1), 0.5, rtol=1e-5)


def test_constant_columns_and_rows_of_zeros():
    rows = jnp.zeros((4, 3))
    part = (Part(0, 3, 'standard'),)
    fitted = representations.fit(part, rows)
    assert not np.asarray(representations.apply(part, rows, fitted)).any()
    assert not np.asarray(Part(0, 3, 'power').normalized(rows)).any()
    with pytest.raises(ValueError, match='moments'):
        part[0].normalized(rows)
