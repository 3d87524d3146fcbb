"""Manifests: CSV or JSON lines that name each image's file and class.

    path,label,split,weight,group
    red/1.jpg,red,train,1.0,street 7

`path` and `label` are needed, the others may be left out, further columns are ignored. Paths start
from the manifest's folder, or are absolute.
"""

import contextlib
import csv
import json
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from tlflax.data.images.files import Entry
from tlflax.data.inputs.listing import Listing
from tlflax.data.inputs.manifest_row import COLUMNS, NEEDED, Fields, Row, fault_of, parse_row
from tlflax.data.inputs.walk import Report, stop
from tlflax.utils.errors import UserError, as_user_error, did_you_mean, printable, quoted
from tlflax.utils.files import expand, regular

_TABLES = ('.csv', '.tsv')
_LINES = ('.jsonl', '.ndjson')
_FIELD_CHARS = 1 << 20  # of a field in a CSV, at most; further columns may hold long texts
_field_limit = threading.Lock()


def is_manifest(spec: str) -> bool:
    """Tells by its ending whether a specification names a manifest."""
    return spec.lower().endswith(_TABLES + _LINES) and not os.path.isdir(spec)


def read_manifest(path: str | os.PathLike[str], *, report: Report = stop) -> list[Row]:
    """Reads a manifest; no image is touched.

    Args:
        path: The file, in UTF-8. The first line of a CSV names its columns (separated by commas,
            semicolons or tabs); each line of JSON names its own.
        report: Takes the fault of each line that cannot be used, with file and line. Raises it by
            default; where it does not, the line is left out.

    Returns:
        Its rows, in order; `split`, `weight` and `group` are None where it has no such column.

    Raises:
        UserError: It cannot be read, its columns are not named, or it names no image.
    """
    path = os.path.abspath(expand(path))
    parse = _parse_table if path.lower().endswith(_TABLES) else _parse_lines
    where = printable(path)
    unreadable = f'the manifest {where!r} cannot be read: {{reason}}'
    not_utf8 = 'the manifest is not UTF-8 ({reason})'
    rows = []
    with (
        as_user_error(unreadable, fix='check its path and permissions', of=(OSError,)),
        as_user_error(not_utf8, where=where, fix='save it as UTF-8', of=(UnicodeDecodeError,)),
        open(path, encoding='utf-8-sig', newline='', opener=regular) as file,
        _long_fields(),
    ):
        for line, fields in parse(path, file, report):
            try:
                rows.append(parse_row(path, line, fields))
            except UserError as error:
                report(error)
    if not rows:
        raise UserError('the manifest names no image', where=where, fix='add lines')
    return _check_rows(path, rows, report)


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Raises the limit of `csv`, which the whole process shares, until the block ends."""
    with _field_limit:
        before = csv.field_size_limit()
        csv.field_size_limit(max(before, _FIELD_CHARS))
        try:
            yield
        finally:
            csv.field_size_limit(before)


def list_manifest(
    path: str | os.PathLike[str], rows: list[Row], *, split: str | None = None
) -> Listing:
    """Makes the listing of a manifest's rows, or of those of one split.

    Args:
        path: The manifest.
        rows: From `read_manifest`.
        split: 'train', 'val' or 'test'; None: all rows.
    """
    path = os.path.abspath(expand(path))
    root = os.path.dirname(path)
    rows = [row for row in rows if split is None or row.split == split]
    has_weights, has_groups = (
        any(getattr(row, name) is not None for row in rows) for name in ('weight', 'group')
    )
    weights = np.array([1.0 if row.weight is None else row.weight for row in rows], np.float32)
    groups = np.array([row.group or '' for row in rows], object)
    return Listing(
        root=root,
        source=path if split is None else f'{path}#{split}',
        entries=[_entry(root, row.path) for row in rows],
        names=[row.label for row in rows],
        ignored=Counter(),
        file=path,
        lines=[row.line for row in rows],
        weights=weights if has_weights else None,
        groups=groups if has_groups else None,
    )


def splits(rows: Iterable[Row]) -> set[str]:
    """Returns the splits that a manifest's rows name; empty where it has no such column."""
    return {row.split for row in rows if row.split is not None}


