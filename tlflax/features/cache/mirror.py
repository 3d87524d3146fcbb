"""Features in an object store, which machines with caches of their own share.

`TLFLAX_CACHE_MIRROR` names a folder there. In it each space has a folder, and in that

    DIGEST.rows  the rows, one after another
    DIGEST.keys  their records, as in a segment (`tlflax.features.cache.segments`)

Both are named by the digest of the records, written once and never changed, the rows first, so that
several machines may write at the same time. Rows are checked by the checksums in their records.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import logging
from jaxtyping import Int, UInt8, UInt64

from tlflax.features.cache import quota
from tlflax.features.cache.rows import RECORD, Layout, build_index, checksums
from tlflax.features.cache.store import Store
from tlflax.utils.errors import UserError, located
from tlflax.utils.files import atomic_write
from tlflax.utils.progress import progress
from tlflax.utils.storage import connect, download

VARIABLE = 'TLFLAX_CACHE_MIRROR'
"""The environment variable with the URL."""

PART_BYTES = 2**26
"""Bytes of the rows of one object, at most, unless one row is longer."""

_GAP = 2**18  # bytes between two rows from which they are fetched one by one
_THREADS = 8


def fetch(store: Store, keys: UInt64[np.ndarray, 'n 2'], max_bytes: float) -> None:
    """Adds to a store the rows that it lacks and the mirror has; does nothing without a mirror.

    A mirror that cannot be reached is a warning.

    Args:
        store: The store.
        keys: Those of the rows that are needed.
        max_bytes: The limit of all stores together.

    Raises:
        UserError: There is no such mirror, it may not be read, or the rows cannot be stored.
    """
    if (url := os.environ.get(VARIABLE, '').rstrip('/')) == '':
        return
    missing = np.unique(keys[store.lookup(keys) < 0], axis=0)
    if len(missing):
        with _warning('features that it may have are computed here'), located(VARIABLE):
            _Mirror(url, store).fetch(missing, max_bytes)


def send(store: Store, keys: UInt64[np.ndarray, 'n 2']) -> None:
    """Adds to the mirror the rows that it lacks; does nothing without one.

    A mirror that cannot be reached is a warning.

    Raises:
        UserError: There is no such mirror, or it may not be written.
    """
    if (url := os.environ.get(VARIABLE, '').rstrip('/')) == '':
        return
    with _warning('new features are on this machine only'), located(VARIABLE):
        _Mirror(url, store).send(np.unique(keys, axis=0))


class _Mirror:
    """The part of a mirror that belongs to one space.

    Args:
        url: Of the mirror.
        store: The space on this machine.
    """

    def __init__(self, url: str, store: Store) -> None:
        if not connect.is_url(url):
            raise UserError(
                f'{url!r} is no URL', fix='give the URL of a folder, such as s3://bucket/features'
            )
        self._store, self._layout = store, Layout(store.row_shape, store.dtype.name, 1)
        self._url = f'{url}/{store.folder.name}'
        self._remote, self._top = connect.connect(self._url)
        name = hashlib.sha256(url.encode()).hexdigest()[:16]
        self._kept = store.root.parent / 'mirrored' / name / store.folder.name
        with self._explained():
            self._names = self._listed()

    def fetch(self, keys: UInt64[np.ndarray, 'n 2'], max_bytes: float) -> None:
        """Adds rows to the store; see `fetch`."""
        records = [self._records(name) for name in self._names]
        owners = np.repeat(np.arange(len(records)), [len(one) for one in records])
        slots = np.concatenate([np.arange(len(one)) for one in records] or [np.zeros(0, int)])
        everything = np.concatenate([np.zeros((0, 3), np.uint64), *records])
        found = build_index(everything, np.arange(len(everything))).find(keys)
        found = np.sort(found[found >= 0])
        if not len(found):
            return
        size = quota.predict_bytes(len(found), self._store.row_shape, self._store.dtype.name)
        quota.reserve(self._store.root, size, max_bytes)
        logging.info(
            '%s: fetching %d of %d features (%.0f MB)', self._url, len(found), len(keys), size / 1e6
        )
        with progress('fetching features', len(found)) as tick:
            for owner in np.unique(owners[found]):
                wanted = slots[found[owners[found] == owner]]
                for part, rows in self._parts(self._names[owner], wanted):
                    self._add(records[owner][part], rows)
                    tick(len(part))
        self._store.flush()

    def send(self, keys: UInt64[np.ndarray, 'n 2']) -> None:
        """Adds rows of the store to the mirror; see `send`."""
        for name in self._names:
            records = self._records(name)
            known = build_index(records, np.arange(len(records))).find(keys) >= 0
            keys = keys[~known]
        rows = self._store.lookup(keys)
        keys, rows = keys[rows >= 0], rows[rows >= 0]
        step = max(1, PART_BYTES // self._layout.row_bytes)
        if len(keys):
            size = len(keys) * self._layout.row_bytes
            logging.info('%s: sending %d features (%.0f MB)', self._url, len(keys), size / 1e6)
        with progress('sending features', len(keys)) as tick:
            for start in range(0, len(keys), step):
                part = slice(start, start + step)
                self._send_part(keys[part], self._store.read(rows[part]).view(np.uint8))
                tick(len(keys[part]))

    def _send_part(self, keys: UInt64[np.ndarray, 'n 2'], values: UInt8[np.ndarray, '...']) -> None:
        rows = values.reshape(len(keys), self._layout.row_bytes)
        records = np.column_stack([keys, checksums(keys, rows, np.arange(len(keys)))])
        content = np.ascontiguousarray(records, '<u8').tobytes()
        name = hashlib.sha256(content).hexdigest()[:32]
        with self._explained():
            self._remote.pipe_file(f'{self._top}/{name}.rows', rows.tobytes())
            self._remote.pipe_file(f'{self._top}/{name}.keys', content)
        self._keep(name, content)

    def _listed(self) -> list[str]:
        """Returns the names of objects whose rows are there."""
        objects = download.listed(self._remote, self._top)
        return sorted(
            name
            for path, keys in objects.items()
            if path.endswith('.keys')
            and (rows := objects.get(f'{(name := path.removesuffix(".keys"))}.rows')) is not None
            and rows.size * RECORD == keys.size * self._layout.row_bytes
        )

    def _records(self, name: str) -> UInt64[np.ndarray, 'n 3']:
        """Returns the records of an object, which are kept on this machine."""
        path = self._kept / f'{name}.keys'
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            content = b''
        if hashlib.sha256(content).hexdigest()[:32] != name:
            with self._explained():
                content = self._remote.cat_file(f'{self._top}/{name}.keys')
            self._keep(name, content)
        whole = len(content) - len(content) % RECORD
        return np.frombuffer(content[:whole], '<u8').reshape(-1, 3)

    def _keep(self, name: str, content: bytes) -> None:
        with contextlib.suppress(OSError):  # it is asked for again
            self._kept.mkdir(parents=True, exist_ok=True)
            atomic_write(self._kept / f'{name}.keys', content)

    def _parts(
        self, name: str, slots: Int[np.ndarray, ' n']
    ) -> Iterator[tuple[Int[np.ndarray, ' m'], UInt8[np.ndarray, 'm bytes']]]:
        """Yields slots of an object, in order, and their rows: what is near is fetched at once."""
        size = self._layout.row_bytes
        breaks = np.flatnonzero(np.diff(slots) * size > size + _GAP) + 1
        runs = np.split(slots, breaks)

        def get(run: Int[np.ndarray, ' m']) -> UInt8[np.ndarray, 'm bytes']:
            first, last = int(run[0]), int(run[-1]) + 1
            with self._explained():
                content = self._remote.cat_file(
                    f'{self._top}/{name}.rows', start=first * size, end=last * size
                )
            return np.frombuffer(content, np.uint8).reshape(last - first, size)[run - first]

        with ThreadPoolExecutor(_THREADS) as threads:
            for start in range(0, len(runs), _THREADS):
                some = runs[start : start + _THREADS]
                yield from zip(some, threads.map(get, some), strict=True)

    def _add(self, records: UInt64[np.ndarray, 'n 3'], rows: UInt8[np.ndarray, 'n bytes']) -> None:
        """Adds rows to the store, but for those that are not what was sent."""
        keys = np.ascontiguousarray(records[:, :2])
        rows = np.ascontiguousarray(rows)
        good = checksums(keys, rows, np.arange(len(keys))) == records[:, 2]
        if not good.all():
            logging.warning(
                'WARNING: %s: %d features are damaged and are computed here',
                *(self._url, int((~good).sum())),
            )
        values = rows[good].view(self._store.dtype).reshape(-1, *self._store.row_shape)
        self._store.append(keys[good], values)

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return connect.explaining(
            self._url,
            refused='may not be read and written',
            failed='cannot be used as a mirror of features',
            fix=f'check the network, or unset {VARIABLE}',
        )


@contextlib.contextmanager
def _warning(meanwhile: str) -> Iterator[None]:
    """Turns a mirror that cannot be reached into a warning."""
    try:
        yield
    except connect.StoreFailed as error:
        logging.warning('WARNING: %s; %s', error.what, meanwhile)
