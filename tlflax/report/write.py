"""Writes pages: of one run, and of several that are compared."""

from pathlib import Path

from absl import logging

from tlflax.report.gather import cross_validation, run
from tlflax.report.page.contents import ComparisonPage
from tlflax.report.page.render import render_comparison, render_run
from tlflax.utils.errors import UserError, as_user_error
from tlflax.utils.files import atomic_write

FILE = 'report.html'
"""In a workdir, its page."""


def write_run(workdir: str | Path, path: str | Path | None = None) -> Path:
    """Writes the page of a finished run or cross-validation, a file that needs no other.

    Args:
        workdir: The folder of the run.
        path: The file; None: `report.html` in the workdir.

    Returns:
        The file.

    Raises:
        UserError: The run is not finished, cannot be restored, or its validation images have
            changed; or the file cannot be written.
    """
    of = cross_validation if cross_validation.is_one(workdir) else run
    return _write(Path(path or Path(workdir) / FILE), render_run(of.gather(workdir)))


def write_after(workdir: str | Path) -> None:
    """Writes the page of a run that has ended, unless it is there; what hinders it is logged.

    A run is finished without its page, so nothing that is wrong with that may end the command.
    """
    path = Path(workdir) / FILE
    if path.exists():
        return
    try:
        write_run(workdir)
    except UserError as error:
        logging.warning('WARNING: no report was written: %s', error)
    else:
        logging.info('the report is %s', path)


def write_comparison(path: str | Path, page: ComparisonPage) -> Path:
    """Writes the page of runs that were compared.

    Raises:
        UserError: The file cannot be written.
    """
    return _write(Path(path), render_comparison(page))


def _write(path: Path, page: str) -> Path:
    with as_user_error(
        'the report cannot be written: {reason}',
        where=str(path),
        fix='name another file with --output',
        of=(OSError,),
    ):
        atomic_write(path, page.encode(errors='replace'))
    return path
