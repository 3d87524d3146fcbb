"""Lists folders, sorted, and what is left out of them; where faults of inputs go."""

import os
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tlflax.data.images.files import Entry
from tlflax.utils.errors import UserError, printable, reason

IGNORED_FOLDERS = frozenset(
    ('__pycache__', '__MACOSX', '@eaDir', '$RECYCLE.BIN', 'System Volume Information', 'lost+found')
)
HIDDEN = 'hidden'
LOOPS = 'links to a folder already read'
PIPES = 'pipes, sockets and devices'  # reading them might never end

Report = Callable[[UserError], None]


class Ignored(Counter[str]):
    """Counts what is left out, by reason, and remembers the first `MOST` paths of each."""

    MOST = 1000

    def __init__(self) -> None:
        super().__init__()
        self.paths: dict[str, list[str]] = {}

    def note(self, reason: str, path: str) -> None:
        """Counts a path."""
        self[reason] += 1
        paths = self.paths.setdefault(reason, [])
        if len(paths) < self.MOST:
            paths.append(path)

    def copy(self) -> 'Ignored':
        """Returns a copy that can be changed alone."""
        other = Ignored()
        other.update(self)
        other.paths = {reason: list(paths) for reason, paths in self.paths.items()}
        return other


def stop(fault: UserError) -> None:
    """Raises a fault, as training does; the audit collects all faults instead."""
    raise fault


def located_report(where: str, report: Report) -> Report:
    """Returns a report that first gives a place to each fault that has none.

    See `tlflax.utils.errors.located`, which does so for faults that are raised.
    """

    def placed(fault: UserError) -> None:
        fault.where = fault.where or where
        report(fault)

    return placed


def kind_of_stray(path: str) -> str:
    """Names the group of ignored files that `path` is counted in."""
    extension = os.path.splitext(path)[1].lower()
    return f'*{printable(extension)}' if extension else 'without extension'


def children(
    root: str, inner: str, ignored: Ignored, report: Report = stop
) -> list[tuple[str, os.stat_result | None]]:
    """Lists what is not hidden or junk in root/inner: name and status (None for a broken link)."""
    folder = os.path.join(root, inner) if inner else root
    found: list[tuple[str, os.stat_result | None]] = []
    try:
        with os.scandir(folder) as inside:
            for child in inside:
                if child.name.startswith('.'):
                    ignored.note(HIDDEN, os.path.join(inner, child.name))
                elif child.name in IGNORED_FOLDERS:
                    ignored.note(child.name, os.path.join(inner, child.name))
                else:
                    found.append((child.name, _status(child)))
    except OSError as error:
        what = f'the folder cannot be read: {reason(error)}'
        fix = 'give yourself permission to read it, or remove it'
        report(UserError(what, where=printable(folder), fix=fix))
    return sorted(found, key=lambda item: item[0])


def files_below(
    root: str,
    inner: str,
    seen: set[tuple[int, int]],
    ignored: Ignored,
    report: Report = stop,
) -> list[Entry]:
    """Lists the files and broken links below root/inner, to any depth; links are followed.

    Args:
        root: The folder that the paths start from.
        inner: The folder in it; '' for all of `root`.
        seen: The identities of folders not to enter again; those that are entered are added.
        ignored: Counts what is left out.
        report: Takes each fault: a folder that cannot be read.
    """
    entries: list[Entry] = []
    todo = [inner]
    while todo:
        folder = todo.pop()
        this = identity(os.stat(os.path.join(root, folder)))
        if this in seen:
            ignored.note(LOOPS, folder)
            continue
        seen.add(this)
        deeper = []
        for child, status in children(root, folder, ignored, report):
            path = f'{folder}/{child}' if folder else child
            if status is not None and stat.S_ISDIR(status.st_mode):
                deeper.append(path)
            elif status is None or stat.S_ISREG(status.st_mode):
                entries.append(Entry.of(path, status))
            else:
                ignored.note(PIPES, path)
        todo += reversed(deeper)
    return entries


def _status(child: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return child.stat()
    except OSError:
        return None


def ancestors(root: str) -> set[tuple[int, int]]:
    """Identifies the root and every folder above it: a link to one of them is a loop."""
    real = Path(os.path.realpath(root))
    return {identity(folder.stat()) for folder in (real, *real.parents)}


def identity(status: os.stat_result) -> tuple[int, int]:
    """Returns what distinguishes a file or folder from all others on this machine."""
    return status.st_dev, status.st_ino
