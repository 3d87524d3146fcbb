"""Trains dozens of heads at once and ranks them.

The sweep file is Python and defines which configuration keys each head changes:

    from tlflax.sweep import grid

    def get_sweep():
        return grid(**{'optim.learning_rate': [1e-2, 1e-3, 1e-4], 'train.seed': [0, 1, 2]})

Prints the ranking; the workdir also has it as sweep.csv and sweep.json, and the best head as a run
of its own, which `evaluate` and `predict` take.
"""

import dataclasses
from pathlib import Path

from tlflax.config import cli, flags
from tlflax.config.flags import ConfigFile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(flags.Together):
    """The arguments of the command."""

    config: ConfigFile = flags.config_file()
    sweep: str = flags.required(
        'FILE', 'Python file with get_sweep(), such as configs/sweeps/rates.py'
    )
    workdir: str | None = flags.optional(
        None, 'DIR', 'folder to write to; by default runs/CONFIG-SWEEP'
    )


def main(arguments: Arguments) -> None:
    """Trains the heads and prints their ranking."""
    with cli.together(arguments):
        _main(arguments)


def _main(arguments: Arguments) -> None:
    from tlflax.sweep.settings import read_settings
    from tlflax.workdir.folders import require_images

    sweep = arguments.sweep
    settings = read_settings(Path(sweep))
    workdir = arguments.workdir or f'runs/{arguments.config.name}-{Path(sweep).stem}'
    require_images(arguments.config.values, workdir)

    from tlflax.sweep.ranking import format_table
    from tlflax.sweep.run import run
    from tlflax.train.setup import configure
    from tlflax.workdir.files import Workdir
    from tlflax.workdir.mirror.write import mirrored

    config = configure(arguments.config.values)
    with mirrored(workdir) as folder:
        ranking = run(config, settings, Workdir(Path(folder)), where=sweep)
        print(format_table(ranking))
        print(f'the best is the run in {workdir}/best')
        if config.train.report:
            from tlflax.report.write import write_after

            write_after(Path(folder) / 'best')


COMMAND = cli.Command(
    'tlflax.sweep',
    __doc__,
    Arguments,
    main,
    '--config=configs/traffic.py --sweep=configs/sweeps/rates.py',
)

if __name__ == '__main__':
    COMMAND.run()
