"""Writes the model card of an exported file as Markdown."""

import contextlib
import errno
import functools
from pathlib import Path
from typing import Any

import jinja2

from tlflax.export.card import facts as gathering
from tlflax.export.card import hub
from tlflax.export.card.facts import Export, Facts
from tlflax.export.card.markdown import escaped, front_matter
from tlflax.export.card.sentences import checked, chosen, measured, part_name, program_input
from tlflax.export.card.usage import usage
from tlflax.report.page import numbers
from tlflax.utils.errors import as_user_error
from tlflax.utils.files import JsonObject, check_replaceable

CARD = 'README.md'  # in a folder

_MARK = b'library_name: tlflax'  # a line at the beginning of every card
_HEAD = 1000  # bytes
_CLASSES = 100  # rows of the table of metrics by class


def card(export: Export) -> str:
    """Returns the model card of an exported file, Markdown with YAML front matter."""
    facts = gathering.gather(export)
    return front_matter(hub.front_matter(facts)) + '\n' + _template().render(_values(facts))


def card_path(path: Path, *, is_folder: bool) -> Path:
    """Returns where the card of a file or folder is."""
    return path / CARD if is_folder else path.with_name(f'{path.name}.md')


def check_card(path: Path) -> None:
    """Checks that a model card can be written, and takes the place of nothing but another one.

    Raises:
        UserError: Something else is there.
    """
    with as_user_error(
        'the model card cannot be written: {reason}',
        where=str(path),
        fix='name another file to export to',
        of=(OSError,),
    ):
        check_replaceable(path)
        with contextlib.suppress(FileNotFoundError):
            if _MARK not in path.read_bytes()[:_HEAD].splitlines():
                raise OSError(errno.EEXIST, 'another file is there')


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, whose filter is `md`
    )
    environment.filters['md'] = escaped
    return environment.from_string((Path(__file__).parent / 'card.md').read_text('utf-8'))


def _values(facts: Facts) -> dict[str, Any]:
    """Returns what the template shows."""
    export, run = facts.export, facts.run
    metadata = export.metadata
    result = run.result if run else {}
    tables = [('Validation', facts.val), ('Test', facts.test)]
    return {
        'name': hub.model_name(facts),
        'file': export.path.name,
        'format': export.format,
        'size': export.size,
        'classes': export.trained.class_names,
        'metadata': metadata,
        'backbone': part_name(metadata['backbone']),
        'head': part_name(metadata['head']),
        'weights': facts.weights,
        'digest': result.get('weights_digest', metadata['weights_digest']),
        'epoch': epoch(facts),
        'input': program_input(export),
        'usage': usage(export.format, export.path.name, metadata),
        'source': facts.source,
        'splits': facts.splits,
        'counted': [split for split in facts.splits if split.counts is not None],
        'measured': measured(facts),
        'metrics': [(title, _rows(found)) for title, found in tables if found],
        'by_class': _by_class(facts.val),
        'cell': _cell,
        'chosen': chosen(facts),
        'checked': checked(facts),
        'problems': facts.problems,
        'weights_license': facts.weights_license,
        'versions': ', '.join(f'{key} {one}' for key, one in result.get('versions', {}).items()),
    }


def epoch(facts: Facts) -> int | None:
    """Returns the epoch of the exported step, if the run recorded it."""
    records = facts.run.records if facts.run else []
    step = facts.export.trained.step
    return next((one['epoch'] for one in records if one.get('step') == step), None)


def _rows(metrics: JsonObject) -> list[tuple[str, str, str]]:
    """Returns each metric's name, value and interval."""
    intervals = metrics.get('intervals') or {}
    return [
        (label, numbers.number(metrics.get(key)), numbers.between(intervals.get(key)))
        for key, label in hub.METRICS.items()
    ]


def _by_class(metrics: JsonObject) -> list[tuple[str, JsonObject]]:
    """Returns the metrics by class, of many classes those with the lowest F1."""
    rows = list((metrics.get('per_class') or {}).items())
    return rows if len(rows) <= _CLASSES else sorted(rows, key=lambda row: row[1]['f1'])[:_CLASSES]


def _cell(row: JsonObject, key: str) -> str:
    """Returns a share of a class with its interval."""
    within = numbers.between((row.get('intervals') or {}).get(key), share=True, unit='')
    return numbers.percent(row.get(key)) + (f' ({within})' if within else '')
