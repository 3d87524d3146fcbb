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
from tlflax.utils.errors import UserError, as_user_error, printable, shown
from tlflax.utils.files import expand

_CLASS = '{class}'
_MAGIC = re.compile(r'[*?[{]')
_MOST_STARS, _MOST_ANY = 2, 3  # more could be matched in too many ways
_MOST_FOLDERS, _MOST_CHARS = 64, 4096  # as a path
_TOKEN = re.compile(r'\{\w*\}|\[!?\]?[^]]*\]|.', re.DOTALL)


def is_pattern(spec: str) -> bool:
    """Tells whether a specification is a pattern, and not a folder whose name looks like one."""
    return bool(_MAGIC.search(spec)) and not os.path.exists(expand(spec))


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
    base, rest = split_base(expand(spec))
    base = os.path.abspath(base)
    _check_class(spec, rest)
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


def files_matching(spec: str, *, report: Report = stop) -> tuple[str, list[Entry]]:
    """Lists the files that a pattern matches, which needs no `{class}`.

    Args:
        spec: The pattern.
        report: See `list_pattern`.

    Returns:
        The folder that the files' paths start from, as it is written, and the files.

    Raises:
        UserError: It is not a pattern, or its folder does not exist.
    """
    base, rest = split_base(expand(spec))
    matchers = _matchers(spec, rest)
    if not os.path.isdir(base):
        raise UserError(f'no such folder: {printable(base)!r}', fix='fix the pattern')
    entries = _walk(base, matchers, Ignored(), report)
    return base, [entry for entry in entries if matchers[-1].fullmatch(entry.path)]


def _check_class(spec: str, rest: str) -> None:
    """Refuses a pattern that does not say where the name of the class stands."""
    if _CLASS not in rest:
        named = re.search(r'\{\w*\}', rest)
        what = f'{named.group()!r} is not known' if named else f'no {_CLASS}'
        raise UserError(
            f'{what} in the pattern {printable(spec)!r}',
            fix=f'put {_CLASS} where the name of the class stands, as in photos/{_CLASS}/*.jpg',
        )


def _matchers(spec: str, rest: str) -> list[re.Pattern[str]]:
    """Returns a pattern for the folders of each depth and, last, for the files.

    From the depth of a `**` on, a folder's pattern matches everything below.
    """
    parts, patterns, so_far = rest.split('/'), [], ''
    for what, count, most in (
        ('**', parts.count('**'), _MOST_ANY),
        ('folders', len(parts), _MOST_FOLDERS),
        ('characters', len(rest), _MOST_CHARS),
    ):
        if count > most:
            what = f'{count} {what} in the pattern {shown(spec)}, more than {most}'
            raise UserError(what, fix='begin nearer to the images')
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
    with as_user_error(
        f'{printable(spec)!r} is not a pattern: {{reason}}', fix='correct its [...]', of=(re.error,)
    ):
        return [re.compile(pattern, re.DOTALL) for pattern in patterns]


def _translate(part: str, before: str) -> str:
    """Makes a regular expression of a pattern for one name, to follow `before`.

    Raises:
        UserError: It has too many `*` before `{class}`.
    """
    *heads, tail = re.split(r'(?<=\{class\})', part)
    result = ''
    if sum(len(_pieces(head)) - 1 for head in heads) > _MOST_STARS:
        raise UserError(
            f'more than {_MOST_STARS} * before {_CLASS} in {printable(part)!r}',
            fix=f'write more of what stands before {_CLASS}',
        )
    for head in heads:
        pieces = _pieces(head.removesuffix(_CLASS))
        known = '(?P<label>' in before + result
        result += '[^/]*'.join(pieces) + ('(?P=label)' if known else '(?P<label>[^/]+)')
    first, *others = _pieces(tail)
    if not others:
        return result + first
    # The first place where a piece fits is as good as any other, so none is tried twice (?>...).
    middle = ''.join(f'(?>[^/]*?{piece})' for piece in others[:-1])
    return f'{result}{first}{middle}[^/]*{others[-1]}'


def _pieces(part: str) -> list[str]:
    """Returns regular expressions for what stands before, between and after the runs of `*`."""
    pieces = ['']
    for token in _TOKEN.findall(re.sub(r'\*+', '*', part)):
        if token == '*':
            pieces.append('')
        elif token == '?':
            pieces[-1] += '[^/]'
        elif token.startswith('[') and len(token) > 2:
            inner = re.sub(r'([\\\[\]^&|~])', r'\\\1', token[1:-1])
            pieces[-1] += f'[^/{inner[1:]}]' if inner.startswith('!') else f'[{inner}]'
        else:
            pieces[-1] += re.escape(token)
    return pieces


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
