"""The one exception shown to users as a sentence, and did-you-mean."""

import difflib
from collections.abc import Iterable

EXIT_CODE = 2


class UserError(Exception):
    """Something the user can fix: what is wrong, where, and how to put it right.

    Entry points print it as one sentence without a traceback and exit with `EXIT_CODE`.

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


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns `did you mean 'x'?`, or the list of choices where none is close."""
    choices = list(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if near:
        return f'did you mean {near[0]!r}?'
    return f'choose from {", ".join(map(repr, choices))}' if choices else 'there is none'
