"""Splits a table of images.

A *unit* is never divided: all copies of one content and, where the groups of images are known, all
images of one group.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
from absl import logging
from jaxtyping import Bool, Int

from tlflax.data.inputs.class_checks import some
from tlflax.data.table import ImageTable
from tlflax.utils.errors import UserError, printable

# Begins the name of a unit that is a group; the others are digests. Units are ranked by their
# names, so another word would make other splits.
_GROUP = 'scene '


def stratified_split(
    table: ImageTable, fraction: float, salt: str = 'val'
) -> tuple[ImageTable, ImageTable]:
    """Takes a fraction of each class, decided by the contents of the images alone.

    Within a class, distinct contents are ranked by SHA-256 of (salt, digest of the file), and the
    first `round(fraction * n)` of n are taken: at least one of two, never all. So the choice is
    the same on every machine, independent of names and locations of files, and images added to
    other classes change nothing. Identical files never end up on both sides: a content that one of
    its classes takes is taken from all. Groups are ranked by their names instead, and taken whole
    while their middle lies below the fraction.

    Args:
        table: The images.
        fraction: The part to take, between 0 and 1, both excluded.
        salt: Splits with different salts are independent draws.

    Returns:
        (rest, part), both with all the classes.

    Raises:
        UserError: A class would lose all its images, because other classes hold copies of them or
            images of the same groups; or no class has two images or groups.
    """
    if not 0 < fraction < 1:
        raise ValueError(f'fraction={fraction} is not between 0 and 1')
    names = units(table)
    taken: set[str] = set()
    for _, rows in _classes(table):
        taken.update(_draw(names[rows], table.digests[rows], fraction, salt))
    if not taken:
        what = 'two images' if table.groups is None else 'two groups'
        raise UserError(f'no class has {what}, so nothing can be taken from any', fix='add images')
    return _divide(table, np.array([name in taken for name in names], bool))


def fold_split(
    table: ImageTable, folds: int, fold: int, repeat: int = 0
) -> tuple[ImageTable, ImageTable]:
    """Takes one of `folds` parts into which `fold_numbers` cuts a table.

    Returns:
        (rest, part), both with all the classes.

    Raises:
        UserError: The part has no image, or the rest none of some class.
    """
    rest, part = _take(table, fold_numbers(table, folds, repeat), folds, fold)
    lost = np.flatnonzero((part.counts == 0) & (table.counts > 0))
    if without := [table.class_names[label] for label in lost]:
        logging.warning('fold %d has no image of %d classes: %s', fold, len(without), some(without))
    return rest, part


def fold_splits(
    table: ImageTable, folds: int, repeat: int = 0
) -> list[tuple[ImageTable, ImageTable]]:
    """Takes each of the parts in turn; returns what `fold_split` does, without its warnings."""
    number = fold_numbers(table, folds, repeat)
    return [_take(table, number, folds, fold) for fold in range(folds)]


def fold_numbers(table: ImageTable, folds: int, repeat: int = 0) -> Int[np.ndarray, ' n']:
    """Cuts a table into parts of equal size in which each class has its share.

    A unit belongs to the class of which it holds most. The units of a class are ranked as in
    `stratified_split` and cut into `folds` runs of equal size; the class's name decides which fold
    gets the first, so that small classes do not all meet in one. So images that are renamed or
    moved, and images added to other classes, change nothing, and images added to a class move few
    of its others.

    Args:
        table: The images.
        folds: The number of parts.
        repeat: Each number ranks the units in another way.

    Returns:
        The fold of each image; -1 for a unit that is the only one of a class, and is in the
        training side of every fold.
    """
    salt = f'fold {repeat}' if repeat else 'fold'
    names = units(table)
    labels = table.labels.tolist()
    distinct = set(zip(names, labels, table.digests, strict=True))
    sizes = Counter((name, label) for name, label, _ in distinct)
    main: dict[str, tuple[int, int]] = {}
    units_of = Counter(label for _, label in sizes)
    alone = {name for name, label in sizes if units_of[label] == 1}
    for (name, label), size in sizes.items():
        main[name] = max(main.get(name, (0, 0)), (size, -label))
    members: dict[int, list[str]] = {}
    for name, (_, label) in main.items():
        members.setdefault(-label, []).append(name)
    number = dict.fromkeys(alone, -1)
    for label, found in members.items():
        ranked = sorted(set(found) - alone, key=lambda name: _rank(salt, name))
        middle = _middles([main[name][0] for name in ranked])
        start = int.from_bytes(_rank(salt, table.class_names[label])[:4], 'big')
        for name, at in zip(ranked, middle, strict=True):
            number[name] = (int(at * folds) + start) % folds
    return np.array([number[name] for name in names], np.int64)


def units(table: ImageTable) -> np.ndarray:
    """Names the unit of each image: the first group in it, else the digest of its content."""
    if table.groups is None:
        return table.digests
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while (above := parent.setdefault(name, name)) != name:
            parent[name] = parent[above]
            name = above
        return name

    for digest, group in zip(table.digests, table.groups, strict=True):
        if group:
            one, other = sorted(
                (find(digest), find(_GROUP + group)),
                key=lambda name: (not name.startswith(_GROUP), name),
            )
            parent[other] = one
    return np.array([find(digest) for digest in table.digests], object)


def _classes(table: ImageTable) -> Iterator[tuple[int, Int[np.ndarray, ' m']]]:
    """Yields each class's label and rows."""
    rows = np.argsort(table.labels, kind='stable')
    yield from enumerate(np.split(rows, np.cumsum(table.counts)[:-1]))


