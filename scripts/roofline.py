"""The operations and bytes that the frozen network needs, and the peaks of this machine.

python scripts/roofline.py [--batch=16]

Prints the measured peaks of float32 matrix products and of memory, then for every layer of VGG16
on 224x224 pixels the operations of direct convolution and of the plan, the bytes that the plan
moves between the steps of a layer, and the time that the slower of the two would take at its peak.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from tlflax.models.vgg import autotune, network
from tlflax.models.vgg.fast_cpu import Plan
from tlflax.utils import assets, cpu

SIZE = 224


@dataclass(frozen=True)
class Peak:
    """The most this machine did: float32 operations and bytes moved, each per second."""

    operations: float
    bytes: float


@dataclass(frozen=True)
class Cost:
    """The cost of a layer for one image.

    Attributes:
        name: The layer.
        direct: Operations of direct convolution, two per multiplication.
        products: Operations of the plan's matrix products.
        bytes: Moved by the plan: the image, transformed tiles and products written and read, the
            result, and the image's share of the kernels.
    """

    name: str
    direct: float
    products: float
    bytes: float


def _best(function: Callable[[], object], repeats: int = 12) -> float:
    function()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def measure_peak() -> Peak:
    """Measures matrix products by NumPy and XLA and copies by every core; the best counts."""
    rates = []
    product = jax.jit(jnp.matmul)

    def xla(b: jax.Array) -> None:
        product(b, b).block_until_ready()

    for n in (512, 1024, 2048):
        a = np.ones((n, n), np.float32)
        b = jnp.asarray(a)
        rates.append(2 * n**3 / _best(functools.partial(np.matmul, a, a)))
        rates.append(2 * n**3 / _best(functools.partial(xla, b)))
    source = np.ones((cpu.cores(), 32 << 20), np.float32)
    target = np.empty_like(source)
    with ThreadPoolExecutor(cpu.cores()) as pool:
        seconds = _best(lambda: list(pool.map(np.copyto, target, source)), 6)
    return Peak(max(rates), 2 * source.nbytes / seconds)


def costs(chosen: Plan, batch: int) -> list[Cost]:
    """Counts the work of every layer for one image of 224x224 pixels in a batch."""
    found, channels, size = [], 3, SIZE
    for number, (block, wide) in enumerate(zip(chosen, network.WIDTHS, strict=True), start=1):
        names = network.conv_names(number, len(block.layers))
        for name, tiling in zip(names, block.layers, strict=True):
            m, n = tiling.tile, tiling.tile + 2
            direct = 2 * 9 * size**2 * channels * wide
            products, positions, between = direct, 9, 0
            if m:
                tiles = (-(-size // m)) ** 2
                positions = n * n
                products = 2 * positions * tiles * channels * wide
                between = 2 * positions * tiles * (channels + wide)
            kernels = positions * channels * wide / (min(block.images, batch) or batch)
            result = size**2 * wide / (4 if name == names[-1] else 1)
            moved = 4 * (size**2 * channels + result + between + kernels)
            found.append(Cost(name, direct, products, moved))
            channels = wide
        size //= 2
    return found


def main() -> None:
    """Prints the tables, and as its last line one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--batch', type=int, default=16)
    batch = parser.parse_args().batch
    peak = measure_peak()
    print(f'{cpu.described()}: {peak.operations / 1e9:.0f} GFLOP/s', end=', ')
    print(f'{peak.bytes / 1e9:.1f} GB/s copied (read + written)')
    folder = assets.cache_folder() / 'plans'
    params = jax.eval_shape(network.init, jax.random.key(0))
    found = costs(autotune.choose(params, (batch, SIZE, SIZE), folder, measured=False), batch)
    print(f'{"layer":14}{"direct":>9}{"plan":>9}{"moved":>9}{"at peak":>10}')
    print(f'{"":14}{"GFLOP":>9}{"GFLOP":>9}{"MB":>9}{"ms":>10}')
    total = 0.0
    for cost in found:
        bound = max(cost.products / peak.operations, cost.bytes / peak.bytes)
        total += bound
        numbers = (cost.direct / 1e9, cost.products / 1e9, cost.bytes / 1e6, bound * 1e3)
        print(f'{cost.name:14}' + '{:9.2f}{:9.2f}{:9.1f}{:10.2f}'.format(*numbers))
    direct = sum(cost.direct for cost in found)
    print(f'at peak: direct {peak.operations / direct:.1f} images/s, plan {1 / total:.1f} images/s')
    summary = {
        'machine': cpu.described(),
        'gflops': peak.operations / 1e9,
        'gbytes_per_second': peak.bytes / 1e9,
        'direct_gflop': direct / 1e9,
        'plan_gflop': sum(cost.products for cost in found) / 1e9,
        'plan_mbytes': sum(cost.bytes for cost in found) / 1e6,
        'images_per_second_at_peak': {'direct': peak.operations / direct, 'plan': 1 / total},
    }
    print(json.dumps(summary))


if __name__ == '__main__':
    main()
