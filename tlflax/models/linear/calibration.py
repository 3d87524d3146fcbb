"""The temperature that turns scores into probabilities (Guo et al. 2017, arXiv:1706.04599)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

_STEPS = 60  # halvings of the interval: the last digits of float64
_PRIOR = 0.5  # standard deviation of the logarithm of a temperature, before any row is seen
_FITTED = 2**20  # most probabilities that a temperature is fitted to: bounds time
_TINY = float(np.finfo(np.float32).tiny)  # a smaller probability counts as this
_LARGEST = 20.0  # of the factor's logarithm, for scores with a mean magnitude of one


class CrossFitted(NamedTuple):
    """Probabilities at temperatures that their rows had no part in.

    Attributes:
        temperature: Fitted to all rows.
        rows: i64[m], the rows that could be held out.
        probabilities: f64[m, num_classes], theirs, each at the temperature of the other folds.
    """

    temperature: float
    rows: Int[np.ndarray, ' m']
    probabilities: Float64[np.ndarray, 'm num_classes']


def cross_fit(
    probabilities: Float[np.ndarray, 'n num_classes'],
    label: Int[np.ndarray, ' n'],
    fold: Int[np.ndarray, ' n'],
) -> CrossFitted:
    """Fits a temperature to all rows, and one to each fold's complement, for that fold.

    Args:
        probabilities: Of rows that the model did not see.
        label: The class of each row.
        fold: The fold of each row; negative: in the complement of every fold.
    """
    held_out = np.zeros((0, probabilities.shape[1]))
    parts, rows = [held_out], [np.zeros(0, np.int64)]
    for number in np.unique(fold[fold >= 0]):
        inside = fold == number
        if not inside.all():
            temperature = fit_temperature(probabilities[~inside], label[~inside])
            parts.append(temper(probabilities[inside], temperature))
            rows.append(np.flatnonzero(inside))
    temperature = fit_temperature(probabilities, label)
    return CrossFitted(temperature, np.concatenate(rows), np.concatenate(parts))


def fit_temperature(
    probabilities: Float[np.ndarray, 'n num_classes'], label: Int[np.ndarray, ' n']
) -> float:
    """Returns the temperature that is most probable, given rows that the model did not see.

    Its logarithm is normally distributed before, around 0: few rows, or few mistakes among them,
    say little of it, and a model that makes no mistake is not made sure of everything. So the
    cross-entropy of these rows never grows. Unlike scores, for which `fit_factor` is made,
    probabilities have a temperature to start from. Bisection finds where the derivative of
    cross-entropy and prior vanishes, between 1/20 and 20.

    It is fitted to evenly spaced rows where there are more probabilities than a million.
    """
    n, num_classes = probabilities.shape
    most = max(_FITTED // num_classes, 1)
    rows = np.linspace(0, n - 1, most).astype(np.int64) if n > most else slice(None)
    wide, own = _log(probabilities[rows]), label[rows]
    wanted = wide[np.arange(len(own)), own].sum()

    def slope(log_factor: float) -> float:
        factor = np.exp(log_factor)
        scaled = np.exp(log_softmax(factor * wide))
        return float(factor * ((scaled * wide).sum() - wanted) + log_factor / _PRIOR**2)

    limit = float(np.log(20))
    low, high = -limit, limit
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


def temper(
    probabilities: Float[np.ndarray, '... num_classes'], temperature: float
) -> Float64[np.ndarray, '... num_classes']:
    """Returns the softmax of logits divided by a temperature, from that of the logits.

    The order of the classes stays the same.
    """
    return np.exp(log_softmax(_log(probabilities) / temperature))


def cross_entropy(
    label: Int[np.ndarray, ' n'], probabilities: Float[np.ndarray, 'n num_classes']
) -> float:
    """Returns the mean cross-entropy in nats; a probability of zero costs 87."""
    return float(-_log(probabilities[np.arange(len(label)), label]).mean())


def _log(probabilities: Float[np.ndarray, '*shape']) -> Float64[np.ndarray, '*shape']:
    return np.log(np.maximum(probabilities.astype(np.float64), _TINY))


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
