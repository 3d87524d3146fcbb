"""VGG16 and VGG19 (Simonyan & Zisserman 2014, arXiv:1409.1556), with and without their dense top.

Parameters are a nested dict of arrays, named like the canonical weights
(`params['block1_conv1']['kernel']`). Depths and widths come from the parameters, so the narrow
networks of tests run the same code as the real ones.
"""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from tlflax.models.base.backbone import IMAGE, layers_between
from tlflax.models.base.modules import Variables
from tlflax.models.vgg import trained_cpu
from tlflax.utils.errors import UserError
from tlflax.utils.trees import Tree

Params = Tree
Shape = tuple[int, ...]
Depths = tuple[int, ...]

VGG16 = (2, 2, 3, 3, 3)  # convolutions per block; a 2x2 max pool ends each block
VGG19 = (2, 2, 4, 4, 4)
WIDTHS = (64, 128, 256, 512, 512)  # channels per block
UNITS = 4096  # of fc1 and fc2
GRID = 7  # fc1 takes a block5_pool of GRID x GRID, which is that of a 224 x 224 image
MIN_SIZE = 32  # five halvings leave at least one pixel

BLOCKS = range(1, 6)
POOLS = tuple(f'block{block}_pool' for block in BLOCKS)
TOP = ('fc1', 'fc2', 'predictions')
PROBABILITIES = TOP[-1]  # the layer whose outputs are probabilities


def conv_names(block: int, depth: int) -> tuple[str, ...]:
    """Returns the names of the `depth` convolutions of a block, 1 to 5, in order."""
    return tuple(f'block{block}_conv{i}' for i in range(1, depth + 1))


def layers(depths: Depths) -> tuple[str, ...]:
    """Returns the names of all layers in order: convolutions (after ReLU), pools and the top."""
    names: list[str] = []
    for block, depth in zip(BLOCKS, depths, strict=True):
        names += [*conv_names(block, depth), f'block{block}_pool']
    return (*names, *TOP)


def depths_of(params: Params) -> Depths:
    """Returns the number of convolutions in each block; those below a cut may be missing."""
    found = [re.fullmatch(r'block(\d)_conv(\d+)', name) for name in params]
    numbers = [(int(match[1]), int(match[2])) for match in found if match]
    return tuple(
        max((number for own, number in numbers if own == block), default=0) for block in BLOCKS
    )


