"""Finds copies: the same bytes, or the same picture, in two splits, under two labels, or twice."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8

from tlflax.data.audit import near_duplicates
from tlflax.data.audit.near_duplicates import Near
from tlflax.data.images import perceptual_hash
from tlflax.data.images.decode import printable
from tlflax.data.images.scan import Scanned
from tlflax.data.table import ImageTable

File = dict[str, str]  # split, class and path below the split's root


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """The good images of all splits, one below the other.

    Attributes:
        names: The splits, training first: of two copies, the one in the later split is the leak.
        roots: The folder of each split.
        classes: Class names of all splits.
        splits: Rows of `names`.
        labels: Rows of `classes`.
        paths: Absolute, or relative to the split's root.
        digests: SHA-256 of each file, hexadecimal.
        looks: See `tlflax.data.images.perceptual_hash`.
        groups: The scene of each, '' for none; None: no scenes are known.
    """

    names: tuple[str, ...]
    roots: tuple[str, ...]
    classes: tuple[str, ...]
    splits: Int32[np.ndarray, ' n']
    labels: Int32[np.ndarray, ' n']
    paths: np.ndarray
    digests: np.ndarray
    looks: UInt8[np.ndarray, 'n bytes']
    groups: np.ndarray | None = None

    def file(self, row: int) -> File:
        """Describes an image for messages and reports."""
        split = self.splits[row]
        path = self.paths[row].removeprefix(os.path.join(self.roots[split], ''))
        return {
            'split': self.names[split],
            'class': self.classes[self.labels[row]],
            'path': printable(path),
        }


def of_scans(splits: Mapping[str, Scanned]) -> Images:
    """Gathers the good images of splits as they were read."""
    classes = tuple(sorted({name for scanned in splits.values() for name in scanned.names}))
    label_of = {name: label for label, name in enumerate(classes)}
    rows = [
        (split, label_of[name], entry.path, finding.digest, finding.look)
        for split, scanned in enumerate(splits.values())
        for entry, name, finding in zip(
            scanned.entries, scanned.names, scanned.findings, strict=True
        )
        if finding.digest
    ]
    return Images(
        names=tuple(splits),
        roots=tuple(scanned.root for scanned in splits.values()),
        classes=classes,
        splits=np.array([row[0] for row in rows], np.int32),
        labels=np.array([row[1] for row in rows], np.int32),
        paths=np.array([row[2] for row in rows], object),
        digests=np.array([row[3] for row in rows], object),
        looks=perceptual_hash.table([row[4] for row in rows]),
    )


def of_tables(tables: Mapping[str, ImageTable]) -> Images:
    """Gathers the images of splits as they are trained with; all have the same classes."""
    parts = list(tables.values())
    flat = [np.zeros((len(part), perceptual_hash.BYTES), np.uint8) for part in parts]
    groups = [np.full(len(p), '', object) if p.groups is None else p.groups for p in parts]
    return Images(
        names=tuple(tables),
        roots=tuple(part.root for part in parts),
        classes=parts[0].classes,
        splits=np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        paths=np.concatenate([part.paths for part in parts]),
        digests=np.concatenate([part.digests for part in parts]),
        looks=np.concatenate(
            [
                other if part.looks is None else part.looks
                for part, other in zip(parts, flat, strict=True)
            ]
        ),
        groups=np.concatenate(groups) if any(part.groups is not None for part in parts) else None,
    )


class Items(Sequence[dict[str, Any]]):
    """A list whose items are made when they are asked for: there may be millions."""

    def __init__(self, count: int, make: Callable[[int], dict[str, Any]]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, at: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, at: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(at, slice):
            return [self._make(i) for i in range(*at.indices(self._count))]
        if not -self._count <= at < self._count:
            raise IndexError(at)
        return self._make(at % self._count)


@dataclasses.dataclass(frozen=True, eq=False)
class Twins:
    """Some kind of copies.

    Attributes:
        count: Images concerned: the later ones of leaks, the superfluous ones of repeats.
        items: {'files': [...]} with the files that are one picture; of look-alikes also 'bits', in
            how many bits of 64 their hashes differ.
    """

    count: int
    items: Sequence[dict[str, Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """All copies, by kind.

    Attributes:
        leaks: Copies in two splits.
        conflicts: Copies under two labels.
        repeats: Copies within a class of a split.
        complete: False where the search ended before it had found all.
    """

    leaks: Twins
    conflicts: Twins
    repeats: Twins
    complete: bool = True


def exact(images: Images) -> Found:
    """Finds the files with the same bytes."""
    contents = _contents(images.digests)
    order = np.lexsort((images.labels, images.splits, contents))
    starts = np.flatnonzero(np.diff(contents[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    starts, ends = starts[ends - starts > 1], ends[ends - starts > 1]
    # Per group of copies: how many are in a later split than its first, how many are superfluous.
    later, extra, labels = [], [], []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        rows = order[start:end]
        splits, kinds = images.splits[rows].tolist(), images.labels[rows].tolist()
        later.append(sum(split != splits[0] for split in splits))
        extra.append(len(rows) - len(set(zip(splits, kinds, strict=True))))
        labels.append(len(set(kinds)))

    def twins(counts: Sequence[int]) -> Twins:
        groups = np.flatnonzero(counts)

        def item(at: int) -> dict[str, Any]:
            rows = order[starts[groups[at]] : ends[groups[at]]]
            return {'files': [images.file(row) for row in rows]}

        return Twins(sum(counts), Items(len(groups), item))

    sizes = (ends - starts).tolist()
    conflicts = [size if kinds > 1 else 0 for size, kinds in zip(sizes, labels, strict=True)]
    return Found(leaks=twins(later), conflicts=twins(conflicts), repeats=twins(extra))


def alike(images: Images, **limits: Any) -> Found:
    """Finds images that look alike without being the same bytes.

    Args:
        images: The images.
        limits: Those of `near.find`.
    """
    contents = _contents(images.digests)
    order = np.lexsort((images.labels, images.splits, contents))
    keys = np.stack([contents, images.splits, images.labels])[:, order]
    units = order[np.flatnonzero((np.diff(keys, axis=1, prepend=-1) != 0).any(axis=0))]
    search = near_duplicates.find(images.looks[units], **limits)
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
        leaks=_twins(images, found, across, later=True),
        conflicts=_twins(images, found, other),
        repeats=_twins(images, found, ~across & ~other),
        complete=search.complete,
    )


def _twins(
    images: Images, found: Near, chosen: Bool[np.ndarray, ' m'], later: bool = False
) -> Twins:
    """The chosen pairs; counts their images, or those in the later split alone."""
    pairs, bits = found.pairs[chosen], found.bits[chosen]

    def item(at: int) -> dict[str, Any]:
        return {'files': [images.file(row) for row in pairs[at]], 'bits': int(bits[at])}

    rows = pairs[:, 1] if later else pairs
    return Twins(len(np.unique(rows)), Items(len(pairs), item))


def _contents(digests: np.ndarray) -> Int64[np.ndarray, ' n']:
    """Numbers the distinct digests."""
    words = np.frombuffer(bytes.fromhex(''.join(digests)), np.uint64).reshape(-1, 4)[:, :2]
    order = np.lexsort(words.T)
    new = (np.diff(words[order], axis=0) != 0).any(axis=1)
    numbers = np.empty(len(words), np.int64)
    numbers[order] = np.concatenate([[0], np.cumsum(new)])[: len(words)]
    return numbers
