"""Finds the fastest way to compute each layer of the frozen network, by measuring on this machine.

The search is local. It starts from a good guess; each layer in turn tries the other tilings while
the rest of its block stays as it is, then each block tries other numbers of rows and images. The
fastest plan is kept as JSON, one file for each machine, JAX version and shape. On anything but a
CPU the plan is direct convolution, without a search.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging

from tlflax.models.base.backbone import FastProgram
from tlflax.models.base.taps import Tap
from tlflax.models.vgg import cores, network
from tlflax.models.vgg.fast_cpu import BlockPlan, Plan, direct_plan
from tlflax.models.vgg.race import Race, share
from tlflax.models.vgg.winograd import DIRECT, Tiling
from tlflax.utils import assets, cpu
from tlflax.utils.files import is_signed, signed, write_json

FORMAT = 2  # of the files, and of the meaning of their entries
TILINGS = (DIRECT, Tiling(2, by_row=True), Tiling(4), Tiling(4, by_row=True), Tiling(6))
MIN_CHANNELS = 8  # narrower inputs (an image's three) have no products worth saving
FEW_TILES = 32  # with fewer, smaller ones pay: fewer kernels to read, more rows for each
ENOUGH_TILES = 196  # rows of a matrix product that make up for reading the kernels
STRIP_BYTES = 8 << 20  # an image whose transformed tiles need more than this is cut into strips
STRIP_ROWS = (8, 64)  # the lowest and highest strips that are tried
GUESSED_ROWS = 32  # the highest strip of a plan that is not measured

Shape = tuple[int, int, int]


def program(
    params: network.Params,
    *,
    layer: str,
    shape: Shape,
    before: Callable[[jax.Array], jax.Array],
    measured: bool,
    taps: Sequence[Tap] = (),
) -> FastProgram | None:
    """Returns the fast program for a layer's features, or None for a convolution in a block.

    Args:
        params: Nested dict like that of `network.init`.
        layer: The layer.
        shape: (batch, height, width).
        before: Preprocessing.
        measured: Whether to find the plan by measurement; see `choose`.
        taps: See `fast_cpu.features`.
    """
    if any(one not in (*network.POOLS, *network.TOP) for one in (layer, *(t.layer for t in taps))):
        return None
    plan = choose(params, shape, assets.cache_folder() / 'plans', measured=measured)
    expected = jax.ShapeDtypeStruct((*shape, 3), np.uint8)
    run = cores.compiled(params, plan, layer=layer, before=before, taps=taps, expected=expected)
    return FastProgram(run, cores.step(shape[0]))


def choose(params: network.Params, shape: Shape, folder: Path, *, measured: bool = True) -> Plan:
    """Returns the plan for batches of a shape: the kept one, or a measured one, which is then kept.

    Args:
        params: Nested dict like that of `network.init`; only its shapes matter.
        shape: (batch, height, width).
        folder: Where plans are kept.
        measured: Whether to measure if no plan is kept (about a minute); otherwise `guess`.
    """
    depths = network.depths_of(params)
    if jax.default_backend() != 'cpu':
        return direct_plan(depths)
    widths = tuple(params[f'block{b}_conv1']['bias'].shape[0] for b in network.BLOCKS)
    key = plan_key(widths, shape, depths)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = folder / f'{digest[:16]}.json'
    plan = load(path, key)
    if plan is None and not measured:
        return guess(widths, shape, depths)
    if plan is None:
        logging.info('measuring the fastest way to compute %s images, once on this machine', shape)
        began = time.perf_counter()
        plan, seconds = measure(widths, shape, depths)
        save(path, key, plan, seconds)
        logging.info('measured in %.0f s, kept in %s', time.perf_counter() - began, path)
    return plan


def plan_key(
    widths: tuple[int, ...], shape: Shape, depths: network.Depths = network.VGG16
) -> dict[str, object]:
    """Returns everything that a measured plan depends on."""
    return {
        'format': FORMAT,
        'processor': cpu.processor(),
        'cores': cpu.cores(),
        'jax': jax.__version__,
        'widths': list(widths),
        'shape': list(shape),
        # Plans measured before there was a choice of depths stay valid.
        **({'depths': list(depths)} if depths != network.VGG16 else {}),
    }


def load(path: Path, key: dict[str, object]) -> Plan | None:
    """Returns the plan kept in a file, or None if the file has no plan for `key`."""
    try:
        kept = json.loads(path.read_text())
        if kept['key'] != key:
            return None
        if not is_signed(kept, needed=False):
            raise ValueError('it is damaged')
        return tuple(
            BlockPlan(
                tuple(Tiling(int(tile), bool(by_row)) for tile, by_row in block['layers']),
                int(block['images']),
                int(block['rows']),
            )
            for block in kept['plan']
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        logging.warning('%s is not a valid plan (%s) and is ignored', path, error)
        return None


def save(path: Path, key: dict[str, object], plan: Plan, seconds: list[float]) -> None:
    """Writes a plan and the seconds that each of its blocks takes for one image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {
        'key': key,
        'plan': [dataclasses.asdict(block) for block in plan],
        'seconds_per_image': seconds,
    }
    write_json(path, signed(kept))


