"""Trains a classifier: `python -m tlflax.train --config=configs/traffic.py`."""

from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from tlflax import cli, loop, training
from tlflax.config import resolve, to_dict
from tlflax.errors import UserError
from tlflax.report import Workdir


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Trains, or goes on training, until early stopping or the last epoch.

    Args:
        config: As a config file's `get_config()` returns it.
        workdir: Where config, metrics, checkpoints and result are written.

    Returns:
        The contents of `workdir/result.json`. A finished run is not run again.

    Raises:
        UserError: Something the user can mend.
        tlflax.loop.Interrupted: SIGINT or SIGTERM came, and the state is saved.
    """
    resolved = resolve(config)
    work = Workdir(Path(workdir))
    work.check(to_dict(resolved))
    result = work.result()
    if result is not None:
        logging.info('%s is finished; the result is in result.json', work.path)
        return result
    return training.run(resolved, work)


def _main(arguments: list[str]) -> None:
    config = flags.FLAGS.config
    if config is None or arguments:
        raise UserError(
            'a config file is needed' if config is None else f'{arguments[0]!r} is no flag',
            where='command line',
            mend='for example: python -m tlflax.train --config=configs/traffic.py',
        )
    name = Path(config_flags.get_config_filename(flags.FLAGS['config'])).stem
    workdir = flags.FLAGS.workdir or f'runs/{name}'
    try:
        train_and_evaluate(config, workdir)
    except loop.Interrupted as interrupted:
        raise KeyboardInterrupt(
            f'saved at step {interrupted.step} in {workdir}; the same command goes on from there'
        ) from None


if __name__ == '__main__':
    cli.config_flag()
    flags.DEFINE_string('workdir', None, 'Folder of the run; runs/<config name> by default.')
    cli.run(_main)
