"""The frozen network as a fast CPU program: cache-blocked Winograd convolution.

Convolution by `tlflax.models.vgg.winograd` needs few multiplications, so speed depends on whether
its transformed tiles stay in the processor's cache. A `Plan` says for every block how many images
and rows are computed at a time, and for every layer the size of its tiles;
`tlflax.models.vgg.autotune` finds one by measurement, and `tlflax.models.vgg.cores` runs it on all
cores.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from tlflax.models.base.taps import Tap
from tlflax.models.vgg import network, tiled_layers, winograd
from tlflax.models.vgg.tiled_layers import Layer
from tlflax.models.vgg.winograd import DIRECT, Tiling

Prepared = dict[str, Layer]


@dataclass(frozen=True)
class BlockPlan:
    """How one block is computed.

    Attributes:
        layers: One entry per convolution.
        images: Images computed at a time; 0 for the whole batch.
        rows: Rows of the block's input computed at a time, an even number; 0 for whole images.
    """

    layers: tuple[Tiling, ...]
    images: int = 0
    rows: int = 0


Plan = tuple[BlockPlan, ...]


def direct_plan(depths: network.Depths = network.VGG16) -> Plan:
    """Returns the plan that computes every convolution directly."""
    return tuple(BlockPlan((DIRECT,) * depth) for depth in depths)


def prepare(params: network.Params, plan: Plan, *, layer: str = 'predictions') -> Prepared:
    """Returns the parameters that `layer` needs, the convolutions' kernels transformed for `plan`.

    Args:
        params: Nested dict like that of `network.init`.
        plan: How the network will be computed.
        layer: A pool or a layer of the top.
    """
    prepared: Prepared = {name: params[name] for name in network.TOP if name in params}
    for block, block_plan in enumerate(plan[: depth(layer)], start=1):
        for name, tiling in zip(
            network.conv_names(block, len(block_plan.layers)), block_plan.layers, strict=True
        ):
            kernel = winograd.transform_kernel(params[name]['kernel'], tiling)
            prepared[name] = {'kernel': kernel, 'bias': jnp.asarray(params[name]['bias'])}
    return prepared


def features(
    prepared: Prepared,
    x: Float[Array, 'b h w c'],
    plan: Plan,
    *,
    layer: str = 'block5_pool',
    taps: Sequence[Tap] = (),
    start: int = 0,
) -> Float[Array, 'b ...']:
    """Runs the network up to one layer in float32; equals `network.VGG` except for rounding.

    Args:
        prepared: `prepare(params, plan, layer=layer)`.
        x: Preprocessed images, at least 32 pixels high and wide, or what block `start` returned.
        plan: How to compute it.
        layer: A pool or a layer of the top.
        taps: What to return, of pools and layers of the top up to `layer`, as one vector; empty:
            the output of `layer`.
        start: How many blocks `x` has been through already; none of these may have a tap.
    """
    tapped = {tap.layer for tap in taps}
    outputs: dict[str, Array] = {}

    def segment(block: int) -> tuple[int, int]:
        """Blocks that are computed together have the same, and no tap between them."""
        return plan[block].images, sum(name in tapped for name in network.POOLS[:block])

    for (images, _), group in itertools.groupby(range(start, depth(layer)), key=segment):
        blocks = tuple(group)
        x = over_images(functools.partial(_blocks, prepared, plan, blocks), x, images)
        outputs[network.POOLS[blocks[-1]]] = x
    if layer in network.TOP:
        x = x.reshape(x.shape[0], -1)
        for name in network.TOP[: network.TOP.index(layer) + 1]:
            x = outputs[name] = _dense(prepared, name, x)
    if not taps:
        return x
    return jnp.concatenate([tap.pooled(outputs[tap.layer]) for tap in taps], axis=1)


def _dense(prepared: Prepared, name: str, x: Float[Array, 'b d']) -> Float[Array, 'b k']:
    kernel, bias = prepared[name]['kernel'], prepared[name]['bias']
    assert not isinstance(kernel, tuple)
    x = jnp.matmul(x, kernel, precision=lax.Precision.HIGHEST) + bias
    return jax.nn.softmax(x) if name == network.PROBABILITIES else jax.nn.relu(x)


def depth(layer: str) -> int:
    """Returns how many blocks a layer needs."""
    return network.POOLS.index(layer) + 1 if layer in network.POOLS else len(network.POOLS)


def _blocks(prepared: Prepared, plan: Plan, numbers: tuple[int, ...], x: Array) -> Array:
    for number in numbers:
        names = network.conv_names(number + 1, len(plan[number].layers))
        x = run_block([prepared[name] for name in names], x, plan[number])
    return x


def run_block(layers: list[Layer], x: Float[Array, 'b h w c'], plan: BlockPlan) -> Array:
    """Runs the convolutions of a block and its pool on images, `plan.rows` rows at a time."""
    if plan.rows and plan.rows < x.shape[1]:
        return strips(layers, x, plan)[:, : x.shape[1] // 2]
    height, width = x.shape[1:3]
    return _convolutions(layers, x, plan, [(height, width)] * len(layers), border=1)


def _convolutions(
    layers: list[Layer],
    x: Float[Array, 'b h w c'],
    plan: BlockPlan,
    sizes: list[tiled_layers.Size],
    *,
    border: int,
    inside: Sequence[Bool[Array, ' _'] | None] = (),
) -> Float[Array, 'b p q d']:
    """Runs the layers of a block and its pool.

    Args:
        layers: The block's layers.
        x: Images or strips.
        plan: How to compute it.
        sizes: Height and width of each layer's output.
        border: See `tiled_layers.padding`.
        inside: For each layer but the last, see `tiled_layers.conv3x3`.
    """
    paddings = [
        tiled_layers.padding(size, tiling, border=border)
        for size, tiling in zip(sizes, plan.layers, strict=True)
    ]
    x = tiled_layers.pad(x, paddings[0])
    for layer, tiling, size, around, rows in itertools.zip_longest(
        layers, plan.layers, sizes, paddings[1:], inside
    ):
        x = tiled_layers.conv3x3(x, layer, tiling, size, around=around, inside=rows)
    return x


def strips(
    layers: list[Layer],
    x: Float[Array, 'b h w c'],
    plan: BlockPlan,
    *,
    shares: int = 1,
    share: int | Array = 0,
) -> Float[Array, 'b p q d']:
    """Runs a block strip by strip; rows that two strips need are computed twice.

    Args:
        layers: The block's layers.
        x: Whole images.
        plan: How to compute it; `plan.rows` is the height of a strip.
        shares: In how many equal shares the strips are divided.
        share: The number of the one to compute.

    Returns:
        The rows of the block's pool in this share. The last shares may go beyond the image; what
        they have there means nothing.
    """
    height, depth, rows = x.shape[1], len(layers), plan.rows
    count = -(-height // (rows * shares))
    below = shares * count * rows + depth - height
    x = jnp.pad(x, ((0, 0), (depth, below), (0, 0), (0, 0)))
    sizes = [(rows + 2 * (depth - i), x.shape[2]) for i in range(1, depth + 1)]

    def strip(first: Array) -> Array:
        y = lax.dynamic_slice_in_dim(x, first, rows + 2 * depth, axis=1)
        inside = []  # every layer pads the image with zeros
        for i, (tall, _) in enumerate(sizes[:-1], start=1):
            row = first - (depth - i) + jnp.arange(tall)
            inside.append((row >= 0) & (row < height))
        return _convolutions(layers, y, plan, sizes, border=0, inside=inside)

    y = jnp.moveaxis(lax.map(strip, (share * count + jnp.arange(count)) * rows), 0, 1)
    return y.reshape(y.shape[0], -1, *y.shape[3:])


def over_images(function: Callable[[Array], Array], x: Array, images: int) -> Array:
    """Applies `function` to `images` images of `x` at a time, in a loop that reuses its memory."""
    count = x.shape[0]
    if not images or images >= count:
        return function(x)
    whole = count - count % images
    y = lax.map(function, x[:whole].reshape(-1, images, *x.shape[1:]))
    y = y.reshape(whole, *y.shape[2:])
    return jnp.concatenate([y, function(x[whole:])]) if whole < count else y
