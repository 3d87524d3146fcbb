"""The size of the feature store: predicted, limited, shown and cleared.

The segment that was looked up or written least recently, of any space, is evicted first; a segment
that a live process uses is never evicted. Where the file system has no locks, any may be in use,
and nothing is removed.
"""

import contextlib
import dataclasses
import datetime
import errno
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from absl import logging

from tlflax.features.cache import segments
from tlflax.features.cache.files import NoLocks
from tlflax.features.cache.rows import RECORD, Layout
from tlflax.features.cache.segments import Segment
from tlflax.utils.errors import UserError, as_user_error

_DAY = 86400.0
_WAYS_OUT = 'set TLFLAX_CACHE to a folder on another disk, or features.cache=False'


@dataclasses.dataclass(frozen=True)
class Space:
    """One space on disk.

    Attributes:
        name: The name of its folder.
        description: Contents of its space.json; empty if that is damaged.
        rows: Number of rows written.
        bytes: Size on disk.
        used: When it was last looked up or written, in seconds since 1970.
        in_use: Whether a live process uses it; None where the file system cannot tell.
    """

    name: str
    description: Mapping[str, object]
    rows: int
    bytes: int
    used: float
    in_use: bool | None


def predict_bytes(rows: int, row_shape: Sequence[int], dtype: str) -> int:
    """Returns how many bytes so many new rows take on disk."""
    layout = Layout(tuple(row_shape), dtype, max(rows, 1))
    return rows * (layout.row_bytes + RECORD)


def reserve(root: str | os.PathLike[str], need: int, max_bytes: float) -> int:
    """Makes room for `need` more bytes before they are computed; returns how many were evicted.

    Look up first: rows that an open `Store` has found are in use and are not evicted.

    Args:
        root: The folder of all spaces.
        need: Bytes, from `predict_bytes`.
        max_bytes: The limit of all spaces together.

    Raises:
        UserError: The folder cannot be written; or the rows do not fit even without everything that
            is known not to be in use, and then nothing is evicted.
    """
    root = Path(root)
    _prepare(root)
    _sweep(root)
    sizes = {folder: _size(folder) for folder in _all_segments(root)}
    used, free = sum(sizes.values()), shutil.disk_usage(root).free
    excess = max(used + need - max_bytes, need - free)
    with contextlib.ExitStack() as claims:
        try:
            victims, kept = _oldest(sizes, excess, claims), 'in use by this or other runs'
        except NoLocks:
            victims, kept = [], 'never evicted, because the file system has no locks'
        evicted = sum(sizes[folder] for folder in victims)
        if need and evicted < excess:
            _refuse(root, need, used - evicted, max_bytes, free + evicted, kept)
        for folder in victims:
            segments.remove(folder)
    if victims:
        logging.info('Evicted %s of features used least recently', _gb(evicted))
    return evicted


def info(root: str | os.PathLike[str]) -> list[Space]:
    """Returns every space, the most recently used first."""
    found = [_describe(folder) for folder in _spaces(Path(root))]
    return sorted(found, key=lambda space: -space.used)


def clear(root: str | os.PathLike[str], name: str = '') -> tuple[int, int]:
    """Deletes everything that is not in use.

    Args:
        root: The folder of all spaces.
        name: The space to clear; '': all of them.

    Returns:
        Bytes freed, and bytes kept because they are in use.

    Raises:
        UserError: No space has this name, or the file system has no locks.
    """
    spaces = _spaces(Path(root))
    if name and name not in [folder.name for folder in spaces]:
        raise UserError(f'no features {name!r}', where=str(root), fix='see what `info` lists')
    freed = kept = 0
    for space in spaces:
        if name in ('', space.name):
            for folder in _segments(space):
                with _locks_needed(root):
                    size, claimed = _size(folder), segments.claim(folder)
                if claimed is None:
                    kept += size
                    continue
                segments.remove(folder)
                os.close(claimed)
                freed += size
            _remove_empty(space)
    return freed, kept


def format_info(root: str | os.PathLike[str]) -> str:
    """Returns `info` as text for people."""
    spaces = info(root)
    total = _gb(sum(space.bytes for space in spaces))
    lines = [f'{root}: {total} in {len(spaces)} space{"s" * (len(spaces) != 1)}']
    for space in spaces:
        used = datetime.datetime.fromtimestamp(space.used).strftime('%Y-%m-%d %H:%M')
        state = ', in use' if space.in_use else ''
        lines.append(f'\n{space.name}  {space.rows} rows, {_gb(space.bytes)}, used {used}{state}')
        parts = space.description.get('space')
        whole = {**space.description, **(parts if isinstance(parts, dict) else {})}
        lines += [
            f'  {key}: {json.dumps(value)}'
            for key, value in sorted(whole.items())
            if key not in ('space', 'segment_rows', 'version')
        ]
    return '\n'.join(lines)


