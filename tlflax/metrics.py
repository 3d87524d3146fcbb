"""Classification metrics from labels and predictions, on the host."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int


def confusion_matrix(
    labels: Int[np.ndarray, ' n'], predicted: Int[np.ndarray, ' n'], classes: int
) -> Int[np.ndarray, 'classes classes']:
    """Counts examples by true class (rows) and predicted class (columns)."""
    cells = labels.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def per_class(
    matrix: Int[np.ndarray, 'classes classes'], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Returns precision, recall, F1 and number of examples of each class.

    A ratio without examples in its denominator is 0, as in scikit-learn.
    """
    right = np.diag(matrix).astype(np.float64)
    true, predicted = matrix.sum(1), matrix.sum(0)
    precision, recall = _ratio(right, predicted), _ratio(right, true)
    f1 = _ratio(2 * right, true + predicted)
    return {
        name: {
            'precision': float(precision[i]),
            'recall': float(recall[i]),
            'f1': float(f1[i]),
            'num_examples': int(true[i]),
        }
        for i, name in enumerate(names)
    }


def summary(
    labels: Int[np.ndarray, ' n'],
    probabilities: Float[np.ndarray, 'n classes'],
    names: Sequence[str],
) -> dict[str, Any]:
    """Returns what a classifier's predictions are worth.

    Args:
        labels: The true classes.
        probabilities: Each example's predicted distribution.
        names: Class names.

    Returns:
        `balanced_accuracy` and `macro_f1` (means of recall and F1 over the classes that have
        examples), `per_class` and `confusion_matrix` (rows: true class).
    """
    matrix = confusion_matrix(labels, probabilities.argmax(-1), len(names))
    table = per_class(matrix, names)
    present = [row for row in table.values() if row['num_examples']]
    return {
        'balanced_accuracy': float(np.mean([row['recall'] for row in present])),
        'macro_f1': float(np.mean([row['f1'] for row in present])),
        'per_class': table,
        'confusion_matrix': matrix.tolist(),
    }


def format_table(result: dict[str, Any]) -> str:
    """Shows an evaluation's per-class table and its totals."""
    table = result['per_class']
    width = max([len(name) for name in table] + [len('class')])
    lines = [f'{"class":{width}}  precision  recall      f1  examples']
    lines += [
        f'{name:{width}}  {row["precision"]:9.4f}  {row["recall"]:6.4f}  {row["f1"]:6.4f}'
        f'  {row["num_examples"]:8d}'
        for name, row in table.items()
    ]
    lines.append(
        f'accuracy {result["accuracy"]:.4f}, balanced accuracy {result["balanced_accuracy"]:.4f}, '
        f'loss {result["loss"]:.4f}, {result["num_examples"]} images'
    )
    return '\n'.join(lines)


def _ratio(
    numerator: Float[np.ndarray, ' n'], denominator: Int[np.ndarray, ' n']
) -> Float[np.ndarray, ' n']:
    zero = np.zeros_like(numerator)
    return np.divide(numerator, denominator, out=zero, where=denominator > 0)
