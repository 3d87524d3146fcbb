"""`UserError`, the exception that is shown to users as a sentence, and conversions to it."""

import contextlib
import difflib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator

EXIT_CODE = 2

_MOST_CHARS = 4000  # of a message: outside text in it may be of any length
_MOST_CHOICES = 1000  # that are compared with a name


_TENSORSTORE = re.compile(r' \[(?:tensorstore_spec|source locations)')
_SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'")


class UserError(Exception):
    """An error that the user can fix: what is wrong, where, and how to fix it.

    Commands print it as one sentence without a traceback and exit with `EXIT_CODE`.

    Text from outside may be part of it: it is cut where it is long, and control characters are
    replaced, except for the ends of lines in `what`.

    Args:
        what: What is wrong, with the offending value.
        where: The file, class or config key it concerns.
        fix: What to do about it.
    """

    def __init__(self, what: str, *, where: str = '', fix: str = '') -> None:
        lines = _cut(what, _MOST_CHARS).split('\n')  # some list differences
        self.what = '\n'.join(map(printable, lines))
        self.where, self.fix = (printable(_cut(text, _MOST_CHARS)) for text in (where, fix))
        super().__init__(self.what, self.where, self.fix)

    def __str__(self) -> str:
        sentence = f'{self.where}: {self.what}' if self.where else self.what
        return f'{sentence}; {self.fix}' if self.fix else sentence


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Sets `where` of each `UserError` that the block raises without it.

    Code that knows what is wrong then needs no argument for the config key that asked for it.
    """
    try:
        yield
    except UserError as error:
        error.where = error.where or where
        raise


@contextlib.contextmanager
def as_user_error(
    what: str,
    *,
    where: str = '',
    fix: str,
    of: tuple[type[Exception], ...] = (Exception,),
    but: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Converts exceptions of other libraries and of the operating system to a `UserError`.

    Args:
        what: What is wrong; '{reason}' in it is replaced by `reason` of the exception, '{kind}' by
            the name of its type.
        where: See `UserError`.
        fix: See `UserError`.
        of: The types to convert; others, and every `UserError`, are raised unchanged.
        but: Types that are raised unchanged although `of` includes them.
    """
    passing: tuple[type[Exception], ...] = (UserError, *but)
    try:
        yield
    except passing:
        raise
    except of as error:
        said = what.replace('{kind}', type(error).__name__).replace('{reason}', reason(error))
        raise UserError(said, where=where, fix=fix) from error


def reason(error: BaseException) -> str:
    """Returns the first line of an exception's message, or its type if it has none."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if number := _SYSTEM_ERROR.search(str(error)):  # TensorStore tells a long story around it
        return os.strerror(int(number[1]))
    text = _TENSORSTORE.split(str(error).strip())[0]
    lines = text.splitlines() or ['']
    return lines[0][:300] or type(error).__name__


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns `did you mean 'x'?`, or the list of choices if none is close."""
    choices = list(choices)[:_MOST_CHOICES]
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if near:
        return f'did you mean {quoted(near[0], [name])}?'
    return f'choose from {", ".join(map(repr, choices))}' if choices else 'there are no choices'


def quoted(name: str, others: Iterable[str] = ()) -> str:
    """Returns a name in quotes, with its Unicode form where another would look the same.

    Macs write 'e' and an accent where others write one letter: both are shown as 'é'.

    Args:
        name: The name.
        others: Those that it must not be taken for; it may be one of them.
    """
    plain, text = unicodedata.normalize('NFC', name), repr(printable(name))
    if all(other == name or unicodedata.normalize('NFC', other) != plain for other in others):
        return text
    for form in ('NFC', 'NFD'):
        if name == unicodedata.normalize(form, name):
            return f'{text} ({form})' if form == 'NFC' else f'{text} ({form}: {name!a})'
    return f'{text} ({name!a})'


def shown(value: object) -> str:
    """Returns an outside value as a message shows it: cut, or its type where it has no text."""
    try:
        return _cut(repr(value), 200)
    except Exception:  # Python writes no integer of more than 4300 digits, for example
        return f'{type(value).__name__}(...)'


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f'{text[:most]}...'


def printable(path: str) -> str:
    """Returns a path, or other outside text, that is safe to print and to encode."""
    if path.isprintable():
        return path
    return ''.join('�' if unicodedata.category(char) in ('Cc', 'Cs') else char for char in path)
