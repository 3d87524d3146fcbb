"""3x3 convolution with fewer multiplications: Winograd's F(m x m, 3 x 3).

A tile of m x m outputs takes (m + 2)^2 multiplications per pair of channels where direct
convolution takes 9 m^2 (Lavin & Gray 2015, arXiv:1509.09308): cut the image into overlapping tiles,
transform them, multiply position by position (matrix products over the channels), transform back.
"""

import functools
import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# The finite interpolation points for each size of tile; infinity is always one too. They come in
# pairs +p, -p, which share half of their sums. A search over multiples of 1/16 found the points for
# 4: their float32 error is half that of 0, 1, -1, 2, -2. For 6 it found none better than the usual.
POINTS: dict[int, tuple[float, ...]] = {
    2: (0.0, 1.0, -1.0),
    4: (0.0, 0.6875, -0.6875, 1.625, -1.625),
    6: (0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0),
}

COLUMNS = 1 << 15  # of a kernel transformed at a time, which fit the cache

Kernel = Array | tuple[Array, ...]
"""A kernel as `transform_kernel` returns it."""


class Tiling(NamedTuple):
    """How one layer is computed.

    Attributes:
        tile: Outputs along a tile's edge, a key of `POINTS`; 0 for direct convolution.
        by_row: Whether to transform, multiply and transform back the m + 2 rows of tiles one after
            the other, which takes less memory than all at once.
    """

    tile: int = 0
    by_row: bool = False


DIRECT = Tiling()


class Matrices(NamedTuple):
    """The constant transforms of F(m x m, 3 x 3), in float64: A^T [m,n], G [n,3], B^T [n,n]."""

    output: np.ndarray
    kernel: np.ndarray
    input: np.ndarray


@functools.cache
def matrices(tile: int) -> Matrices:
    """Returns the transforms for tiles of `tile` x `tile` outputs, n = tile + 2.

    They follow Toom-Cook: both polynomials are evaluated at n - 1 points and at infinity,
    multiplied and interpolated. Transposed, the product of polynomials becomes a correlation.
    """
    points = np.asarray(POINTS[tile])
    size = tile + 2

    def evaluate(terms: int) -> np.ndarray:
        return np.vstack([np.vander(points, terms, increasing=True), np.eye(terms)[-1]])

    interpolate = np.linalg.inv(evaluate(size)).T
    # Scaling a row of B^T and its row of G by s and 1/s changes nothing but the rounding.
    gaps = points[:, None] - points + np.eye(len(points))
    scale = np.append(np.prod(gaps, axis=1), 1.0)[:, None]
    interpolate = interpolate * scale
    interpolate[np.abs(interpolate) < 1e-12] = 0
    return Matrices(evaluate(tile).T, evaluate(3) / scale, interpolate)


def transform_kernel(kernel: Float[Array, '3 3 c d'] | np.ndarray, tiling: Tiling) -> Kernel:
    """Returns a kernel as `conv3x3` takes it: [n*n,c,d], or n arrays [n,c,d] if `by_row`.

    The transform is computed in float64. Direct convolution takes the kernel unchanged.
    """
    if not tiling.tile:
        return jnp.asarray(kernel)
    g = matrices(tiling.tile).kernel
    both, flat = np.kron(g, g), np.reshape(kernel, (9, -1))
    positions = np.empty((len(both), flat.shape[1]), np.float32)
    for start in range(0, flat.shape[1], COLUMNS):
        part = slice(start, start + COLUMNS)
        positions[:, part] = both @ np.asarray(flat[:, part], np.float64)
    positions = positions.reshape(-1, *kernel.shape[2:])
    if tiling.by_row:
        return tuple(jnp.asarray(row) for row in np.split(positions, tiling.tile + 2))
    return jnp.asarray(positions)


def _linear(matrix: np.ndarray, parts: list[Array]) -> list[Array]:
    """Returns the rows of `matrix @ parts` as sums without the zero terms."""
    sums = []
    for row in np.where(np.abs(matrix) < 1e-12, 0, matrix):
        weights = zip(row, parts, strict=True)
        terms = [p if a == 1 else p * np.float32(a) for a, p in weights if a]
        sums.append(functools.reduce(jnp.add, terms))
    return sums


def _pairs(matrix: np.ndarray) -> list[int]:
    """Returns the first row of every pair of rows that differ in signs only (points +p, -p)."""
    same = [np.allclose(np.abs(a), np.abs(b)) for a, b in itertools.pairwise(matrix)]
    return [i for i, pair in enumerate(same) if pair and (matrix[i] != matrix[i + 1]).any()]


def mirrored_rows(matrix: np.ndarray, parts: list[Array]) -> list[Array]:
    """Returns `matrix @ parts`; each pair of rows is computed as e + o and e - o."""
    halves = matrix.copy()
    pairs = _pairs(matrix)
    for i in pairs:
        halves[i], halves[i + 1] = (
            (matrix[i] + matrix[i + 1]) / 2,
            (matrix[i] - matrix[i + 1]) / 2,
        )
    sums = _linear(halves, parts)
    for i in pairs:
        sums[i], sums[i + 1] = sums[i] + sums[i + 1], sums[i] - sums[i + 1]
    return sums


def mirrored_columns(matrix: np.ndarray, parts: list[Array]) -> list[Array]:
    """Returns `matrix @ parts`; a pair of columns takes the sum and difference of its parts."""
    halves, parts = matrix.copy(), list(parts)
    for j in _pairs(matrix.T):
        parts[j], parts[j + 1] = parts[j] + parts[j + 1], parts[j] - parts[j + 1]
        halves[:, j] = (matrix[:, j] + matrix[:, j + 1]) / 2
        halves[:, j + 1] = (matrix[:, j] - matrix[:, j + 1]) / 2
    return _linear(halves, parts)


def every(x: Array, axis: int, start: int, step: int, count: int) -> Array:
    return lax.slice_in_dim(x, start, start + (count - 1) * step + 1, step, axis)
