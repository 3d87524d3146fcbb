"""The metrics of an evaluation as a text."""

import math

import numpy as np

from tlflax.utils.files import JsonObject

_CONFUSIONS = 5  # pairs of classes that a table names
_LINES, _WORST = 50, 20  # classes: beyond so many, a table shows so few
_TOTALS = {
    'accuracy': 'accuracy',
    'top5_accuracy': 'top-5 accuracy',
    'loss': 'loss',
    'balanced_accuracy': 'balanced accuracy',
    'macro_f1': 'macro F1',
    'macro_auroc': 'macro AUROC',
    'expected_calibration_error': 'calibration error',
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
    lines = [f'{title:{width}}  precision  recall (95 % interval)       f1   auroc  examples']
    for name, row in table.items():
        within = between(row.get('intervals', {}).get('recall'))
        lines.append(
            f'{name:{width}}  {row["precision"]:9.4f}  {row["recall"]:6.4f} {within:18}'
            f'  {row["f1"]:6.4f}  {number(row["auroc"])}  {row["num_examples"]:8d}'
        )
    return '\n'.join([*lines, *_most_confused(result), *_totals(result)])


def number(value: float | None, digits: int = 4) -> str:
    """Formats a number; a dash stands for None and NaN."""
    known = value is not None and not math.isnan(value)
    return f'{value:{digits + 2}.{digits}f}' if known else f'{"-":>{digits + 2}}'


def between(interval: list[float] | None, digits: int = 4) -> str:
    """Formats an interval as '(low to high)'; empty where it is not known."""
    if interval is None:
        return ''
    low, high = interval
    return f'({low:.{digits}f} to {high:.{digits}f})'


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
    """Returns a line for each metric of all classes together, with its interval."""
    intervals = result.get('intervals', {})  # results of older versions have none
    images = f'{result["num_examples"]} images'
    width = max(len(images), *map(len, _TOTALS.values()))
    return [
        f'{images:{width}}   value (95 % interval)',
        *(
            f'{title:{width}}  {number(result[name])} {between(intervals.get(name))}'.rstrip()
            for name, title in _TOTALS.items()
            if name in result
        ),
    ]
