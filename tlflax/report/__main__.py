"""Compares finished runs on the same validation images: is B better than A?

Images are matched by their contents, wherever they are. Prints what each run reaches and costs, a
sentence for each pair of runs, with a 95 % interval and an exact test, and the images on which the
runs differ. The last line is one JSON object. A cross-validation is compared by its predictions of
the images that each of its runs held out.
"""

import dataclasses

from tlflax.config import cli, flags
from tlflax.utils.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments of the command."""

    runs: tuple[str, ...] = flags.positional('run', 'RUN...', 'folders of two or more runs')
    differences: str | None = flags.optional(
        None, 'FILE.csv', 'write the images on which the runs do not predict the same class'
    )


def main(arguments: Arguments) -> None:
    """Compares the runs and prints the comparison."""
    names = [name.rstrip('/') or name for name in arguments.runs]
    if len(names) < 2:
        raise flags.UsageError('only one run is given', where='command line')
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError('this run is given twice', where=twice[0], fix='give others')

    from tlflax.inference.mistakes import check_writable
    from tlflax.report import compare, text
    from tlflax.report.predictions import read
    from tlflax.report.shared import share
    from tlflax.utils.files import dump_json

    if arguments.differences is not None:
        check_writable(arguments.differences)
    runs = [read(name) for name in names]
    shared = share(runs)
    comparison = compare.compare(runs, shared)
    rows = compare.differing(shared)
    print(text.format_comparison(comparison))
    print(text.format_differences(shared, rows, names))
    if arguments.differences is not None:
        text.write_differences(arguments.differences, shared, rows, names)
    print(dump_json({**comparison, 'num_differences': len(rows)}))


COMMAND = cli.Command('tlflax.report', __doc__, Arguments, main, 'runs/a runs/b')

if __name__ == '__main__':
    COMMAND.run()