def _oldest(sizes: Mapping[Path, int], excess: float, claims: contextlib.ExitStack) -> list[Path]:
    """Claims unused segments, the least recently used first, until they take `excess` bytes.

    Raises:
        NoLocks: Whether they are used is not known.
    """
    claimed, total = [], 0
    for folder in sorted(sizes, key=_used):
        if total >= excess:
            break
        if (descriptor := segments.claim(folder)) is not None:
            claims.callback(os.close, descriptor)
            claimed.append(folder)
            total += sizes[folder]
    return claimed


def _locks_needed(root: str | os.PathLike[str]) -> AbstractContextManager[None]:
    return as_user_error(
        'features are not removed, because the file system has no locks ({reason}), so that others '
        'may be using them',
        where=str(root),
        fix='delete the folder while no run uses it',
        of=(NoLocks,),
    )


def _refuse(root: Path, need: int, used: int, max_bytes: float, free: int, kept: str) -> None:
    if used + need > max_bytes:
        raise UserError(
            f'{_gb(need)} of features are to be stored, {_gb(used)} are {kept}, and the limit is '
            f'{_gb(max_bytes)}',
            where='config.features.max_gb',
            fix='raise it, choose a smaller features.dtype, image_size or layer, or set '
            'features.cache=False',
        )
    beside = f' beside {_gb(used)} that are {kept}' if used else ''
    raise UserError(
        f'{_gb(need)} of features are to be stored, and only {_gb(free)} are free on the disk'
        f'{beside}',
        where=str(root),
        fix=f'free some, {_WAYS_OUT}',
    )


def _prepare(root: Path) -> None:
    """Creates the folder and checks that it can be written, before anything is computed."""
    with as_user_error(
        'features cannot be stored there ({reason})',
        where=str(root),
        fix=_WAYS_OUT,
        of=(OSError,),
    ):
        root.mkdir(parents=True, exist_ok=True)
        if not os.access(root, os.W_OK):
            raise PermissionError(errno.EACCES, 'it is read-only')


def _spaces(root: Path) -> list[Path]:
    return [root / name for name in segments.names(root)]


def _segments(space: Path) -> list[Path]:
    return [space / name for name in segments.names(space)]


def _all_segments(root: Path) -> list[Path]:
    return [folder for space in _spaces(root) for folder in _segments(space)]


def _size(folder: Path) -> int:
    """Returns the disk blocks of a segment in bytes; 0 once it is gone."""
    total = 0
    for name in ('rows.npy', 'keys.npy'):
        with contextlib.suppress(FileNotFoundError):
            total += (folder / name).stat().st_blocks * 512
    return total


def _used(folder: Path) -> float:
    try:
        return (folder / 'keys.npy').stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _is_used(folder: Path) -> bool | None:
    try:
        claimed = segments.claim(folder)
    except NoLocks:
        return None
    if claimed is not None:
        os.close(claimed)
    return claimed is None


def _describe(space: Path) -> Space:
    try:
        description = json.loads((space / 'space.json').read_text())
        shape, dtype = tuple(description['row_shape']), description['dtype']
        layout = Layout(shape, dtype, description['segment_rows'])
    except (OSError, ValueError, KeyError, TypeError):
        description, layout = {}, None
    rows, folders = 0, _segments(space)
    in_use: bool | None = False
    for folder in folders:
        in_use = in_use or _is_used(folder)
        with contextlib.suppress(FileNotFoundError), segments.reading(folder):
            if layout and (segment := Segment(folder, layout)).scan():
                rows += len(segment.records)
    sizes, times = map(_size, folders), map(_used, folders)
    used = max(times, default=space.stat().st_mtime)
    return Space(space.name, description, rows, sum(sizes), used, in_use)


def _remove_empty(space: Path) -> None:
    """Deletes the folder of a space without segments; its next writer creates it again."""
    if not segments.names(space):
        (space / 'space.json').unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            space.rmdir()


def _sweep(root: Path) -> None:
    """Deletes what processes that were killed long ago left half written or half removed."""
    for partial in (*root.glob(f'*/{segments.PARTIAL}*'), *root.glob('*/.space.json.*')):
        with contextlib.suppress(OSError):
            if partial.stat().st_mtime < time.time() - _DAY:
                if partial.is_dir():
                    shutil.rmtree(partial, ignore_errors=True)
                else:
                    partial.unlink()


def _gb(size: float) -> str:
    return f'{size / 1e9:.3g} GB'
