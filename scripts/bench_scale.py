"""How the feature store scales: look-up, epoch time and memory for 10^4, 10^5 and 10^6 rows.

    python scripts/bench_scale.py [--quick] [--folder=DIR]

The rows are synthetic and small (64 values in 16 bits), so that what is measured is the store and
not the disk. Every size has a process of its own, which opens a store that another has written,
looks up all keys, looks them up again with the checksums of all rows, and then gathers all rows in
random order, in batches, as a training epoch does. As a control, plain NumPy gathers the same
batches from an array in memory: what a row costs rises once the rows no longer fit in the CPU's
cache, with or without a store, so growth is given from size to size and beside the control's (1 is
linear). Look-up sorts and searches the keys, so it grows a little faster than their number. Peak
memory has to stay below `MEMORY_MIB` up to 10^6 rows; it counts the interpreter, NumPy, the keys,
the index (these grow with the rows) and the mapped rows, which the system takes back when others
need it. The last line is JSON with every figure. Takes half a minute; `--quick` leaves out the
largest size.
"""

import argparse
import functools
import hashlib
import itertools
import json
import math
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float16, UInt64

from tlflax.features.cache.keys import row_keys
from tlflax.features.cache.store import Store
from tlflax.utils import cpu

Figures = dict[str, Any]  # a JSON object
Result = TypeVar('Result')

MEMORY_MIB = 512
BATCH, WIDTH, REPEATS, CHUNK = 256, 64, 5, 10_000


def synthetic_keys(rows: int) -> UInt64[np.ndarray, 'n 2']:
    """Returns the keys of `rows` synthetic images."""
    return np.concatenate(
        [
            row_keys([hashlib.sha256(b'%d' % image).hexdigest() for image in images], '')
            for start in range(0, rows, CHUNK)
            for images in [range(start, min(start + CHUNK, rows))]
        ]
    )


def synthetic_rows(keys: UInt64[np.ndarray, 'n 2']) -> Float16[np.ndarray, 'n width']:
    """Returns rows whose values follow from their keys."""
    words = keys[:, :1] * np.arange(1, 2 * WIDTH, 2, dtype=np.uint64)
    return (words >> np.uint64(53)).astype(np.float16)  # 0..2047: exact


def open_store(folder: Path) -> Store:
    """Opens the store of the benchmark."""
    return Store(folder, {'bench': 'scale'}, (WIDTH,), 'float16')


def timed(action: Callable[[], Result]) -> tuple[float, Result]:
    """Returns the seconds that a call took, and its result."""
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


def write(folder: Path, rows: int) -> dict[str, float]:
    """Fills a store; returns the seconds it took, and the control's for an epoch."""
    keys = synthetic_keys(rows)

    def append() -> None:
        with open_store(folder) as store:
            for start in range(0, rows, BATCH):
                batch = keys[start : start + BATCH]
                store.append(batch, synthetic_rows(batch))

    seconds = timed(append)[0]
    array, order = synthetic_rows(keys), np.random.default_rng(0).permutation(rows)
    out = np.empty((BATCH, WIDTH), np.float16)

    def epoch() -> None:
        for start in range(0, rows, BATCH):
            batch = order[start : start + BATCH]
            out[: len(batch)] = array[batch]

    control = statistics.median(timed(epoch)[0] for _ in range(REPEATS))
    return {'append_seconds': seconds, 'control_seconds': control}


def read(folder: Path, rows: int) -> Figures:
    """Uses a store as a training run does and returns seconds by phase and peak memory."""
    keys = synthetic_keys(rows)
    phases: dict[str, list[float]] = {'open': [], 'lookup': [], 'verify': []}
    for _ in range(REPEATS):
        seconds, store = timed(lambda: open_store(folder))
        phases['open'].append(seconds)
        for phase, verify in (('lookup', False), ('verify', True)):
            seconds, found = timed(functools.partial(store.lookup, keys, verify=verify))
            phases[phase].append(seconds)
    if found.min() < 0 or len(np.unique(found)) != rows:
        raise AssertionError('the look-up did not find every row in a place of its own')
    out = np.empty((BATCH, WIDTH), np.float16)

    def epoch(order: np.ndarray) -> None:
        for start in range(0, rows, BATCH):
            batch = order[start : start + BATCH]
            store.read(batch, out[: len(batch)])

    rng = np.random.default_rng(0)
    sample = rng.permutation(rows)[:1000]
    if not (store.read(found[sample]) == synthetic_rows(keys[sample])).all():
        raise AssertionError('a wrong row was served')
    phases['epoch'] = [timed(lambda: epoch(rng.permutation(found)))[0] for _ in range(REPEATS)]
    results: Figures = {'peak_mib': _peak_mib()}
    for phase, times in phases.items():
        results[f'{phase}_seconds'] = statistics.median(times)
        results[f'{phase}_spread'] = [min(times), max(times)]
    return results


