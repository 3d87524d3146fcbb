"""Trains a classifier, or continues a training that was interrupted.

Writes configuration, metrics, checkpoints, result and report.html to the workdir, and prints the
metrics of the best epoch by class. The same command continues; what is finished is left as it is.

--find_lr and --find_batch_size only suggest. Several machines: start it on each (docs/scaling.md).
"""

import dataclasses

from tlflax.config import cli, flags
from tlflax.config.flags import ConfigFile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(flags.Together):
    """The arguments of the command."""

    config: ConfigFile = flags.config_file()
    workdir: str | None = flags.optional(None, 'DIR', 'folder or URL to write to; or runs/CONFIG')
    find_lr: bool = flags.switch('suggest a learning rate; draws lr.svg in the workdir')
    find_batch_size: bool = flags.switch('suggest a batch size from speed and gradient noise')


def main(arguments: Arguments) -> None:
    """Trains, prints the metrics of the best epoch and writes the report."""
    with cli.together(arguments):
        _main(arguments)


def _main(arguments: Arguments) -> None:
    from tlflax.workdir.folders import require_images

    values, workdir = arguments.config.values, arguments.workdir or f'runs/{arguments.config.name}'
    require_images(values, workdir)
    from tlflax.config.parse import resolve
    from tlflax.train import components, loop
    from tlflax.utils.interrupts import Agreed
    from tlflax.workdir.mirror.write import mirrored

    asked = {'rate': arguments.find_lr, 'size': arguments.find_batch_size}
    try:
        with mirrored(workdir) as folder, components.backbones_kept():
            if any(asked.values()):
                from tlflax.train.finders.command import find

                return print(find(values, folder, **asked))
            print(_train(arguments.config, folder))
            if resolve(values).train.report:
                from tlflax.report.write import write_after

                write_after(folder)
    except loop.Interrupted as end:
        done = f'saved at step {end.step} in {workdir}' if end.step else 'no step done'
        raise Agreed(f'{done}; run the same command to continue') from None


def _train(config: ConfigFile, workdir: str) -> str:
    """Trains, and returns what a person reads of the result; imports what that takes alone."""
    values = config.values
    if values.data.fold == 'all':
        from tlflax.sweep import folds

        return folds.format_report(folds.cross_validate(values, workdir))
    from tlflax.train.result import format_result

    if values.model.head == 'auto':
        from tlflax.sweep import auto, auto_report

        result, report = auto.choose_and_evaluate(values, workdir)
        return f'{auto_report.format_table(report)}\n{format_result(result)}'
    from tlflax.train.run import train_and_evaluate

    return format_result(train_and_evaluate(values, workdir))


COMMAND = cli.Command('tlflax.train', __doc__, Arguments, main, '--config=configs/traffic.py')

if __name__ == '__main__':
    COMMAND.run()
