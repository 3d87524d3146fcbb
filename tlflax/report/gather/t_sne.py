"""t-SNE of some thousand points: places in two dimensions where near ones are near.

van der Maaten & Hinton 2008 (JMLR 9), with all pairs of points, so nothing is approximated. The
steps are those of scikit-learn's `method='exact'` (momentum, gains and rate), of which fewer are
exaggerated: started at principal components, the points need not find their clusters first.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32

STEPS = 600
_EXAGGERATED, _EXAGGERATION = 100, 12.0  # steps; with 250, 600 end no lower than 500 with 100
_HALVINGS = 30  # of an interval of 25 nats
_SMALLEST = 128  # points and columns are padded to powers of two, which share a program


def t_sne(
    points: Float[np.ndarray, 'n d'], start: Float[np.ndarray, 'n 2'], perplexity: float
) -> Float32[np.ndarray, 'n 2']:
    """Returns the places.

    Memory grows with the square of the number of points: 1,000 take 40 MB and a third of a second
    on one core.

    Args:
        points: At least two, and not all the same.
        start: Where they are before the first step; small numbers.
        perplexity: About how many neighbors count for each point; below their number.
    """
    n, d = points.shape
    more = max(_SMALLEST, 1 << (n - 1).bit_length()) - n
    columns = -d % 64
    places = _steps(
        np.pad(points.astype(np.float32), ((0, more), (0, columns))),
        np.pad(start.astype(np.float32), ((0, more), (0, 0))),
        np.float32(n),
        np.float32(perplexity),
    )
    return np.asarray(places)[:n]


@jax.jit
def _steps(
    points: Float[Array, 'm d'],
    start: Float[Array, 'm 2'],
    n: Float[Array, ''],
    perplexity: Float[Array, ''],
) -> Float[Array, 'm 2']:
    """Returns the places of points, of which the first `n` count."""
    row = lax.iota(jnp.int32, len(points))
    real = row < n
    pairs = real[:, None] & real & (row[:, None] != row)
    near = _neighborhoods(points, pairs, n, perplexity)
    rate = jnp.maximum(n / (4 * _EXAGGERATION), 50.0)

    def step(number: Array, before: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        places, speed, gain = before
        first = number < _EXAGGERATED
        exaggeration = jnp.where(first, jnp.float32(_EXAGGERATION), jnp.float32(1))
        gradient = _gradient(places, near, pairs, exaggeration)
        gain = jnp.maximum(jnp.where(speed * gradient < 0, gain + 0.2, gain * 0.8), 0.01)
        momentum = jnp.where(first, jnp.float32(0.5), jnp.float32(0.8))
        speed = momentum * speed - rate * gain * gradient
        return places + speed, speed, gain

    first = (start, jnp.zeros_like(start), jnp.ones_like(start))
    return lax.fori_loop(0, STEPS, step, first)[0]


def _neighborhoods(
    points: Float[Array, 'm d'],
    pairs: Bool[Array, 'm m'],
    n: Float[Array, ''],
    perplexity: Float[Array, ''],
) -> Float[Array, 'm m']:
    """Returns the probability of each pair; that of a point's neighbors has the perplexity."""
    squares = (points * points).sum(1)
    distances = squares[:, None] + squares - 2 * _product(points, points.T)
    distances = jnp.where(pairs, distances, jnp.inf)
    nearest = distances.min(1, keepdims=True)
    distances = jnp.where(pairs, distances - nearest, jnp.inf)
    finite = jnp.where(pairs, distances, 0)
    mean = finite.sum(1) / n

    def halve(_: Array, interval: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = interval
        middle = (low + high) / 2
        sharpness = jnp.exp(middle)[:, None]
        weights = jnp.exp(-sharpness * distances)
        total = weights.sum(1)
        entropy = jnp.log(total) + sharpness[:, 0] * (weights * finite).sum(1) / total
        above = entropy > jnp.log(perplexity)
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    scale = -jnp.log(jnp.maximum(mean, 1e-30))
    low, high = lax.fori_loop(0, _HALVINGS, halve, (scale - 10, scale + 15))
    weights = jnp.exp(-jnp.exp((low + high) / 2)[:, None] * distances)
    shares = jnp.where(pairs, weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-30), 0)
    return (shares + shares.T) / (2 * n)


def _gradient(
    places: Float[Array, 'm 2'],
    near: Float[Array, 'm m'],
    pairs: Bool[Array, 'm m'],
    exaggeration: Float[Array, ''],
) -> Float[Array, 'm 2']:
    """Returns the gradient of the divergence by the places."""
    x, y = places[:, 0], places[:, 1]
    across, up = x[:, None] - x, y[:, None] - y
    weights = jnp.where(pairs, 1 / (1 + across * across + up * up), 0)
    pull = (exaggeration * near - weights / weights.sum()) * weights
    return 4 * (places * pull.sum(1, keepdims=True) - _product(pull, places))


def _product(a: Float[Array, 'm k'], b: Float[Array, 'k n']) -> Float[Array, 'm n']:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
