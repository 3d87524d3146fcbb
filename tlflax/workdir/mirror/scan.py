"""What a workdir on this machine holds: its files, and the checkpoints that are complete."""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from tlflax.workdir.mirror.places import CHECKPOINTS, MARKER, is_part

_IN_MEMORY = 2**22  # bytes of a file that is read at once, as it is when it is seen


class Stamp(NamedTuple):
    """What tells that a file has changed."""

    size: int
    mtime: int
    inode: int


class Seen(NamedTuple):
    """A workdir at one moment.

    Attributes:
        files: Those outside of checkpoints, by relative path.
        steps: The checkpoints, as 'checkpoints/12/', and the stamp of the file that makes each
            complete; the oldest first.
    """

    files: dict[str, Stamp]
    steps: dict[str, Stamp]


def look(folder: Path) -> Seen:
    """Returns what is there."""
    files: dict[str, Stamp] = {}
    steps: dict[str, Stamp] = {}
    for parent, folders, names in os.walk(folder):
        here = os.path.relpath(parent, folder)
        prefix = '' if here == '.' else f'{here}/'
        if os.path.basename(parent) in CHECKPOINTS:
            numbers = [name for name in folders if name.isdigit()]
            for name in sorted(numbers, key=int):
                if stamp := stamp_of(Path(parent, name, MARKER)):
                    steps[f'{prefix}{name}/'] = stamp
            folders[:] = [name for name in folders if name not in numbers]
        folders[:] = [name for name in folders if is_part(f'{name}/x')]
        for name in names:
            if is_part(name) and (stamp := stamp_of(Path(parent, name))):
                files[prefix + name] = stamp
    return Seen(files, steps)


def stamp_of(path: Path) -> Stamp | None:
    """Returns the stamp of a file; None where there is none."""
    with contextlib.suppress(OSError):
        if path.is_file():
            status = path.stat()
            return Stamp(status.st_size, status.st_mtime_ns, status.st_ino)
    return None


def contents(folder: Path, files: dict[str, Stamp]) -> dict[str, bytes]:
    """Returns the bytes of those files that are small and still there."""
    found = {}
    for path, stamp in files.items():
        if stamp.size <= _IN_MEMORY:
            with contextlib.suppress(OSError):
                found[path] = (folder / path).read_bytes()
    return found


def files_of(folder: Path, step: str) -> list[str]:
    """Returns the files of a step, the one that makes it complete last; [] if that is not there."""
    top = folder / step
    found = [path.relative_to(folder).as_posix() for path in top.rglob('*') if path.is_file()]
    marker = f'{step}{MARKER}'
    if marker not in found:
        return []
    return [*sorted(path for path in found if path != marker), marker]
