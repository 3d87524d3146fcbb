"""The feature store: rows of numbers on disk, found by the content they were computed from.

A *space* is everything that determines a feature apart from the image (weights, preprocessing,
size, layer, types, ...): a folder named by the digest of its description, which it contains as
space.json. In a space, the *key* of a row is the SHA-256 of the image and the view of it. So after
images were renamed nothing is computed, after ten were added ten are, and every run, config and
process that asks for the same features finds them. A space is a set of segments
(`tlflax.features.cache.segments`); `tlflax.features.cache.quota` limits the size of all spaces.
"""

import os
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from absl import logging
from jaxtyping import Int, Shaped, UInt8, UInt64

from tlflax.features.cache import segments
from tlflax.features.cache.keys import describe
from tlflax.features.cache.rows import DTYPES, Index, Layout, build_index
from tlflax.features.cache.segments import Segment
from tlflax.utils.errors import UserError, as_user_error
from tlflax.utils.files import atomic_write

SEGMENT_BYTES = 2**28
_SYNC_SECONDS = 5.0  # between forced writes to disk: bounds what a power cut can cost


class DamagedRows(Exception):
    """Rows that failed their checksum when they were read; look up their keys again.

    Args:
        rows: i64[n], the row numbers.
    """

    def __init__(self, rows: Int[np.ndarray, ' n']) -> None:
        self.rows = rows
        super().__init__(f'{len(rows)} damaged rows')