def measure(folder: Path, rows: int) -> Figures:
    """Writes and reads a store of `rows` rows, each in a process of its own."""
    results: Figures = {'rows': rows}
    place = Path(tempfile.mkdtemp(dir=folder, prefix='bench_scale-'))
    try:
        for phase in ('write', 'read'):
            command = [sys.executable, __file__, f'--phase={phase}', f'--rows={rows}']
            done = subprocess.run(
                [*command, f'--folder={place}'], check=True, stdout=subprocess.PIPE, text=True
            )
            results |= json.loads(done.stdout.splitlines()[-1])
    finally:
        shutil.rmtree(place)
    return results


def summarize(results: list[Figures]) -> Figures:
    """Returns all figures, with how each phase grows from size to size: 1 is linear."""
    growth: dict[str, list[float]] = {}
    for phase in ('append', 'lookup', 'verify', 'epoch', 'control'):
        growth[phase] = [
            math.log(after[f'{phase}_seconds'] / before[f'{phase}_seconds'])
            / math.log(after['rows'] / before['rows'])
            for before, after in itertools.pairwise(results)
        ]
    peak = max(result['peak_mib'] for result in results)
    return {
        'sizes': {str(result.pop('rows')): result for result in results},
        'growth': growth,
        'peak_mib': peak,
        'memory_bound_mib': MEMORY_MIB,
        'within_bound': peak <= MEMORY_MIB,
    }


def main() -> None:
    """Runs the benchmark, or one phase of it in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='up to 10^5 rows')
    parser.add_argument('--folder', type=Path, help='where to write; default: a temporary folder')
    parser.add_argument('--phase', choices=('write', 'read'), help=argparse.SUPPRESS)
    parser.add_argument('--rows', type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.phase:
        phase = {'write': write, 'read': read}[arguments.phase]
        print(json.dumps(phase(arguments.folder, arguments.rows)))
        return
    print(f'{cpu.described()}; rows of {WIDTH} float16 values, batches of {BATCH}; seconds')
    print(
        f'{"rows":>9}  append   open  {"look-up (min-max)":20}  {"verify (min-max)":20}'
        f'  {"epoch (min-max)":20}  control  peak MiB'
    )
    results = []
    for rows in (10**4, 10**5) if arguments.quick else (10**4, 10**5, 10**6):
        result = measure(arguments.folder or Path(tempfile.gettempdir()), rows)
        results.append(result)
        cells = '  '.join(f'{_cell(result, phase):20}' for phase in ('lookup', 'verify', 'epoch'))
        print(
            f'{rows:9,}  {result["append_seconds"]:6.3f}  {result["open_seconds"]:5.3f}  {cells}'
            f'  {result["control_seconds"]:7.4f}  {result["peak_mib"]:8.0f}',
            flush=True,
        )
    figures = summarize(results)
    for phase, exponents in figures['growth'].items():
        print(f'{phase:8} grows as rows^{", ".join(f"{exponent:.2f}" for exponent in exponents)}')
    verdict = 'within' if figures['within_bound'] else 'BEYOND'
    print(f'peak memory {figures["peak_mib"]:.0f} MiB, {verdict} the bound of {MEMORY_MIB} MiB')
    print(json.dumps(figures | {'machine': cpu.described()}))


def _cell(result: Figures, phase: str) -> str:
    low, high = result[f'{phase}_spread']
    return f'{result[f"{phase}_seconds"]:.3f} ({low:.3f}-{high:.3f})'


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == 'darwin' else 2**10)


if __name__ == '__main__':
    main()
