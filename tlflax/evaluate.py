"""Evaluates a trained classifier on its validation images, or on other labeled images.

Prints a table of metrics by class and, as the last line, one JSON object. With --watch, it follows
a training that is under way: one JSON object for each new checkpoint, until it is finished.
"""

import dataclasses

from tlflax.config import cli, flags


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments of the command."""

    workdir: str = flags.required('DIR', 'folder of the training run')
    data: str | None = flags.optional(
        None,
        'IMAGES',
        'labeled images, given like config.data.train; by default the validation images of the run',
    )
    step: str | None = flags.optional(
        None,
        'STEP',
        "checkpoint: 'best', 'last' or a step's number; by default the one in result.json",
    )
    mistakes: str | None = flags.optional(
        None, 'FILE.csv', 'write the images that are classified wrongly, the worst first'
    )
    tta: bool = flags.switch(
        'test-time augmentation: average over mirrored copies, and crops if trained on them'
    )
    watch: bool = flags.switch('evaluate each new checkpoint of a training that is under way')
    calibrated: bool = flags.switch('apply the temperature that fits the validation images')


def main(arguments: Arguments) -> None:
    """Prints the metrics."""
    if not arguments.watch:
        from tlflax.workdir.folders import require_run

        require_run(arguments.workdir)

    from tlflax.inference.restore import load
    from tlflax.inference.trained import Trained
    from tlflax.inference.watch import evaluate_each
    from tlflax.train.metrics import table
    from tlflax.utils.errors import UserError
    from tlflax.utils.files import JsonObject, dump_json

    def evaluated(classifier: Trained) -> JsonObject:
        return classifier.evaluate(
            arguments.data,
            tta=arguments.tta,
            mistakes=arguments.mistakes,
            calibrated=arguments.calibrated,
        )

    if not arguments.watch:
        result = evaluated(load(arguments.workdir, arguments.step))
        print(table.format_table(result))
        print(dump_json(result))
        return
    if arguments.step or arguments.calibrated:
        raise UserError(
            'each checkpoint is evaluated, and its temperature is not known yet',
            where='--watch',
            fix='leave out --step and --calibrated',
        )
    for result in evaluate_each(arguments.workdir, evaluated):
        print(dump_json(result), flush=True)


COMMAND = cli.Command('tlflax.evaluate', __doc__, Arguments, main, '--workdir=runs/traffic')

if __name__ == '__main__':
    COMMAND.run()
