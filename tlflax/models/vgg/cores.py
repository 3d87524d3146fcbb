"""The fast program of the frozen network on all cores of a CPU.

Programs side by side, each with its own part of the work, keep the cores busier than one program
that splits single operations between them: they computed 1.3 times as many images per second on two
cores. Many images are shared among the programs; of a few, the rows of the first blocks.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from tlflax.models.base.taps import Tap
from tlflax.models.vgg import fast_cpu, network
from tlflax.models.vgg.fast_cpu import BlockPlan, Plan, Prepared
from tlflax.models.vgg.tiled_layers import Layer
from tlflax.utils import cpu
from tlflax.utils.parallel.mesh import pad
from tlflax.utils.threads import ThreadedProgram

Images = Shaped[np.ndarray, 'b h w 3'] | Shaped[Array, 'b h w 3']
Features = Callable[[Images], Array]

IMAGES_PER_WORKER = 2  # with one, reading the deep layers' large kernels would not pay
MOST_IMAGES = 8  # at a time; more are no faster, and a last, small batch would take longer


def compiled(
    params: network.Params,
    plan: Plan,
    *,
    layer: str = 'block5_pool',
    before: Callable[[Array], Array] = lambda x: x,
    taps: Sequence[Tap] = (),
    expected: jax.ShapeDtypeStruct | None = None,
) -> Features:
    """Returns the network up to `layer` as a function of images, to run many batches.

    Its threads end when the function is no longer referenced.

    Args:
        params: Nested dict like that of `network.init`.
        plan: How to compute it.
        layer: A pool or a layer of the top.
        before: Preprocessing, compiled with the network.
        taps: See `fast_cpu.features`.
        expected: A batch to come, for which compiling begins at once, beside whatever follows.
    """
    prepared = fast_cpu.prepare(params, plan, layer=layer)

    @functools.cache
    def program(start: int, height: int) -> ThreadedProgram[Array]:
        """From the rows of a block's pool, or from images, to the end."""

        def end(prepared: Prepared, parts: tuple[Array, ...]) -> Array:
            x = _join(parts, height) if start else before(parts[0])
            return fast_cpu.features(prepared, x, plan, layer=layer, taps=taps, start=start)

        return ThreadedProgram(end, name='backbone')

    @functools.cache
    def rows(block: int, height: int) -> tuple[ThreadedProgram[Array], int]:
        return _rows_program(plan[block], height, None if block else before)

    def run(x: Images) -> Array:
        height = x.shape[1]
        parts = split(x.shape[0])
        if len(parts) > 1:
            images = [(prepared, (pad(np.asarray(x[part]), parts[0].stop),)) for part in parts]
            return jnp.concatenate(program(0, height).map(images))[: x.shape[0]]
        pieces: tuple[Images, ...] = (x,)
        shared = _shared_blocks(plan, height, layer, taps)
        for block in range(shared):
            layers = [prepared[n] for n in network.conv_names(block + 1, len(plan[block].layers))]
            stage, shares = rows(block, height)
            calls = [(layers, pieces, np.int32(share)) for share in range(shares)]
            pieces = tuple(stage.map(calls))
            height //= 2
        return program(shared, height).map([(prepared, pieces)])[0]

    if expected and len(parts := split(expected.shape[0])) > 1:
        part = jax.ShapeDtypeStruct((parts[0].stop, *expected.shape[1:]), expected.dtype)
        program(0, expected.shape[1]).begin_to_compile((prepared, (part,)))
    return run


def _rows_program(
    plan: BlockPlan, height: int, before: Callable[[Array], Array] | None
) -> tuple[ThreadedProgram[Array], int]:
    """A share of the rows of a block's pool, and the number of shares.

    Args:
        plan: How the block is computed.
        height: Rows of its input.
        before: Preprocessing of images, for the first block.
    """
    shared, shares = share_rows(plan, height)

    def some(layers: list[Layer], parts: tuple[Array, ...], share: Array) -> Array:
        x = before(parts[0]) if before else _join(parts, height)
        one = functools.partial(fast_cpu.strips, layers, plan=shared, shares=shares, share=share)
        return fast_cpu.over_images(one, x, plan.images)

    return ThreadedProgram(some, name='backbone'), shares


def split(batch: int) -> list[slice]:
    """Returns the images of a batch computed at a time; all where threads do not pay.

    All slices are as long as the first, except that the last may be shorter.
    """
    if min(workers(), batch // IMAGES_PER_WORKER) < 2:
        return [slice(0, batch)]
    size = min(MOST_IMAGES, max(IMAGES_PER_WORKER, math.ceil(batch / workers())))
    return [slice(first, min(first + size, batch)) for first in range(0, batch, size)]


def step(batch: int) -> int:
    """Returns a number of images whose multiples up to `batch` run the program of `batch`."""
    return min(batch, MOST_IMAGES * workers()) if len(split(batch)) > 1 else batch


def share_rows(plan: BlockPlan, height: int) -> tuple[BlockPlan, int]:
    """Returns a block's plan with strips that can be shared among threads.

    Strips may be up to twice as high as in `plan`, so that every thread has as many.

    Args:
        plan: How the block is computed, with strips.
        height: Rows of the block's input.

    Returns:
        The plan, and how many threads share its strips.
    """
    most = workers()
    unit = max([4, *(tiling.tile + tiling.tile % 2 for tiling in plan.layers)])

    def longest(rows: int) -> int:
        """Returns how many rows the busiest thread computes."""
        return math.ceil(height / (rows * most)) * (rows + len(plan.layers))

    rows = min(range(unit, 2 * plan.rows + 1, unit), key=longest, default=plan.rows)
    return dataclasses.replace(plan, rows=rows), min(most, math.ceil(height / rows))


def workers() -> int:
    """Returns how many programs may run side by side."""
    return cpu.cores() if jax.default_backend() == 'cpu' else 1


def _shared_blocks(plan: Plan, height: int, layer: str, taps: Sequence[Tap]) -> int:
    """Returns how many blocks at the start have rows to share and no tap."""
    if workers() < 2:
        return 0
    tapped = {tap.layer for tap in taps}
    count = 0
    for block, name in zip(plan[: fast_cpu.depth(layer)], network.POOLS, strict=False):
        if not 0 < block.rows < height or name in tapped:
            break
        count, height = count + 1, height // 2
    return count


def _join(parts: tuple[Array, ...], height: int) -> Float[Array, 'b h w c']:
    """Puts rows together; what is below an image is left out."""
    return jnp.concatenate(parts, axis=1)[:, :height]
