"""Lists the files of class folders, sorted, with what the file system says of each."""

import os
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tlflax.data.images import scan
from tlflax.data.images.decode import printable
from tlflax.data.images.scan_cache import Entry
from tlflax.utils.errors import UserError, did_you_mean

IGNORED_FOLDERS = frozenset(
    ('__pycache__', '__MACOSX', '@eaDir', '$RECYCLE.BIN', 'System Volume Information', 'lost+found')
)
HIDDEN = 'hidden'
LOOPS = 'links to a folder already read'
PIPES = 'pipes, sockets and devices'  # reading them might wait for ever

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
    """Raises the first fault: what training does. The audit collects them all instead."""
    raise fault


def walk(root: str, *, key: str, ignored: Ignored, report: Report = stop) -> dict[str, list[Entry]]:
    """Lists the files of each class folder.

    Args:
        root: The absolute folder that holds the class folders.
        key: The configuration key that gave it, for messages.
        ignored: Counts what is left out, by reason.
        report: Is given each fault: a folder that cannot be read, no class folders, images at the
            root. Raises it by default; where it does not, the walk goes on.

    Returns:
        Class name, sorted -> the regular files and broken links below its folder, to any depth,
        in an order that depends on their names alone.

    Raises:
        UserError: There is no such folder.
    """
    if not os.path.isdir(root):
        raise _no_folder(root, key)
    classes, strays = [], []
    for name, status in children(root, '', ignored, report):
        if status is not None and stat.S_ISDIR(status.st_mode):
            classes.append(name)
        elif status is None or stat.S_ISREG(status.st_mode):
            strays.append(name)
        else:
            ignored.note(PIPES, name)
    _check_strays(root, strays, key, report)
    for name in strays:
        ignored.note(kind_of_stray(name), name)
    if not classes:
        what = f'{printable(root)!r} has no class folders'
        fix = 'make one folder for each class and put its images there'
        report(UserError(what, where=key, fix=fix))
    above = ancestors(root)
    return {name: _walk_class(root, name, set(above), ignored, report) for name in classes}


def kind_of_stray(path: str) -> str:
    """Names the group of ignored files that `path` is counted in."""
    extension = os.path.splitext(path)[1].lower()
    return f'*{printable(extension)}' if extension else 'without extension'


def _no_folder(root: str, key: str) -> UserError:
    if os.path.exists(root):
        return UserError(
            f'{printable(root)!r} is a file, not a folder',
            where=key,
            fix='name the folder that holds the class folders',
        )
    parent = root
    while not os.path.isdir(parent):
        wanted, parent = parent, os.path.dirname(parent)
    names = [name for name, _ in children(parent, '', Ignored(), stop)]
    beside = [name for name in names if os.path.isdir(f'{parent}/{name}')]
    fix = did_you_mean(os.path.basename(wanted), beside)
    if not fix.startswith('did'):
        fix = f'{printable(parent)!r} exists, but holds no {os.path.basename(wanted)!r}'
    return UserError(f'no such folder: {printable(root)!r}', where=key, fix=fix)


def _check_strays(root: str, names: list[str], key: str, report: Report) -> None:
    """Refuses images that lie beside the class folders, for they have no class."""
    images = []
    for name in names:
        if scan.read_file(root, Entry(name, -1, 0, 0)).is_image:
            images.append(printable(name))
        if len(images) > 3:
            break
    if images:
        more = ', ...' if len(images) > 3 else ''
        what = (
            f'{printable(root)!r} holds images outside of class folders: '
            f'{", ".join(images[:3])}{more}'
        )
        fix = 'make one folder for each class and move them there'
        report(UserError(what, where=key, fix=fix))


def _walk_class(
    root: str, name: str, seen: set[tuple[int, int]], ignored: Ignored, report: Report
) -> list[Entry]:
    """Lists a class folder; `seen` holds the identities of folders not to enter again."""
    entries: list[Entry] = []
    todo = [name]
    while todo:
        folder = todo.pop()
        this = identity(os.stat(os.path.join(root, folder)))
        if this in seen:
            ignored.note(LOOPS, folder)
            continue
        seen.add(this)
        inner = []
        for child, status in children(root, folder, ignored, report):
            path = f'{folder}/{child}'
            if status is None:
                entries.append(Entry(path, -1, 0, 0))
            elif stat.S_ISDIR(status.st_mode):
                inner.append(path)
            elif stat.S_ISREG(status.st_mode):
                times = status.st_mtime_ns, status.st_ctime_ns
                entries.append(Entry(path, status.st_size, *times))
            else:
                ignored.note(PIPES, path)
        todo += reversed(inner)
    return entries


def children(
    root: str, inner: str, ignored: Ignored, report: Report = stop
) -> list[tuple[str, os.stat_result | None]]:
    """Lists what is not hidden or junk in root/inner: name and status (None: a broken link)."""
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
        what = f'the folder cannot be read: {error.strerror}'
        fix = 'give yourself permission to read it, or remove it'
        report(UserError(what, where=printable(folder), fix=fix))
    return sorted(found, key=lambda item: item[0])


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
    return status.st_dev, status.st_ino