class Store:
    """One space, as one process sees it. Several threads may use it.

    Row numbers are valid as long as the object, and other processes never remove their rows. Use it
    as a context manager, or call `close`; a store that is garbage-collected releases its files too.

    Args:
        root: The folder of all spaces.
        space: Everything that determines a row apart from the image; values that JSON knows.
        row_shape: The shape of one row.
        dtype: 'float16', 'bfloat16' or 'float32'.
        segment_bytes: Rows are kept in files of at most this size.

    Attributes:
        root: As given.
        folder: The folder of the space.
        dtype: The NumPy type of the rows.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        space: Mapping[str, object],
        row_shape: Sequence[int],
        dtype: str,
        *,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        shape = tuple(int(size) for size in row_shape)
        capacity = max(1, segment_bytes // Layout(shape, dtype, 1).row_bytes)
        self._layout = Layout(shape, dtype, capacity)
        name, self._description = describe(space, shape, dtype, capacity)
        self.root, self.folder, self.dtype = Path(root), Path(root) / name, DTYPES[dtype]
        self._segments: list[Segment] = []
        self._gone: set[int] = set()  # positions in _segments; row numbers stay what they are
        self._index: Index | None = None
        self._lock = threading.RLock()  # held while the index or the list of segments changes
        self._writing: int | None = None
        self._synced = time.monotonic()
        weakref.finalize(self, _release, self._segments).atexit = False
        self.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row."""
        return self._layout.row_shape

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self._layout.row_bytes

    def refresh(self) -> None:
        """Looks for rows that other processes have written in the meantime."""
        known = {segment.folder.name for segment in self._segments}
        for name in segments.names(self.folder):
            if name not in known:
                self._segments.append(Segment(self.folder / name, self._layout))
        for number, segment in enumerate(self._segments):
            try:
                with segments.reading(segment.folder):
                    if number not in self._gone and segment.scan():
                        self._index = None
            except FileNotFoundError:
                if (
                    not segment.pinned
                ):  # a pinned one lives on, mapped, if somebody deletes its files
                    self._drop(number)

    def lookup(
        self, keys: UInt64[np.ndarray, 'n 2'], *, verify: bool = True
    ) -> Int[np.ndarray, ' n']:
        """Returns the row number of each key; -1 if it has no row.

        No process evicts the rows that were found while this object is open.

        Args:
            keys: From `row_keys`.
            verify: Whether to check the rows found that were not checked before, and to treat
                damaged ones as missing. Otherwise `read` checks them.
        """
        with self._lock:
            while True:
                self._index = self._index or self._sorted()
                rows = self._index.find(keys)
                found = rows[rows >= 0]
                if self._pin(found) and not (verify and len(self._damaged(found))):
                    return rows

    def append(
        self, keys: UInt64[np.ndarray, 'n 2'], values: Shaped[np.ndarray, 'n ...']
    ) -> Int[np.ndarray, ' n']:
        """Writes rows and returns their numbers; they survive the process from now on.

        Args:
            keys: From `row_keys`, usually those that `lookup` did not find.
            values: One row for each key, of any float type.

        Raises:
            UserError: A value is too large for the store's type, or the disk is full or read-only;
                rows written before are kept.
        """
        stored = self._stored(values)
        rows = np.empty(len(keys), np.int64)
        done = 0
        with self._lock:
            try:
                with _storing(self.folder):
                    while done < len(keys):
                        number = self._writer()
                        slots = self._segments[number].append(keys[done:], stored[done:])
                        rows[done : done + len(slots)] = number * self._layout.capacity + slots
                        done += len(slots)
            finally:
                self._index = None
            if time.monotonic() > self._synced + _SYNC_SECONDS:
                self.flush()
        return rows

    def read(
        self, rows: Int[np.ndarray, ' n'], out: Shaped[np.ndarray, 'n ...'] | None = None
    ) -> Shaped[np.ndarray, 'n ...']:
        """Returns a copy of rows, in the order given, checked at their first use.

        Args:
            rows: Numbers from `lookup` or `append`.
            out: The array to fill, C-contiguous, of the store's type and shape; None: a new one.

        Raises:
            IndexError: A number has no row.
            ValueError: `out` does not fit.
            DamagedRows: Some fail their checksum.
        """
        layout = self._layout
        if out is None:
            out = np.empty((len(rows), *layout.row_shape), self.dtype)
        if not out.flags.c_contiguous:
            raise ValueError('out must be C-contiguous')
        target = out.view(np.uint8).reshape(len(rows), layout.row_bytes)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self._segments) * layout.capacity):
            raise IndexError(f'rows {rows.min()} to {rows.max()} are not all in {self.folder}')
        if len(damaged := self._damaged(rows)):
            raise DamagedRows(damaged)
        for number, where, slots in self._by_segment(rows):
            self._segments[number].read(slots, target, where)
        return out

    def rounded(self, values: Shaped[np.ndarray, 'n ...']) -> Shaped[np.ndarray, 'n ...']:
        """Returns rows as they would be read back.

        Raises:
            UserError: A value is too large for the store's type.
        """
        with np.errstate(over='ignore'):
            stored = np.ascontiguousarray(values, self.dtype)
        if not np.isfinite(stored).all() and np.isfinite(values).all():
            raise UserError(
                f'a feature of {np.abs(values).max():.4g} does not fit in {self.dtype.name}',
                where='config.features.dtype',
                fix="set it to 'bfloat16' or 'float32'",
            )
        return stored

    def flush(self) -> None:
        """Waits until what was written is on the disk.

        Raises:
            UserError: It cannot be written.
        """
        if self._writing is not None:
            with _storing(self.folder):
                self._segments[self._writing].sync()
        self._synced = time.monotonic()

    def close(self) -> None:
        """Flushes, and lets other processes evict the rows that this object used."""
        self.flush()
        _release(self._segments)
        self._index, self._writing = None, None

    def __len__(self) -> int:
        """The number of rows that can be looked up, each key counted as often as it was written."""
        return sum(
            len(segment.records)
            for number, segment in enumerate(self._segments)
            if number not in self._gone
        )

    def _sorted(self) -> Index:
        """Indexes every row that is not known to be damaged."""
        records, numbers = [np.zeros((0, 3), np.uint64)], [np.zeros(0, np.int64)]
        for number, segment in enumerate(self._segments):
            if number not in self._gone:
                good = np.flatnonzero(~segment.bad[: len(segment.records)])
                records.append(segment.records[good])
                numbers.append(number * self._layout.capacity + good)
        return build_index(np.concatenate(records), np.concatenate(numbers))

    def _by_segment(
        self, rows: Int[np.ndarray, ' n']
    ) -> list[tuple[int, Int[np.ndarray, ' m'], Int[np.ndarray, ' m']]]:
        """Returns each segment's number, the positions of its rows in `rows`, and their slots."""
        numbers, slots = np.divmod(rows, self._layout.capacity)
        return [
            (int(number), where, slots[where])
            for number in np.flatnonzero(np.bincount(numbers))
            for where in [np.flatnonzero(numbers == number)]
        ]

    def _pin(self, rows: Int[np.ndarray, ' n']) -> bool:
        """Keeps the rows from being evicted; returns False if some were evicted before."""
        lost = [
            int(number)
            for number in np.flatnonzero(np.bincount(rows // self._layout.capacity))
            if not self._segments[number].pin()
        ]
        for number in lost:
            self._drop(number)
        return not lost

    def _damaged(self, rows: Int[np.ndarray, ' n']) -> Int[np.ndarray, ' m']:
        """Returns the row numbers that fail their checksum; no look-up finds them any more."""
        damaged = [
            rows[where[~good]]
            for number, where, slots in self._by_segment(rows)
            if not (good := self._segments[number].check(slots)).all()
        ]
        if not damaged:
            return np.zeros(0, np.int64)
        with self._lock:
            self._index = None
        found = np.unique(np.concatenate(damaged))
        logging.warning(
            '%d features in %s are damaged and will not be used', len(found), self.folder
        )
        return found

    def _drop(self, number: int) -> None:
        self._segments[number].close()
        self._gone.add(number)
        self._index = None

    def _writer(self) -> int:
        """Returns the number of a segment with room that this process may write."""
        if self._writing is not None:
            segment = self._segments[self._writing]
            if not segment.full:
                return self._writing
            segment.sync()
            segment.yield_writing()
            self._writing = None
        self.folder.mkdir(parents=True, exist_ok=True)
        self._describe()
        self.refresh()
        for number, segment in enumerate(self._segments):
            if number not in self._gone and not segment.full and segment.adopt():
                self._writing = number
                return number
        self._segments.append(segments.create(self.folder, self._layout))
        self._writing = len(self._segments) - 1
        return self._writing

    def _describe(self) -> None:
        """Writes space.json, unless it is there."""
        path = self.folder / 'space.json'
        if not path.exists() or path.read_bytes() != self._description.encode():
            atomic_write(path, self._description)

    def _stored(self, values: Shaped[np.ndarray, 'n ...']) -> UInt8[np.ndarray, 'n bytes']:
        """Returns the rows as bytes of the store's type."""
        values = np.asarray(values)
        if values.shape[1:] != self._layout.row_shape:
            raise ValueError(f'rows are {values.shape[1:]}, not {self._layout.row_shape}')
        return self.rounded(values).view(np.uint8).reshape(len(values), self._layout.row_bytes)


def _release(segments: list[Segment]) -> None:
    while segments:
        segments.pop().close()


def _storing(folder: Path) -> AbstractContextManager[None]:
    """Turns what the operating system refuses into something the user can fix."""
    return as_user_error(
        'features cannot be stored ({reason}), those stored before are kept',
        where=str(folder),
        fix='fix that and run again, set TLFLAX_CACHE to a folder on another disk, or '
        'features.cache=False',
        of=(OSError,),
    )
