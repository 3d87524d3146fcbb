"""Fits a linear probe: logistic regression on frozen features, for a range of L2 penalties.

Prints a table of the penalties, the metrics of the best and, as the last line, one JSON object.
"""

import dataclasses
from pathlib import Path

from tlflax.config import cli, flags
from tlflax.config.flags import ConfigFile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments of the command."""

    config: ConfigFile = flags.config_file()
    workdir: str | None = flags.optional(
        None, 'DIR', 'folder to write to; by default runs/CONFIG-probe'
    )
    standardize: bool = flags.switch('scale each feature to zero mean and unit variance')


def main(arguments: Arguments) -> None:
    """Fits the probe and prints its results."""
    from tlflax.probe import run
    from tlflax.train import metrics
    from tlflax.train.setup import configure
    from tlflax.utils.files import dump_json
    from tlflax.workdir.files import Workdir

    work = Workdir(Path(arguments.workdir or f'runs/{arguments.config.name}-probe'))
    config = configure(arguments.config.values)
    result = run.run(config, work, standardize=arguments.standardize)
    print(run.format_table(work.records()))
    print(metrics.format_table(result['val']))
    best = work.records()[result['best_epoch'] - 1]
    shown = ('l2', 'gradient_norm', 'val_accuracy', 'val_loss')
    print(dump_json({'workdir': str(work.path), **{key: best[key] for key in shown}}))


COMMAND = cli.Command('tlflax.probe', __doc__, Arguments, main, '--config=configs/traffic.py')

if __name__ == '__main__':
    COMMAND.run()
