"""Finds duplicates, of bytes or of pictures: in two splits, under two labels, or in one class."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import overload

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8

from tlflax.data.audit import near_duplicates
from tlflax.data.audit.near_duplicates import Near
from tlflax.data.audit.problems import File, Item
from tlflax.data.images import perceptual_hash
from tlflax.data.table import ImageTable
from tlflax.utils.errors import printable


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """The images of all splits, one below the other.

    Attributes:
        names: The splits, training first: of two copies, the one in the later split is the leak.
        roots: The folder of each split.
        class_names: Class names of all splits.
        splits: Rows of `names`.
        labels: Rows of `class_names`.
        paths: Absolute paths.
        digests: SHA-256 of each file, hexadecimal.
        perceptual_hashes: See `tlflax.data.images.perceptual_hash`.
        groups: The group of each, '' for none; None: no groups are known.
    """

    names: tuple[str, ...]
    roots: tuple[str, ...]
    class_names: tuple[str, ...]
    splits: Int32[np.ndarray, ' n']
    labels: Int32[np.ndarray, ' n']
    paths: np.ndarray
    digests: np.ndarray
    perceptual_hashes: UInt8[np.ndarray, 'n bytes']
    groups: np.ndarray | None = None

    def file(self, row: int | np.integer) -> File:
        """Describes an image for messages and reports."""
        split = self.splits[row]
        path = self.paths[row].removeprefix(os.path.join(self.roots[split], ''))
        return {
            'split': self.names[split],
            'class': self.class_names[self.labels[row]],
            'path': printable(path),
        }


def of_tables(tables: Mapping[str, ImageTable]) -> Images:
    """Gathers the images of splits, all with the same class names."""
    parts = list(tables.values())
    flat = [np.zeros((len(part), perceptual_hash.BYTES), np.uint8) for part in parts]
    groups = [np.full(len(p), '', object) if p.groups is None else p.groups for p in parts]
    return Images(
        names=tuple(tables),
        roots=tuple(part.root for part in parts),
        class_names=parts[0].class_names,
        splits=np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        paths=np.concatenate([part.paths for part in parts]),
        digests=np.concatenate([part.digests for part in parts]),
        perceptual_hashes=np.concatenate(
            [
                other if part.perceptual_hashes is None else part.perceptual_hashes
                for part, other in zip(parts, flat, strict=True)
            ]
        ),
        groups=np.concatenate(groups) if any(part.groups is not None for part in parts) else None,
    )


class Items(Sequence[Item]):
    """A list whose items are made when they are asked for: there may be millions."""

    def __init__(self, count: int, make: Callable[[int], Item]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> Item: ...
    @overload
    def __getitem__(self, at: slice) -> list[Item]: ...
    def __getitem__(self, at: int | slice) -> Item | list[Item]:
        if isinstance(at, slice):
            return [self._make(i) for i in range(*at.indices(self._count))]
        if not -self._count <= at < self._count:
            raise IndexError(at)
        return self._make(at % self._count)


@dataclasses.dataclass(frozen=True, eq=False)
class Duplicates:
    """Duplicates of one kind.

    Attributes:
        count: Images concerned: the later ones of leaks, the superfluous ones of repeats.
        items: The files that are one picture.
    """

    count: int
    items: Sequence[Item]


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """All duplicates, by kind.

    Attributes:
        leaks: Duplicates in two splits.
        conflicts: Duplicates under two labels.
        repeats: Duplicates within a class of a split.
        complete: False where the search ended before all were found.
    """

    leaks: Duplicates
    conflicts: Duplicates
    repeats: Duplicates
    complete: bool = True


def exact(images: Images) -> Found:
    """Finds the files with the same bytes."""
    contents = _contents(images.digests)
    order = np.lexsort((images.labels, images.splits, contents))
    starts = np.flatnonzero(np.diff(contents[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    starts, ends = starts[ends - starts > 1], ends[ends - starts > 1]
    # For each set of copies: how many are in a later split than the first, how many superfluous.
    later, extra, labels = [], [], []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        rows = order[start:end]
        splits, kinds = images.splits[rows].tolist(), images.labels[rows].tolist()
        later.append(sum(split != splits[0] for split in splits))
        extra.append(len(rows) - len(set(zip(splits, kinds, strict=True))))
        labels.append(len(set(kinds)))

    def duplicates(counts: Sequence[int]) -> Duplicates:
        sets = np.flatnonzero(counts)

        def item(at: int) -> Item:
            rows = order[starts[sets[at]] : ends[sets[at]]]
            return {'files': [images.file(row) for row in rows]}

        return Duplicates(sum(counts), Items(len(sets), item))

    sizes = (ends - starts).tolist()
    conflicts = [size if kinds > 1 else 0 for size, kinds in zip(sizes, labels, strict=True)]
    return Found(
        leaks=duplicates(later), conflicts=duplicates(conflicts), repeats=duplicates(extra)
    )


def alike(images: Images) -> Found:
    """Finds images that look alike without being the same bytes; see `near_duplicates.find`."""
    contents = _contents(images.digests)
    order = np.lexsort((images.labels, images.splits, contents))
    keys = np.stack([contents, images.splits, images.labels])[:, order]
    units = order[np.flatnonzero((np.diff(keys, axis=1, prepend=-1) != 0).any(axis=0))]
    search = near_duplicates.find(images.perceptual_hashes[units])
    pairs = units[search.pairs]
    keep = contents[pairs[:, 0]] != contents[pairs[:, 1]]
    pairs, bits = pairs[keep], search.bits[keep]
    # The earlier split first, and the closest pairs first.
    swap = images.splits[pairs[:, 0]] > images.splits[pairs[:, 1]]
    pairs[swap] = pairs[swap][:, ::-1]
    closest = np.lexsort((pairs[:, 1], pairs[:, 0], bits))
    found = Near(pairs[closest], bits[closest], search.complete)
    across = images.splits[found.pairs[:, 0]] != images.splits[found.pairs[:, 1]]
    other = images.labels[found.pairs[:, 0]] != images.labels[found.pairs[:, 1]]
    return Found(
        leaks=_select(images, found, across, later=True),
        conflicts=_select(images, found, other),
        repeats=_select(images, found, ~across & ~other),
        complete=search.complete,
    )


def _select(
    images: Images, found: Near, chosen: Bool[np.ndarray, ' m'], later: bool = False
) -> Duplicates:
    """The chosen pairs; counts their images, or those in the later split alone."""
    pairs, bits = found.pairs[chosen], found.bits[chosen]

    def item(at: int) -> Item:
        return {'files': [images.file(row) for row in pairs[at]], 'bits': int(bits[at])}

    rows = pairs[:, 1] if later else pairs
    return Duplicates(len(np.unique(rows)), Items(len(pairs), item))


def _contents(digests: np.ndarray) -> Int64[np.ndarray, ' n']:
    """Numbers the distinct digests."""
    words = np.frombuffer(bytes.fromhex(''.join(digests)), np.uint64).reshape(-1, 4)[:, :2]
    order = np.lexsort(words.T)
    new = (np.diff(words[order], axis=0) != 0).any(axis=1)
    numbers = np.empty(len(words), np.int64)
    numbers[order] = np.concatenate([[0], np.cumsum(new)])[: len(words)]
    return numbers
