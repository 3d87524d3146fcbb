"""Representations, against NumPy in float64 and scikit-learn's scaler."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler, normalize

from tlflax.models.linear import representations
from tlflax.models.linear.representations import Part

X = np.random.default_rng(0).normal(size=(6, 5, 4, 3)).astype(np.float32)
ROWS = X.reshape(6, -1).astype(np.float64)


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
    whole = (Part('top', 'flatten', normalization, weight=2.0),)
    outputs = {'top': jnp.asarray(X)}
    found = representations.apply(whole, representations.fit(whole, outputs), outputs)
    np.testing.assert_allclose(found, 2 * expected, atol=2e-5)


@pytest.mark.parametrize(
    ('pooling', 'expected'),
    [
        ('mean', X.mean((1, 2))),
        ('max', X.max((1, 2))),
        (
            'grid2',
            np.concatenate(
                [
                    X[:, r, c].mean((1, 2))
                    for r in (slice(2), slice(2, 5))
                    for c in (slice(2), slice(2, 4))
                ],
                1,
            ),
        ),
    ],
)
def test_poolings(pooling, expected):
    np.testing.assert_allclose(
        Part('top', pooling, 'raw').pooled(jnp.asarray(X)), expected, atol=1e-6
    )


@pytest.mark.parametrize('pooling', ['flatten', 'mean', 'max', 'grid2', 'grid4'])
def test_vectors_and_maps_of_one_position(pooling):
    vectors = jnp.asarray(X[:, 0, 0])
    part = Part('fc1', pooling, 'raw')
    np.testing.assert_array_equal(part.pooled(vectors), vectors)
    one = part.pooled(jnp.asarray(X[:, :1, :1]))
    np.testing.assert_allclose(
        one.reshape(6, -1, 3), np.broadcast_to(one[:, None, :3], (6, one.shape[1] // 3, 3))
    )


def test_rows_of_several_layers_are_concatenated():
    whole = (Part('low', 'mean', 'standard'), Part('top', 'flatten', 'row', 0.5))
    outputs = {'low': jnp.asarray(X), 'top': jnp.asarray(X[:, :2])}
    fitted = representations.fit(whole, outputs)
    assert fitted[1] is None
    found = representations.apply(whole, fitted, outputs)
    assert found.shape == (6, 3 + 24)
    np.testing.assert_allclose(np.linalg.norm(found[:, 3:], axis=1), 0.5, rtol=1e-5)


def test_constant_columns_and_rows_of_zeros():
    rows = jnp.zeros((4, 3))
    part = (Part('top', 'flatten', 'standard'),)
    fitted = representations.fit(part, {'top': rows})
    assert not np.asarray(representations.apply(part, fitted, {'top': rows})).any()
    assert not np.asarray(Part('top', 'flatten', 'power').normalized(rows)).any()
    with pytest.raises(ValueError, match='moments'):
        part[0].normalized(rows)


def test_cells_of_a_map_that_they_do_not_divide():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 14, 6, 3)).astype(np.float32))
    found = representations.cells(x, 4).reshape(2, 4, 4, 3)
    edges, sides = (0, 4, 7, 10, 14), (0, 2, 3, 4, 6)
    for i in range(4):
        for j in range(4):
            cell = x[:, edges[i] : edges[i + 1], sides[j] : sides[j + 1]]
            np.testing.assert_allclose(found[:, i, j], cell.mean((1, 2)), atol=1e-6)
    assert representations.cells(x[:, :2], 4).shape == (2, 2 * 4 * 3)
