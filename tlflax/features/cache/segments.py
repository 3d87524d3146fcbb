"""One segment of the feature store: a folder with two NumPy files, written once, front to back.

    rows.npy  [capacity, *row_shape]  the features (bfloat16 as its bits, u2)
    keys.npy  u64[capacity, 3]        of each row: its key in two words, and its checksum
    kernel    text                    under which kernel it was created

The arrays have their full size from the beginning and are sparse, so they are mapped once, cost
only the disk blocks that were written, and open with `np.load(..., mmap_mode='r')`. A row exists
once its record in keys.npy does; the record is written after the row. The checksum is the CRC-32
of the row's bytes, started from the low half of the key's first word, so a torn row, a torn record,
a flipped bit and a row in the place of another all fail it. Nothing else is trusted: the NumPy
headers are for other programs, and a key that was damaged is a key that nobody asks for.

Two advisory locks (`flock`, released by the kernel however a process ends) keep processes apart:
a shared one on keys.npy says that somebody uses the segment, so that it must not be removed; an
exclusive one on rows.npy belongs to its only writer. The next writer continues the segment of a
killed one behind its last record, if it runs under the same kernel: on a network file system, locks
may hold within one machine only. Folders appear and disappear by renaming.

Where the file system has no locks (some network file systems), a process writes only segments that
it created, which no other process can take for its own, and nothing is removed, as it might be in
use. What that costs is disk space: two processes may store the same row, and the segment of one
that ended stays as short as it is.
"""

import errno
import fcntl
import mmap
import os
import shutil
import uuid
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, UInt8, UInt64

from tlflax.features.cache import files
from tlflax.features.cache.rows import LONG, RECORD, Layout, checksums
from tlflax.utils.errors import as_user_error

PARTIAL = '.partial-'
_KERNEL = 'kernel'
_BLOCK = 2**16  # records read at once


