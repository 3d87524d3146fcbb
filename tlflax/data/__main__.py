"""Audits images: `python -m tlflax.data --train=photos/Train --val=photos/Test`.

Says what would spoil a result: images in two splits or under two labels, look-alikes, bad files,
classes that differ. The last line is one JSON object. Exit code 0: nothing would spoil a result;
1: something would; 2: the command cannot be carried out.
"""

import dataclasses
import json
import sys

from absl import flags

from tlflax import auditing, cli
from tlflax.config import DataConfig, resolve
from tlflax.data import audit_report
from tlflax.data.problems import CODES
from tlflax.errors import UserError


def _main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(
            f'{arguments[0]!r} is no flag',
            where='command line',
            mend='for example: python -m tlflax.data --train=photos/Train --val=photos/Test',
        )
    accepted, report = flags.FLAGS.accept, flags.FLAGS.report
    auditing.check_accepted(accepted)
    if report:
        audit_report.check_format(report)
    found = auditing.run(_data())
    print(audit_report.text(found.problems, found.summary))
    if report:
        audit_report.write(report, found.problems, found.summary)
        print(f'everything is in {report}')
    figures = found.figures(accepted)
    print(json.dumps(figures))
    sys.exit(1 if figures['spoilt'] else 0)


def _data() -> DataConfig:
    """The splits that the flags name, or the config file."""
    given = {name: getattr(flags.FLAGS, name) for name in ('train', 'val', 'test')}
    given = {name: spec for name, spec in given.items() if spec is not None}
    if flags.FLAGS.config is not None:
        return dataclasses.replace(resolve(flags.FLAGS.config).data, **given)
    return DataConfig(**given)


if __name__ == '__main__':
    cli.config_flag()
    flags.DEFINE_string('train', None, 'Training images: as config.data.train, see docs/data.md.')
    flags.DEFINE_string('val', None, 'Validation images.')
    flags.DEFINE_string('test', None, 'Test images.')
    flags.DEFINE_string(
        'report', None, 'Write everything to this file: .json for programs, .html with the images.'
    )
    flags.DEFINE_list('accept', [], f'Errors that do not count: {", ".join(CODES)}.')
    cli.run(_main)
