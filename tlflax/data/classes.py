"""Checks on class folders: can they be classes at all, and are they the classes of training?"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tlflax.data.decode import printable
from tlflax.data.findings import Entry
from tlflax.data.walk import Report, stop
from tlflax.errors import UserError, did_you_mean

_SPLITS = frozenset(('train', 'training', 'val', 'valid', 'validation', 'test', 'testing', 'eval'))
_SHOWN = 5  # names in a message


def check_classes(
    folders: Mapping[str, list[Entry]], root: str, key: str, report: Report = stop
) -> None:
    """Refuses, before anything is read, class folders that cannot make a classifier.

    Args:
        folders: Class name -> its files.
        root: The folder that holds them.
        key: The configuration key that gave `root`, for messages.
        report: Is given each fault: a single class, an empty one, splits instead of classes, or a
            name that is not UTF-8. Raises it by default.
    """
    for name in folders:
        if any('\ud800' <= char <= '\udfff' for char in name):  # bytes that Python could not read
            what = f'the name of the class folder {printable(name)!r} is not UTF-8'
            report(UserError(what, where=key, mend='rename it'))
    if folders and all(name.lower() in _SPLITS for name in folders):
        what = f'{printable(root)!r} holds splits, not classes: {some(folders)}'
        mend = 'give a split each to --config.data.train, --config.data.val, --config.data.test'
        report(UserError(what, where=key, mend=mend))
    if len(folders) == 1:
        ((name, entries),) = folders.items()
        inner = {entry.path.split('/')[1] for entry in entries if entry.path.count('/') > 1}
        path = printable(os.path.join(root, name))
        hint = f'if its folders {some(sorted(inner))} are the classes, give {path!r}'
        what = f'{printable(root)!r} has the single class {name!r}: nothing to tell apart'
        mend = hint if len(inner) > 1 else 'add a folder for each other class'
        report(UserError(what, where=key, mend=mend))
    refuse_empty([name for name, entries in folders.items() if not entries], key, report)


def spelled_alike(names: Iterable[str]) -> list[str]:
    """Returns the class names that differ from another in case, spaces or Unicode form only."""
    names = list(names)
    alike = Counter(_plain(name) for name in names)
    return [name for name in names if alike[_plain(name)] > 1]


def check_against_training(
    folders: Mapping[str, list[Entry]],
    classes: Sequence[str],
    key: str,
    report: Report = stop,
) -> None:
    """Refuses a split with classes that training does not have.

    Args:
        folders: Class name -> its files.
        classes: The class names of the training split.
        key: The configuration key that gave the split, for messages.
        report: Is given the fault, which names these classes, the missing ones, and what each may
            have been meant to be. Raises it by default.
    """
    known = set(classes)
    unknown = [name for name in folders if name not in known]
    if not unknown:
        return
    missing = [name for name in classes if name not in folders]
    what = f'classes that training does not have: {some(unknown)}'
    if missing:
        what += f' (and training has {some(missing)}, which are not here)'
    hints = [f'{printable(name)!r}: {near_class(name, classes)}' for name in unknown[:_SHOWN]]
    mend = f'rename or remove these folders ({"; ".join(hints)})'
    report(UserError(what, where=key, mend=mend))


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
        what = f'{len(names)} class folders without a usable image: {some(names)}'
        report(UserError(what, where=key, mend='add images to them or remove them'))


def some(names: Iterable[str], *, quote: bool = True) -> str:
    """Lists the first few names, and how many more there are."""
    names = list(names)
    shown = [repr(printable(name)) if quote else name for name in names[:_SHOWN]]
    more = [f'and {len(names) - _SHOWN} more'] if len(names) > _SHOWN else []
    return ', '.join(shown + more)