class Segment:
    """A segment as one process sees it; looking at it holds no lock until `pin`.

    Args:
        folder: The segment's own.
        layout: The layout of its space.

    Attributes:
        bad: bool[capacity], rows that failed their checksum.
        checked: bool[capacity], rows that passed their checksum in this process.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self._records = np.zeros((layout.capacity, 3), np.uint64)
        self._count = 0
        self.bad = np.zeros(layout.capacity, bool)
        self.checked = np.zeros(layout.capacity, bool)
        self._keys = self._rows = -1
        self._map: UInt8[np.ndarray, 'capacity bytes'] | None = None

    @property
    def records(self) -> UInt64[np.ndarray, 'n 3']:
        """The records read or written so far; zeros where a row is missing."""
        return self._records[: self._count]

    @property
    def pinned(self) -> bool:
        """Whether its rows can be read, and will be until `close`."""
        return self._map is not None

    @property
    def full(self) -> bool:
        """Whether no more rows fit."""
        return self._count == self.layout.capacity

    def scan(self) -> bool:
        """Reads the records written since the last scan; returns whether there were any.

        Raises:
            FileNotFoundError: The segment was removed, which pinning would have prevented.
        """
        before = self._count
        with open(self.folder / 'keys.npy', 'rb') as file:
            file.seek(len(self.layout.keys_header) + before * RECORD)
            while block := file.read(_BLOCK * RECORD):
                whole = len(block) - len(block) % RECORD
                records = np.frombuffer(block[:whole], '<u8').reshape(-1, 3)
                records = records[: self.layout.capacity - self._count]
                used = np.flatnonzero(records.any(axis=1))
                count = int(used[-1]) + 1 if len(used) else 0
                self._records[self._count : self._count + count] = records[:count]
                self._count += count
                if count < _BLOCK:
                    break
        return self._count > before

    def pin(self) -> bool:
        """Maps the rows and keeps others from removing them; returns False if they are gone."""
        if self.pinned:
            return True
        try:
            self._keys = files.lock_or_open(self.folder / 'keys.npy', os.O_RDONLY, fcntl.LOCK_SH)
            self._map_rows()
        except (FileNotFoundError, ValueError):
            self.close()
            return False
        files.touch(self._keys)
        return True

    def adopt(self, *, created: bool = False) -> bool:
        """Becomes the writer; returns False if it is full, gone, or may have another writer.

        Args:
            created: Whether this process has just created it, so that it has no writer even if the
                file system cannot tell.
        """
        lock = files.lock_or_open if created else files.lock
        try:
            if not created and (self.folder / _KERNEL).read_bytes() != files.kernel():
                return False
            self._rows = lock(self.folder / 'rows.npy', os.O_RDWR, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self.pin():
                self.scan()
                if not self.full:
                    return True
        except (files.NoLocks, FileNotFoundError, BlockingIOError, PermissionError):
            pass
        self.yield_writing()
        return False

    def append(
        self, keys: UInt64[np.ndarray, 'n 2'], rows: UInt8[np.ndarray, 'n bytes']
    ) -> Int[np.ndarray, ' m']:
        """Writes as many rows as fit (only after `adopt` or `create`) and returns their slots.

        Raises:
            OSError: They could not be written, for example because the disk is full. The segment
                stays as it was.
        """
        first = self._count
        count = min(len(keys), self.layout.capacity - first)
        keys, rows = keys[:count], rows[:count]
        records = np.column_stack([keys, checksums(keys, rows, np.arange(count))])
        start = len(self.layout.rows_header) + first * self.layout.row_bytes
        files.write(self._rows, rows, start)
        with open(self.folder / 'keys.npy', 'r+b', buffering=0) as file:
            start = len(self.layout.keys_header) + first * RECORD
            files.write(file.fileno(), np.ascontiguousarray(records, '<u8'), start)
        self._records[first : first + count] = records
        self._count += count
        slots = np.arange(first, first + count)
        self.checked[slots] = True
        return slots

    def check(self, slots: Int[np.ndarray, ' n']) -> Bool[np.ndarray, ' n']:
        """Returns which rows of a pinned segment are whole; each is checked once per process."""
        new = np.sort(slots[~(self.checked[slots] | self.bad[slots])])
        if len(new):
            new = new[np.diff(new, prepend=-1) > 0]
            assert self._map is not None, 'pin first'
            good = checksums(self.records[new, :2], self._map, new) == self.records[new, 2]
            self.checked[new[good]] = True
            self.bad[new[~good]] = True
        return self.checked[slots]

    def read(
        self,
        slots: Int[np.ndarray, ' n'],
        out: UInt8[np.ndarray, 'm bytes'],
        places: Int[np.ndarray, ' n'],
    ) -> None:
        """Copies rows of a pinned segment, unchecked, to places in `out`."""
        assert self._map is not None, 'pin first'
        if self.layout.row_bytes < LONG:
            out[places] = self._map[slots]
            return
        for slot, place in zip(slots.tolist(), places.tolist(), strict=True):
            out[place] = self._map[slot]  # one copy instead of two

    def sync(self) -> None:
        """Waits until what was written is on the disk, rows before records."""
        if self._rows >= 0:
            os.fsync(self._rows)
            os.fsync(self._keys)

    def yield_writing(self) -> None:
        """Lets another process continue writing; rows stay readable here."""
        if self._rows >= 0:
            os.close(self._rows)
            self._rows = -1

    def close(self) -> None:
        """Releases the locks and the map."""
        self.yield_writing()
        self._map = None
        if self._keys >= 0:
            files.touch(self._keys)
            os.close(self._keys)
            self._keys = -1

    def _map_rows(self) -> None:
        size = self.layout.rows_size
        with open(self.folder / 'rows.npy', 'rb') as file:
            mapped = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)  # ValueError: truncated
        rows = np.frombuffer(mapped, np.uint8, offset=len(self.layout.rows_header))
        self._map = rows.reshape(self.layout.capacity, self.layout.row_bytes)


def create(space: Path, layout: Layout) -> Segment:
    """Makes an empty segment in the folder of its space and becomes its writer.

    Raises:
        OSError: The folder cannot be written, or the disk is full.
    """
    name = uuid.uuid4().hex[:16]
    partial = space / f'{PARTIAL}{name}'
    partial.mkdir()
    files.allocate(partial / 'keys.npy', layout.keys_header, layout.capacity * RECORD)
    files.allocate(partial / 'rows.npy', layout.rows_header, layout.capacity * layout.row_bytes)
    (partial / _KERNEL).write_bytes(files.kernel())
    segment = Segment(partial, layout)
    if not segment.adopt(created=True):
        raise FileNotFoundError(errno.ENOENT, 'deleted while it was made', str(partial))
    segment.folder = space / name  # locks belong to files, not to names
    os.rename(partial, segment.folder)
    return segment


def reading(folder: Path) -> AbstractContextManager[None]:
    """Turns a folder or file that must not be read into something the user can fix."""
    return as_user_error(
        'stored features cannot be read ({reason})',
        where=str(folder),
        fix='give yourself permission to read them, or set TLFLAX_CACHE to another folder',
        of=(PermissionError,),
    )


def names(space: Path) -> list[str]:
    """Returns the segments of a space; none if it does not exist or is not a folder.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with reading(space):
            entries = os.listdir(space)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in entries if '.' not in name)


def claim(folder: Path) -> int | None:
    """Locks a segment that nobody uses; returns None if it is in use, gone or not ours to remove.

    Closing the returned file descriptor releases it; until then `pin` waits.

    Raises:
        NoLocks: The file system has no locks: whether it is in use is not known.
    """
    try:
        return files.lock(folder / 'keys.npy', os.O_RDWR, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError, PermissionError):
        return None


def remove(folder: Path) -> None:
    """Deletes a claimed segment."""
    partial = folder.with_name(f'{PARTIAL}{folder.name}')
    os.rename(folder, partial)
    shutil.rmtree(partial)
