"""t-SNE: the divergence is that of scikit-learn or lower, and padding changes nothing."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.manifold import TSNE, trustworthiness

from tlflax.report.gather import t_sne as module
from tlflax.report.gather.t_sne import t_sne

PERPLEXITY = 15.0


def clusters(n, width=8, seed=0):
    """Points of four clusters, and their first two columns as a start."""
    rng = np.random.default_rng(seed)
    points = rng.normal(0, 3, (4, width))[np.arange(n) % 4] + rng.normal(size=(n, width))
    points -= points.mean(0)
    return points, 1e-4 * points[:, :2] / points[:, 0].std()


def neighborhoods(points):
    """The joint probabilities in float64: bisection, row by row."""
    squares = ((points[:, None] - points) ** 2).sum(-1)
    shares = np.zeros_like(squares)
    for row, (own, others) in enumerate(zip(shares, squares, strict=True)):
        rest = np.arange(len(points)) != row
        low, high = 1e-8, 1e8
        for _ in range(200):
            sharpness = np.sqrt(low * high)
            weights = np.exp(-sharpness * (others[rest] - others[rest].min()))
            weights /= weights.sum()
            entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum()
            low, high = (sharpness, high) if entropy > np.log(PERPLEXITY) else (low, sharpness)
        own[rest] = weights
    return (shares + shares.T) / (2 * len(points))


def divergence(near, places):
    """The Kullback-Leibler divergence that t-SNE lowers, in float64."""
    weights = 1 / (1 + ((places[:, None] - places) ** 2).sum(-1))
    np.fill_diagonal(weights, 0)
    shown = weights / weights.sum()
    some = near > 0
    return float((near[some] * np.log(near[some] / shown[some])).sum())


@pytest.mark.parametrize('n', [100, 200])
def test_divergence_is_not_above_that_of_scikit_learn(n):
    points, start = clusters(n)
    places = t_sne(points, start, PERPLEXITY).astype(np.float64)
    settings = {'perplexity': PERPLEXITY, 'init': start.astype(np.float32), 'random_state': 0}
    theirs = TSNE(**settings, method='exact', max_iter=500).fit_transform(points)
    near = neighborhoods(points)
    assert divergence(near, places) < 1.05 * divergence(near, theirs.astype(np.float64))
    assert trustworthiness(points, places, n_neighbors=10) > 0.9


def test_neighborhoods_have_the_perplexity():
    points, _ = clusters(90)
    n = len(points)
    padded = np.pad(points, ((0, 38), (0, 0))).astype(np.float32)
    real = np.arange(128) < n
    pairs = real[:, None] & real & ~np.eye(128, dtype=bool)
    given = map(jnp.asarray, (padded, pairs, np.float32(n), np.float32(PERPLEXITY)))
    found = module._neighborhoods(*given)
    np.testing.assert_allclose(found[:n, :n], neighborhoods(points), atol=1e-7, rtol=1e-3)
    assert not np.asarray(found)[~pairs].any()


def test_gradient_is_that_of_the_divergence():
    points, _ = clusters(40)
    near, n = neighborhoods(points), len(points)
    places = np.random.default_rng(1).normal(size=(n, 2))
    pairs = ~np.eye(n, dtype=bool)
    arrays = (places.astype(np.float32), near.astype(np.float32), pairs, np.float32(1))
    found = module._gradient(*map(jnp.asarray, arrays))
    step = 1e-5
    for row, axis in ((0, 0), (7, 1), (39, 0)):
        moved = np.zeros_like(places)
        moved[row, axis] = step
        slope = divergence(near, places + moved) - divergence(near, places - moved)
        assert found[row, axis] == pytest.approx(slope / (2 * step), rel=1e-3, abs=1e-6)


def test_points_that_are_the_same_and_one_far_away():
    points = np.zeros((40, 3))
    points[-1] = 100.0
    places = t_sne(points, 1e-4 * points[:, :2], 10.0)
    assert np.isfinite(places).all()
