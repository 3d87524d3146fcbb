"""Writes the page of a run, when it has ended or later."""

from pathlib import Path

from absl import logging

from tlflax.data.inputs.listing import Announced
from tlflax.report.gather import cross_validation, run
from tlflax.report.page.render import render_run
from tlflax.report.page.write import write
from tlflax.utils.errors import UserError, reason
from tlflax.utils.parallel.processes import on_primary

FILE = 'report.html'
"""In a workdir, its page."""


def write_run(
    workdir: str | Path, path: str | Path | None = None, announced: Announced | None = None
) -> Path:
    """Writes the page of a finished run or cross-validation, a file that needs no other.

    Args:
        workdir: The folder of the run.
        path: The file; None: `report.html` in the workdir.
        announced: Of which images the log need not tell again.

    Returns:
        The file.

    Raises:
        UserError: The run is not finished, cannot be restored, or its validation images have
            changed; or the file cannot be written.
    """
    if cross_validation.is_one(workdir):
        page = cross_validation.gather(workdir)
    else:
        page = run.gather(workdir, announced)
    return write(path or Path(workdir) / FILE, render_run(page))


@on_primary
def write_after(workdir: str | Path) -> None:
    """Writes the page of a run that has ended, unless it is there; what hinders it is logged.

    A run is finished without its page, so nothing that is wrong with that may fail the command.
    """
    path = Path(workdir) / FILE
    if path.exists():
        return
    try:
        write_run(workdir, announced=Announced(everything=True))  # the training has
    except UserError as error:
        logging.warning('WARNING: no report was written: %s', error)
    except Exception as error:  # memory, or a mistake of the page's: a run is worth more
        what = f'{type(error).__name__}: {reason(error)}'
        again = f'python -m tlflax.report --workdir={workdir}'
        logging.warning('WARNING: no report was written (%s); `%s` shows where', what, again)
    else:
        logging.info('the report is %s', path)
