"""Accuracy from few images of each class: many random draws, a ridge classifier for each.

The features enter through their inner products alone, which are computed once: a draw of m images
then costs an eigendecomposition of an m x m matrix.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float, Int

from tlflax.models.linear import compression, ridge
from tlflax.probe.rows import Rows

_LEVEL = 0.95  # of the interval


class Summary(NamedTuple):
    """Accuracies of one number of shots.

    Attributes:
        shots: Training images of each class.
        draws: Number of draws.
        mean_accuracy: Over the draws, in 0..1.
        low: Of the 95 % interval of the mean (Student's t), cut to 0..1.
        high: The same.
    """

    shots: int
    draws: int
    mean_accuracy: float
    low: float
    high: float


def draw_rows(label: Int[np.ndarray, ' n'], shots: int, seed: int, draw: int) -> np.ndarray:
    """Draws rows of each class at random: `shots` of them, or all where there are fewer.

    A draw is a function of its arguments; one of more shots holds the one of fewer.
    """
    order = np.random.default_rng([seed, draw]).permutation(len(label))
    return np.concatenate([order[label[order] == own][:shots] for own in np.unique(label)])


def accuracies(
    train: Rows, val: Rows, shots: Sequence[int], draws: int, seed: int
) -> Float[np.ndarray, 'shots draws']:
    """Returns the accuracy on validation of a ridge classifier for each draw.

    The strength of regularization is the one with the lowest leave-one-out squared error in the
    draw, so nothing but the drawn images decides.

    Args:
        train: Rows to draw from.
        val: Rows to classify.
        shots: Numbers of rows of each class.
        draws: Number of draws for each.
        seed: Of the draws.
    """
    drawn = [[draw_rows(train.label, k, seed, draw) for draw in range(draws)] for k in shots]
    used = np.unique(np.concatenate([rows for own in drawn for rows in own]))
    features, label = train.features[used], train.label[used]
    gram = compression.inner_products(features)
    cross = compression.inner_products(val.features, features)

    def assess(rows: Int[np.ndarray, ' m']) -> float:
        at = np.searchsorted(used, rows)
        scores = _scores(gram[np.ix_(at, at)], cross[:, at], label[at], train.num_classes)
        return float((scores.argmax(1) == val.label).mean())

    return np.array([[assess(rows) for rows in own] for own in drawn])


def summarize(shots: int, values: Float[np.ndarray, ' draws']) -> Summary:
    """Returns the mean of at least two accuracies and its interval.

    The interval is about the draws: it says what other draws from the same training images, on the
    same validation images, would give.
    """
    half = scipy.stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1) * scipy.stats.sem(values)
    mean = float(values.mean())
    return Summary(shots, len(values), mean, max(mean - half, 0.0), min(mean + half, 1.0))


def _scores(
    gram: Float[np.ndarray, 'm m'],
    cross: Float[np.ndarray, 'n m'],
    label: Int[np.ndarray, ' m'],
    num_classes: int,
) -> Float[np.ndarray, 'n num_classes']:
    """Fits a ridge classifier to the rows of a draw and returns its scores of other rows.

    Args:
        gram: Inner products of the rows.
        cross: Inner products of the other rows with them.
        label: Classes of the rows.
        num_classes: Number of classes.
    """
    rows, target = compression.from_gram(gram), np.eye(num_classes)[label]
    points = ridge.cross_validate(rows, label, num_classes, np.arange(len(label)))
    best = min(points, key=lambda point: float(((point.held_out - target) ** 2).sum()))
    assert rows.combine is not None
    return cross @ (rows.combine @ best.weights) + best.bias
