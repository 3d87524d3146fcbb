"""The strength of regularization that cross-validation on the training images finds."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from tlflax.models.linear import calibration
from tlflax.models.linear.strengths import CrossValidated, choose, extended

CrossValidate = Callable[..., Iterator[CrossValidated]]
"""`cross_validate` of `logistic_regression` or `ridge`."""

_FEWEST = 4  # strengths of a path: the first, strong ones differ little
_SLOW = 0.9  # of the loss before: a higher one is a small gain, or none
_PATIENCE = 3  # strengths weaker than the best that end the path


class Found(NamedTuple):
    """The best model of a path.

    Attributes:
        best: The model.
        factor: Of its scores, whose softmax is then calibrated on the held-out rows.
        loss: Mean cross-entropy of the held-out rows, in nats.
        accuracy: Of the held-out rows, in 0..1.
        losses: Strength to loss, in the order of the path.
    """

    best: CrossValidated
    factor: float
    loss: float
    accuracy: float
    losses: dict[float, float]

    def probabilities(self) -> Float[np.ndarray, 'n num_classes']:
        """Returns the calibrated probabilities of the training rows, held out; NaN as there."""
        return np.exp(calibration.log_softmax(self.factor * self.best.held_out))


def search(
    solve: Callable[[Iterable[float]], Iterator[CrossValidated]],
    label: Int[np.ndarray, ' n'],
    fold: Int[np.ndarray, ' n'],
    strengths: Sequence[float],
    bar: float = math.inf,
) -> Found:
    """Finds the strength with about the lowest cross-entropy on rows held out, after calibration.

    The best is the strongest whose loss is within 0.5 % of the lowest. The path ends three
    strengths after it, unless it is the first, and goes on while it is at an end.

    Args:
        solve: Strengths to models, as `tlflax.models.linear.problem.Problem.cross_validate`; of
            their held-out scores the first n are used.
        label: i32[n].
        fold: The fold of each row; -1: in the training side of every fold.
        strengths: At least two, from strong to weak.
        bar: A loss; the path of a model above it ends where a strength gains less than 10 %.
    """
    held_out = np.flatnonzero(fold >= 0)
    path: list[Found] = []
    losses: dict[float, float] = {}
    steps = extended(strengths, lambda: _best(path))
    for point in solve(steps):
        path.append(_assess(point, label, held_out, losses))
        losses[point.strength] = path[-1].loss
        if _best(path) > 0 and len(path) - 1 - _best(path) >= _PATIENCE:
            break
        if len(path) >= _FEWEST and path[-1].loss > max(bar, _SLOW * path[-2].loss):
            break
    return path[_best(path)]


def _best(path: Sequence[Found]) -> int:
    return choose([found.best.strength for found in path], [found.loss for found in path])


def _assess(
    point: CrossValidated,
    label: Int[np.ndarray, ' n'],
    held_out: Int[np.ndarray, ' m'],
    losses: dict[float, float],
) -> Found:
    scores, own = point.held_out[held_out], label[held_out]
    factor = calibration.fit_factor(scores, own)
    costs = -calibration.log_softmax(factor * scores)[np.arange(len(own)), own]
    accuracy = float((scores.argmax(1) == own).mean())
    return Found(point, factor, float(costs.mean()), accuracy, losses)
