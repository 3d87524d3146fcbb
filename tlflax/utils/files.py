"""Paths as users give them, atomic file writes, strict JSON, and CSV."""

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import shutil
import stat
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tlflax.utils.errors import UserError, printable

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""What `lock` fails with where the file system has no locks."""

_SELF = 'sha256'
_KINDS = {
    stat.S_IFDIR: 'a folder',
    stat.S_IFIFO: 'a pipe',
    stat.S_IFSOCK: 'a socket',
    stat.S_IFCHR: 'a device',
    stat.S_IFBLK: 'a device',
}

JsonObject = dict[str, Any]
"""The contents of a JSON object."""


def expand(path: str | os.PathLike[str]) -> str:
    """Returns a path with the home folder that `~` or `~name` at its start stands for.

    Raises:
        UserError: No user has this name, and no file either.
    """
    text = os.fspath(path)
    whole = os.path.expanduser(text)
    if whole.startswith('~') and not os.path.lexists(whole):
        user = text.split('/')[0][1:]
        what = f'there is no user {printable(user)!r}' if user else 'your home folder is not known'
        raise UserError(f'{printable(text)!r}: {what}', fix='write the path without ~')
    return whole


def regular(path: str, flags: int) -> int:
    """Opens a file for `open(..., opener=regular)`; refuses pipes, sockets, devices and folders.

    Opening a pipe waits for a writer, and reading a device may never end.

    Raises:
        OSError: It is not a regular file, or cannot be opened.
    """
    _check(path, os.stat(path))
    # Another may be at the path by now, and opening a pipe so does not wait.
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    try:
        _check(path, os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check(path: str, status: os.stat_result) -> None:
    if kind := _KINDS.get(stat.S_IFMT(status.st_mode)):
        raise OSError(errno.EINVAL, f'it is {kind}, not a file', path)


def check_replaceable(path: Path) -> None:
    """Checks that what is at a path, if anything, is a file; /dev/null must not become one.

    Raises:
        OSError: It is a pipe, a socket, a device or a folder, or it cannot be asked for.
    """
    with contextlib.suppress(FileNotFoundError):
        _check(str(path), os.stat(path))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and renames it to `path` when the block ends.

    A reader sees the old file or the new one, never a part of it. If the block raises, `path` stays
    unchanged and the temporary file is deleted.

    Raises:
        OSError: See `check_replaceable`.
    """
    check_replaceable(path)
    # Whoever opens it creates it, with the mode that the user's umask gives.
    partial = path.with_name(f'.{path.name}.{uuid.uuid4().hex}')
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_replaceable_folder(path: Path, marker: str, entries: Collection[str]) -> None:
    """Checks that a folder can be put at a path without anything of the user being lost.

    Args:
        path: What is there may be nothing, an empty folder, or a folder of the same kind.
        marker: A file that folders of this kind have.
        entries: The names of everything that they have.

    Raises:
        OSError: Something else is there.
    """
    if os.path.islink(path) and not os.path.exists(path):
        raise OSError(errno.EEXIST, 'it is a link to nothing', str(path))
    try:
        found = sorted(os.listdir(path))
        here = path.samefile(os.curdir)
    except FileNotFoundError:
        return
    if found and marker not in found:
        raise OSError(errno.EEXIST, f'it exists, and has no {marker}', str(path))
    if other := [name for name in found if name not in entries]:
        raise OSError(errno.EEXIST, f'it has {other[0]!r}, which would be lost', str(path))
    if here:
        raise OSError(errno.EBUSY, 'it is the folder in which the command runs', str(path))


@contextlib.contextmanager
def replacing_folder(path: Path, marker: str, entries: Collection[str]) -> Iterator[Path]:
    """Yields a new folder beside `path`, and puts it in the place of `path` when the block ends.

    If the block raises, `path` stays unchanged and the new folder is deleted. A link stays a link.

    Args:
        path: The folder.
        marker: See `check_replaceable_folder`.
        entries: See `check_replaceable_folder`.

    Raises:
        OSError: See `check_replaceable_folder`.
    """
    check_replaceable_folder(path, marker, entries)
    path = Path(os.path.realpath(path))
    partial = path.with_name(f'.{path.name}.{uuid.uuid4().hex}.new')
    partial.mkdir()
    try:
        yield partial
        while not _put(partial, path):  # another process has put one there meanwhile
            pass
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put(folder: Path, path: Path) -> bool:
    """Renames a folder to `path`, and deletes what was there; returns whether `path` was free."""
    before = path.with_name(f'.{path.name}.{uuid.uuid4().hex}.old')
    try:
        with contextlib.suppress(FileNotFoundError):
            path.rename(before)
        return _renamed(folder, path)
    finally:
        if not path.exists():
            with contextlib.suppress(FileNotFoundError):  # there was none
                _renamed(before, path)
        shutil.rmtree(before, ignore_errors=True)


def _renamed(folder: Path, path: Path) -> bool:
    """Renames a folder unless another one, with something in it, is at `path`; returns whether."""
    try:
        folder.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def size_of(path: Path) -> int:
    """Returns the bytes of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [one for one in path.rglob('*') if one.is_file()]
    return sum(one.stat().st_size for one in files)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Writes a file; see `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def lock(path: Path, mode: int, kind: int) -> int:
    """Opens and locks a file; returns its descriptor, whose closing releases the lock.

    Args:
        path: The file.
        mode: As for `os.open`.
        kind: As for `fcntl.flock`.

    Raises:
        FileNotFoundError: The file does not exist, or was deleted in the meantime.
        BlockingIOError: With LOCK_NB, if somebody holds a lock that excludes this one.
        OSError: The file cannot be opened, or the file system has no locks (`NO_LOCKS`).
    """
    descriptor = os.open(path, mode | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, kind)
        if os.fstat(descriptor).st_nlink == 0:
            raise FileNotFoundError(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def dump_json(value: object, *, indent: int | None = None) -> str:
    """Returns strict JSON: NaN and infinities become null."""
    return json.dumps(plain_json(value), indent=indent, allow_nan=False)


def signed(value: JsonObject) -> JsonObject:
    """Returns a plain object with its own digest, under the key 'sha256'."""
    plain = plain_json(value)
    return {**plain, _SELF: _digest(plain)}


def is_signed(value: object, *, needed: bool = True) -> bool:
    """Returns whether an object is as `signed` made it.

    Args:
        value: What JSON gave back.
        needed: Whether one without a digest, as released versions wrote, is refused too.
    """
    if not isinstance(value, dict):
        return False
    return value[_SELF] == _digest(value) if _SELF in value else not needed


def _digest(value: JsonObject) -> str:
    rest = {key: item for key, item in value.items() if key != _SELF}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, value: object) -> None:
    """Writes indented JSON; see `dump_json` and `replacing`."""
    atomic_write(path, dump_json(value, indent=2) + '\n')


def plain_json(value: Any) -> Any:
    """Returns a value as strict JSON gives it back: tuples as lists, NaN and infinities as None."""
    if isinstance(value, dict):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv_text(rows: Iterable[JsonObject], columns: Sequence[str]) -> str:
    """Returns a table as CSV, with a line that names the columns."""
    text = io.StringIO(newline='')
    lines = csv.DictWriter(text, columns)
    lines.writeheader()
    lines.writerows(rows)
    return text.getvalue()


def leaves(tree: JsonObject, prefix: str = '') -> JsonObject:
    """Returns the values of nested objects by their dotted keys."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found.update(leaves(value, f'{prefix}{key}.'))
        else:
            found[f'{prefix}{key}'] = value
    return found
