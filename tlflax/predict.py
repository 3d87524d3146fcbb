"""Classifies images with a trained classifier.

Prints a line for each image: its path, the most probable class and the probability of that class.
Files that cannot be read are named on stderr, and the exit code is then 2.
"""

import dataclasses

from tlflax.config import cli, flags


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments of the command."""

    workdir: str = flags.required('DIR', 'folder of the training run')
    images: tuple[str, ...] = flags.positional(
        'image', 'IMAGE...', 'image files, and folders of them'
    )
    step: str | None = flags.optional(
        None,
        'STEP',
        "checkpoint: 'best', 'last' or a step's number; by default the one in result.json",
    )
    format: str = flags.choice(
        'text',
        ('text', 'json', 'csv'),
        'json: one object per line; json and csv have the probability of every class',
    )
    tta: bool = flags.switch(
        'test-time augmentation: average over mirrored copies, and crops if trained on them'
    )
    calibrated: bool = flags.switch('apply the temperature that fits the validation images')
    keep_features: bool = flags.switch('add the features of these images to the feature cache')


def main(arguments: Arguments) -> None:
    """Prints the predictions as they come, and the files that cannot be classified."""
    from tlflax.inference import prediction
    from tlflax.inference.restore import load

    classifier = load(arguments.workdir, arguments.step)
    show = prediction.printer(arguments.format, classifier.class_names)
    found = classifier.predict_each(
        arguments.images,
        tta=arguments.tta,
        keep_features=arguments.keep_features,
        calibrated=arguments.calibrated,
    )
    prediction.print_each(found, show, 'classified')


_EXAMPLE = '--workdir=runs/traffic photo.jpg folder/'
COMMAND = cli.Command('tlflax.predict', __doc__, Arguments, main, _EXAMPLE)

if __name__ == '__main__':
    COMMAND.run()
