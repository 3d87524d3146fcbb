"""Classifies images with a trained classifier.

Prints a line for each image: its path, the most probable class and the probability of that class.
Files that cannot be read are named on stderr, and the exit code is then 2.

Images are files, folders of them, patterns in quotes ('photos/**/*.jpg'), and - for those that
standard input names, one a line: find photos -newer list | python -m tlflax.predict ... -
"""

import dataclasses
import sys

from tlflax.config import cli, flags


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments of the command."""

    workdir: str = flags.required('DIR', 'folder of the training run')
    images: tuple[str, ...] = flags.positional(
        'image', 'IMAGE...', 'image files, folders and patterns of them, - for standard input'
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
    top_k: str | None = flags.optional(None, 'N', 'show the N most probable classes')
    threshold: str | None = flags.optional(
        None, 'P', 'call predictions of a probability below P unsure'
    )
    tta: bool = flags.switch(
        'test-time augmentation: average over mirrored copies, and crops if trained on them'
    )
    calibrated: bool = flags.switch('apply the temperature that fits the validation images')
    keep_features: bool = flags.switch('add the features of these images to the feature cache')


def main(arguments: Arguments) -> None:
    """Prints the predictions as they come, and the files that cannot be classified."""
    from tlflax.workdir.folders import require_run

    require_run(arguments.workdir)

    from tlflax.data.inputs import loose_images
    from tlflax.inference import prediction

    style = prediction.Style.parse(arguments.format, arguments.top_k, arguments.threshold)

    from tlflax.inference.restore import load

    classifier = load(arguments.workdir, arguments.step)
    lines = sys.stdin.buffer if sys.stdin else ()  # it may be closed
    images = loose_images.of_command(arguments.images, lines)
    found = classifier.predict_each(
        images,
        tta=arguments.tta,
        keep_features=arguments.keep_features,
        calibrated=arguments.calibrated,
        no_more=True,
    )
    show = prediction.printer(style, classifier.class_names)
    total = len(images) if isinstance(images, list) else None
    prediction.print_each(found, show, 'classified', total)


_EXAMPLE = '--workdir=runs/traffic photo.jpg folder/'
COMMAND = cli.Command('tlflax.predict', __doc__, Arguments, main, _EXAMPLE)

if __name__ == '__main__':
    COMMAND.run()
