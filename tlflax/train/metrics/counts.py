"""Counts by true and predicted class, and the metrics that follow from them.

Means over classes leave out classes for which a metric is undefined.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int

VAL_METRICS = ('loss', 'accuracy', 'balanced_accuracy', 'macro_f1', 'worst_recall')
"""The validation metrics of an epoch's record, each as `val_<name>`."""

MONITORED = ('train_loss', 'train_accuracy', *(f'val_{name}' for name in VAL_METRICS),
             'learning_rate')  # fmt: skip
"""The metrics of an epoch's record that early stopping can monitor."""


def confusion_matrix(
    labels: Int[np.ndarray, ' n'], predicted: Int[np.ndarray, ' n'], classes: int
) -> Int[np.ndarray, 'classes classes']:
    """Counts examples by true class (rows) and predicted class (columns)."""
    cells = labels.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def confusions(
    labels: Int[np.ndarray, ' n'], predicted: Int[np.ndarray, ' n'], classes: int
) -> dict[str, list[int]]:
    """Returns the nonzero cells of the confusion matrix, for many classes.

    Returns:
        `true`, `predicted` and `count`, one entry for each cell.
    """
    cells, count = np.unique(labels.astype(np.int64) * classes + predicted, return_counts=True)
    true, other = np.divmod(cells, classes)
    return {'true': true.tolist(), 'predicted': other.tolist(), 'count': count.tolist()}


class ClassCounts(NamedTuple):
    """Counts by class; they add up over batches without a confusion matrix.

    Attributes:
        right: Correctly predicted examples of each class.
        true: Examples of each class.
        predicted: Examples predicted as each class.
    """

    right: Int[Any, ' classes']
    true: Int[Any, ' classes']
    predicted: Int[Any, ' classes']


def by_class(counts: ClassCounts) -> dict[str, float]:
    """Returns metrics in which all classes with examples count alike; NaN if no class has any.

    Returns:
        `balanced_accuracy` (mean recall), `macro_f1` (mean F1) and `worst_recall`.
    """
    right, true, predicted = counts
    if not true.any():
        return dict.fromkeys(('balanced_accuracy', 'macro_f1', 'worst_recall'), math.nan)
    present = true > 0
    recall = ratio(right, true)[present]
    f1 = ratio(2 * right, true + predicted)[present]
    return {
        'balanced_accuracy': float(recall.mean()),
        'macro_f1': float(f1.mean()),
        'worst_recall': float(recall.min()),
    }


def ratio(
    numerator: Int[np.ndarray, ' n'], denominator: Int[np.ndarray, ' n']
) -> Float64[np.ndarray, ' n']:
    """Returns quotients; 0 where the denominator is 0."""
    zero = np.zeros(len(numerator))
    return np.divide(numerator, denominator, out=zero, where=denominator > 0)
