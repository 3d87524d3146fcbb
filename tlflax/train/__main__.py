"""Trains a classifier, or continues a training that was interrupted.

Writes configuration, metrics, checkpoints, the result and a page about it, report.html, to the
workdir, and prints the metrics of the best epoch by class. The same command continues after an
interruption; a finished run is not trained again.

--find_lr and --find_batch_size keep nothing: they suggest a learning rate or a batch size.

On several machines, start it on each: SLURM, Open MPI, Kubernetes and Cloud TPU tell it of the
others, elsewhere --coordinator, --num_processes and --process_id do (docs/scaling.md).
"""

import dataclasses

from tlflax.config import cli, flags
from tlflax.config.flags import ConfigFile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(flags.Together):
    """The arguments of the command."""

    config: ConfigFile = flags.config_file()
    workdir: str | None = flags.optional(None, 'DIR', 'folder to write to; by default runs/CONFIG')
    find_lr: bool = flags.switch('suggest a learning rate; draws lr.svg in the workdir')
    find_batch_size: bool = flags.switch('suggest a batch size from speed and gradient noise')


def main(arguments: Arguments) -> None:
    """Trains, prints the metrics of the best epoch and writes the report."""
    with cli.together(arguments):
        left = _main(arguments)
    if left:
        raise KeyboardInterrupt(left)


def _main(arguments: Arguments) -> str:
    """Carries the command out; returns what is left to say where it was interrupted."""
    from tlflax.config.parse import resolve
    from tlflax.train.loop import Interrupted
    from tlflax.utils.parallel import processes

    values, workdir = arguments.config.values, arguments.workdir or f'runs/{arguments.config.name}'
    if arguments.find_lr or arguments.find_batch_size:
        print(_find(arguments, workdir))
        return ''
    try:
        said = _train(arguments.config, workdir)
    except Interrupted as end:
        done = f'saved at step {end.step} in {workdir}' if end.step else 'no step done'
        return f'{done}; run the same command to continue'
    if processes.is_primary():
        print(said)
        if resolve(values).train.report:
            from tlflax.report.write import write_after

            write_after(workdir)
    return ''


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


def _find(arguments: Arguments, workdir: str) -> str:
    """Returns the report of a finder."""
    from tlflax.train.finders.command import find_batch_size, find_learning_rate

    if arguments.find_lr and arguments.find_batch_size:
        raise flags.UsageError(
            '--find_lr and --find_batch_size are two questions', where='command line', fix='ask one'
        )
    of = arguments.config.values
    return find_learning_rate(of, workdir) if arguments.find_lr else find_batch_size(of)


COMMAND = cli.Command('tlflax.train', __doc__, Arguments, main, '--config=configs/traffic.py')

if __name__ == '__main__':
    COMMAND.run()
