"""The layers of the fast CPU program: 3x3 convolutions in tiles or directly, ReLU and pool."""

import math
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from tlflax.models.vgg.winograd import (
    Kernel,
    Tiling,
    every,
    matrices,
    mirrored_columns,
    mirrored_rows,
)

Size = tuple[int, int]
"""Height and width."""


class Padding(NamedTuple):
    """Rows and columns of zeros around images."""

    top: int
    below: int
    left: int
    right: int


class Layer(TypedDict):
    """The parameters of one layer.

    Attributes:
        kernel: The kernel, transformed for the layer's tiling.
        bias: [d].
    """

    kernel: Kernel
    bias: Array


def _products(
    rows: Float[Array, '*n b r w c'],
    kernel: Float[Array, 'positions c d'],
    tile: int,
    tiles: int,
) -> Float[Array, 'm *n t d']:
    """Transforms tiles along the width, multiplies over the channels, transforms back."""
    size, axis = tile + 2, rows.ndim - 2
    lead = rows.shape[:-4]
    columns = [every(rows, axis, k, tile, tiles) for k in range(size)]
    v = jnp.stack(mirrored_rows(matrices(tile).input, columns), axis=len(lead))
    v = v.reshape(kernel.shape[0], -1, rows.shape[-1])
    product = lax.dot_general(
        v, kernel, (((2,), (1,)), ((0,), (0,))), precision=lax.Precision.HIGHEST
    )
    product = product.reshape(*lead, size, *product.shape[1:])
    parts = [lax.index_in_dim(product, j, len(lead), keepdims=False) for j in range(size)]
    return jnp.stack(mirrored_columns(matrices(tile).output, parts))


def _lines(
    x: Float[Array, 'b h w c'], kernel: Kernel, tile: int, tiles: Size
) -> list[Float[Array, 'm t d']]:
    """Convolves padded images; returns for each row of a tile its columns in all tiles."""
    size = tile + 2
    rows = jnp.stack(
        mirrored_rows(matrices(tile).input, [every(x, 1, k, tile, tiles[0]) for k in range(size)])
    )
    if isinstance(kernel, tuple):
        parts = [_products(rows[i], kernel[i], tile, tiles[1]) for i in range(size)]
    else:
        product = _products(rows, kernel, tile, tiles[1])
        parts = [product[:, i] for i in range(size)]
    return mirrored_columns(matrices(tile).output, parts)


def _pooled(
    lines: list[Float[Array, 'm t d']], bias: Float[Array, ' d'], tiles: Size
) -> Float[Array, 'b p q d']:
    """Applies bias, ReLU and a 2x2 max pool to tiles, which are even, and joins them."""
    lines = [jnp.maximum(a, b) for a, b in zip(lines[::2], lines[1::2], strict=True)]
    lines = [jnp.maximum(line[::2], line[1::2]) for line in lines]
    # Adding the bias and clipping at zero change nothing about which of four is largest.
    lines = [jax.nn.relu(line + bias) for line in lines]
    edge, (tall, wide) = len(lines), tiles
    y = jnp.stack([line.reshape(edge, -1, tall, wide, len(bias)) for line in lines], axis=3)
    y = y.transpose(1, 2, 3, 4, 0, 5)
    return y.reshape(-1, tall * edge, wide * edge, len(bias))


