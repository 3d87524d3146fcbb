"""Races between ways to compute one block of the frozen network, timed on this machine."""

import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import jax
import jax.numpy as jnp

from tlflax.models.vgg import cores, fast_cpu
from tlflax.models.vgg.fast_cpu import BlockPlan
from tlflax.models.vgg.tiled_layers import Layer
from tlflax.models.vgg.winograd import Kernel, Tiling

ROUNDS = 3
HOPELESS = 1.4  # a plan this many times slower than the best is not measured again


def share(batch: int) -> int:
    """Returns how many images of a batch one thread computes at a time."""
    return cores.split(batch)[0].stop


class Race:
    """Times ways to compute one block, on as many threads at once as will compute it.

    A context manager: leaving it ends the threads and frees the arrays.

    Attributes:
        seconds: The shortest time per image of every plan run so far.
    """

    def __init__(self, shape: tuple[int, int, int], channels: int, wide: int) -> None:
        batch, self._height, self._width = shape
        self._channels, self._wide = channels, wide
        self._threads = min(cores.workers(), len(cores.split(batch)))
        self._share = share(batch)
        self._pool = ThreadPoolExecutor(cores.workers(), thread_name_prefix='autotune')
        self._runs: dict[BlockPlan, Callable[[], float]] = {}
        self.seconds: dict[BlockPlan, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        self._runs.clear()  # they refer to this object and to large arrays

    def best(self, plans: Iterable[BlockPlan]) -> BlockPlan:
        """Returns the fastest plan, timing the plans in turn so that noise affects all alike."""
        plans = list(dict.fromkeys(plans))
        for plan in plans:
            if plan not in self._runs:
                self._runs[plan] = self._prepare(plan)
        for _ in range(ROUNDS):
            for plan in plans:
                self.seconds[plan] = min(self._runs[plan](), self.seconds.get(plan, math.inf))
            limit = HOPELESS * min(self.seconds[plan] for plan in plans)
            plans = [plan for plan in plans if self.seconds[plan] < limit]
        return min(plans, key=self.seconds.__getitem__)

    def _prepare(self, plan: BlockPlan) -> Callable[[], float]:
        """Compiles a plan and returns a function that runs it and returns seconds per image."""
        inputs = [self._channels] + [self._wide] * (len(plan.layers) - 1)
        layers = [_layer(c, self._wide, t) for c, t in zip(inputs, plan.layers, strict=True)]
        # Two groups of images, as the loop over them is part of the cost.
        count = min(self._share, 2 * plan.images) if plan.images else self._share
        x = jnp.ones((count, self._height, self._width, self._channels), jnp.float32)

        shared, shares = plan, 1
        if self._threads == 1 and 0 < plan.rows < self._height:
            shared, shares = cores.share_rows(plan, self._height)
        threads = max(shares, self._threads)

        @jax.jit
        def program(layers: list[Layer], x: jax.Array, share: int | jax.Array) -> jax.Array:
            def block(x: jax.Array) -> jax.Array:
                if shares == 1:
                    return fast_cpu.run_block(layers, x, plan)
                return fast_cpu.strips(layers, x, shared, shares=shares, share=share)

            return fast_cpu.over_images(block, x, plan.images)

        def run(number: int) -> None:
            jax.block_until_ready(program(layers, x, number if shares > 1 else 0))

        def timed() -> float:
            began = time.perf_counter()
            list(self._pool.map(run, range(threads)))
            return (time.perf_counter() - began) / (count * self._threads)

        run(0)
        return timed


def _layer(channels: int, wide: int, tiling: Tiling) -> Layer:
    """Returns parameters of the right shapes; their values make no difference to the time."""
    size = tiling.tile + 2
    if not tiling.tile:
        kernel: Kernel = jnp.ones((3, 3, channels, wide))
    elif tiling.by_row:
        kernel = tuple(jnp.ones((size, channels, wide)) for _ in range(size))
    else:
        kernel = jnp.ones((size * size, channels, wide))
    return {'kernel': kernel, 'bias': jnp.zeros(wide)}
