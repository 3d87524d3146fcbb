"""The tables of a page: rows of plain values that templates write."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tlflax.report.page.contents import RunPage
from tlflax.report.page.numbers import any_value, between, is_number, number, percent
from tlflax.utils.files import JsonObject

MOST_CLASSES = 30
"""Classes that a confusion matrix shows at most."""

_LEVELS = 9  # shades of the cells
_SHARES = {
    'accuracy': 'Accuracy',
    'top5_accuracy': 'Top-5 accuracy',
    'balanced_accuracy': 'Balanced accuracy',
    'worst_recall': 'Lowest recall of a class',
    'macro_f1': 'Macro F1',
    'macro_auroc': 'Macro AUROC',
    'expected_calibration_error': 'Calibration error',
}
_NUMBERS = {'loss': 'Loss'}


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of one or more splits or runs.

    Attributes:
        title: Its name.
        cells: A value and an interval, as texts, of each.
    """

    title: str
    cells: Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix.

    Attributes:
        count: Number of images.
        level: Its shade: 0 without images, to 9 for all images of the row.
        right: Whether it lies on the diagonal.
        name: What it holds, in words.
        examples: Numbers of its examples.
    """

    count: int
    level: int
    right: bool
    name: str
    examples: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The confusion matrix, or the part of it with the most errors.

    Attributes:
        names: Of the classes that are shown.
        rows: The cells of each true class.
        num_classes: Of the whole.
    """

    names: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    num_classes: int


def metrics(results: Sequence[JsonObject]) -> list[Metric]:
    """Returns the metrics that at least one of several results has."""
    found = []
    for key, title in {**_SHARES, **_NUMBERS}.items():
        if not any(is_number(result.get(key)) for result in results):
            continue
        share = key in _SHARES
        values = [percent(r.get(key)) if share else number(r.get(key)) for r in results]
        within = [between(r.get('intervals', {}).get(key), share=share) for r in results]
        found.append(Metric(title, list(zip(values, within, strict=True))))
    return found


def confusion(page: RunPage) -> Matrix:
    """Returns the matrix of at most `MOST_CLASSES` classes, those with the most errors."""
    size = len(page.class_names)
    counts = np.asarray(page.confusion, np.int64).reshape(size, size)
    totals, kept = counts.sum(1), np.arange(size)
    if size > MOST_CLASSES:
        errors = totals + counts.sum(0) - 2 * counts.diagonal()
        kept = np.sort(np.argsort(-errors, kind='stable')[:MOST_CLASSES])
    names = [page.class_names[k] for k in kept.tolist()]
    rows = []
    for true in kept.tolist():
        row = []
        for predicted in kept.tolist():
            count = int(counts[true, predicted])
            share = count / max(1, int(totals[true]))
            images = 'image' if count == 1 else 'images'
            about = f'{count:,} {images} of {page.class_names[true]} predicted as '
            row.append(
                Cell(
                    count=count,
                    level=int(np.ceil(_LEVELS * share)),
                    right=true == predicted,
                    name=about + page.class_names[predicted],
                    examples=page.cells.get((true, predicted), ()),
                )
            )
        rows.append(row)
    return Matrix(names, rows, size)


def flat(value: Mapping[str, object]) -> list[tuple[str, str]]:
    """Returns the keys of nested objects, with dots, and their values as texts."""
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            rows += [(f'{key}.{name}', text) for name, text in flat(item)]
        else:
            rows.append((str(key), any_value(item)))
    return rows


def configuration(config: Mapping[str, object]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Returns the keys and values of each section of a configuration."""
    loose = {key: item for key, item in config.items() if not isinstance(item, Mapping)}
    sections = [(key, flat(item)) for key, item in config.items() if isinstance(item, Mapping)]
    return [*sections, *([('other keys', flat(loose))] if loose else [])]


def costs(result: JsonObject, records: Sequence[JsonObject]) -> list[tuple[str, object, str]]:
    """Returns what the run cost: name, number and unit ('seconds', 'bytes' or 'rate')."""
    rows: list[tuple[str, object, str]] = [
        ('The whole run', result.get('wall_seconds'), 'seconds'),
        ('Most memory', result.get('peak_memory_bytes'), 'bytes'),
        ('An epoch (median)', _median(records, 'epoch_seconds'), 'seconds'),
        ('Images a second (median)', _median(records, 'images_per_second'), 'rate'),
    ]
    return [row for row in rows if is_number(row[1])]


def numeric_keys(rows: Sequence[JsonObject]) -> list[str]:
    """Returns the columns that hold numbers, and nothing else that is known."""
    found = []
    for key in rows[0] if rows else ():
        known = [row[key] for row in rows if row[key] is not None]
        if known and all(isinstance(value, int | float) for value in known):
            found.append(key)
    return found


def _median(records: Sequence[JsonObject], key: str) -> float | None:
    values = [record.get(key) for record in records]
    known = [value for value in values if value is not None and is_number(value)]
    return float(np.median(known)) if known else None
