"""Intervals of proportions, in closed form: accuracy, recall, precision and F1."""

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

_NORMAL_975 = 1.959963984540054  # quantile of the standard normal distribution


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """Returns the 95 % interval of a proportion (Wilson 1927); (0, 1) where `n` is 0."""
    low, high = wilson(np.array([right]), np.array([n]))[0].tolist()
    return low, high


def wilson(
    right: Float[np.ndarray, ' k'] | Int[np.ndarray, ' k'],
    n: Float[np.ndarray, ' k'] | Int[np.ndarray, ' k'],
) -> Float64[np.ndarray, 'k 2']:
    """Returns the 95 % intervals of several proportions; see `wilson_interval`.

    Args:
        right: Number of right cases; need not be whole.
        n: Number of all cases.
    """
    some = np.maximum(n, np.finfo(np.float64).tiny)
    z2 = _NORMAL_975**2
    center = (right + z2 / 2) / (n + z2)
    half = _NORMAL_975 / (n + z2) * np.sqrt(right * (n - right) / some + z2 / 4)
    low = np.where(n > 0, np.maximum(0.0, center - half), 0.0)
    return np.stack([low, np.where(n > 0, np.minimum(1.0, center + half), 1.0)], 1)


def share_intervals(
    right: Bool[np.ndarray, ' m'],
    kind: Int[np.ndarray, ' m'],
    unit: Int[np.ndarray, ' m'],
    kinds: int,
) -> Float64[np.ndarray, 'kinds 2']:
    """Returns the 95 % interval of the share of right cases among those of each kind.

    It is Wilson's, for as many independent cases as say the same as these, whose units are
    independent but may have several cases: n / (variance of the share over units / variance of
    the share over cases) (Kish 1965; Dean & Pagano 2015). Where each case is a unit, these are the
    cases; where all are right or all are wrong, the units.

    Args:
        right: Whether each case is right.
        kind: Of each case, below `kinds`.
        unit: Of each case; what is in one unit is not independent.
        kinds: Number of kinds.
    """
    n = np.bincount(kind, minlength=kinds)
    share = np.divide(
        np.bincount(kind, weights=right, minlength=kinds), n, out=np.zeros(kinds), where=n > 0
    )
    pairs, place = np.unique(unit.astype(np.int64) * kinds + kind, return_inverse=True)
    if len(pairs) == len(kind):
        return wilson(np.bincount(kind[right], minlength=kinds), n)
    excess = np.bincount(place, weights=right - share[kind]) ** 2
    units = np.bincount(pairs % kinds, minlength=kinds)
    spread = np.bincount(pairs % kinds, weights=excess, minlength=kinds)
    over_units = spread * units / np.maximum(units - 1, 1)
    over_cases = n * share * (1 - share) * n / np.maximum(n - 1, 1)
    many = np.divide(
        n * over_cases, over_units, out=units.astype(float), where=over_units > 1e-9 * over_cases
    )
    many = np.where((share > 0) & (share < 1), np.minimum(many, n), units)
    return wilson(share * many, many)
