"""How fast steps of each batch size are, what memory they take, and which size suits the data."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging

from tlflax.features.batches import OnDeviceSource, Source
from tlflax.train import steps
from tlflax.train.finders import batches
from tlflax.train.setup import Run
from tlflax.utils.parallel.mesh import put_rows

SIZES = tuple(2**n for n in range(3, 11))  # 8 to 1024
SLOW = 8.0  # seconds of a step from which larger batches are not tried
SATURATED = 0.75  # share of the most images a second that counts as most
SHARE = 8  # batches that an epoch has at least
_SCAN_SECONDS = 0.05  # of one call, so that dispatching it does not count
_MOST_SCANNED = 32  # steps of one call
_REPEATS = 7
_BUDGET = 10.0  # seconds of them for all sizes
_FIRST_GUESS = 0.001  # seconds of a step of four images


Call = Callable[[steps.TrainState], steps.TrainState]
"""Takes some steps."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """A batch size.

    Attributes:
        batch_size: Images of a batch.
        milliseconds: Median time of a step.
        images_per_second: What that makes.
        megabytes: Memory of the compiled step: arguments, results and temporaries.
        fits: Whether that is less than the memory there is.
    """

    batch_size: int
    milliseconds: float
    images_per_second: float
    megabytes: float
    fits: bool


@dataclasses.dataclass(frozen=True)
class Choice:
    """A suggested batch size.

    Attributes:
        batch_size: A power of two.
        limit: What kept it from being larger: 'noise', 'speed' or 'images'.
    """

    batch_size: int
    limit: str


def sizes(images: int) -> list[int]:
    """Returns the batch sizes that are measured: beyond those that are suggested, one."""
    return [size for size in SIZES if size <= max(2 * images / SHARE, SIZES[0])]


def measure(run: Run, source: Source) -> list[Measured]:
    """Measures steps of all `sizes`, unless they do not fit or take too long.

    The sizes take turns, so that whatever else the machine does slows all of them down alike.

    Args:
        run: The run.
        source: Its training split.
    """
    programs, state, once = list[_Program](), batches.first_state(run), _FIRST_GUESS
    for size in sizes(source.num_examples):
        program = _program(run, batches.with_size(run, source, size), size, 2 * once)
        programs.append(program)
        logging.info('compiled steps of %d images', size)
        if not program.fits:
            break
        state = jax.block_until_ready(program.call(state))  # what is slow the first time
        began = time.perf_counter()
        state = jax.block_until_ready(program.call(state))
        once = (time.perf_counter() - began) / program.steps
        if once > SLOW:
            logging.info('a step of %d images takes %.0f s; larger ones are not tried', size, once)
            break
    return _in_turn(programs, state)


def choose(found: Sequence[Measured], noise: float, images: int) -> Choice:
    """Returns a batch size: as large as pays.

    It is the smallest of three powers of two: the one nearest to the noise scale; the first with at
    least `SATURATED` of the most images a second; the largest with `SHARE` batches an epoch.

    Args:
        found: From `measure`; the smallest size counts even if it does not fit.
        noise: The noise scale in images, may be infinite.
        images: Number of training images.
    """
    usable = [one for one in found if one.fits] or [found[0]]
    most = max(one.images_per_second for one in usable)
    limits = {
        'noise': 2.0 ** round(math.log2(max(noise, 1))) if math.isfinite(noise) else math.inf,
        'speed': next(o.batch_size for o in usable if o.images_per_second >= SATURATED * most),
        'images': 2.0 ** math.floor(math.log2(max(images / SHARE, 1))),
    }
    limit = min(limits, key=limits.__getitem__)
    return Choice(int(max(limits[limit], SIZES[0])), limit)


@dataclasses.dataclass(frozen=True)
class _Program:
    """A compiled step or scan.

    Attributes:
        size: Images of a batch.
        steps: Of a call.
        call: Takes them; donates the state.
        megabytes: See `Measured`.
        fits: See `Measured`.
    """

    size: int
    steps: int
    call: Call
    megabytes: float
    fits: bool


def _in_turn(programs: Sequence[_Program], state: steps.TrainState) -> list[Measured]:
    """Runs the programs in turn, and returns the median times."""
    seconds: dict[int, list[float]] = {program.size: [] for program in programs}
    began = time.perf_counter()
    for _ in range(_REPEATS):
        for program in (program for program in programs if program.fits):
            before = time.perf_counter()
            state = jax.block_until_ready(program.call(state))
            seconds[program.size].append((time.perf_counter() - before) / program.steps)
        if time.perf_counter() - began > _BUDGET:
            break
    return [
        Measured(
            program.size,
            1000 * (median := statistics.median(seconds[program.size] or [math.nan])),
            program.size / median,
            program.megabytes,
            program.fits,
        )
        for program in programs
    ]


def _program(run: Run, source: Source, size: int, expected: float) -> _Program:
    """Compiles steps of one size; `expected` is about how long one takes, in seconds."""
    if isinstance(source, OnDeviceSource):
        count = min(max(int(_SCAN_SECONDS / expected), 1), _MOST_SCANNED)
        compiled, call = _scanned(run, source, count)
    else:
        count = 1
        compiled, call = _single(run, source)
    kept, new = _bytes(compiled)
    return _Program(size, count, call, (kept + new) / 1e6, new <= free_bytes())


def _scanned(run: Run, source: OnDeviceSource, count: int) -> tuple[jax.stages.Compiled, Call]:
    """Compiles a scan of steps over features on the device."""
    runner, rows = run.runner, source.train_rows(0)
    rows = np.resize(rows, (count, rows.shape[1]))
    operands = (runner.frozen, source.on_device, put_rows(rows, runner.mesh))
    rest = (runner.seed, runner.loss)
    static = {'classifier': runner.classifier, 'tx': runner.tx}
    state = batches.first_state(run)
    compiled = steps.train_scan.lower(state, *operands, *rest, **static).compile()
    return compiled, lambda state: compiled(state, *operands, *rest)[0]


def _single(run: Run, source: Source) -> tuple[jax.stages.Compiled, Call]:
    """Compiles a step; a call of it fetches its batch first, which counts as well."""
    runner, rest = run.runner, (run.runner.seed, run.runner.loss)
    stream = batches.endless(run, source)
    static = {'classifier': runner.classifier, 'tx': runner.tx}
    state, batch = batches.first_state(run), next(stream)
    compiled = steps.train_step.lower(state, runner.frozen, batch, *rest, **static).compile()
    return compiled, lambda state: compiled(state, runner.frozen, next(stream), *rest)[0]


def _bytes(compiled: jax.stages.Compiled) -> tuple[int, int]:
    """Returns the bytes of a program's arguments, and those that it takes in addition."""
    stats = compiled.memory_analysis()
    if stats is None:  # not every backend tells
        return 0, 0
    new = stats.output_size_in_bytes + stats.temp_size_in_bytes - stats.alias_size_in_bytes
    return stats.argument_size_in_bytes, new


def free_bytes() -> float:
    """Returns the memory of a device that is free; infinite if nobody tells."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if 'bytes_limit' in stats:
        return stats['bytes_limit'] - stats.get('bytes_in_use', 0)
    try:
        lines = Path('/proc/meminfo').read_text().splitlines()
    except OSError:
        return math.inf
    found = [line.split()[1] for line in lines if line.startswith('MemAvailable:')]
    return 1024.0 * int(found[0]) if found else math.inf
