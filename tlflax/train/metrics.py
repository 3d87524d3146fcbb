"""Classification metrics from labels and predicted probabilities, on the host.

Means over classes leave out classes for which a metric is undefined.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

from tlflax.utils.files import JsonObject

VAL_METRICS = ('loss', 'accuracy', 'balanced_accuracy', 'macro_f1', 'worst_recall')
"""The validation metrics of an epoch's record, each as `val_<name>`."""

MONITORED = ('train_loss', 'train_accuracy', *(f'val_{name}' for name in VAL_METRICS),
             'learning_rate')  # fmt: skip
"""The metrics of an epoch's record that early stopping can monitor."""

BINS = 15
"""Of the expected calibration error."""

_MATRIX = 1000  # classes: beyond, a confusion matrix is written by its cells that are not zero
_CONFUSIONS = 5  # pairs of classes that a table names
_LINES, _WORST = 50, 20  # classes: beyond so many, a table shows so few
_BLOCK = 2**22  # values of an array at once: bounds memory
_NORMAL_975 = 1.959963984540054  # quantile of the standard normal distribution


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
    recall = _ratio(right, true)[present]
    f1 = _ratio(2 * right, true + predicted)[present]
    return {
        'balanced_accuracy': float(recall.mean()),
        'macro_f1': float(f1.mean()),
        'worst_recall': float(recall.min()),
    }


def auroc(
    labels: Int[np.ndarray, ' n'], probabilities: Float[np.ndarray, 'n classes']
) -> Float64[np.ndarray, ' classes']:
    """Returns the area under each class's ROC curve, the class against all others.

    It is the chance that an example of the class gets a higher probability of it than another
    example does; a tie counts half (Mann & Whitney 1947). NaN where the class has no examples, or
    no others.
    """
    n, classes = probabilities.shape
    areas = np.full(classes, math.nan)
    by_label = np.argsort(labels, kind='stable')
    ends = np.cumsum(np.bincount(labels, minlength=classes))
    step = max(1, _BLOCK // max(n, 1))
    for start in range(0, classes, step):
        block = np.sort(probabilities[:, start : start + step].T, axis=1)
        for label, ascending in enumerate(block, start=start):
            rows = by_label[ends[label - 1] if label else 0 : ends[label]]
            positives, negatives = len(rows), n - len(rows)
            if positives and negatives:
                own = probabilities[rows, label]
                below = np.searchsorted(ascending, own, 'left')
                upto = np.searchsorted(ascending, own, 'right')
                wins = (below + upto).sum() / 2 - positives**2 / 2  # less those among themselves
                areas[label] = wins / (positives * negatives)
    return areas


def calibration_error(
    labels: Int[np.ndarray, ' n'], probabilities: Float[np.ndarray, 'n classes'], bins: int = BINS
) -> float:
    """Returns the expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3).

    Examples are put by their highest probability into `bins` bins of equal width, each closed on
    the right; the error is the mean over the examples of their bin's |accuracy - confidence|.
    """
    confidence = probabilities.max(-1).astype(np.float64)
    right = probabilities.argmax(-1) == labels
    number = np.clip(np.ceil(np.nan_to_num(confidence) * bins) - 1, 0, bins - 1).astype(np.int64)
    gaps = np.bincount(number, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels)) if len(labels) else math.nan


