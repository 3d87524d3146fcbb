"""Trains a classifier: `python -m tlflax.train --config=configs/traffic.py`."""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from tlflax.config import cli
from tlflax.train.loop import Interrupted
from tlflax.train.run import train_and_evaluate
from tlflax.utils.errors import UserError


def _main(arguments: list[str]) -> None:
    config = flags.FLAGS.config
    if config is None or arguments:
        raise UserError(
            'a config file is needed' if config is None else f'{arguments[0]!r} is no flag',
            where='command line',
            fix='for example: python -m tlflax.train --config=configs/traffic.py',
        )
    name = Path(config_flags.get_config_filename(flags.FLAGS['config'])).stem
    workdir = flags.FLAGS.workdir or f'runs/{name}'
    try:
        train_and_evaluate(config, workdir)
    except Interrupted as interrupted:
        raise KeyboardInterrupt(
            f'saved at step {interrupted.step} in {workdir}; the same command goes on from there'
        ) from None


if __name__ == '__main__':
    cli.config_flag()
    flags.DEFINE_string('workdir', None, 'Folder of the run; runs/<config name> by default.')
    cli.run(_main)
