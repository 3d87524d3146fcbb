"""The learning curves of one run, or of several."""

from collections.abc import Sequence

from markupsafe import Markup

from tlflax.report.page.charts import COLORS, Line, line_chart
from tlflax.report.page.numbers import is_number
from tlflax.utils.files import JsonObject

_CHARTS = (('loss', 'Loss', False), ('accuracy', 'Accuracy', True))
_DASHES = 3  # patterns of the style sheet: classes dash0 to dash2

Chart = tuple[Markup, Sequence[Line], str]
"""A chart, its lines for the legend, and its name."""


def epochs(records: Sequence[JsonObject]) -> list[JsonObject]:
    """Returns the records of epochs, each with the same keys in the same order."""
    rows = [record for record in records if is_number(record.get('epoch'))]
    keys = dict.fromkeys(key for row in rows for key in ('epoch', *row))
    return [{key: row.get(key) for key in keys} for row in rows]


def of_run(records: Sequence[JsonObject], best_epoch: object) -> list[Chart]:
    """Returns the curves of loss and accuracy; the chosen epoch is marked."""
    rows = epochs(records)
    charts: list[Chart] = []
    chosen = float(best_epoch) if is_number(best_epoch) else None  # type: ignore[arg-type]
    for key, name, share in _CHARTS:
        lines = [
            _line('Training', 'c1 dash1', rows, f'train_{key}', None),
            _line('Validation', 'c0', rows, f'val_{key}', chosen),
        ]
        lines = [line for line in lines if any(map(is_number, line.y))]
        if lines:
            chart = line_chart(
                lines,
                title=f'{name} of each epoch; the values are in the table below',
                axes=('Epoch', ''),
                shares=share,
                mark=None if chosen is None else (chosen, f'chosen: {chosen:g}'),
            )
            charts.append((chart, lines, name))
    return charts


def of_runs(
    names: Sequence[str],
    records: Sequence[Sequence[JsonObject]],
    best_epochs: Sequence[int | None],
) -> list[Chart]:
    """Returns the validation curves of several runs in one chart each of loss and accuracy."""
    charts: list[Chart] = []
    for key, name, share in _CHARTS:
        lines = []
        for place, (run, rows, best) in enumerate(zip(names, records, best_epochs, strict=True)):
            style = f'c{place % COLORS} dash{place % _DASHES}'
            line = _line(run, style, epochs(rows), f'val_{key}', best)
            if any(map(is_number, line.y)):
                lines.append(line)
        if any(len(line.x) > 1 for line in lines):
            title = f'{name} of the validation images by epoch'
            chart = line_chart(lines, title=title, axes=('Epoch', ''), shares=share)
            charts.append((chart, lines, f'Validation {name.lower()}'))
    return charts


def _line(
    name: str, style: str, rows: Sequence[JsonObject], key: str, chosen: float | None
) -> Line:
    return Line(
        name=name,
        style=style,
        x=[float(row['epoch']) for row in rows],
        y=[row.get(key) for row in rows],
        chosen=chosen,
    )
