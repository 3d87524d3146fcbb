"""Writes a page as a file."""

from pathlib import Path

from tlflax.utils.errors import as_user_error
from tlflax.utils.files import atomic_write


def write(path: str | Path, page: str) -> Path:
    """Writes a page, whole or not at all, and returns its file.

    Raises:
        UserError: It cannot be written.
    """
    with as_user_error(
        'the report cannot be written: {reason}',
        where=str(path),
        fix='name another file with --output',
        of=(OSError,),
    ):
        atomic_write(Path(path), page.encode(errors='replace'))
    return Path(path)