def _parse_table(path: str, file: Iterable[str], report: Report) -> Iterator[tuple[int, Fields]]:
    """Yields the line number and the fields of each line of a CSV, by column."""
    lines = iter(file)
    first = next(lines, '')
    try:
        header, delimiter = _header(path, first)
    except csv.Error as error:
        raise fault_of(path, 1, f'not valid CSV ({error})', 'name the columns') from error
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            line = reader.line_num + 1
            if not any(cells):
                continue
            if len(cells) != len(header):
                what = f'{len(cells)} fields where the first line names {len(header)} columns'
                report(fault_of(path, line, what, 'quote a field that holds a separator'))
                continue
            yield line, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise fault_of(
            path, reader.line_num + 1, f'not valid CSV ({error})', 'fix its quotes'
        ) from error


def _header(path: str, first: str) -> tuple[list[str], str]:
    """Returns the columns, in lower case, and what separates them."""
    found: list[str] = []
    for delimiter in ',;\t':
        columns = next(csv.reader([first], delimiter=delimiter), [])
        columns = [column.strip().lower() for column in columns]
        if set(NEEDED) <= set(columns):
            if twice := [name for name in COLUMNS if columns.count(name) > 1]:
                raise fault_of(path, 1, f'two columns {twice[0]!r}', 'keep one of them')
            return columns, delimiter
        found = max(found, columns, key=len)
    missing = next(name for name in NEEDED if name not in found)
    fix = did_you_mean(missing, found)
    fix = f'rename {fix.split()[-1][:-1]}' if fix.startswith('did') else 'add it'
    named = ', '.join(map(repr, map(printable, found[:9]))) or 'nothing'
    raise fault_of(path, 1, f'no column {missing!r} (it names {named})', fix)


def _parse_lines(path: str, file: Iterable[str], report: Report) -> Iterator[tuple[int, Fields]]:
    """Yields the line number and the known fields of each JSON object."""
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            yield line, _fields(path, line, text)
        except UserError as error:
            report(error)


def _fields(path: str, line: int, text: str) -> Fields:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise fault_of(
            path, line, f'not valid JSON ({error})', 'write one object on each line'
        ) from error
    if not isinstance(fields, dict):
        raise fault_of(path, line, 'not a JSON object', 'write {"path": ..., "label": ...}')
    for name in NEEDED:
        if name not in fields:
            fix = did_you_mean(name, list(fields))
            fix = fix if fix.startswith('did') else 'add it'
            raise fault_of(path, line, f'no {name!r}', fix)
    return fields


def _check_rows(path: str, rows: list[Row], report: Report) -> list[Row]:
    """Refuses a file that is named twice, lines without a split, and weights that are all 0.

    Returns:
        The rows that can be used.
    """
    seen: dict[str, Row] = {}
    kept = []
    some_split = any(row.split is not None for row in rows)
    for row in rows:
        if (first := seen.setdefault(row.path, row)) is not row:
            what = f'{printable(row.path)!r} is named in line {first.line} too'
            if first.label != row.label:
                there, here = quoted(first.label, [row.label]), quoted(row.label, [first.label])
                what += f', as {there} there and {here} here'
            report(fault_of(path, row.line, what, 'remove one of them'))
        elif some_split and row.split is None:
            report(fault_of(path, row.line, 'no split, and other lines name one', 'name one'))
        else:
            kept.append(row)
    if all(row.weight == 0 for row in rows):
        report(UserError('every weight is 0', where=printable(path), fix='give some above 0'))
    return kept


def _entry(root: str, path: str) -> Entry:
    try:
        return Entry.of(path, os.stat(os.path.join(root, path)))
    except OSError:  # reading it will say why
        return Entry.of(path, None)