def _placed(
    lines: list[Float[Array, 'm t d']],
    bias: Float[Array, ' d'],
    tiles: Size,
    size: Size,
    around: Padding,
    inside: Bool[Array, ' h'] | None,
) -> Float[Array, 'b p q d']:
    """Applies bias and ReLU to tiles and joins them, with zeros around.

    Each row of the tiles is written by a loop of its own: XLA fuses concatenation and padding to
    one loop that decides for every value where it comes from, and uses no vectors.
    """
    edge, (tall, wide) = len(lines), tiles
    rows = around.top + max(size[0] + around.below, tall * edge)
    width = around.left + size[1] + around.right
    batch = lines[0].shape[1] // (tall * wide)
    y = jnp.zeros((batch, math.ceil(rows / edge), edge, width, len(bias)), lines[0].dtype)
    if inside is not None or tall * edge > size[0]:
        inside = jnp.ones(size[0], bool) if inside is None else inside
        inside = jnp.pad(inside, (0, tall * edge - size[0]))
    for i, line in enumerate(lines):
        line = jax.nn.relu(line + bias).reshape(edge, batch, tall, wide, len(bias))
        line = line.transpose(1, 2, 3, 0, 4).reshape(batch, tall, 1, wide * edge, len(bias))
        line = line[:, :, :, : size[1]]
        if inside is not None:
            line = jnp.where(inside[i::edge][:, None, None, None], line, 0)
        row = around.top + i
        y = lax.dynamic_update_slice(y, line, (0, row // edge, row % edge, around.left, 0))
    return y.reshape(batch, -1, width, len(bias))


def max_pool(x: Float[Array, 'b h w c']) -> Float[Array, 'b p q c']:
    """Returns the maxima of 2x2 pixels; an odd last row or column is left out."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return jnp.maximum(
        jnp.maximum(x[:, :, 0, :, 0], x[:, :, 0, :, 1]),
        jnp.maximum(x[:, :, 1, :, 0], x[:, :, 1, :, 1]),
    )


def padding(size: Size, tiling: Tiling, *, border: int = 1) -> Padding:
    """Returns the zeros that a layer needs around its input.

    Args:
        size: Height and width of its output, before the pool.
        tiling: How it is computed.
        border: 1 for whole images; 0 for strips that include the rows of their neighbors.
    """
    below, right = (-length % tiling.tile if tiling.tile else 0 for length in size)
    return Padding(border, border + below, 1, 1 + right)


def pad(x: Float[Array, 'b h w c'], around: Padding) -> Float[Array, 'b p q c']:
    """Returns images with zeros around them."""
    top, below, left, right = around
    return jnp.pad(x, ((0, 0), (top, below), (left, right), (0, 0)))


def conv3x3(
    x: Float[Array, 'b p q c'],
    layer: Layer,
    tiling: Tiling,
    size: Size,
    *,
    around: Padding | None = None,
    inside: Bool[Array, ' h'] | None = None,
) -> Float[Array, 'b r s d']:
    """Computes a 3x3 convolution with bias and ReLU, for the next layer or the pool.

    Args:
        x: Images with `padding(size, tiling)` around, or strips of images; what is beyond that on
            the right or below is not read.
        layer: Kernel by `transform_kernel(kernel, tiling)`, and bias [d].
        tiling: How to compute it.
        size: Height h and width w of the output.
        around: The padding of the next layer; None for a 2x2 max pool.
        inside: Which rows are inside the image; the others become zeros. All without it.

    Returns:
        [b, h // 2, w // 2, d] after the pool; otherwise h rows and w columns with `around` and
        perhaps more zeros below.
    """
    kernel, bias = layer['kernel'], layer['bias']
    if tiling.tile:
        tiles = math.ceil(size[0] / tiling.tile), math.ceil(size[1] / tiling.tile)
        lines = _lines(x, kernel, tiling.tile, tiles)
        if around is None:
            return _pooled(lines, bias, tiles)[:, : size[0] // 2, : size[1] // 2]
        return _placed(lines, bias, tiles, size, around, inside)
    assert not isinstance(kernel, tuple)
    y = lax.conv_general_dilated(
        x[:, : size[0] + 2, : size[1] + 2],
        kernel,
        (1, 1),
        'VALID',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        precision=lax.Precision.HIGHEST,
    )
    y = jax.nn.relu(y + bias)
    if inside is not None:
        y = jnp.where(inside[:, None, None], y, 0)
    return max_pool(y) if around is None else pad(y, around)
