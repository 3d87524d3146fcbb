"""Writes an audit as text for a terminal, or as complete JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tlflax.data.audit.problems import Problem, describe
from tlflax.data.audit.shortcuts import Figures
from tlflax.data.audit.summary import SplitSummary
from tlflax.utils.errors import UserError, as_user_error
from tlflax.utils.files import replacing

Summary = Mapping[str, SplitSummary]
Shortcuts = Mapping[str, Mapping[str, Figures]]

_EXAMPLES = 3  # of each problem, in the text
_CLASSES = 12  # lines of the table of classes, before it names the extremes only


def text(problems: Sequence[Problem], summary: Summary) -> str:
    """Returns the audit for people: what the splits hold, then what is wrong, the worst first."""
    return '\n'.join([*split_lines(summary), *_counts(summary), *_problems(problems)])


def check_format(path: str) -> None:
    """Refuses, before any work is done, a file that no report can be written to.

    Raises:
        UserError: Its name ends neither with .json nor .html, or its folder is missing.
    """
    if Path(path).suffix not in ('.json', '.html'):
        fix = 'end its name with .json (for programs) or .html (shows the images)'
        raise UserError('this is not a kind of report', where=f'--report={path}', fix=fix)
    if not Path(path).absolute().parent.is_dir():
        raise UserError('its folder does not exist', where=f'--report={path}', fix='make it')


def write(
    path: str, problems: Sequence[Problem], summary: Summary, shortcuts: Shortcuts | None = None
) -> None:
    """Writes everything as JSON, item by item, because there may be millions.

    Args:
        path: Of the file.
        problems: The worst first.
        summary: What each split holds.
        shortcuts: What the properties of each split's files tell.

    Raises:
        UserError: The file cannot be written.
    """
    what, where = 'the report cannot be written: {reason}', f'--report={path}'
    with (
        as_user_error(what, where=where, fix='name another file', of=(OSError,)),
        replacing(Path(path)) as partial,
        open(partial, 'w', encoding='utf-8') as file,
    ):
        file.writelines(_json(problems, summary, shortcuts or {}))


def split_lines(summary: Summary) -> Iterator[str]:
    """Yields lines that say what each split holds."""
    for name, part in summary.items():
        size = f', {part["bytes"] / 1e6:,.1f} MB in {part["root"]}' if 'bytes' in part else ''
        classes = f' in {len(part["classes"])} classes' if 'classes' in part else ''
        images = f'{part["images"]:,} images' if 'images' in part else f'{part["files"]:,} files'
        yield f'{name}: {images}{classes}{size}'
        if not part.get('width'):
            continue
        for label, counts in (('formats', part['formats']), ('color modes', part['modes'])):
            tally = ', '.join(f'{count:,} {value}' for value, count in counts.items())
            yield f'  {label}: {tally}'
        (w0, w1, w2), (h0, h1, h2) = part['width'], part['height']
        a0, a1, a2 = part['aspect_ratio']
        yield (
            f'  width {w0:.0f} to {w2:.0f} (median {w1:.0f}), height {h0:.0f} to {h2:.0f} '
            f'({h1:.0f}), width/height {a0:.2f} to {a2:.2f} ({a1:.2f})'
            + (f', {part["turned_by_exif"]:,} turned by EXIF' if part['turned_by_exif'] else '')
        )


def _counts(summary: Summary) -> Iterator[str]:
    """Yields the table of classes: all of them, or the largest and the smallest."""
    parts = {name: part['classes'] for name, part in summary.items() if 'classes' in part}
    first: dict[str, int] = next(iter(parts.values()), {})
    names = sorted({name for part in parts.values() for name in part})
    if len(names) > _CLASSES:
        names.sort(key=lambda name: (-first.get(name, 0), name))
        names = [*names[: _CLASSES // 2], '...', *names[-_CLASSES // 2 :]]
    width = max(map(len, ['class', *names]))
    yield f'{"class":{width}}' + ''.join(f'  {split:>9}' for split in parts)
    for name in names:
        cells = ['...' if name == '...' else f'{part.get(name, 0):,}' for part in parts.values()]
        yield f'{name:{width}}' + ''.join(f'  {cell:>9}' for cell in cells)


def _problems(problems: Sequence[Problem]) -> Iterator[str]:
    for problem in problems:
        yield f'{problem.level.upper()} {problem.what}'
        for item in problem.items[:_EXAMPLES] if problem.level != 'note' else ():
            yield f'    {describe(item)}'
        if problem.level != 'note' and len(problem.items) > _EXAMPLES:
            yield f'    and {len(problem.items) - _EXAMPLES:,} more'
        if problem.fix:
            yield f'  -> {problem.fix}'
    if not problems:
        yield 'nothing is wrong'


def _json(problems: Sequence[Problem], summary: Summary, shortcuts: Shortcuts) -> Iterator[str]:
    yield f'{{"splits": {json.dumps(summary)},\n"shortcuts": {json.dumps(shortcuts)},\n'
    yield '"problems": ['
    for number, problem in enumerate(problems):
        fields = {key: getattr(problem, key) for key in ('code', 'level', 'count', 'what', 'fix')}
        yield (',\n' if number else '\n') + json.dumps(fields)[:-1] + ', "items": ['
        for at, item in enumerate(problem.items):
            yield (',\n  ' if at else '\n  ') + json.dumps(item)
        yield ']}'
    yield ']}\n'
