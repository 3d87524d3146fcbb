"""Checks the classes and images of a split: can it be trained on, or beside the training split?"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from absl import logging

from tlflax.data.inputs.listing import Listing, Scan
from tlflax.data.inputs.walk import Report, stop
from tlflax.utils.errors import UserError, did_you_mean, printable, quoted

_SPLITS = frozenset(('train', 'training', 'val', 'valid', 'validation', 'test', 'testing', 'eval'))
_SHOWN = 5  # names in a message


def check_listing(listing: Listing, class_names: Sequence[str] | None) -> None:
    """Refuses, before anything is read, what cannot be a training split or a split beside it.

    Args:
        listing: The files of the split.
        class_names: The class names of the training split; None: this is the training split.

    Raises:
        UserError: See `check_classes` and `check_against_training`.
    """
    if class_names is not None:
        check_against_training(listing.class_names, class_names)
        return
    check_classes(listing)
    if alike := spelled_alike(listing.class_names):
        source = printable(listing.source)
        logging.warning('%s: class names that differ in spelling only: %s', source, some(alike))


def check_classes(listing: Listing, report: Report = stop) -> None:
    """Refuses classes that cannot make a classifier.

    Args:
        listing: The files of the training split.
        report: Takes each fault: a single class, an empty one, splits instead of classes, or a
            name that is not UTF-8. Raises it by default.
    """
    names, source = listing.class_names, printable(listing.source)
    for name in names:
        if any('\ud800' <= char <= '\udfff' for char in name):  # bytes that Python could not read
            what = f'the name of the class folder {printable(name)!r} is not UTF-8'
            report(UserError(what, fix='rename it'))
    if names and all(name.lower() in _SPLITS for name in names):
        what = f'{source!r} holds splits, not classes: {some(names)}'
        fix = 'give a split each to --config.data.train, --config.data.val, --config.data.test'
        report(UserError(what, fix=fix))
    if len(names) == 1:
        report(_single_class(listing, source))
    refuse_empty(listing.empty, report)


def _single_class(listing: Listing, source: str) -> UserError:
    (name,) = listing.class_names
    parts = [entry.path.split('/') for entry in listing.entries]
    inner = {part[1] for part in parts if len(part) > 2 and part[0] == name}
    path = printable(os.path.join(listing.root, name))
    hint = f'if its folders {some(sorted(inner))} are the classes, give {path!r}'
    return UserError(
        f'{source!r} has the single class {name!r}: nothing to tell apart',
        fix=hint if len(inner) > 1 else 'add a folder for each other class',
    )


def spelled_alike(names: Iterable[str]) -> list[str]:
    """Returns the class names that differ from another in case, spaces or Unicode form only."""
    names = list(names)
    alike = Counter(_plain(name) for name in names)
    return [name for name in names if alike[_plain(name)] > 1]


def check_against_training(names: Iterable[str], class_names: Sequence[str]) -> None:
    """Refuses a split with classes that training does not have.

    Args:
        names: The class names of the split, sorted.
        class_names: The class names of the training split.

    Raises:
        UserError: Names these classes, the missing ones, and what each may have been meant to be.
    """
    known, here = set(class_names), set(names)
    unknown = [name for name in names if name not in known]
    if not unknown:
        return
    missing = [name for name in class_names if name not in here]
    what = f'classes that training does not have: {some(unknown, class_names)}'
    if missing:
        what += f' (and training has {some(missing, here)}, which are not here)'
    raise UserError(what, fix=rename_or_remove(unknown, class_names))


def rename_or_remove(unknown: Sequence[str], class_names: Sequence[str]) -> str:
    """Returns what to do about classes that training does not have."""
    hints = [f'{quoted(n, class_names)}: {_near_class(n, class_names)}' for n in unknown[:_SHOWN]]
    return f'rename or remove these classes ({"; ".join(hints)})'


def _near_class(name: str, class_names: Sequence[str]) -> str:
    """Returns `did you mean 'x'?`, blind to case, spaces, underscores and Unicode form."""
    for choice in class_names:
        if _plain(choice) == _plain(name):
            return f'did you mean {quoted(choice, [name])}?'
    hint = did_you_mean(name, class_names)
    return hint if hint.startswith('did') else 'no class is spelled like it'


def _plain(name: str) -> str:
    letters = unicodedata.normalize('NFKC', name).casefold().strip()
    return letters.replace(' ', '_').replace('-', '_')


def refuse_empty(names: Sequence[str], report: Report = stop) -> None:
    """Reports a fault that names these classes, if there are any."""
    if names:
        what = f'{len(names)} classes without a usable image: {some(names)}'
        report(UserError(what, fix='add images to them or remove them'))


def report_bad(scan: Scan, on_bad_image: str) -> None:
    """Names the bad images: in a warning where they are to be skipped, else in an error.

    Raises:
        UserError: Some images are bad, and `on_bad_image` is 'error'.
    """
    num_images = sum(file.is_image for file in scan.files)
    bad = [
        f'{printable(entry.path)}{_line(scan.listing, row)} {file.fault}'
        for row, (entry, _, file) in enumerate(scan.rows())
        if file.fault
    ]
    if bad and on_bad_image == 'skip':
        source = printable(scan.listing.source)
        logging.warning('%s: skipping %d of %d images:', source, len(bad), num_images)
        for line in bad:
            logging.warning('  %s', line)
    elif bad:
        raise UserError(
            f'{len(bad)} of {num_images} images cannot be used: {some(bad, quote=False)}',
            fix='replace or remove them, or leave them out with --config.data.on_bad_image=skip',
        )


def _line(listing: Listing, row: int) -> str:
    """Where a manifest names an image, for messages."""
    if listing.lines is None:
        return ''
    return f' ({printable(listing.file)}, line {listing.lines[row]})'


def some(names: Iterable[str], others: Iterable[str] = (), *, quote: bool = True) -> str:
    """Lists the first few names, and how many more there are.

    Args:
        names: The names.
        others: Further ones that they must not be taken for; see `quoted`.
        quote: Whether they are names, and not descriptions.
    """
    names = list(names)
    every = [*names, *others]
    shown = [quoted(name, every) if quote else name for name in names[:_SHOWN]]
    more = [f'and {len(names) - _SHOWN} more'] if len(names) > _SHOWN else []
    return ', '.join(shown + more)
