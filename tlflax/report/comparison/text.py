"""A comparison of runs as a text, and its images as a CSV file."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from tlflax.report.comparison.shared import Shared
from tlflax.train.metrics.table import between, number
from tlflax.utils.errors import as_user_error, printable
from tlflax.utils.files import JsonObject, atomic_write

_MOST = 5  # images that the text shows
_COLUMNS = {
    'accuracy': 'accuracy',
    'loss': 'loss',
    'macro_f1': 'macro F1',
    'expected_calibration_error': 'calibration error',
}


def format_comparison(comparison: JsonObject) -> str:
    """Formats what `compare.compare` returns: a table of runs, and a sentence for each pair."""
    titles = ['run', *_COLUMNS.values(), 'seconds', 'trained parameters', 'epochs']
    rows = [titles, *(_row(row) for row in comparison['runs'])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = 1 + len(_COLUMNS)
    lines = [
        '  '.join(
            f'{cell:{width}}' if at < left else f'{cell:>{width}}'
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines += [f'on {comparison["num_images"]} images, with 95 % intervals']
    return '\n'.join([*lines, *(_about(pair) for pair in comparison['pairs'])])


def _row(row: JsonObject) -> list[str]:
    cells = [f'{number(row[name])} {between(row["intervals"][name])}' for name in _COLUMNS]
    seconds, parameters, epochs = (row[key] for key in ('wall_seconds', 'parameters', 'epochs'))
    return [
        printable(row['run']),
        *cells,
        '-' if seconds is None else f'{seconds:.1f}',
        '-' if parameters is None else f'{parameters:,}',
        '-' if epochs is None else str(epochs),
    ]


def _about(pair: JsonObject) -> str:
    first, second = pair['first'], pair['second']
    return printable(
        f'{pair["verdict"]}; only {second} is right on {pair["only_second_right"]} images, only '
        f'{first} on {pair["only_first_right"]}; loss {pair["loss_difference"]:+.4f} '
        f'{between(pair["loss_interval"])}'
    )


def format_differences(shared: Shared, rows: Int[np.ndarray, ' m'], names: Sequence[str]) -> str:
    """Formats the first of the images on which runs differ; see `compare.differing`."""
    lines = [f'the runs differ on {len(rows)} of {len(shared.labels)} images']
    for row in rows[:_MOST]:
        path, true, *cells = _cells(shared, int(row))
        found = (
            f'{name}: {label} ({float(chance):.2f})'
            for name, label, chance in zip(names, cells[::2], cells[1::2], strict=True)
        )
        lines.append(printable(f'  {path} is {true}; {", ".join(found)}'))
    if len(rows):
        lines[0] += ' (in parentheses: probability of the true class):'
    return '\n'.join(lines)


def write_differences(
    path: str, shared: Shared, rows: Int[np.ndarray, ' m'], names: Sequence[str]
) -> None:
    """Writes the images on which runs differ, a line each.

    The columns are `path`, `class` (the true one) and for each run RUN:class and RUN:probability,
    which is that of the true class.

    Raises:
        UserError: The file cannot be written.
    """
    text = io.StringIO(newline='')
    lines = csv.writer(text)
    columns = [f'{name}:{what}' for name in names for what in ('class', 'probability')]
    lines.writerow(['path', 'class', *columns])
    lines.writerows(_cells(shared, int(row)) for row in rows)
    with as_user_error(
        'cannot be written: {reason}', where=path, fix='name another file', of=(OSError,)
    ):
        atomic_write(Path(path), text.getvalue().encode(errors='surrogateescape'))


def _cells(shared: Shared, row: int) -> list[str]:
    label, names = int(shared.labels[row]), shared.class_names
    found = [str(shared.paths[row]), names[label]]
    for probabilities in shared.probabilities:
        found += [names[int(probabilities[row].argmax())], str(float(probabilities[row, label]))]
    return found
