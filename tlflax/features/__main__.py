"""Shows or empties the feature cache; finds similar training images; writes features to a file.

info: lists what is cached, and its size.
clear: deletes what no process is using; clear NAME: what info lists under that name.
nearest: prints the training images that are most similar to each image, by the cosine of what the
head reads, as text, json or csv: nearest --workdir=runs/traffic --k=3 photo.jpg more/photos/
save: writes what the head reads of each image, with path, label and digest, as npz, csv or parquet:
save --workdir=runs/traffic --split=validation --output=features.parquet
"""

import dataclasses

from tlflax.config import cli, flags


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments of the command."""

    action: tuple[str, ...] = flags.positional('action', 'info|clear|nearest|save', 'what to do')
    workdir: str = flags.optional('', 'DIR', 'nearest, save: folder of the training run')
    step: str | None = flags.optional(None, 'STEP', 'nearest, save: of python -m tlflax.predict')
    k: str = flags.optional('5', 'N', 'nearest: how many training images')
    split: str = flags.choice('train', ('train', 'validation', 'test'), 'save: which images')
    data: str = flags.optional('', 'IMAGES', 'save: other images; see docs/data.md')
    output: str = flags.optional('', 'FILE', 'save: the file; its ending says the format')
    format: str = flags.optional('', 'FORMAT', 'nearest, save: one of those above')
    full: bool = flags.switch('save: all positions of a feature map in place of their mean')


def main(arguments: Arguments) -> None:
    """Carries out the action."""
    match arguments.action:
        case ['info'] | ['clear'] | ['clear', _]:
            _cache(*arguments.action)
        case ['nearest' | 'save', *_] if not arguments.workdir:
            raise flags.UsageError('no --workdir is given', where='command line')
        case ['nearest', *images]:
            _nearest(arguments, tuple(images))
        case ['save']:
            _save(arguments)
        case _:
            what = f'{" ".join(arguments.action)!r} is not an action'
            fix = 'info, clear, clear NAME, nearest IMAGE... and save are, as --help says'
            raise flags.UsageError(what, where='command line', fix=fix)


def _cache(action: str, *names: str) -> None:
    from tlflax.features.cache import quota
    from tlflax.utils import assets

    root = assets.cache_folder() / 'features'
    if action == 'info':
        return print(quota.format_info(root))
    freed, kept = quota.clear(root, *names)
    print(f'{freed / 1e9:.2f} GB freed' + (f', {kept / 1e9:.2f} GB in use kept' if kept else ''))


def _nearest(arguments: Arguments, images: tuple[str, ...]) -> None:
    from tlflax.inference import nearest, restore

    if not images:
        raise flags.UsageError('no image is given', where='command line')
    asked = nearest.check(arguments.k, arguments.format)
    nearest.show(restore.load(arguments.workdir, arguments.step), images, *asked)


def _save(arguments: Arguments) -> None:
    from tlflax.inference import embedding_files, restore

    a, form = arguments, embedding_files.choose_format(arguments.output, arguments.format)
    trained = restore.load(a.workdir, a.step)
    print(embedding_files.save(trained, a.output, form, a.split, a.data, full=a.full))


COMMAND = cli.Command('tlflax.features', __doc__, Arguments, main, 'info')

if __name__ == '__main__':
    COMMAND.run()
