"""Classifies images: `python -m tlflax.predict --workdir=runs/traffic photo.jpg folder/`."""

import csv
import json
import sys
from collections.abc import Sequence

from absl import flags

from tlflax.config import cli
from tlflax.data.splits import loose_files
from tlflax.inference.restore import load
from tlflax.inference.trained import Prediction
from tlflax.utils.errors import UserError


def _main(arguments: list[str]) -> None:
    if not arguments or not flags.FLAGS.workdir:
        raise UserError(
            'no workdir is given' if arguments else 'no image is given',
            where='command line',
            fix='for example: python -m tlflax.predict --workdir=runs/traffic photo.jpg',
        )
    classifier = load(flags.FLAGS.workdir, flags.FLAGS.step)
    limit = classifier.config.data.max_pixels
    table, faults = loose_files.table(loose_files.find(arguments), max_pixels=limit)
    if len(table):
        _print(classifier.predict(list(table.paths), tta=flags.FLAGS.tta), flags.FLAGS.format)
    for fault in faults:
        print(f'error: {fault}', file=sys.stderr)
    if faults:
        raise UserError(
            f'{len(faults)} of {len(faults) + len(table)} files could not be classified',
            where='command line',
            fix='see the lines above',
        )


def _print(predictions: Sequence[Prediction], form: str) -> None:
    if form == 'csv':
        classes = list(predictions[0].probabilities)
        writer = csv.writer(sys.stdout)
        writer.writerow(['path', 'class', 'probability', *classes])
        for p in predictions:
            writer.writerow([p.path, p.label, p.probability, *p.probabilities.values()])
        return
    for p in predictions:
        if form == 'json':
            record = {'path': p.path, 'class': p.label, 'probability': p.probability}
            print(json.dumps({**record, 'probabilities': p.probabilities}))
        else:
            print(f'{p.path}  {p.label}  {p.probability:.4f}')


if __name__ == '__main__':
    flags.DEFINE_string('workdir', None, 'Folder of the run.')
    flags.DEFINE_string('step', 'best', "'best', 'last' or the number of a saved step.")
    flags.DEFINE_enum('format', 'text', ['text', 'json', 'csv'], 'json: one object per line.')
    flags.DEFINE_bool('tta', False, 'Mean over mirror images, and crops as trained with.')
    cli.run(_main)
