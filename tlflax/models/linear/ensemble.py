"""Greedy selection of an ensemble (Caruana et al. 2004, 'Ensemble selection from libraries')."""

import numpy as np
import scipy.optimize
from jaxtyping import Float, Int

from tlflax.models.linear.calibration import cross_entropy, log_softmax

_PRIOR = 0.5  # standard deviation of the logarithm of a factor, before any row is seen
_SHARPEST = 1.5  # natural logarithm of the largest factor, and of the inverse of the smallest
_TIE = 1e-9  # relative difference of two losses below which the cheaper is chosen


def select(
    probabilities: Float[np.ndarray, 'm n num_classes'],
    label: Int[np.ndarray, ' n'],
    costs: Float[np.ndarray, ' m'],
    rounds: int,
) -> Int[np.ndarray, ' m']:
    """Chooses how often each model is counted in a mean of probabilities.

    Each round adds the model, perhaps one that was added before, with which the mean has the lowest
    cross-entropy. The shortest sequence with the lowest counts. Of equal losses, the cheaper model
    is chosen, then the first.

    Args:
        probabilities: Of each model on rows it did not see.
        label: The class of each row.
        costs: Of each model, in any unit.
        rounds: The most models, counted with repetition.

    Returns:
        The number of times that each model was chosen.
    """
    own = probabilities[:, np.arange(len(label)), label].astype(np.float64)
    total = np.zeros(len(label))
    chosen: list[int] = []
    losses: list[float] = []
    for size in range(1, rounds + 1):
        loss = -np.log(np.maximum((total + own) / size, 1e-12)).mean(1)
        equal = np.flatnonzero(loss <= loss.min() * (1 + _TIE))
        best = int(equal[np.argmin(costs[equal])])
        chosen.append(best)
        losses.append(float(loss[best]))
        total += own[best]
    last = next(i for i, loss in enumerate(losses) if loss <= min(losses) * (1 + _TIE))
    return np.bincount(chosen[: last + 1], minlength=len(costs))


def mean(
    log_probabilities: Float[np.ndarray, 'm n num_classes'], counts: Int[np.ndarray, ' m']
) -> Float[np.ndarray, 'n num_classes']:
    """Returns the mean of the models' probabilities, each counted as often as it was chosen."""
    share = counts / counts.sum()
    return np.einsum('m,mnc->nc', share, np.exp(log_probabilities))


def sharpening(
    log_probabilities: Float[np.ndarray, 'm n num_classes'],
    counts: Int[np.ndarray, ' m'],
    label: Int[np.ndarray, ' n'],
) -> float:
    """Returns the factor of every model's scores with which their mean is calibrated.

    A mean of calibrated probabilities is less confident than it should be (Rahaman & Thiery 2021,
    arXiv:2007.08792). The factor is the most probable one: its logarithm is normally distributed
    around 0 before, so that a mean without mistakes is not made sure of everything.

    Args:
        log_probabilities: Of each model on rows it did not see.
        counts: How often each is counted.
        label: The class of each row.
    """
    chosen = log_probabilities[counts > 0]
    own = counts[counts > 0]

    def loss(logarithm: float) -> float:
        sharpened = mean(log_softmax(np.exp(logarithm) * chosen), own)
        return len(label) * cross_entropy(label, sharpened) + (logarithm / _PRIOR) ** 2 / 2

    found = scipy.optimize.minimize_scalar(loss, bounds=(-_SHARPEST, _SHARPEST), method='bounded')
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0
