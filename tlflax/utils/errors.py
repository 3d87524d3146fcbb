"""The one exception shown to users as a sentence, and how others become one."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator

EXIT_CODE = 2


class UserError(Exception):
    """Something the user can fix: what is wrong, where, and what to do about it.

    Commands print it as one sentence without a traceback and exit with `EXIT_CODE`.

    Args:
        what: What is wrong, with the offending value.
        where: The file, class or config key it concerns.
        fix: What to do about it.
    """

    def __init__(self, what: str, *, where: str = '', fix: str = '') -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what, where, fix)

    def __str__(self) -> str:
        sentence = f'{self.where}: {self.what}' if self.where else self.what
        return f'{sentence}; {self.fix}' if self.fix else sentence


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Gives a place to each `UserError` raised in the block that has none.

    So that code which knows what is wrong need not be told which config key asked for it.
    """
    try:
        yield
    except UserError as error:
        error.where = error.where or where
        raise


@contextlib.contextmanager
def as_user_error(
    what: str, *, where: str = '', fix: str, of: tuple[type[Exception], ...] = (Exception,)
) -> Iterator[None]:
    """Turns exceptions of other libraries and of the operating system into a `UserError`.

    Args:
        what: What is wrong; '{reason}' in it becomes what `reason` says of the exception, '{kind}'
            the name of its type.
        where: See `UserError`.
        fix: See `UserError`.
        of: Types of exceptions; others, and every `UserError`, pass.
    """
    try:
        yield
    except UserError:
        raise
    except of as error:
        said = what.replace('{kind}', type(error).__name__).replace('{reason}', reason(error))
        raise UserError(said, where=where, fix=fix) from error


def reason(error: BaseException) -> str:
    """Returns what an exception says in one line, or its type where it says nothing."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or ['']
    return lines[0][:300] or type(error).__name__


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns `did you mean 'x'?`, or the list of choices where none is close."""
    choices = list(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if near:
        return f'did you mean {near[0]!r}?'
    return f'choose from {", ".join(map(repr, choices))}' if choices else 'there are no choices'
