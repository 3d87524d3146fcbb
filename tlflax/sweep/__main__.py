"""Trains dozens of heads at once: `python -m tlflax.sweep --config=FILE --sweep=FILE`.

The sweep file is Python and defines what each head changes, by configuration key:

    from tlflax.sweep import grid

    def get_sweep():
        return grid(**{'optim.learning_rate': [1e-2, 1e-3, 1e-4], 'train.seed': [0, 1, 2]})
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from tlflax.config import cli
from tlflax.config.parse import resolve
from tlflax.sweep.ranking import format_table
from tlflax.sweep.run import run
from tlflax.sweep.settings import read_settings
from tlflax.utils.errors import UserError
from tlflax.workdir.files import Workdir


def _main(arguments: list[str]) -> None:
    config, sweep = flags.FLAGS.config, flags.FLAGS.sweep
    if config is None or not sweep or arguments:
        raise UserError(
            f'{arguments[0]!r} is no flag' if arguments else 'a config and a sweep file are needed',
            where='command line',
            fix='for example: python -m tlflax.sweep --config=configs/traffic.py '
            '--sweep=configs/sweeps/rates.py',
        )
    settings = read_settings(Path(sweep))
    name = Path(config_flags.get_config_filename(flags.FLAGS['config'])).stem
    workdir = flags.FLAGS.workdir or f'runs/{name}-{Path(sweep).stem}'
    ranking = run(resolve(config), settings, Workdir(Path(workdir)), where=sweep)
    print(format_table(ranking))
    print(f'the best is a workdir of its own: {workdir}/best')


if __name__ == '__main__':
    cli.config_flag()
    flags.DEFINE_string('sweep', None, 'Python file with get_sweep().')
    flags.DEFINE_string('workdir', None, 'Where to write; runs/<config>-<sweep> by default.')
    cli.run(_main)
