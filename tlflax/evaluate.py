"""Evaluates a trained classifier on its validation images, or on other labeled images.

Prints a table of metrics by class and, as the last line, one JSON object.
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
    calibrated: bool = flags.switch('apply the temperature that fits the validation images')


def main(arguments: Arguments) -> None:
    """Prints the metrics."""
    from tlflax.inference.restore import load
    from tlflax.train.metrics import table
    from tlflax.utils.files import dump_json

    classifier = load(arguments.workdir, arguments.step)
    result = classifier.evaluate(
        arguments.data,
        tta=arguments.tta,
        mistakes=arguments.mistakes,
        calibrated=arguments.calibrated,
    )
    print(table.format_table(result))
    print(dump_json(result))


COMMAND = cli.Command('tlflax.evaluate', __doc__, Arguments, main, '--workdir=runs/traffic')

if __name__ == '__main__':
    COMMAND.run()
