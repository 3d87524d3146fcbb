"""The layers that are trained, on a CPU: Winograd's convolution with its gradients, and the pool.

For each tile, y = A^T [(G k G^T) * (B^T x B)] A, where the product is a sum over channels (Lavin &
Gray 2015, arXiv:1509.09308). This is linear in x and in k, so the gradients are the transposed
maps, with the same few multiplications: M = A dy A^T is the gradient of the products; from it come
that of x, B [(G k G^T) * M] B^T with overlapping tiles added up, and that of k,
G^T [(B^T x B) * M] G. Each * is one batch of matrix products. The results are off by about 1e-6 of
their norm, where direct convolution is off by 2e-7.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from tlflax.models.vgg import tiled_layers, winograd
from tlflax.utils.parallel import parts as parts_of_a_batch

TILE = 4  # larger tiles save little where images are small, and are less exact
SIZE = TILE + 2
MATRICES = winograd.matrices(TILE)
MIN_CHANNELS = 64  # with fewer, transforming costs more than the products save
MIN_TILES = 64  # with fewer, transforming the kernel does
MIN_GAIN = 1.5  # multiplications of direct convolution by those that are left
MAX_BYTES = 256 << 20  # of the transformed tiles: large images would not fit into memory

Tiles = tuple[int, int]


def pays(x: jax.ShapeDtypeStruct | Array, kernel: jax.ShapeDtypeStruct | Array) -> bool:
    """Returns whether `convolve` is faster than direct convolution; only shapes matter.

    Args:
        x: [b, h, w, c].
        kernel: [3, 3, c, d].
    """
    batch, height, width, channels = x.shape
    tiles = math.prod(_tiles(x.shape))
    products = SIZE**2 * tiles
    widest = max(channels, kernel.shape[-1])
    return (
        min(channels, kernel.shape[-1]) >= MIN_CHANNELS
        and batch * tiles >= MIN_TILES
        and 9 * height * width >= MIN_GAIN * products
        and batch * products * widest * 4 <= MAX_BYTES
    )


@jax.custom_vjp
def convolve(
    x: Float[Array, 'b h w c'], kernel: Float[Array, '3 3 c d']
) -> Float[Array, 'b h w d']:
    """Computes a 3x3 convolution with zero padding, to be differentiated in reverse."""
    return _forward(x, kernel)[0]


def _forward(
    x: Float[Array, 'b h w c'], kernel: Float[Array, '3 3 c d']
) -> tuple[Array, tuple[Array, Array]]:
    parts = _cut(MATRICES.input, x, border=1)
    taps = _transformed_kernel(kernel)
    y = _joined(_multiply(parts, taps, 2, 1), x.shape)
    return y, (parts, taps)


def _backward(
    kept: tuple[Array, Array], dy: Float[Array, 'b h w d']
) -> tuple[Float[Array, 'b h w c'], Float[Array, '3 3 c d']]:
    parts, taps = kept
    products = _cut(MATRICES.output.T, dy, border=0)
    dx = _overlapped(_multiply(products, taps, 2, 2), dy.shape)
    return dx, _summed(parts, products, len(dy))


convolve.defvjp(_forward, _backward)


def _tiles(shape: tuple[int, ...]) -> Tiles:
    """Returns how many tiles an image [b, h, w, c] has along its height and width."""
    return -(-shape[1] // TILE), -(-shape[2] // TILE)


def _multiply(a: Array, b: Array, left: int, right: int) -> Array:
    """Multiplies matrices at each of the positions, summing over these axes."""
    return lax.dot_general(
        a, b, (((left,), (right,)), ((0,), (0,))), precision=lax.Precision.HIGHEST
    )


def _cut(matrix: np.ndarray, x: Float[Array, 'b h w c'], *, border: int) -> Float[Array, 'p t c']:
    """Cuts images into tiles that are TILE apart and transforms both sides by `matrix`.

    Around the images are `border` pixels of zero, and more where the last tiles need them.
    """
    tiles = tall, wide = _tiles(x.shape)
    below, right = tall * TILE - x.shape[1], wide * TILE - x.shape[2]
    x = jnp.pad(x, ((0, 0), (border, border + below), (border, border + right), (0, 0)))
    taken = range(matrix.shape[1])
    rows = [winograd.every(x, 1, k, TILE, tiles[0]) for k in taken]
    x = jnp.stack(winograd.mirrored_rows(matrix, rows))
    columns = [winograd.every(x, 3, k, TILE, tiles[1]) for k in taken]
    x = jnp.stack(winograd.mirrored_rows(matrix, columns), axis=1)
    return x.reshape(SIZE**2, -1, x.shape[-1])


def _transformed_kernel(kernel: Float[Array, '3 3 c d']) -> Float[Array, 'p c d']:
    rows = jnp.stack(winograd.mirrored_rows(MATRICES.kernel, list(kernel)))
    columns = [rows[:, i] for i in range(3)]
    both = jnp.stack(winograd.mirrored_rows(MATRICES.kernel, columns), axis=1)
    return both.reshape(SIZE**2, *kernel.shape[2:])


def _summed(
    parts: Float[Array, 'p t c'], products: Float[Array, 'p t d'], batch: int
) -> Float[Array, '3 3 c d']:
    """Returns the gradient of the kernel; its sum is over the tiles of all examples.

    Several devices, over which the examples are split, each transform their own sum, so that they
    add up 9 numbers for each pair of channels, not `SIZE**2`.
    """
    devices = jax.device_count()
    if devices == 1 or batch % devices or parts_of_a_batch.inside():
        return _kernel_gradient(_multiply(parts, products, 1, 1))
    a, b = (one.reshape(len(one), devices, -1, one.shape[-1]) for one in (parts, products))
    taps = lax.dot_general(a, b, (((2,), (2,)), ((0, 1), (0, 1))), precision=lax.Precision.HIGHEST)
    return _kernel_gradient(taps).sum(2)


def _kernel_gradient(taps: Float[Array, 'p *n c d']) -> Float[Array, '3 3 *n c d']:
    both = taps.reshape(SIZE, SIZE, *taps.shape[1:])
    columns = winograd.mirrored_columns(MATRICES.kernel.T, [both[:, i] for i in range(SIZE)])
    rows = jnp.stack(columns, axis=1)
    return jnp.stack(winograd.mirrored_columns(MATRICES.kernel.T, list(rows)))


def _joined(products: Float[Array, 'p t d'], shape: tuple[int, ...]) -> Float[Array, 'b h w d']:
    """Transforms products back and puts the tiles side by side."""
    batch, height, width, _ = shape
    tall, wide = _tiles(shape)
    x = products.reshape(SIZE, SIZE, batch, tall, wide, -1)
    columns = winograd.mirrored_columns(MATRICES.output, [x[:, i] for i in range(SIZE)])
    return _images(winograd.mirrored_columns(MATRICES.output, list(jnp.stack(columns, axis=1))))[
        :, :height, :width
    ]


def _overlapped(products: Float[Array, 'p t c'], shape: tuple[int, ...]) -> Float[Array, 'b h w c']:
    """Transforms the gradients of tiles back; where two tiles overlap, both count."""
    batch, height, width, _ = shape
    tall, wide = _tiles(shape)
    x = products.reshape(SIZE, SIZE, batch, tall, wide, -1)
    columns = winograd.mirrored_columns(MATRICES.input.T, [x[:, i] for i in range(SIZE)])
    x = jnp.stack(_added(columns, axis=3), axis=1)
    rows = winograd.mirrored_columns(MATRICES.input.T, list(x))
    return _images(_added(rows, axis=2))[:, 1 : height + 1, 1 : width + 1]


def _added(parts: list[Array], axis: int) -> list[Array]:
    """Adds the last two of TILE + 2 lines to the first two of the next tile, along `axis`."""

    def padded(x: Array, before: int) -> Array:
        return jnp.pad(x, [(before, 1 - before) if i == axis else (0, 0) for i in range(x.ndim)])

    lines = [padded(part, 0) for part in parts[:TILE]]
    for i in (0, 1):
        lines[i] += padded(parts[TILE + i], 1)
    return lines


def _images(rows: list[Float[Array, 'm b t u c']]) -> Float[Array, 'b h w c']:
    """Puts tiles, given as rows of [columns, b, t, u, c], side by side."""
    x = jnp.stack(rows).transpose(2, 3, 0, 4, 1, 5)
    batch, tall, _, wide, _, channels = x.shape
    return x.reshape(batch, tall * TILE, wide * TILE, channels)


@jax.custom_vjp
def max_pool(x: Float[Array, 'b h w c']) -> Float[Array, 'b p q c']:
    """Returns the maxima of 2x2 pixels; an odd last row or column is left out.

    Where several are the largest, the gradient belongs to the first, as in XLA and PyTorch. XLA
    scatters it pixel by pixel, which takes 30 times as long.
    """
    return tiled_layers.max_pool(x)


def _pool_forward(x: Float[Array, 'b h w c']) -> tuple[Array, tuple[Array, Array]]:
    y = tiled_layers.max_pool(x)
    return y, (x, y)


def _pool_backward(
    kept: tuple[Array, Array], dy: Float[Array, 'b p q c']
) -> tuple[Float[Array, 'b h w c']]:
    x, y = kept
    batch, tall, wide, channels = y.shape
    cells = x[:, : 2 * tall, : 2 * wide].reshape(batch, tall, 2, wide, 2, channels)
    free, rows = jnp.ones(y.shape, bool), []
    for i in (0, 1):
        pair = []
        for j in (0, 1):
            largest = free & (cells[:, :, i, :, j] == y)
            pair.append(jnp.where(largest, dy, 0))
            free &= ~largest
        rows.append(jnp.stack(pair, axis=3))
    dx = jnp.stack(rows, axis=2).reshape(batch, 2 * tall, 2 * wide, channels)
    missing = ((0, x.shape[1] - 2 * tall), (0, x.shape[2] - 2 * wide))
    return (jnp.pad(dx, ((0, 0), *missing, (0, 0))),)


max_pool.defvjp(_pool_forward, _pool_backward)
