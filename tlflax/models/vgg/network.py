"""VGG16 (Simonyan & Zisserman 2014, arXiv:1409.1556), with and without its dense top.

`init` and `apply` are pure functions; parameters are a nested dict of arrays, named like the
canonical weights (`params['block1_conv1']['kernel']`). The Flax module exists inside `apply` only.
Widths come from the parameters, so the narrow networks of tests run the same code as the real one.
"""

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tlflax.utils.errors import UserError, did_you_mean
from tlflax.utils.trees import Tree

Params = Tree
Shape = tuple[int, ...]

DEPTHS = (2, 2, 3, 3, 3)  # convolutions per block; a 2x2 max pool ends each block
WIDTHS = (64, 128, 256, 512, 512)  # channels per block
UNITS = 4096  # of fc1 and fc2
GRID = 7  # fc1 takes a block5_pool of GRID x GRID, which is that of a 224 x 224 image
MIN_SIZE = 32  # five halvings leave at least one pixel

POOLS = tuple(f'block{block}_pool' for block in range(1, len(DEPTHS) + 1))
TOP = ('fc1', 'fc2', 'predictions')
LAYERS = POOLS + TOP


def conv_names(block: int) -> tuple[str, ...]:
    """Returns the names of the convolutions of a block, 1 to 5, in order."""
    return tuple(f'block{block}_conv{i}' for i in range(1, DEPTHS[block - 1] + 1))


def shapes(
    *,
    top: bool = False,
    num_classes: int = 1000,
    widths: tuple[int, ...] = WIDTHS,
    units: int = UNITS,
) -> dict[str, Shape]:
    """Returns the shape of every parameter, keyed by its path, in the order of the forward pass.

    Kernels are [3, 3, in, out]; dense kernels [in, out], the rows of fc1 in (row, column,
    channel) order of the flattened block5_pool.
    """
    found: dict[str, Shape] = {}
    channels = 3
    for block, width in enumerate(widths, start=1):
        for name in conv_names(block):
            found |= {f'{name}/kernel': (3, 3, channels, width), f'{name}/bias': (width,)}
            channels = width
    if top:
        sizes = (GRID * GRID * channels, units, units, num_classes)
        for name, rows, columns in zip(TOP, sizes[:-1], sizes[1:], strict=True):
            found |= {f'{name}/kernel': (rows, columns), f'{name}/bias': (columns,)}
    return found


def conv3x3(
    x: Float[Array, 'b h w c'],
    kernel: Float[Array | np.ndarray, '3 3 c d'],
    bias: Float[Array | np.ndarray, ' d'],
    precision: lax.Precision,
) -> Float[Array, 'b h w d']:
    """Computes a 3x3 convolution with zero padding, bias and ReLU, in the type of `x`."""
    y = lax.conv_general_dilated(
        x,
        jnp.asarray(kernel, x.dtype),
        window_strides=(1, 1),
        padding='SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        precision=_precision(x, precision),
    )
    return nnx.relu(y + bias.astype(x.dtype))


def _precision(x: Array, float32: lax.Precision) -> lax.Precision:
    # Accelerators multiply float32 in TF32 or bfloat16 unless told otherwise.
    return float32 if x.dtype == jnp.float32 else lax.Precision.DEFAULT


class Affine(nnx.Module):
    """The kernel and bias of one layer."""

    def __init__(self, kernel: Array | np.ndarray, bias: Array | np.ndarray) -> None:
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(bias)

    def dense(self, x: Float[Array, 'b n'], precision: lax.Precision) -> Float[Array, 'b m']:
        """Returns `x @ kernel + bias` in the type of `x`."""
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        return jnp.matmul(x, kernel, precision=_precision(x, precision)) + bias


class VGG16(nnx.Module):
    """The network, built from its parameters; its attributes are the canonical layer names.

    `nnx.to_pure_dict(nnx.state(VGG16(params)))` gives `params` back.

    Args:
        params: Nested dict like that of `init`; arrays may be traced.
    """

    def __init__(self, params: Params) -> None:
        for name, layer in params.items():
            setattr(self, name, Affine(layer['kernel'], layer['bias']))

    def outputs(
        self, x: Float[Array, 'b h w 3'], precision: lax.Precision
    ) -> Iterator[tuple[str, Array]]:
        """Yields (layer, output) for every entry of `LAYERS` in order, computing as it goes."""
        for block, pool in enumerate(POOLS, start=1):
            for name in conv_names(block):
                layer = getattr(self, name)
                x = conv3x3(x, layer.kernel[...], layer.bias[...], precision)
            x = nnx.max_pool(x, window_shape=(2, 2), strides=(2, 2), padding='VALID')
            yield pool, x
        x = x.reshape(x.shape[0], -1)
        for name in TOP:
            x = getattr(self, name).dense(x, precision)
            # Probabilities need more than bfloat16's three digits.
            x = nnx.softmax(x.astype(jnp.float32)) if name == 'predictions' else nnx.relu(x)
            yield name, x


