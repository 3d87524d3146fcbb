"""Writes a page about a run, or compares finished runs on the same validation images.

One run: `report.html` in its workdir shows its result, learning curves, confusion matrix, mistakes,
the nearest training images, a map of the features and the audit of the data; the last line printed
is the name of the file.

Several runs: is B better than A? Images are matched by their contents, wherever they are. Prints
what each run reaches and costs, a sentence for each pair of runs, with a 95 % interval and an exact
test, and the images on which the runs differ; writes the same as a page, `comparison.html`. The
last line is one JSON object. A cross-validation is compared by its predictions of the images that
each of its runs held out.
"""

import dataclasses
import os
from pathlib import Path

from tlflax.config import cli, flags
from tlflax.utils.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments of the command."""

    runs: tuple[str, ...] = flags.positional('run', '[RUN...]', 'folders of runs', needed=False)
    workdir: str | None = flags.optional(None, 'DIR', 'the same as naming this one run')
    output: str | None = flags.optional(
        None,
        'FILE.html',
        'the page to write; by default report.html in the workdir of one run, and comparison.html '
        'for several',
    )
    differences: str | None = flags.optional(
        None, 'FILE.csv', 'write the images on which the runs do not predict the same class'
    )


def main(arguments: Arguments) -> None:
    """Writes the page of a run, or compares the runs and prints the comparison."""
    asked = (*arguments.runs, *filter(None, [arguments.workdir]))
    names = [name.rstrip('/') or name for name in asked]
    if not names:
        raise flags.UsageError('no run is given', where='command line')
    if arguments.differences is not None and len(names) == 1:
        raise flags.UsageError('--differences needs several runs', where='command line')
    places = [os.path.realpath(name) for name in names]
    if twice := [name for name, at in zip(names, places, strict=True) if places.count(at) > 1]:
        raise UserError('this run is given twice', where=twice[-1], fix='give others')
    files = [os.path.realpath(path) for path in (arguments.output, arguments.differences) if path]
    if len(set(files)) < len(files):
        raise UserError('this file is to be both', where=files[0], fix='name two')

    from tlflax.utils.storage.connect import is_url
    from tlflax.workdir.files import read_json

    for name in names:
        if not is_url(name):
            read_json(Path(name) / 'config.json')

    from tlflax.inference.mistakes import check_writable
    from tlflax.workdir.mirror.read import added_to

    for path in filter(None, (arguments.output, arguments.differences)):
        check_writable(path)
    if len(names) > 1:
        from tlflax.report.comparison.run import run

        run(names, arguments.output or 'comparison.html', arguments.differences)
    else:
        from tlflax.report import write_run

        with added_to(names[0]) as folder:
            print(write_run(folder, arguments.output))


COMMAND = cli.Command('tlflax.report', __doc__, Arguments, main, 'runs/a runs/b')

if __name__ == '__main__':
    COMMAND.run()
