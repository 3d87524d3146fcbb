"""Writes pages as HTML: one file each, which needs no other and no network."""

import base64
import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from tlflax.report.page import curves, numbers, scatter, tables
from tlflax.report.page.charts import interval_bar, interval_chart, reliability
from tlflax.report.page.contents import Audit, ComparisonPage, Example, RunPage
from tlflax.report.page.repeats import First, Once, Pictures

_FOLDER = Path(__file__).parent
# What HTML or UTF-8 has no place for, such as the bytes of a file's name that is not UTF-8.
_UNFIT = re.compile('[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]')


def render_run(page: RunPage) -> str:
    """Returns the page of one run as HTML."""
    result, once = page.result, Once()
    val, test = result['val'], result.get('test')
    return _render(
        'run.html',
        kind='A cross-validation by tlflax' if page.folds else 'A run of tlflax',
        title=page.name,
        titles=_run_titles(page),
        page=page,
        val=val,
        test=test,
        within=_accuracy_interval(val),
        test_within=_accuracy_interval(test or {}),
        metrics=tables.metrics([val, *([test] if test else [])]),
        records=curves.epochs(page.records),
        curves=curves.of_run(page.records, result.get('best_epoch')),
        matrix=tables.confusion(page) if page.confusion else None,
        first_cell=First(),
        per_class=val.get('per_class') or {},
        calibration=result.get('calibration'),
        reliability=_reliability(page),
        mistakes=[page.examples[number] for number in page.mistakes],
        uncertain=[page.examples[number] for number in page.uncertain],
        feature_map=_map(page),
        config=tables.configuration(page.config),
        costs=tables.costs(result, page.records),
        environment=tables.flat(page.environment),
        once=once,
        stored=_stored(page, once),
    )


def _run_titles(page: RunPage) -> dict[str, str]:
    result = page.result
    return _titles(
        metrics=('Metrics', True),
        curves=('Learning curves', len(page.records) > 1),
        confusion=('Confusion matrix', page.confusion),
        classes=('Classes', result['val'].get('per_class')),
        calibration=(
            'Calibration',
            result.get('calibration') or any(each.count for each in page.reliability),
        ),
        mistakes=('Most confident mistakes', page.mistakes),
        uncertain=('Least certain images', page.uncertain),
        map=('Map of the features', page.points),
        augmentation=('Augmentation', page.augmented),
        tried=('What was tried', page.tried),
        folds=('Folds', page.folds),
        exports=('Exported files', page.exports),
        audit=('Data', page.audit),
        config=('Configuration', page.config),
        cost=('Time and environment', True),
        notes=('Notes', page.notes),
    )


def render_comparison(page: ComparisonPage) -> str:
    """Returns the page of several runs as HTML."""
    runs = page.comparison['runs']
    shown = [('Accuracy', 'accuracy', True), ('Loss', 'loss', False)]
    intervals = [
        (
            interval_chart(
                [(row['run'], row[key], row['intervals'].get(key)) for row in runs],
                title=f'{name} of each run',
                axis=name,
                shares=share,
            ),
            name,
        )
        for name, key, share in shown
        if any(numbers.is_number(row[key]) for row in runs)
    ]
    found = curves.of_runs(page.names, page.records, page.best_epochs)
    titles = _titles(
        pairs=('Which run is better?', page.comparison['pairs']),
        metrics=('Metrics', True),
        curves=('Learning curves', found),
        cost=('Cost', True),
        differing=('Images where the runs differ', page.differing),
    )
    return _render(
        'comparison.html',
        kind='Runs of tlflax, compared',
        title=' · '.join(page.names),
        titles=titles,
        page=page,
        runs=runs,
        best=next(row for row in runs if row['run'] == page.comparison['best']),
        metrics=tables.metrics(runs),
        intervals=intervals,
        curves=found,
    )


def render_audit(audit: Audit, title: str) -> str:
    """Returns the page of an audit as HTML.

    Args:
        audit: What it found.
        title: What was audited.
    """
    levels = []
    for level in ('error', 'warning', 'note'):
        if found := sum(finding.level == level for finding in audit.findings):
            levels.append(f'{found} {level}{"s" if found > 1 else ""}')
    titles = _titles(splits=('What the splits hold', True), findings=('Findings', True))
    return _render(
        'audit.html',
        kind='Audit of images',
        title=title,
        titles=titles,
        audit=audit,
        levels=levels,
    )


def _titles(**sections: tuple[str, object]) -> dict[str, str]:
    """Returns the titles of the sections that have something to show, in order."""
    return {name: title for name, (title, content) in sections.items() if content}


def _accuracy_interval(found: Mapping[str, object]) -> str:
    intervals = found.get('intervals')
    own = intervals.get('accuracy') if isinstance(intervals, Mapping) else None
    return numbers.between(own or found.get('accuracy_interval'), share=True)


def _map(page: RunPage) -> Markup | None:
    if not page.points:
        return None
    title = f'{len(page.points):,} images by their features'
    return scatter.feature_map(page.points, page.class_names, title)


def _reliability(page: RunPage) -> Markup | None:
    bins = page.reliability
    filled = any(each.count for each in bins)
    return reliability(bins, 'Reliability diagram; its bins are in the table') if filled else None


def _stored(page: RunPage, once: Once) -> Callable[[], list[Example]]:
    """Returns what gives the examples that only cells show; it is asked after the others."""
    cells = [number for numbers in page.cells.values() for number in numbers]
    return lambda: [page.examples[k] for k in dict.fromkeys(cells) if k not in once]


def _class_counts(audit: Audit) -> list[tuple[str, Sequence[int]]]:
    names = sorted({name for counts in audit.counts.values() for name in counts})
    return [(name, [counts.get(name, 0) for counts in audit.counts.values()]) for name in names]


@functools.cache
def _environment() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for show in (numbers.percent, numbers.number, numbers.duration, numbers.memory):
        found.filters[show.__name__] = show
    found.filters['any_value'] = numbers.any_value
    found.globals |= {
        'between': numbers.between,
        'percent': numbers.percent,
        'bar': interval_bar,
        'symbol': scatter.symbol,
        'class_counts': _class_counts,
        'numeric_keys': tables.numeric_keys,
    }
    return found


def _render(name: str, *, titles: Mapping[str, str], **values: object) -> str:
    style, script = ((_FOLDER / f'page.{kind}').read_text('utf-8') for kind in ('css', 'js'))
    html = (
        _environment()
        .get_template(name)
        .render(
            titles=titles,
            sections=list(titles.items()),
            picture=Pictures(),
            style=Markup(style),
            script=Markup(script),
            style_hash=_digest(style),
            script_hash=_digest(script),
            **values,
        )
    )
    return _UNFIT.sub('�', html)


def _digest(text: str) -> str:
    """Returns the digest by which a page's policy allows a style or a script."""
    return f'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'
