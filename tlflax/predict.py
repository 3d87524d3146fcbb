"""Classifies images with a trained classifier.

Prints a line for each image: its path, the most probable class and the probability of that class.
Files that cannot be read are named on stderr, and the exit code is then 2.
"""

import csv
import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tlflax.config import cli, flags
from tlflax.utils.errors import UserError
from tlflax.utils.files import dump_json

if TYPE_CHECKING:
    from tlflax.inference.trained import Prediction


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


def main(arguments: Arguments) -> None:
    """Prints the predictions, and the files that cannot be read."""
    from tlflax.data.splits import loose_files
    from tlflax.inference.restore import load

    classifier = load(arguments.workdir, arguments.step)
    paths, limit = loose_files.find(arguments.images), classifier.config.data.max_pixels
    table, faults = loose_files.table(paths, max_pixels=limit)
    if len(table):
        _print(classifier.predict(list(table.paths), tta=arguments.tta), arguments.format)
    for fault in faults:
        print(f'error: {fault}', file=sys.stderr)
    if faults:
        what = f'{len(faults)} of {len(faults) + len(table)} files could not be classified'
        raise UserError(what, where='command line', fix='see the lines above')


def _print(predictions: Sequence['Prediction'], form: str) -> None:
    if form == 'csv':
        writer = csv.writer(sys.stdout)
        writer.writerow(['path', 'class', 'probability', *predictions[0].probabilities])
        for p in predictions:
            writer.writerow([p.path, p.label, p.probability, *p.probabilities.values()])
        return
    for p in predictions:
        if form == 'json':
            record = {'path': p.path, 'class': p.label, 'probability': p.probability}
            print(dump_json({**record, 'probabilities': p.probabilities}))
        else:
            print(f'{p.path}  {p.label}  {p.probability:.4f}')


_EXAMPLE = '--workdir=runs/traffic photo.jpg folder/'
COMMAND = cli.Command('tlflax.predict', __doc__, Arguments, main, _EXAMPLE)

if __name__ == '__main__':
    COMMAND.run()