@functools.partial(jax.jit, static_argnames=('top', 'num_classes', 'widths', 'units'))
def init(
    key: Array,
    *,
    top: bool = False,
    num_classes: int = 1000,
    widths: tuple[int, ...] = WIDTHS,
    units: int = UNITS,
) -> Params:
    """Returns random parameters: He-normal kernels (He et al. 2015), zero biases, float32.

    Args:
        key: A JAX random key.
        top: Also make fc1, fc2 and predictions.
        num_classes: Outputs of predictions.
        widths: Channels of the five blocks.
        units: Outputs of fc1 and fc2.
    """
    # One draw is split into kernels: XLA would take seconds to compile a draw for each.
    found = shapes(top=top, num_classes=num_classes, widths=widths, units=units)
    kernels = {path: shape for path, shape in found.items() if path.endswith('/kernel')}
    sizes = [math.prod(shape) for shape in kernels.values()]
    draws = jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
    params: Params = {}
    for (path, shape), draw in zip(kernels.items(), draws, strict=True):
        he = math.sqrt(2 / math.prod(shape[:-1]))
        kernel, bias = he * draw.reshape(shape), jnp.zeros(shape[-1:], jnp.float32)
        params[path.removesuffix('/kernel')] = {'kernel': kernel, 'bias': bias}
    return params


def apply(
    params: Params,
    x: Float[Array, 'b h w 3'],
    *,
    layer: str = 'block5_pool',
    dtype: DTypeLike = jnp.float32,
    precision: lax.Precision = lax.Precision.HIGHEST,
) -> Array:
    """Runs the network on preprocessed images up to one layer; later layers are not computed.

    Args:
        params: Nested dict like that of `init`.
        x: Preprocessed images, at least 32 pixels high and wide.
        layer: One of `LAYERS`.
        dtype: Type of the computation; parameters keep theirs.
        precision: Of float32 products on accelerators; HIGH is TF32 on GPUs. Sums are float32.

    Returns:
        [b, h', w', c] for a pool, [b, n] after ReLU for fc1 and fc2, both of type `dtype`;
        float32 probabilities [b, num_classes] for predictions.

    Raises:
        UserError: The layer is unknown, the images are too small, or a layer of the top is asked
            for and the parameters lack it or the image does not fit it.
    """
    _check_layer(layer)
    _check_size(x.shape[1:3])
    if layer in TOP:
        _check_top(params, x.shape[1:3])
    for name, output in VGG16(params).outputs(x.astype(dtype), precision):
        if name == layer:
            return output
    raise AssertionError(layer)


def _check_layer(layer: str) -> None:
    if layer not in LAYERS:
        raise UserError(
            f'{layer!r} is not a layer of VGG16',
            where='config.features.layer',
            fix=did_you_mean(layer, LAYERS),
        )


def _check_size(image_size: tuple[int, ...]) -> None:
    if min(image_size) < MIN_SIZE:
        height, width = image_size
        raise UserError(
            f'{height}x{width} pixels are too few for VGG16',
            where='config.data.image_size',
            fix=f'give at least {MIN_SIZE}x{MIN_SIZE}',
        )


def _check_grid(image_size: tuple[int, ...]) -> None:
    if any(size >> len(DEPTHS) != GRID for size in image_size):
        height, width = image_size
        raise UserError(
            f'fc1, fc2 and predictions are made for 224x224 pixels, not {height}x{width}',
            where='config.data.image_size',
            fix='set it to (224, 224), or config.features.layer to a pool such as block5_pool',
        )


def _check_top(params: Params, image_size: tuple[int, ...]) -> None:
    if 'fc1' not in params:
        raise UserError(
            'these weights have no fc1, fc2 and predictions',
            where='config.weights.source',
            fix='give a file with the top, or set config.features.layer to block5_pool',
        )
    _check_grid(image_size)
