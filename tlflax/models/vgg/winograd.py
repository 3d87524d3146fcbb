"""3x3 convolution with fewer multiplications: Winograd's F(m x m, 3 x 3).

A tile of m x m outputs takes (m + 2)^2 multiplications per pair of channels where direct
convolution takes 9 m^2 (Lavin & Gray 2015, arXiv:1509.09308): cut the image into overlapping tiles,
transform them, multiply position by position (matrix products over the channels), transform back.
"""

import functools
import itertools
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# The finite interpolation points for each size of tile; infinity is always one too. They come in
# pairs +p, -p, which share half of their sums. A search over multiples of 1/16 found the points for
# 4: their float32 error is half that of 0, 1, -1, 2, -2. For 6 it found none better than the usual.
POINTS: dict[int, tuple[float, ...]] = {
    4: (0.0, 0.6875, -0.6875, 1.625, -1.625),
    6: (0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0),
}

Kernel = Array | tuple[Array, ...]
"""A kernel as `transform_kernel` returns it."""


class Layer(TypedDict):
    """The parameters of one layer.

    Attributes:
        kernel: The kernel, transformed for the layer's tiling.
        bias: [d].
    """

    kernel: Kernel
    bias: Array


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
    wide = np.asarray(kernel, np.float64)
    rows = np.einsum('ia,abcd,jb->ijcd', g, wide, g, optimize=True).astype(np.float32)
    if tiling.by_row:
        return tuple(jnp.asarray(row) for row in rows)
    return jnp.asarray(rows.reshape(-1, *rows.shape[2:]))


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


def _products(
    rows: Float[Array, '*n b r w c'],
    kernel: Float[Array, 'positions c d'],
    tile: int,
) -> Float[Array, 'm *n t d']:
    """Transforms tiles along the width, multiplies over the channels, transforms back."""
    size, axis = tile + 2, rows.ndim - 2
    lead, tiles = rows.shape[:-4], (rows.shape[axis] - 2) // tile
    columns = [every(rows, axis, k, tile, tiles) for k in range(size)]
    v = jnp.stack(mirrored_rows(matrices(tile).input, columns), axis=len(lead))
    v = v.reshape(kernel.shape[0], -1, rows.shape[-1])
    product = lax.dot_general(
        v, kernel, (((2,), (1,)), ((0,), (0,))), precision=lax.Precision.HIGHEST
    )
    product = product.reshape(*lead, size, *product.shape[1:])
    parts = [lax.index_in_dim(product, j, len(lead), keepdims=False) for j in range(size)]
    return jnp.stack(mirrored_columns(matrices(tile).output, parts))


def _winograd(
    x: Float[Array, 'b h w c'],
    kernel: Kernel,
    bias: Float[Array, ' d'],
    tile: int,
    pool: bool,
) -> Float[Array, 'b p q d']:
    """Convolves a padded image whose size minus 2 is a multiple of `tile`."""
    batch, height, width, _ = x.shape
    tall, wide, size = (height - 2) // tile, (width - 2) // tile, tile + 2
    rows = jnp.stack(
        mirrored_rows(matrices(tile).input, [every(x, 1, k, tile, tall) for k in range(size)])
    )
    if isinstance(kernel, tuple):
        parts = [_products(rows[i], kernel[i], tile) for i in range(size)]
    else:
        product = _products(rows, kernel, tile)
        parts = [product[:, i] for i in range(size)]
    lines = mirrored_columns(matrices(tile).output, parts)  # a tile's rows of [columns, t, d]
    if pool:  # tiles are even
        lines = [jnp.maximum(a, b) for a, b in zip(lines[::2], lines[1::2], strict=True)]
        lines = [jnp.maximum(line[::2], line[1::2]) for line in lines]
    edge, channels = len(lines), bias.shape[0]
    # Adding the bias and clipping at zero change nothing about which of four is largest.
    lines = [jax.nn.relu(line + bias).reshape(edge, batch, tall, wide, channels) for line in lines]
    y = jnp.stack(lines, axis=3).transpose(1, 2, 3, 4, 0, 5)
    y = y.reshape(batch, tall * edge, wide * edge, channels)
    return y


def max_pool(x: Float[Array, 'b h w c']) -> Float[Array, 'b p q c']:
    """Returns the maxima of 2x2 pixels; an odd last row or column is left out."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return jnp.maximum(
        jnp.maximum(x[:, :, 0, :, 0], x[:, :, 0, :, 1]),
        jnp.maximum(x[:, :, 1, :, 0], x[:, :, 1, :, 1]),
    )


def conv3x3(
    x: Float[Array, 'b h w c'],
    layer: Layer,
    tiling: Tiling,
    *,
    border: int = 1,
    pool: bool = False,
) -> Float[Array, 'b p q d']:
    """Computes a 3x3 convolution with bias and ReLU, and a 2x2 max pool if `pool`.

    Args:
        x: Images, or horizontal strips of images.
        layer: Kernel by `transform_kernel(kernel, tiling)`, and bias [d].
        tiling: How to compute it.
        border: Rows of zeros above and below: 1 for whole images, 0 for strips that include their
            neighbors' rows. The width is always padded.
        pool: Whether to pool after the ReLU.

    Returns:
        Rows h + 2 * border - 2 and columns w, both halved (rounded down) if `pool`.
    """
    height, width = x.shape[1] + 2 * border - 2, x.shape[2]
    kernel, bias = layer['kernel'], layer['bias']
    if not tiling.tile:
        assert not isinstance(kernel, tuple)
        y = lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            ((border, border), (1, 1)),
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            precision=lax.Precision.HIGHEST,
        )
        y = jax.nn.relu(y + bias)
        return max_pool(y) if pool else y
    right, below = -width % tiling.tile, -height % tiling.tile
    x = jnp.pad(x, ((0, 0), (border, border + below), (1, 1 + right), (0, 0)))
    y = _winograd(x, kernel, bias, tiling.tile, pool)
    return y[:, : height // 2, : width // 2] if pool else y[:, :height, :width]
