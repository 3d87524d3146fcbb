"""Reads texts in attributes of HDF5 files, after a look at how long they say they are.

A text of variable length is stored as its length and its place, 16 bytes. HDF5 allocates and clears
the length, of up to 4 GB, before it looks at the place, so damage of 4 bytes would fill the memory.
The message that holds an attribute is section IV.A.2.m of the HDF5 file format specification.
"""

import math
import mmap
import struct
from collections.abc import Iterator

import h5py
import numpy as np

_VARIABLE = 9  # class of data types
_DESCRIPTOR = 16  # u32 length, u64 address, u32 index


class Texts:
    """Reads attributes of one file.

    Args:
        content: The bytes of the file.
    """

    def __init__(self, content: bytes | mmap.mmap) -> None:
        self._content = content
        self._longest: dict[str, int] = {}

    def read(self, item: h5py.HLObject, name: str) -> list[str]:
        """Returns the texts of an attribute, a single one too as a list.

        Raises:
            ValueError: It holds no texts, or announces more than the file has.
        """
        attribute = item.attrs.get_id(name)
        kind = attribute.get_type()
        if not isinstance(kind, h5py.h5t.TypeStringID):
            raise ValueError(f'the attribute {name!r} holds no texts')
        announced = math.prod(attribute.shape) * kind.get_size()
        if kind.is_variable_str():
            announced = max(announced, self._announced(name))
        if announced > len(self._content):
            raise ValueError(f'the attribute {name!r} announces more than the file has')
        values = np.atleast_1d(np.asarray(item.attrs[name], object))
        return [one.decode() if isinstance(one, bytes) else str(one) for one in values]

    def _announced(self, name: str) -> int:
        """Returns the most characters that an attribute of this name says it has, anywhere."""
        if name not in self._longest:
            found = list(_lengths(self._content, name.encode() + b'\0'))
            # A type that is stored elsewhere would escape the look; nobody writes one for texts.
            self._longest[name] = max(found) if found else 1 << 62
        return self._longest[name]


def _lengths(content: bytes | mmap.mmap, name: bytes) -> Iterator[int]:
    """Yields the sum of lengths in each message of a variable text with this name."""
    at = content.find(name)
    while at >= 0:
        for version, start in ((1, at - 8), (2, at - 8), (3, at - 9)):
            if start >= 0 and content[start] == version:
                sizes = struct.unpack_from('<3H', content, start + 2)
                if sizes[0] == len(name):
                    yield from _message(content, at, version, sizes)
        at = content.find(name, at + 1)


def _message(
    content: bytes | mmap.mmap, at: int, version: int, sizes: tuple[int, ...]
) -> Iterator[int]:
    """Yields the sum of lengths if the message at a place has variable texts."""
    padded = [-(-size // 8) * 8 if version == 1 else size for size in sizes]
    kind = at + padded[0]
    space = kind + padded[1]
    if space + 8 > len(content) or content[kind] & 15 != _VARIABLE:
        return
    rank, dims = content[space + 1], space + (8 if content[space] == 1 else 4)
    data = space + padded[2]
    if max(dims + 8 * rank, data) > len(content):
        return
    count = math.prod(struct.unpack_from(f'<{rank}Q', content, dims))
    ends = range(data + _DESCRIPTOR, len(content) + 1, _DESCRIPTOR)[:count]
    yield sum(struct.unpack_from('<I', content, end - _DESCRIPTOR)[0] for end in ends)