def shapes(
    depths: Depths = VGG16,
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
    for block, depth, width in zip(BLOCKS, depths, widths, strict=True):
        for name in conv_names(block, depth):
            found |= {f'{name}/kernel': (3, 3, channels, width), f'{name}/bias': (width,)}
            channels = width
    if top:
        sizes = (GRID * GRID * channels, units, units, num_classes)
        for name, rows, columns in zip(TOP, sizes[:-1], sizes[1:], strict=True):
            found |= {f'{name}/kernel': (rows, columns), f'{name}/bias': (columns,)}
    return found


class Layer(nnx.Module):
    """The kernel and bias of one layer.

    Args:
        kernel: [3, 3, in, out] of a convolution, [in, out] of a dense layer.
        bias: [out].
    """

    def __init__(self, kernel: Array | np.ndarray, bias: Array | np.ndarray) -> None:
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(bias)

    def conv(self, x: Float[Array, 'b h w c'], *, fast: bool = False) -> Float[Array, 'b h w d']:
        """Computes a 3x3 convolution with zero padding and bias, in the type of `x`.

        Args:
            x: The input.
            fast: Whether to compute it as `trained_cpu` does where that pays.
        """
        kernel = self.kernel[...].astype(x.dtype)
        if fast and trained_cpu.pays(x, kernel):
            y = trained_cpu.convolve(x, kernel)
        else:
            y = lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(1, 1),
                padding='SAME',
                dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            )
        return y + self.bias[...].astype(x.dtype)

    def dense(self, x: Float[Array, 'b n']) -> Float[Array, 'b m']:
        """Returns `x @ kernel + bias` in the type of `x`."""
        return x @ self.kernel[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


class VGG(nnx.Module):
    """The network, built from its parameters; its attributes are the canonical layer names.

    `nnx.to_pure_dict(nnx.state(VGG(params)))` gives `params` back.

    Args:
        params: Nested dict like that of `init`; arrays may be traced.
        trained: Whether layers are trained, which `trained_cpu` computes on a CPU in float32.
    """

    def __init__(self, params: Params, *, trained: bool = False) -> None:
        self.layers, self.trained = layers(depths_of(params)), trained
        for name, layer in params.items():
            setattr(self, name, Layer(layer['kernel'], layer['bias']))

    def __call__(
        self, x: Float[Array, 'b ...'], *, start: str = IMAGE, stop: str = 'block5_pool'
    ) -> Float[Array, 'b ...']:
        """Runs the layers after `start` up to `stop`; later layers are not computed.

        Args:
            x: Preprocessed images [b, h, w, 3], at least 32 pixels high and wide, or the output of
                `start`.
            start: `IMAGE` or a layer.
            stop: A layer.

        Returns:
            [b, h', w', c] for a convolution (after ReLU) or a pool, [b, n] after ReLU for fc1 and
            fc2, both in the type of `x`; float32 probabilities [b, num_classes] for predictions.

        Raises:
            UserError: The images are too small, or a layer of the top is asked for and the
                parameters lack it or the images do not fit it.
        """
        if start == IMAGE:
            _check_images(x.shape[1:3], top=stop in TOP)
        for name in layers_between(self.layers, start, stop):
            x = self._run(name, x)
        return x

    def _run(self, name: str, x: Array) -> Array:
        on_cpu = jax.default_backend() == 'cpu'
        fast = self.trained and x.dtype == jnp.float32 and on_cpu
        if name in POOLS:
            # On a GPU, XLA has no gradient of its pool that adds in the same order every time.
            if fast or (self.trained and not on_cpu):
                return trained_cpu.max_pool(x)
            return nnx.max_pool(x, window_shape=(2, 2), strides=(2, 2), padding='VALID')
        if name not in TOP:
            return nnx.relu(getattr(self, name).conv(x, fast=fast))
        if not hasattr(self, name):
            raise without_top('config.weights.source')
        y = getattr(self, name).dense(x.reshape(x.shape[0], -1))
        # Probabilities need more than bfloat16's three digits.
        return nnx.softmax(y.astype(jnp.float32)) if name == PROBABILITIES else nnx.relu(y)


@functools.partial(jax.jit, static_argnames=('depths', 'top', 'num_classes', 'widths', 'units'))
def init(
    key: Array,
    depths: Depths = VGG16,
    *,
    top: bool = False,
    num_classes: int = 1000,
    widths: tuple[int, ...] = WIDTHS,
    units: int = UNITS,
) -> Params:
    """Returns random parameters: He-normal kernels (He et al. 2015), zero biases, float32.

    Args:
        key: A JAX random key.
        depths: Convolutions of the five blocks.
        top: Also make fc1, fc2 and predictions.
        num_classes: Outputs of predictions.
        widths: Channels of the five blocks.
        units: Outputs of fc1 and fc2.
    """
    # One draw is split into kernels: XLA would take seconds to compile a draw for each.
    found = shapes(depths, top=top, num_classes=num_classes, widths=widths, units=units)
    kernels = {path: shape for path, shape in found.items() if path.endswith('/kernel')}
    sizes = [math.prod(shape) for shape in kernels.values()]
    draws = jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
    params: Params = {}
    for (path, shape), draw in zip(kernels.items(), draws, strict=True):
        he = math.sqrt(2 / math.prod(shape[:-1]))
        kernel, bias = he * draw.reshape(shape), jnp.zeros(shape[-1:], jnp.float32)
        params[path.removesuffix('/kernel')] = {'kernel': kernel, 'bias': bias}
    return params


def variables(key: Array, layer: str, *, depths: Depths, **sizes: Any) -> Variables:
    """Returns the random variables that `layer` needs: the top is left out where it is not used.

    Args:
        key: A JAX random key.
        layer: One of `layers(depths)`.
        depths: Convolutions of the five blocks.
        **sizes: Of a narrow network; see `init`.
    """
    return Variables(init(key, depths, top=layer in TOP, **sizes), {})


def _check_images(image_size: tuple[int, ...], *, top: bool) -> None:
    height, width = image_size
    if min(image_size) < MIN_SIZE:
        raise UserError(
            f'{height}x{width} pixels are too few for VGG',
            where='config.data.image_size',
            fix=f'give at least {MIN_SIZE}x{MIN_SIZE}',
        )
    if top and any(size >> len(BLOCKS) != GRID for size in image_size):
        raise UserError(
            f'fc1, fc2 and predictions are made for 224x224 pixels, not {height}x{width}',
            where='config.data.image_size',
            fix='set it to (224, 224), or config.features.layer to a pool such as block5_pool',
        )


def without_top(where: str) -> UserError:
    """Returns what to say where the top is needed and missing."""
    return UserError(
        'these weights have no fc1, fc2 and predictions',
        where=where,
        fix='give a file with the top, or set config.features.layer to block5_pool',
    )
