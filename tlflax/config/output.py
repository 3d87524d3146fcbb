"""The standard streams of a command: results on stdout as they come, all else on stderr."""

import codecs
import contextlib
import errno
import io
import os
import sys
from typing import TYPE_CHECKING

from tlflax.utils.errors import EXIT_CODE, reason

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_BROKEN_PIPE = 141  # 128 + SIGPIPE, as shells report it
_ERRORS = 'tlflax.escaped'


class OutputError(OSError):
    """Results cannot be written to stdout."""


class _Results(io.FileIO):
    """A file whose errors can be told from those of all others."""

    def write(self, data: 'ReadableBuffer', /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OutputError(error.errno, error.strerror) from error


def set_up() -> None:
    """Lets stdout take every name, hand on each line immediately, and raise `OutputError`.

    Names that are not UTF-8 keep their bytes; characters that the encoding lacks are escaped.
    """
    codecs.register_error(_ERRORS, _escaped)
    # It may be closed, or belong to a caller.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout is sys.__stdout__:
        sys.stdout = _stream(sys.stdout.fileno(), sys.stdout.encoding)


def _stream(descriptor: int, encoding: str) -> io.TextIOWrapper:
    results = io.BufferedWriter(_Results(descriptor, 'w', closefd=False))
    return io.TextIOWrapper(results, encoding, _ERRORS, line_buffering=True)


def keep_for_python() -> None:
    """Leaves out what libraries in C++ print to stdout, such as Gloo's connections."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.flush()
        theirs = sys.stdout.fileno()
        sys.stdout = _stream(os.dup(theirs), sys.stdout.encoding)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, theirs)
        os.close(null)


def drop() -> None:
    """Writes no results, in a process whose primary one does."""
    sys.stdout = _stream(os.open(os.devnull, os.O_WRONLY), 'utf-8')


def say(sentence: str) -> None:
    """Prints a sentence on stderr, if that is still open."""
    with contextlib.suppress(OSError):
        print(sentence, file=sys.stderr)


def flush() -> None:
    """Writes what stdout still holds.

    Raises:
        OutputError: It cannot be written.
    """
    if sys.stdout is not None:
        sys.stdout.flush()


def give_up(error: OutputError) -> tuple[int, str]:
    """Discards what stdout still holds; returns the exit code and what is left to say.

    Nothing is to be said where whoever read the results has left, as `head` does.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:
        return _BROKEN_PIPE, ''
    return EXIT_CODE, f'error: standard output cannot be written: {reason(error)}; give it another'


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encodes what an encoding lacks: the byte that could not be decoded, or an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    first = UnicodeEncodeError(
        error.encoding, error.object, error.start, error.start + 1, error.reason
    )
    try:
        return codecs.lookup_error('surrogateescape')(first)
    except UnicodeEncodeError:
        return codecs.lookup_error('backslashreplace')(first)