def _draw(names: np.ndarray, digests: np.ndarray, fraction: float, salt: str) -> list[str]:
    """Chooses among the units of one class."""
    sizes = Counter(name for name, _ in set(zip(names, digests, strict=True)))
    ranked = sorted(sizes, key=lambda name: _rank(salt, name))
    if len(ranked) < 2:
        return []
    size = np.array([sizes[name] for name in ranked])
    # Units of one content: as many as the fraction, rounded.
    count = int((np.cumsum(size) - size / 2 + 0.5 <= fraction * size.sum() + 0.5).sum())
    return ranked[: min(max(count, 1), len(ranked) - 1)]


def _middles(sizes: list[int]) -> list[float]:
    """Where the middle of each size lies when they follow each other, in parts of the whole."""
    size = np.array(sizes, np.float64)
    return ((np.cumsum(size) - size / 2) / max(size.sum(), 1)).tolist()


def _take(
    table: ImageTable, number: Int[np.ndarray, ' n'], folds: int, fold: int
) -> tuple[ImageTable, ImageTable]:
    if not (number == fold).any():
        raise UserError(
            f'fold {fold} of {folds} has no image', fix='use fewer folds, or add images'
        )
    return _divide(table, number == fold)


def _divide(table: ImageTable, inside: Bool[np.ndarray, ' n']) -> tuple[ImageTable, ImageTable]:
    """Returns (rest, part); a class that is missing in the rest is an error."""
    rest, part = table.select(~inside), table.select(inside)
    for lost in np.flatnonzero((rest.counts == 0) & (table.counts > 0)):
        path = printable(part.paths[part.labels == lost][0])
        name = table.class_names[lost]
        if table.groups is None:
            raise UserError(
                f'class {name!r} holds nothing but copies of images of other classes',
                where=path,
                fix='keep each image in the one class it belongs to',
            )
        raise UserError(
            f'all groups with images of class {name!r} would go to one side of the split',
            where=path,
            fix='make the groups smaller with config.data.group, or add groups of this class',
        )
    return rest, part


def _rank(salt: str, name: str) -> bytes:
    return hashlib.sha256(f'{salt}\0{name}'.encode()).digest()