def guess(widths: tuple[int, ...], shape: Shape, depths: network.Depths = network.VGG16) -> Plan:
    """Returns a plan that was fast on the machines it was tried on, without measuring."""
    batch, height, width = shape
    batch = share(batch)
    blocks, channels = [], 3
    for depth, wide in zip(depths, widths, strict=True):
        tiles = math.ceil(height / 4) * math.ceil(width / 4)
        tile = 2 if batch * tiles < FEW_TILES else 4
        layers = []
        for _ in range(depth):
            layers.append(Tiling(tile, by_row=True) if channels >= MIN_CHANNELS else DIRECT)
            channels = wide
        groups = max(1, batch * tiles // ENOUGH_TILES)  # of images, none much smaller than others
        images = math.ceil(batch / groups)
        large = tiles * 36 * wide * 4 > STRIP_BYTES
        blocks.append(
            BlockPlan(
                tuple(layers),
                images if images < batch else 0,
                max((r for r in strip_heights(height) if r <= GUESSED_ROWS), default=0)
                if large
                else 0,
            )
        )
        height, width = height // 2, width // 2
    return tuple(blocks)


def measure(
    widths: tuple[int, ...], shape: Shape, depths: network.Depths = network.VGG16
) -> tuple[Plan, list[float]]:
    """Searches for the fastest plan.

    Returns:
        The plan, and the seconds that each of its blocks takes for one image.
    """
    batch, height, width = shape
    blocks, seconds, channels = [], [], 3
    for block, wide in zip(guess(widths, shape, depths), widths, strict=True):
        best = block
        with Race((batch, height, width), channels, wide) as race:
            for alternatives in _stages(block, channels, height):
                best = race.best([best, *alternatives(best)])
        blocks.append(best)
        seconds.append(race.seconds[best])
        channels, height, width = wide, height // 2, width // 2
    return tuple(blocks), seconds


def _stages(
    block: BlockPlan, channels: int, height: int
) -> Iterator[Callable[[BlockPlan], list[BlockPlan]]]:
    """Yields the steps of the search: each lists alternatives to the best plan so far."""
    first = [0] if channels >= MIN_CHANNELS else []
    for numbers in filter(None, (first, list(range(1, len(block.layers))))):
        yield functools.partial(_tilings, numbers)
    rows = [0, *strip_heights(height)[: None if block.rows else 1]]
    yield lambda best: [dataclasses.replace(best, rows=r) for r in rows]
    images = {block.images * 2, block.images // 2} - {0} if block.images else {4}
    yield lambda best: [dataclasses.replace(best, images=i) for i in sorted(images)]


def strip_heights(height: int) -> list[int]:
    """Lists heights of strips, the highest first: images are cut into 2, 4, 8, ... of them.

    They are multiples of four, as high as tiles usually are.
    """
    lowest, highest = STRIP_ROWS
    counts = itertools.takewhile(lambda n: n < height, (2**k for k in itertools.count(1)))
    rows = dict.fromkeys(4 * math.ceil(height / (4 * count)) for count in counts)
    return [r for r in rows if lowest <= r <= highest]


def _tilings(numbers: list[int], block: BlockPlan) -> list[BlockPlan]:
    """Lists plans: the numbered layers, which have the same shape, take each of `TILINGS`."""
    layers = [
        tuple(tiling if i in numbers else old for i, old in enumerate(block.layers))
        for tiling in TILINGS
    ]
    return [dataclasses.replace(block, layers=chosen) for chosen in layers]
