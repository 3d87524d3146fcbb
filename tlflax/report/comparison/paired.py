"""Is one classifier better than another? Statistics of pairs of predictions of the same images."""

from collections.abc import Sequence

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float, Int

from tlflax.train.metrics.resampling import percentile_interval, resamples


def mean_intervals(
    values: Float[np.ndarray, 'n k'], unit: Int[np.ndarray, ' n']
) -> list[list[float]]:
    """Returns the 95 % intervals of the means of columns, by the bootstrap (Efron 1979).

    Both values of a difference are of the same image, so resampling images is the paired bootstrap.

    Args:
        values: Such as differences of losses.
        unit: See `tlflax.train.metrics.resampling.resamples`.

    Returns:
        [low, high] of each column; both ends are the mean where no resample has another one.
    """
    means = np.concatenate(
        [times.astype(np.float64) @ values / times.sum(1)[:, None] for times in resamples(unit)]
    )
    return [percentile_interval(column) or [float(column[0])] * 2 for column in means.T]


def exact_p_value(
    first: Bool[np.ndarray, ' n'], second: Bool[np.ndarray, ' n'], unit: Int[np.ndarray, ' n']
) -> float:
    """Tests whether two classifiers are right equally often; returns the two-sided p value.

    It is the exact McNemar test (McNemar 1947): among the images that only one of them has right,
    either is as likely to. Where several images make a unit, it is the randomization test that it
    is a case of (Fisher 1935): for each unit, the difference of right images is as likely to have
    the other sign.

    Args:
        first: Whether the first classifier is right.
        second: Whether the second one is.
        unit: The number of each image's unit, from 0.
    """
    values = np.subtract(second, first, dtype=np.int64)
    sums = np.bincount(unit, weights=values).astype(np.int64)
    sizes, counts = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    chances = np.ones(1)  # of each sum of differences with random signs, from the lowest
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        spread = np.zeros(2 * size * count + 1)
        spread[:: 2 * size] = scipy.stats.binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, spread)
    middle = len(chances) // 2
    return min(1.0, 2 * float(chances[middle + abs(int(sums.sum())) :].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p values for their number (Holm 1979); any one is wrong as rarely as one alone."""
    adjusted, most = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = most
    return adjusted
