"""The temperature that turns scores into probabilities (Guo et al. 2017, arXiv:1706.04599)."""

import numpy as np
from jaxtyping import Float, Int

_STEPS = 60  # halvings of the interval: the last digits of float64
_LARGEST = 20.0  # of the factor's logarithm, for scores with a mean magnitude of one


def fit_factor(scores: Float[np.ndarray, 'n num_classes'], label: Int[np.ndarray, ' n']) -> float:
    """Returns the positive factor of scores that minimizes the mean cross-entropy of their softmax.

    It is the inverse of a temperature. Cross-entropy is a convex function of it, so bisection finds
    where the derivative vanishes: deterministic, and without a first value to choose. One more row,
    whose label may be any, keeps it finite where no row is ranked wrongly (after Platt 1999).

    Args:
        scores: Of rows that the model did not see.
        label: The class of each row.
    """
    wide = scores.astype(np.float64)
    wide = wide - wide.max(1, keepdims=True)
    spread = np.abs(wide).mean() or 1.0
    wide /= spread
    unknown = wide.mean() / (len(label) + 1)
    wanted = wide[np.arange(len(label)), label].sum() / (len(label) + 1) + unknown

    def slope(factor: float) -> float:
        probabilities = np.exp(factor * wide)
        probabilities /= probabilities.sum(1, keepdims=True)
        return float((probabilities * wide).sum(1).mean() - wanted)

    low, high = -_LARGEST, _LARGEST
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(np.exp(middle)) < 0 else (low, middle)
    return float(np.exp((low + high) / 2) / spread)


def log_softmax(
    scores: Float[np.ndarray, '... num_classes'],
) -> Float[np.ndarray, '... num_classes']:
    """Returns log-probabilities in float64."""
    wide = scores.astype(np.float64)
    wide = wide - wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))
