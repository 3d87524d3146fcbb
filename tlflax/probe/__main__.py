"""Fits a linear probe on frozen features: `python -m tlflax.probe --config=configs/traffic.py`."""

import json
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from tlflax.config import cli
from tlflax.config.parse import resolve
from tlflax.probe import run
from tlflax.train import metrics
from tlflax.utils.errors import UserError
from tlflax.workdir.files import Workdir


def _main(arguments: list[str]) -> None:
    config = flags.FLAGS.config
    if config is None or arguments:
        raise UserError(
            f'{arguments[0]!r} is no flag' if arguments else 'a config file is needed',
            where='command line',
            fix='for example: python -m tlflax.probe --config=configs/traffic.py',
        )
    name = Path(config_flags.get_config_filename(flags.FLAGS['config'])).stem
    work = Workdir(Path(flags.FLAGS.workdir or f'runs/{name}-probe'))
    result = run.run(resolve(config), work, standardize=flags.FLAGS.standardize)
    print(run.format_table(work.records()))
    print(metrics.format_table(result['val']))
    best = work.records()[result['best_epoch'] - 1]
    shown = ('l2', 'gradient_norm', 'val_accuracy', 'val_loss')
    print(json.dumps({'workdir': str(work.path), **{key: best[key] for key in shown}}))


if __name__ == '__main__':
    cli.config_flag()
    flags.DEFINE_string('workdir', None, 'Where to write; runs/<config>-probe by default.')
    flags.DEFINE_bool('standardize', False, 'Zero mean and unit variance for each feature.')
    cli.run(_main)
