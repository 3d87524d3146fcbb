"""Evaluates a checkpoint: `python -m tlflax.evaluate --workdir=runs/traffic`."""

import json

from absl import flags

from tlflax.config import cli
from tlflax.inference.restore import load
from tlflax.train import metrics
from tlflax.utils.errors import UserError


def _main(arguments: list[str]) -> None:
    if arguments or not flags.FLAGS.workdir:
        raise UserError(
            f'{arguments[0]!r} is no flag' if arguments else 'no workdir is given',
            where='command line',
            fix='for example: python -m tlflax.evaluate --workdir=runs/traffic',
        )
    classifier = load(flags.FLAGS.workdir, flags.FLAGS.step)
    result = classifier.evaluate(flags.FLAGS.data, tta=flags.FLAGS.tta)
    print(metrics.format_table(result))
    print(json.dumps(result))


if __name__ == '__main__':
    flags.DEFINE_string('workdir', None, 'Folder of the run.')
    flags.DEFINE_string('data', None, "Class folders; by default the run's validation images.")
    flags.DEFINE_string('step', 'best', "'best', 'last' or the number of a saved step.")
    flags.DEFINE_bool('tta', False, 'Mean over mirror images, and crops as trained with.')
    cli.run(_main)
