"""Checks on classes: can they be classes at all, and are they the classes of training?"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from absl import logging

from tlflax.data.images.decode import printable
from tlflax.data.images.scan import Scanned
from tlflax.data.inputs.listing import Listing
from tlflax.data.inputs.walk import Report, stop
from tlflax.utils.errors import UserError, did_you_mean

_SPLITS = frozenset(('train', 'training', 'val', 'valid', 'validation', 'test', 'testing', 'eval'))
_SHOWN = 5  # names in a message


def check_classes(listing: Listing, key: str, report: Report = stop) -> None:
    """Refuses, before anything is read, classes that cannot make a classifier.

    Args:
        listing: The files of the training split.
        key: The configuration key that gave it, for messages.
        report: Is given each fault: a single class, an empty one, splits instead of classes, or a
            name that is not UTF-8. Raises it by default.
    """
    classes, source = listing.classes, printable(listing.source)
    for name in classes:
        if any('\ud800' <= char <= '\udfff' for char in name):  # bytes that Python could not read
            what = f'the name of the class folder {printable(name)!r} is not UTF-8'
            report(UserError(what, where=key, fix='rename it'))
    if classes and all(name.lower() in _SPLITS for name in classes):
        what = f'{source!r} holds splits, not classes: {some(classes)}'
        fix = 'give a split each to --config.data.train, --config.data.val, --config.data.test'
        report(UserError(what, where=key, fix=fix))
    if len(classes) == 1:
        report(_single_class(listing, source, key))
    refuse_empty(listing.empty, key, report)


def _single_class(listing: Listing, source: str, key: str) -> UserError:
    (name,) = listing.classes
    parts = [entry.path.split('/') for entry in listing.entries]
    inner = {part[1] for part in parts if len(part) > 2 and part[0] == name}
    path = printable(os.path.join(listing.root, name))
    hint = f'if its folders {some(sorted(inner))} are the classes, give {path!r}'
    return UserError(
        f'{source!r} has the single class {name!r}: nothing to tell apart',
        where=key,
        fix=hint if len(inner) > 1 else 'add a folder for each other class',
    )


def spelled_alike(names: Iterable[str]) -> list[str]:
    """Returns the class names that differ from another in case, spaces or Unicode form only."""
    names = list(names)
    alike = Counter(_plain(name) for name in names)
    return [name for name in names if alike[_plain(name)] > 1]


def check_against_training(names: Iterable[str], classes: Sequence[str], key: str) -> None:
    """Refuses a split with classes that training does not have.

    Args:
        names: The class names of the split, sorted.
        classes: The class names of the training split.
        key: The configuration key that gave the split, for messages.

    Raises:
        UserError: Names these classes, the missing ones, and what each may have been meant to be.
    """
    known, here = set(classes), set(names)
    unknown = [name for name in names if name not in known]
    if not unknown:
        return
    missing = [name for name in classes if name not in here]
    what = f'classes that training does not have: {some(unknown)}'
    if missing:
        what += f' (and training has {some(missing)}, which are not here)'
    hints = [f'{printable(name)!r}: {near_class(name, classes)}' for name in unknown[:_SHOWN]]
    fix = f'rename or remove these classes ({"; ".join(hints)})'
    raise UserError(what, where=key, fix=fix)


def near_class(name: str, classes: Sequence[str]) -> str:
    """Did-you-mean for a class name, blind to case, spaces, underscores and Unicode form."""
    for choice in classes:
        if _plain(choice) == _plain(name):
            return f'did you mean {choice!r}?'
    hint = did_you_mean(name, classes)
    return hint if hint.startswith('did') else 'no class is spelled like it'


def _plain(name: str) -> str:
    letters = unicodedata.normalize('NFKC', name).casefold().strip()
    return letters.replace(' ', '_').replace('-', '_')


def refuse_empty(names: Sequence[str], key: str, report: Report = stop) -> None:
    """Reports a fault that names the classes in `names`, if there are any."""
    if names:
        what = f'{len(names)} classes without a usable image: {some(names)}'
        report(UserError(what, where=key, fix='add images to them or remove them'))


def report_bad(scanned: Scanned, listing: Listing, on_bad_image: str, key: str) -> None:
    """Names the bad images: as a warning where they are to be skipped, else as an error.

    Raises:
        UserError: There are bad images, and `on_bad_image` is 'error'.
    """
    images = sum(finding.is_image for finding in scanned.findings)
    bad = [
        f'{printable(scanned.entries[row].path)}{_line(listing, row)} {finding.fault}'
        for row, finding in enumerate(scanned.findings)
        if finding.fault
    ]
    if bad and on_bad_image == 'skip':
        logging.warning('%s: skipping %d of %d images:', key, len(bad), images)
        for line in bad:
            logging.warning('  %s', line)
    elif bad:
        raise UserError(
            f'{len(bad)} of {images} images cannot be used: {some(bad, quote=False)}',
            where=key,
            fix='replace or remove them, or leave them out with --config.data.on_bad_image=skip',
        )


def _line(listing: Listing, row: int) -> str:
    """Where a manifest names an image, for messages."""
    if listing.lines is None:
        return ''
    return f' ({printable(listing.file)}, line {listing.lines[row]})'


def some(names: Iterable[str], *, quote: bool = True) -> str:
    """Lists the first few names, and how many more there are."""
    names = list(names)
    shown = [repr(printable(name)) if quote else name for name in names[:_SHOWN]]
    more = [f'and {len(names) - _SHOWN} more'] if len(names) > _SHOWN else []
    return ', '.join(shown + more)
