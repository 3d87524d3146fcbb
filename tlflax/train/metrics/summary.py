"""All metrics of a classifier's predictions, with their intervals."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Int

from tlflax.train.metrics.areas import auroc
from tlflax.train.metrics.counts import ClassCounts, by_class, confusion_matrix, confusions, ratio
from tlflax.train.metrics.intervals import class_intervals, intervals
from tlflax.train.metrics.proportions import wilson_interval
from tlflax.train.metrics.resampling import unit_numbers
from tlflax.train.metrics.scores import calibration_error, in_top
from tlflax.utils.files import JsonObject

_MATRIX = 1000  # classes: beyond, a confusion matrix is written by its cells that are not zero


def summary(
    labels: Int[np.ndarray, ' n'],
    probabilities: Float[np.ndarray, 'n classes'],
    names: Sequence[str],
    units: np.ndarray | None = None,
) -> JsonObject:
    """Returns the metrics of a classifier's predictions.

    Args:
        labels: The true classes.
        probabilities: Each example's predicted distribution.
        names: Class names.
        units: The name of each example's unit, str; examples of one unit are not independent. None:
            each is a unit.

    Returns:
        What `by_class` returns; `accuracy_interval` (Wilson's, 95 %); `macro_auroc`, the mean of
        the defined areas, or None; `expected_calibration_error`; `top5_accuracy` where
        there are more than 5 classes; `intervals`; `per_class`; and `confusion_matrix` (rows: true
        class), of more than 1000 classes as `confusions` has it.
    """
    classes, predicted = len(names), probabilities.argmax(-1)
    unit = np.arange(len(labels)) if units is None else unit_numbers(units)
    counted = (labels[labels == predicted], labels, predicted)
    counts = ClassCounts(*(np.bincount(of, minlength=classes) for of in counted))
    areas = auroc(labels, probabilities)
    defined = areas[~np.isnan(areas)]
    top = {}
    if classes > 5:
        within = in_top(labels, probabilities, 5)
        top['top5_accuracy'] = float(within.mean()) if len(within) else math.nan
    return {
        'accuracy_interval': list(wilson_interval(int(counts.right.sum()), len(labels))),
        **by_class(counts),
        'macro_auroc': float(defined.mean()) if len(defined) else None,
        'expected_calibration_error': calibration_error(labels, probabilities),
        **top,
        'intervals': intervals(labels, probabilities, unit),
        'per_class': per_class(
            counts, areas, class_intervals(labels, predicted, unit, classes), names
        ),
        'confusion_matrix': confusion_matrix(labels, predicted, classes).tolist()
        if classes <= _MATRIX
        else confusions(labels, predicted, classes),
    }


def per_class(
    counts: ClassCounts,
    areas: Float64[np.ndarray, ' classes'],
    within: dict[str, Float64[np.ndarray, 'classes 2']],
    names: Sequence[str],
) -> dict[str, JsonObject]:
    """Returns precision, recall, F1, AUROC, number of examples and intervals of each class.

    A ratio without examples in its denominator is 0, as in scikit-learn; an area that is not
    defined is None.
    """
    columns = {
        'precision': ratio(counts.right, counts.predicted),
        'recall': ratio(counts.right, counts.true),
        'f1': ratio(2 * counts.right, counts.true + counts.predicted),
        'num_examples': counts.true,
    }
    lists = {name: column.tolist() for name, column in columns.items()}
    lists['auroc'] = [None if math.isnan(area) else area for area in areas.tolist()]
    pairs = zip(*(bounds.tolist() for bounds in within.values()), strict=True)
    lists['intervals'] = [dict(zip(within, pair, strict=True)) for pair in pairs]
    rows = zip(*lists.values(), strict=True)
    return {name: dict(zip(lists, row, strict=True)) for name, row in zip(names, rows, strict=True)}
