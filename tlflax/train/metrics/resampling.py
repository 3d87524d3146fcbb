"""The bootstrap (Efron 1979): resamples of images, and the interval of what they give."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Int64

Statistic = Callable[[Float32[np.ndarray, 'r n']], Float64[np.ndarray, 'r k']]
"""Computes numbers of each resample from how often each image is in it."""

RESAMPLES = 10_000
"""The number of resamples of at most 10,000 units."""

_FEWEST = 1_000  # resamples, of very many units
_DRAWS = 100_000_000  # units in all resamples together, which bounds the time
_BLOCK = 2**20  # values of an array at once: bounds memory
_SEED = 0


def unit_numbers(units: np.ndarray) -> Int64[np.ndarray, ' n']:
    """Numbers units by the order of their names.

    Digests of images as names make numbers, and so intervals, that do not depend on file names.
    """
    return np.unique(units.astype(str), return_inverse=True)[1].astype(np.int64)


def resamples(unit: Int[np.ndarray, ' n'], width: int = 1) -> Iterator[Float32[np.ndarray, 'r n']]:
    """Draws units with replacement, as many as there are; yields blocks of resamples.

    The draws are a function of the number of units alone.

    Args:
        unit: The unit of each image, from 0, none left out. Images of one unit are drawn together.
        width: Numbers that the caller computes for each resample; bounds the size of a block.

    Yields:
        How often each image is in each resample.
    """
    units = int(unit.max()) + 1
    count = min(RESAMPLES, max(_FEWEST, _DRAWS // units))
    step = max(1, _BLOCK // max(len(unit), width))
    rng = np.random.default_rng(_SEED)
    for start in range(0, count, step):
        rows = min(step, count - start)
        drawn = rng.integers(0, units, (rows, units)) + np.arange(0, rows * units, units)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units)
        yield times.astype(np.float32)[:, unit]


def percentile_interval(values: Float64[np.ndarray, ' r']) -> list[float] | None:
    """Returns the middle 95 % of the values that are not NaN; None if all are."""
    values = values[~np.isnan(values)]
    return np.quantile(values, [0.025, 0.975]).tolist() if len(values) else None


class Columns(NamedTuple):
    """Columns in order of their kind: `rows[starts[k] : starts[k + 1]]` are of kind `kinds[k]`."""

    rows: Int[np.ndarray, ' m']
    starts: Int[np.ndarray, ' k']
    kinds: Int[np.ndarray, ' k']

    @classmethod
    def of(cls, kind: Int[np.ndarray, ' n'], chosen: Bool[np.ndarray, ' n']) -> 'Columns':
        """Orders the chosen columns by their kind."""
        rows = np.flatnonzero(chosen)
        rows = rows[np.argsort(kind[rows], kind='stable')]
        kinds, starts = np.unique(kind[rows], return_index=True)
        return cls(rows, starts, kinds)

    def sums(
        self, values: Float32[np.ndarray, 'r n'], kinds: int
    ) -> Float32[np.ndarray, 'r {kinds}']:
        """Returns the sum of the columns of each kind."""
        sums = np.zeros((len(values), kinds), np.float32)
        if len(self.rows):
            sums[:, self.kinds] = np.add.reduceat(values[:, self.rows], self.starts, axis=1)
        return sums
