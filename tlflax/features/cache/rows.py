"""A row of the feature store: its bytes, its checksum, its record, and the search of records."""

import dataclasses
import functools
import io
import math
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Int, UInt8, UInt64

from tlflax.utils import cpu

DTYPES = {
    'float16': np.dtype(np.float16),
    'bfloat16': np.dtype(ml_dtypes.bfloat16),
    'float32': np.dtype(np.float32),
}
RECORD = 24  # bytes of a row's record: two words of key, one of checksum
LONG = 2**13  # bytes from which a row is worth a step of a Python loop
_PART = 2**23  # bytes checked at once
_BLOCK = 2**20  # keys searched at once: bounds the memory; much fewer would be slower per key


@dataclasses.dataclass(frozen=True)
class Layout:
    """What all segments of a space have in common.

    Attributes:
        row_shape: The shape of one row.
        dtype: A key of `DTYPES`.
        capacity: Rows of a segment.
    """

    row_shape: tuple[int, ...]
    dtype: str
    capacity: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.row_shape) * DTYPES[self.dtype].itemsize

    @functools.cached_property
    def rows_header(self) -> bytes:
        """The first bytes of rows.npy."""
        kind = '<u2' if self.dtype == 'bfloat16' else DTYPES[self.dtype].str
        return _header(kind, (self.capacity, *self.row_shape))

    @functools.cached_property
    def keys_header(self) -> bytes:
        """The first bytes of keys.npy."""
        return _header('<u8', (self.capacity, 3))

    @property
    def rows_size(self) -> int:
        """Bytes of rows.npy, sparse until they are written."""
        return len(self.rows_header) + self.capacity * self.row_bytes


class Index(NamedTuple):
    """Records in the order of their keys.

    Attributes:
        first: u64[n], the first word of each key, ascending.
        second: u64[n], the other word.
        numbers: i64[n], the row number of each.
    """

    first: UInt64[np.ndarray, ' n']
    second: UInt64[np.ndarray, ' n']
    numbers: Int[np.ndarray, ' n']

    def find(self, keys: UInt64[np.ndarray, 'm 2']) -> Int[np.ndarray, ' m']:
        """Returns the row number of each key; -1 if it has no row."""
        rows = np.full(len(keys), -1, np.int64)
        for start in range(0, len(keys) if len(self.first) else 0, _BLOCK):
            block = keys[start : start + _BLOCK]
            order = np.argsort(block[:, 0])  # a search in order stays in the CPU's cache
            wanted = block[order]
            rows[start + order] = self._find_sorted(wanted)
        return rows

    def _find_sorted(self, wanted: UInt64[np.ndarray, 'm 2']) -> Int[np.ndarray, ' m']:
        last = len(self.first) - 1
        at = np.searchsorted(self.first, wanted[:, 0]).clip(max=last)
        while True:
            same = self.first[at] == wanted[:, 0]
            hit = same & (self.second[at] == wanted[:, 1])
            # Two keys share the first word almost never, unless the second of one is damaged.
            onward = same & ~hit & (at < last)
            onward[onward] = self.first[at[onward] + 1] == wanted[onward, 0]
            if not onward.any():
                return np.where(hit, self.numbers[at], -1)
            at = at + onward


def build_index(records: UInt64[np.ndarray, 'n 3'], numbers: Int[np.ndarray, ' n']) -> Index:
    """Sorts records (and their row numbers) by key."""
    order = np.argsort(records[:, 0])
    return Index(records[order, 0], records[order, 1], numbers[order])


def checksums(
    keys: UInt64[np.ndarray, 'n 2'],
    rows: UInt8[np.ndarray, 'm bytes'],
    picks: Int[np.ndarray, ' n'],
) -> UInt64[np.ndarray, ' n']:
    """Returns the CRC-32 of each of `rows[picks]`, started from its key."""
    starts = keys[:, 0] & np.uint64(0xFFFFFFFF)

    def part(span: slice) -> UInt64[np.ndarray, ' n']:
        pairs = zip(picks[span].tolist(), starts[span].tolist(), strict=True)
        return np.array([zlib.crc32(rows[pick], start) for pick, start in pairs], np.uint64)

    step = max(1, _PART // rows.shape[1])
    spans = [slice(start, start + step) for start in range(0, len(picks), step)] or [slice(0)]
    if rows.shape[1] < LONG or len(spans) == 1:
        return np.concatenate([part(span) for span in spans])
    with ThreadPoolExecutor(cpu.cores()) as threads:  # zlib releases the interpreter lock
        return np.concatenate(list(threads.map(part, spans)))


def _header(kind: str, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {'descr': kind, 'fortran_order': False, 'shape': shape}
    )
    return buffer.getvalue()
