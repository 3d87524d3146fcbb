"""Audits images before training: finds what would spoil a result.

Images (or near-duplicates) in two splits or under two labels, files that cannot be decoded, classes
that differ between splits. The last line is one JSON object. Exit code: 1 if such a problem was
found, 2 if the audit could not be carried out.
"""

import dataclasses

from tlflax.config import Config, cli, flags, resolve
from tlflax.config.flags import ConfigFile
from tlflax.data.audit.problems import CODES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments of the command."""

    train: str | None = flags.optional(None, 'IMAGES', 'training images: see docs/data.md')
    val: str | None = flags.optional(None, 'IMAGES', 'validation images')
    test: str | None = flags.optional(None, 'IMAGES', 'test images')
    config: ConfigFile = flags.config_file(needed=False)
    report: str | None = flags.optional(None, 'FILE', 'also write all findings: .json or .html')
    accept: tuple[str, ...] = flags.optional(
        (), 'CODE,...', f'problems that do not change the exit code: {", ".join(CODES)}'
    )
    show: str | None = flags.optional(None, 'FILE.png', 'draw augmented training images instead')


def main(arguments: Arguments) -> int:
    """Audits or draws; returns the exit code."""
    values = arguments.config.values
    for split in ('train', 'val', 'test'):
        if (images := getattr(arguments, split)) is not None:
            values.data[split] = images
    config = resolve(values)
    if not config.data.train:
        raise flags.UsageError('no training images are named', where='--train')
    if arguments.show:
        return _show(config, arguments.show)
    return _audit(config, arguments.accept, arguments.report)


def _audit(config: Config, accepted: tuple[str, ...], path: str | None) -> int:
    from tlflax.data.audit import report, run
    from tlflax.utils.files import dump_json

    run.check_accepted(accepted)
    if path:
        report.check_format(path)
    found = run.run(config.data)
    print(report.text(found.problems, found.summary))
    if path:
        from tlflax.report.gather.audit import write

        write(path, found, config.data)
    print(dump_json(figures := found.figures(accepted)))
    return 1 if figures['spoilt'] else 0


def _show(config: Config, path: str) -> int:
    from tlflax.data.images.format import ImageFormat
    from tlflax.data.pipeline import preview
    from tlflax.data.splits import load
    from tlflax.models.backbones import find

    form = ImageFormat.of(config.data, find(config.model.backbone).interpolation)
    table = load.load_train(config.data)
    preview.draw_grid(table, path, form, config.augment, config.train.seed)
    print(f'{path} shows training images, and how the first epochs augment them')
    return 0


_EXAMPLE = '--train=photos/Train --val=photos/Test'
COMMAND = cli.Command('tlflax.data', __doc__, Arguments, main, _EXAMPLE)

if __name__ == '__main__':
    COMMAND.run()
