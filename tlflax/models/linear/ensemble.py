"""Greedy selection of an ensemble (Caruana et al. 2004, 'Ensemble selection from libraries')."""

import numpy as np
from jaxtyping import Float, Int

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
