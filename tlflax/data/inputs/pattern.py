"""File patterns: where in a path the class name stands.

    photos/*/{class}/*.jpg    the class is the name of a folder, at any depth
    photos/**/{class}_*.png   the class begins the file's name

`*`, `?` and `[...]` stand for characters of one name, as in a shell, `**` for zero or more
folders. `{class}` takes as many characters of one name as fit; where it stands
twice, both must be the same.
"""

import os
import re
import stat

from tlflax.data.images.files import Entry
from tlflax.data.inputs.listing import Listing
from tlflax.data.inputs.walk import (
    LOOPS,
    PIPES,
    Ignored,
    Report,
    ancestors,
    children,
    identity,
    stop,
)
from tlflax.utils.errors import UserError, printable

_CLASS = '{class}'
_MAGIC = re.compile(r'[*?[{]')
_TOKEN = re.compile(r'\{\w*\}|\[!?\]?[^]]*\]|.', re.DOTALL)


def is_pattern(spec: str) -> bool:
    """Tells whether a specification is a pattern, and not a folder whose name looks like one."""
    return bool(_MAGIC.search(spec)) and not os.path.exists(os.path.expanduser(spec))


def split_base(spec: str) -> tuple[str, str]:
    """Returns the folders before the first part that is a pattern, and the rest."""
    parts = spec.split('/')
    first = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
    return '/'.join(parts[:first]) or ('/' if spec.startswith('/') else '.'), '/'.join(
        parts[first:]
    )


def list_pattern(spec: str, *, report: Report = stop) -> Listing:
    """Lists the files that a pattern matches.

    Args:
        spec: The pattern.
        report: Takes each folder that cannot be read. Raises it by default.

    Raises:
        UserError: It has no `{class}`, its folder does not exist, or nothing matches.
    """
    base, rest = split_base(os.path.expanduser(spec))
    base = os.path.abspath(base)
    matchers = _matchers(spec, rest)
    if not os.path.isdir(base):
        raise UserError(f'no such folder: {printable(base)!r}', fix=f'fix the pattern {spec!r}')
    ignored = Ignored()
    found = [
        (entry, match['label'])
        for entry in _walk(base, matchers, ignored, report)
        if (match := matchers[-1].fullmatch(entry.path))
    ]
    if not found:
        raise UserError(
            f'no file matches the pattern {printable(spec)!r}',
            fix=f'compare it with the files in {printable(base)!r}; {_CLASS} and * stand for a '
            'part of one name, ** for folders',
        )
    return Listing(
        root=base,
        source=os.path.join(base, rest),
        entries=[entry for entry, _ in found],
        names=[label for _, label in found],
        ignored=ignored,
    )


def _matchers(spec: str, rest: str) -> list[re.Pattern[str]]:
    """Returns a pattern for the folders of each depth and, last, for the files.

    From the depth of a `**` on, a folder's pattern matches everything below.
    """
    if _CLASS not in rest:
        named = re.search(r'\{\w*\}', rest)
        what = f'{named.group()!r} is not known' if named else f'no {_CLASS}'
        raise UserError(
            f'{what} in the pattern {printable(spec)!r}',
            fix=f'put {_CLASS} where the name of the class stands, as in photos/{_CLASS}/*.jpg',
        )
    parts, patterns, so_far = rest.split('/'), [], ''
    for part in parts[:-1]:
        if part == '**':
            patterns.append(f'{so_far}.*')
            so_far += '(?:[^/]+/)*'
        else:
            so_far += _translate(part, so_far)
            patterns.append(patterns[-1] if patterns and patterns[-1].endswith('.*') else so_far)
            so_far += '/'
    last = '*' if parts[-1] == '**' else parts[-1]
    patterns.append(so_far + _translate(last, so_far))
    return [re.compile(pattern, re.DOTALL) for pattern in patterns]


def _translate(part: str, before: str) -> str:
    """Makes a regular expression of a pattern for one name, to follow `before`."""
    result = ''
    for token in _TOKEN.findall(part):
        if token == '*':
            result += '[^/]*'
        elif token == '?':
            result += '[^/]'
        elif token == _CLASS:
            known = '(?P<label>' in before + result
            result += '(?P=label)' if known else '(?P<label>[^/]+)'
        elif token.startswith('[') and len(token) > 2:
            inner = token[1:-1].replace('\\', r'\\').replace('[', r'\[').replace('^', r'\^')
            result += f'[^/{inner[1:]}]' if inner.startswith('!') else f'[{inner}]'
        else:
            result += re.escape(token)
    return result


def _walk(
    base: str, matchers: list[re.Pattern[str]], ignored: Ignored, report: Report
) -> list[Entry]:
    """Lists the files below a folder, entering only folders that the pattern may lead through.

    A link to a folder above is not followed.
    """
    entries: list[Entry] = []
    todo = [('', frozenset(ancestors(base)))]
    while todo:
        folder, above = todo.pop()
        depth = folder.count('/') + 1 if folder else 0
        deeper = []
        for name, status in children(base, folder, ignored, report):
            path = f'{folder}/{name}' if folder else name
            if status is None or stat.S_ISREG(status.st_mode):
                entries.append(Entry.of(path, status))
            elif not stat.S_ISDIR(status.st_mode):
                ignored.note(PIPES, path)
            elif not _leads_on(path, depth, matchers):
                continue
            elif (this := identity(status)) in above:
                ignored.note(LOOPS, path)
            else:
                deeper.append((path, above | {this}))
        todo += reversed(deeper)
    return entries


def _leads_on(path: str, depth: int, matchers: list[re.Pattern[str]]) -> bool:
    """Whether a folder, `depth` folders below the base, may hold files that match."""
    folders = matchers[:-1]
    if depth < len(folders):
        return folders[depth].fullmatch(path) is not None
    return bool(folders) and folders[-1].pattern.endswith('.*')
