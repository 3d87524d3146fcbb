"""Audits images: `python -m tlflax.data --train=photos/Train --val=photos/Test`.

Says what would spoil a result: images in two splits or under two labels, look-alikes, bad files,
classes that differ. The last line is one JSON object. Exit code 0: nothing would spoil a result;
1: something would; 2: the command cannot be carried out. With `--show=FILE.png` it draws what
augmentation makes of some training images instead.
"""

import dataclasses
import json
import sys

from absl import flags

from tlflax.config import cli
from tlflax.config.parse import resolve
from tlflax.config.schema import Config
from tlflax.data.audit import report as audit_report
from tlflax.data.audit import run
from tlflax.data.audit.problems import CODES
from tlflax.data.images.format import ImageFormat
from tlflax.data.splits import load
from tlflax.utils.errors import UserError


def _main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(
            f'{arguments[0]!r} is no flag',
            where='command line',
            fix='for example: python -m tlflax.data --train=photos/Train --val=photos/Test',
        )
    if flags.FLAGS.show:
        _show(_config(), flags.FLAGS.show)
    else:
        _audit(_config(), flags.FLAGS.accept, flags.FLAGS.report)


def _audit(config: Config, accepted: list[str], report: str | None) -> None:
    run.check_accepted(accepted)
    if report:
        audit_report.check_format(report)
    found = run.run(config.data)
    print(audit_report.text(found.problems, found.summary))
    if report:
        audit_report.write(report, found.problems, found.summary)
        print(f'everything is in {report}')
    figures = found.figures(accepted)
    print(json.dumps(figures))
    sys.exit(1 if figures['spoilt'] else 0)


def _show(config: Config, path: str) -> None:
    table = load.load_train(config.data)
    from tlflax.data.pipeline import preview  # TensorFlow is imported only where it is needed

    settings = ImageFormat.of(config.data), config.augment, config.train.seed
    preview.draw_grid(table, path, *settings)
    print(f'{path} shows training images, and what the first epochs make of them')


def _config() -> Config:
    """The config file or the defaults, with the splits that the flags name."""
    config = resolve(flags.FLAGS.config)
    given = {name: getattr(flags.FLAGS, name) for name in ('train', 'val', 'test')}
    given = {name: spec for name, spec in given.items() if spec is not None}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **given))


if __name__ == '__main__':
    cli.config_flag(file_needed=False)
    flags.DEFINE_string('train', None, 'Training images: as config.data.train, see docs/data.md.')
    flags.DEFINE_string('val', None, 'Validation images.')
    flags.DEFINE_string('test', None, 'Test images.')
    flags.DEFINE_string(
        'report', None, 'Write everything to this file: .json for programs, .html with the images.'
    )
    flags.DEFINE_list('accept', [], f'Errors that do not count: {", ".join(CODES)}.')
    flags.DEFINE_string('show', None, 'Draw augmented training images to this .png instead.')
    cli.run(_main)
