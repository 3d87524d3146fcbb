"""Fits a linear probe: logistic regression on frozen features, for a range of L2 penalties.

Cross-validation on the training images chooses the penalty. Prints a table of the penalties, the
metrics of the best and, as the last line, one JSON object.

With --shots, fits ridge classifiers to random draws of few training images of each class instead,
and prints their mean accuracy and its 95 % interval; the workdir gets shots.csv and shots.json.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from tlflax.config import cli, flags
from tlflax.config.flags import ConfigFile
from tlflax.utils.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments of the command."""

    config: ConfigFile = flags.config_file()
    workdir: str | None = flags.optional(
        None, 'DIR', 'folder to write to; by default runs/CONFIG-probe or runs/CONFIG-shots'
    )
    representation: Literal['raw', 'standard', 'row', 'power'] = flags.choice(
        'raw', ('raw', 'standard', 'row', 'power'), 'normalization; see tlflax.probe.run'
    )
    shots: tuple[str, ...] = flags.optional(
        (), 'N,N', 'numbers of training images of each class, such as 1,2,5,10,20'
    )
    draws: str | None = flags.optional(None, 'N', 'random draws of each number; 20 by default')


def main(arguments: Arguments) -> None:
    """Fits the probe, or those of the draws, and prints the results."""
    from tlflax.utils.files import dump_json
    from tlflax.workdir.folders import require_images
    from tlflax.workdir.mirror.write import mirrored

    if arguments.draws is not None and not arguments.shots:
        raise UserError('only --shots has draws', where='--draws', fix='add --shots=1,2,5,10,20')
    kind = 'shots' if arguments.shots else 'probe'
    workdir = arguments.workdir or f'runs/{arguments.config.name}-{kind}'
    require_images(arguments.config.values, workdir)
    with mirrored(workdir) as folder:
        shown, result = (_run_shots if arguments.shots else _run_path)(arguments, folder)
        print(shown, dump_json(result), sep='\n')


def _run_path(arguments: Arguments, folder: str) -> tuple[str, dict[str, object]]:
    from tlflax.probe import path, run
    from tlflax.train.metrics import table
    from tlflax.train.setup import configure
    from tlflax.workdir.files import Workdir

    work = Workdir(Path(folder))
    result = run.run(configure(arguments.config.values), work, arguments.representation)
    shown = f'{path.format_table(work.records())}\n{table.format_table(result["val"])}'
    best = work.records()[result['best_epoch'] - 1]
    keys = ('l2', 'gradient_norm', 'cv_accuracy', 'cv_loss', 'val_accuracy', 'val_loss')
    return shown, {'workdir': str(work.path), **{key: best[key] for key in keys}}


def _run_shots(arguments: Arguments, folder: str) -> tuple[str, dict[str, object]]:
    from tlflax.probe import shots
    from tlflax.train.setup import configure
    from tlflax.workdir.files import Workdir

    counts, draws = shots.parse(arguments.shots, arguments.draws, arguments.representation)
    work = Workdir(Path(folder))
    result = shots.run(configure(arguments.config.values), work, counts, draws)
    return shots.format_table(result['shots']), {'workdir': str(work.path), **result}


COMMAND = cli.Command('tlflax.probe', __doc__, Arguments, main, '--config=configs/traffic.py')

if __name__ == '__main__':
    COMMAND.run()
