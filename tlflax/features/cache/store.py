"""The feature store: rows of numbers on disk, found by the content they were computed from.

A *space* is everything that determines a feature apart from the image (weights, preprocessing,
size, layer, types, ...): a folder named by the digest of its description, which lies in it as
space.json. In a space a row's *key* is the image's SHA-256 and the view of it. So renaming images
computes nothing, adding ten computes ten, and whoever asks for the same finds the same, from any
run, config or process. A space is a set of segments (`tlflax.features.cache.segments`);
`tlflax.features.cache.quota` keeps the whole within its limits.

Why plain .npy files under a thin index, and not a storage library: because rows are written once
and gathered at random in every epoch. Random batches of 32 from the page cache, GB/s (medians of 3,
on 2 cores shared with other work; this store checks every row's checksum once, before):

    rows of           50 KB     128 B
    this store          8.6     0.12
    bare .npy map      12.0     1.1      no look-up, no checks: the ceiling
    ArrayRecord         1.3     0.013
    TensorStore OCDBT   1.1     0.005
    zarr3, a row a chunk 1.1    0.011    TensorStore; 0.06 at 50 KB with 32 rows a chunk

Appending is slower here (0.41 GB/s at 50 KB) than in ArrayRecord (1.5) and sharded zarr3 (0.54), at
8,000 rows a second no matter beside computing them. And a file of ArrayRecord's whose writer was
killed read as empty. What NumPy lacks, look-up, checksums and locks, is what is here.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from absl import logging
from jaxtyping import Int, Shaped, UInt8, UInt64

from tlflax.features.cache import segments
from tlflax.features.cache.rows import DTYPES, Index, Layout, build_index
from tlflax.features.cache.segments import Segment
from tlflax.utils.errors import UserError

SEGMENT_BYTES = 2**28
_SYNC_SECONDS = 5.0  # between forced writes to disk, which bounds what a power cut can cost
_VERSION = 1


class DamagedRows(Exception):
    """Rows that failed their checksum when they were read: look their keys up again.

    Args:
        rows: i64[n], the row numbers.
    """

    def __init__(self, rows: Int[np.ndarray, ' n']) -> None:
        self.rows = rows
        super().__init__(f'{len(rows)} damaged rows')


def row_keys(digests: Sequence[str] | np.ndarray, view: str) -> UInt64[np.ndarray, 'n 2']:
    """Returns the keys of one view of some images.

    Args:
        digests: SHA-256 of each image's bytes, in hex.
        view: What was done to the images; '' for nothing.
    """
    images = np.frombuffer(bytes.fromhex(''.join(digests)), '<u8').reshape(-1, 4)
    salt = np.frombuffer(hashlib.sha256(view.encode()).digest(), '<u8')
    return images[:, :2] ^ salt[:2]


def describe(
    space: dict[str, Any], row_shape: Sequence[int], dtype: str, segment_rows: int
) -> tuple[str, str]:
    """Returns the name of a space (16 hex digits) and the contents of its space.json."""
    whole = {
        'space': space,
        'row_shape': list(row_shape),
        'dtype': dtype,
        'segment_rows': segment_rows,
        'version': _VERSION,
    }
    text = json.dumps(whole, sort_keys=True, indent=2) + '\n'
    return hashlib.sha256(text.encode()).hexdigest()[:16], text


class Store:
    """One space, as one process sees it. Reading is thread-safe; appending is for one thread.

    Row numbers hold as long as the object; what they stand for is never removed by others.

    Args:
        root: The folder of all spaces.
        space: Whatever determines a row apart from the image; values that JSON knows.
        row_shape: Of one row.
        dtype: 'float16', 'bfloat16' or 'float32'.
        segment_bytes: Rows are kept in files of at most this size.

    Attributes:
        root: As given.
        folder: The space's own.
        dtype: NumPy's type of the rows.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        space: dict[str, Any],
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
        self._writing: int | None = None
        self._synced = time.monotonic()
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
        """Takes note of what other processes have written since."""
        known = {segment.folder.name for segment in self._segments}
        for name in segments.names(self.folder):
            if name not in known:
                self._segments.append(Segment(self.folder / name, self._layout))
        for number, segment in enumerate(self._segments):
            try:
                if number not in self._gone and segment.scan():
                    self._index = None
            except FileNotFoundError:
                if not segment.pinned:  # else somebody deleted files by hand; they live on, mapped
                    self._drop(number)

    def lookup(
        self, keys: UInt64[np.ndarray, 'n 2'], *, verify: bool = True
    ) -> Int[np.ndarray, ' n']:
        """Returns the row number of each key, -1 where there is none.

        What is found stays: nobody evicts it while this object is open.

        Args:
            keys: From `row_keys`.
            verify: Check the rows found now, those not yet checked, and take damaged ones for
                missing. Otherwise `read` checks them.
        """
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
            keys: From `row_keys`, usually of what `lookup` did not find.
            values: One row for each key, of any float type.

        Raises:
            UserError: A value is too large for the store's type, or the disk is full or read-only;
                rows written before are kept.
        """
        stored = self._stored(values)
        rows = np.empty(len(keys), np.int64)
        done = 0
        try:
            with _sentence(self.folder):
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
            out: Where to put them, C-contiguous, of the store's type and shape; None: a new array.

        Raises:
            IndexError: A number that stands for no row.
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

    def flush(self) -> None:
        """Waits until what was written is on the disk.

        Raises:
            UserError: It cannot be written.
        """
        if self._writing is not None:
            with _sentence(self.folder):
                self._segments[self._writing].sync()
        self._synced = time.monotonic()

    def close(self) -> None:
        """Flushes, and lets others evict what this object used."""
        self.flush()
        for segment in self._segments:
            segment.close()
        self._segments, self._index, self._writing = [], None, None

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
        """Returns each segment's number, the places in `rows` that are its, and their slots."""
        numbers, slots = np.divmod(rows, self._layout.capacity)
        return [
            (int(number), where, slots[where])
            for number in np.flatnonzero(np.bincount(numbers))
            for where in [np.flatnonzero(numbers == number)]
        ]

    def _pin(self, rows: Int[np.ndarray, ' n']) -> bool:
        """Keeps the rows from being evicted; False where some were, and nobody has them now."""
        lost = [
            int(number)
            for number in np.flatnonzero(np.bincount(rows // self._layout.capacity))
            if not self._segments[number].pin()
        ]
        for number in lost:
            self._drop(number)
        return not lost

    def _damaged(self, rows: Int[np.ndarray, ' n']) -> Int[np.ndarray, ' m']:
        """Returns the row numbers that fail their checksum, which no look-up finds any more."""
        damaged = [
            rows[where[~good]]
            for number, where, slots in self._by_segment(rows)
            if not (good := self._segments[number].check(slots)).all()
        ]
        if not damaged:
            return np.zeros(0, np.int64)
        self._index = None
        found = np.unique(np.concatenate(damaged))
        logging.warning('%d features in %s are damaged and not used', len(found), self.folder)
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
        _publish(self.folder / 'space.json', self._description)
        self.refresh()
        for number, segment in enumerate(self._segments):
            if number not in self._gone and not segment.full and segment.adopt():
                self._writing = number
                return number
        self._segments.append(segments.create(self.folder, self._layout))
        self._writing = len(self._segments) - 1
        return self._writing

    def _stored(self, values: Shaped[np.ndarray, 'n ...']) -> UInt8[np.ndarray, 'n bytes']:
        """Returns the rows as bytes of the store's type."""
        values = np.asarray(values)
        if values.shape[1:] != self._layout.row_shape:
            raise ValueError(f'rows are {values.shape[1:]}, not {self._layout.row_shape}')
        with np.errstate(over='ignore'):
            stored = np.ascontiguousarray(values, self.dtype)
        if not np.isfinite(stored).all() and np.isfinite(values).all():
            raise UserError(
                f'a feature of {np.abs(values).max():.4g} does not fit in {self.dtype.name}',
                where='config.features.dtype',
                fix="set it to 'bfloat16' or 'float32'",
            )
        return stored.view(np.uint8).reshape(len(values), self._layout.row_bytes)


@contextlib.contextmanager
def _sentence(folder: Path) -> Iterator[None]:
    """Turns what the operating system refuses into something the user can fix."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f'features cannot be stored ({error.strerror}), those stored before are kept',
            where=str(folder),
            fix='fix that and run again, set TLFLAX_CACHE to a folder on another disk, or '
            'features.cache=False',
        ) from error


def _publish(path: Path, text: str) -> None:
    """Writes a small file whole or not at all, unless it is there already."""
    if path.exists() and path.read_text() == text:
        return
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=segments.PARTIAL)
    with open(descriptor, 'w') as file:
        file.write(text)
    os.replace(partial, path)