def top_accuracy(
    labels: Int[np.ndarray, ' n'], probabilities: Float[np.ndarray, 'n classes'], k: int
) -> float:
    """Returns top-k accuracy; ties go to lower labels."""
    found, step = 0, max(1, _BLOCK // probabilities.shape[1])
    for start in range(0, len(labels), step):
        block, label = probabilities[start : start + step], labels[start : start + step, None]
        own = np.take_along_axis(block, label, axis=1)
        ahead = (block > own) | ((block == own) & (np.arange(block.shape[1]) < label))
        found += int((ahead.sum(1) < k).sum())
    return found / len(labels) if len(labels) else math.nan


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """Returns the 95 % interval of a proportion (Wilson 1927); (0, 1) where `n` is 0."""
    if not n:
        return 0.0, 1.0
    z2 = _NORMAL_975**2
    center = (right + z2 / 2) / (n + z2)
    half = _NORMAL_975 / (n + z2) * math.sqrt(right * (n - right) / n + z2 / 4)
    return max(0.0, center - half), min(1.0, center + half)


def per_class(
    counts: ClassCounts, areas: Float64[np.ndarray, ' classes'], names: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """Returns precision, recall, F1, AUROC and number of examples of each class.

    A ratio without examples in its denominator is 0, as in scikit-learn; an area that is not
    defined is None.
    """
    columns = {
        'precision': _ratio(counts.right, counts.predicted),
        'recall': _ratio(counts.right, counts.true),
        'f1': _ratio(2 * counts.right, counts.true + counts.predicted),
        'num_examples': counts.true,
    }
    lists = {name: column.tolist() for name, column in columns.items()}
    lists['auroc'] = [None if math.isnan(area) else area for area in areas.tolist()]
    rows = zip(*lists.values(), strict=True)
    return {name: dict(zip(lists, row, strict=True)) for name, row in zip(names, rows, strict=True)}


def summary(
    labels: Int[np.ndarray, ' n'],
    probabilities: Float[np.ndarray, 'n classes'],
    names: Sequence[str],
) -> JsonObject:
    """Returns the metrics of a classifier's predictions.

    Args:
        labels: The true classes.
        probabilities: Each example's predicted distribution.
        names: Class names.

    Returns:
        What `by_class` returns; `accuracy_interval` (Wilson's, 95 %); `macro_auroc`, the mean of
        the defined areas, or None; `expected_calibration_error`; `top5_accuracy` where
        there are more than 5 classes; `per_class`; and `confusion_matrix` (rows: true class), of
        more than 1000 classes as `confusions` has it.
    """
    classes, predicted = len(names), probabilities.argmax(-1)
    counted = (labels[labels == predicted], labels, predicted)
    counts = ClassCounts(*(np.bincount(of, minlength=classes) for of in counted))
    areas = auroc(labels, probabilities)
    defined = areas[~np.isnan(areas)]
    small = classes <= _MATRIX
    return {
        'accuracy_interval': list(wilson_interval(int(counts.right.sum()), len(labels))),
        **by_class(counts),
        'macro_auroc': float(defined.mean()) if len(defined) else None,
        'expected_calibration_error': calibration_error(labels, probabilities),
        **({'top5_accuracy': top_accuracy(labels, probabilities, 5)} if classes > 5 else {}),
        'per_class': per_class(counts, areas, names),
        'confusion_matrix': confusion_matrix(labels, predicted, classes).tolist()
        if small
        else confusions(labels, predicted, classes),
    }


def format_table(result: JsonObject) -> str:
    """Formats an evaluation's per-class table (the worst classes of many) and totals."""
    table = result['per_class']
    title = 'class'
    if len(table) > _LINES:
        present = [item for item in table.items() if item[1]['num_examples']]
        worst = sorted(present, key=lambda item: item[1]['recall'])[:_WORST]
        title = f'class ({len(worst)} of lowest recall, of {len(table)})'
        table = dict(worst)
    width = max(map(len, [*table, title]))
    lines = [f'{title:{width}}  precision  recall      f1   auroc  examples']
    for name, row in table.items():
        area = '     -' if row['auroc'] is None else f'{row["auroc"]:6.4f}'
        lines.append(
            f'{name:{width}}  {row["precision"]:9.4f}  {row["recall"]:6.4f}  {row["f1"]:6.4f}'
            f'  {area}  {row["num_examples"]:8d}'
        )
    return '\n'.join([*lines, *_most_confused(result), *_totals(result)])


def _most_confused(result: JsonObject) -> list[str]:
    """Returns the line that names the most frequent mistakes; none where there is no mistake."""
    names, cells = list(result['per_class']), result['confusion_matrix']
    if isinstance(cells, list):
        true, predicted = np.nonzero(cells)
        count = np.asarray(cells)[true, predicted]
    else:
        true, predicted, count = (np.array(cells[key]) for key in ('true', 'predicted', 'count'))
    wrong = np.flatnonzero(true != predicted)
    top = wrong[np.argsort(-count[wrong], kind='stable')][:_CONFUSIONS]
    pairs = [f'{count[k]} {names[true[k]]} as {names[predicted[k]]}' for k in top]
    return [f'most confused: {", ".join(pairs)}'] if pairs else []


def _totals(result: JsonObject) -> list[str]:
    low, high = result['accuracy_interval']
    area, top = result['macro_auroc'], result.get('top5_accuracy')
    loss = math.nan if result['loss'] is None else result['loss']  # as result.json has it
    return [
        f'accuracy {result["accuracy"]:.4f} (95 % interval {low:.4f} to {high:.4f})'
        f'{"" if top is None else f", top-5 {top:.4f}"}, loss {loss:.4f}, '
        f'{result["num_examples"]} images',
        f'balanced accuracy {result["balanced_accuracy"]:.4f}, macro F1 {result["macro_f1"]:.4f}, '
        f'macro AUROC {"-" if area is None else f"{area:.4f}"}, '
        f'calibration error {result["expected_calibration_error"]:.4f}',
    ]


def _ratio(
    numerator: Int[np.ndarray, ' n'], denominator: Int[np.ndarray, ' n']
) -> Float64[np.ndarray, ' n']:
    zero = np.zeros(len(numerator))
    return np.divide(numerator, denominator, out=zero, where=denominator > 0)
