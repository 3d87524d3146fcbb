"""A trainable 3x3 convolution before a pool, as fast matrix products; for heads on a CPU.

There XLA runs the gradients of small convolutions slowly, and every convolution inside `lax.scan`
on one thread; products are fast in both places. Maps of more than a few pixels go by Winograd's
algorithm (`tlflax.models.winograd`), whose kernel is transformed anew in each step, because it
learns: the 6 x 6 outputs of a 7 x 7 map take 64 products of channels instead of 324.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from tlflax.models import winograd

MIN_CHANNELS = 64  # narrower maps have few products to save, and transforming them costs as much
_HIGHEST = lax.Precision.HIGHEST
_Operands = tuple[Array, Array]


def conv3x3_before_pool(
    x: Float[Array, 'b h w c'], kernel: Float[Array, '3 3 c d']
) -> Float[Array, 'b 2*(h//2) 2*(w//2) d']:
    """3x3 stride-1 SAME convolution without an odd last row and column, which a pool would drop."""
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    x = x[:, : height + 1, : width + 1]
    tile = best_tile(height, width, x.shape[-1])
    if not tile:
        return _by_patches(x, kernel, height, width)
    tall, wide = -(-height // tile), -(-width // tile)
    below, right = tall * tile + 1 - x.shape[1], wide * tile + 1 - x.shape[2]
    x = jnp.pad(x, ((0, 0), (1, below), (1, right), (0, 0)))
    products = _products(winograd.input_tiles(x, tile), kernel)
    output = _both_ways(winograd.matrices(tile).output)
    y = jnp.matmul(output, products.reshape(len(products), -1), precision=_HIGHEST)
    y = y.reshape(tile, tile, x.shape[0], tall, wide, -1).transpose(2, 3, 0, 4, 1, 5)
    return y.reshape(x.shape[0], tall * tile, wide * tile, -1)[:, :height, :width]


def best_tile(height: int, width: int, channels: int) -> int:
    """Returns the edge of the tiles that take the fewest products; 0 where patches are as good."""
    if channels < MIN_CHANNELS:
        return 0
    costs = {
        tile: math.ceil(height / tile) * math.ceil(width / tile) * (tile + 2) ** 2
        for tile in winograd.POINTS
    }
    tile = min(costs, key=costs.__getitem__)
    return tile if 2 * costs[tile] <= 9 * height * width else 0


def _by_patches(
    x: Float[Array, 'b h w c'], kernel: Float[Array, '3 3 c d'], height: int, width: int
) -> Float[Array, 'b p q d']:
    """Direct convolution as one product of all 3x3 patches."""
    below, right = height + 1 - x.shape[1], width + 1 - x.shape[2]
    x = jnp.pad(x, ((0, 0), (1, below), (1, right), (0, 0)))
    taps = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    rows = jnp.concatenate(taps, axis=-1).reshape(-1, 9 * x.shape[-1])
    y = jnp.matmul(rows, kernel.reshape(-1, kernel.shape[-1]), precision=_HIGHEST)
    return y.reshape(x.shape[0], height, width, -1)


@jax.custom_vjp
def _products(
    tiles: Float[Array, 'positions t c'], kernel: Float[Array, '3 3 c d']
) -> Float[Array, 'positions t d']:
    """Multiplies transformed tiles with the transformed kernel, position by position."""
    return _products_forward(tiles, kernel)[0]


# Under `jax.vmap` one after the other: batched, XLA would add up in another order, and a head among
# many would not learn what it learns alone. On a CPU that costs nothing.
@jax.custom_batching.sequential_vmap
def _products_forward(tiles: Array, kernel: Array) -> tuple[Array, _Operands]:
    transform = _kernel_transform(tiles.shape[0])
    wide = jnp.matmul(transform, kernel.reshape(9, -1), precision=_HIGHEST)
    wide = wide.reshape(-1, *kernel.shape[2:])
    return _batched(tiles, wide, 2, 1), (tiles, wide)


def _products_backward(operands: _Operands, gradient: Array) -> _Operands:
    """The transposed products; written out, for XLA's own choice for the kernel is half as fast."""
    tiles, wide = operands
    return _gradient_of_tiles(gradient, wide), _gradient_of_kernel(gradient, tiles)


@jax.custom_batching.sequential_vmap
def _gradient_of_tiles(gradient: Array, wide: Array) -> Float[Array, 'positions t c']:
    return _batched(gradient, wide, 2, 2)


@jax.custom_batching.sequential_vmap
def _gradient_of_kernel(gradient: Array, tiles: Array) -> Float[Array, '3 3 c d']:
    by_feature = _batched(gradient, tiles, 1, 1)  # [positions, d, c]: the fast one of two layouts
    transform = _kernel_transform(len(tiles)).T
    kernel = jnp.matmul(transform, by_feature.reshape(len(tiles), -1), precision=_HIGHEST)
    return kernel.reshape(3, 3, *by_feature.shape[1:]).swapaxes(2, 3)


_products.defvjp(_products_forward, _products_backward)


def _batched(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    """Products of matrices, one for each position, over these axes."""
    axes = (((axis_a,), (axis_b,)), ((0,), (0,)))
    return lax.dot_general(a, b, axes, precision=_HIGHEST)


def _kernel_transform(positions: int) -> Float[np.ndarray, 'positions 9']:
    return _both_ways(winograd.matrices(math.isqrt(positions) - 2).kernel)


def _both_ways(matrix: np.ndarray) -> Float[np.ndarray, 'm*m n*n']:
    """Returns a transform of columns and then of rows as one matrix."""
    return np.kron(matrix, matrix).astype(np.float32)
