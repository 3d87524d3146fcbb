"""Splits a table of images."""

import hashlib

import numpy as np
from jaxtyping import Bool

from tlflax.data.decode import printable
from tlflax.data.folder import ImageTable
from tlflax.errors import UserError


def stratified_split(
    table: ImageTable, fraction: float, salt: str = 'val'
) -> tuple[ImageTable, ImageTable]:
    """Takes a fraction of each class, decided by what the images are and by nothing else.

    Within a class, distinct contents are ranked by SHA-256 of (salt, digest of the file), and the
    first `round(fraction * n)` of n are taken: at least one of two, never all. So the choice is
    the same on every machine, whatever files are called and wherever they lie, and images added to
    other classes change nothing. Identical files never end up on both sides: a content that one of
    its classes takes is taken from all.

    Args:
        table: The images.
        fraction: The part to take, between 0 and 1, both excluded.
        salt: Splits with different salts are independent draws.

    Returns:
        (rest, part), both with all the classes.

    Raises:
        UserError: A class would lose all its images, for other classes hold copies of them.
    """
    if not 0 < fraction < 1:
        raise ValueError(f'fraction={fraction} is not between 0 and 1')
    taken: set[str] = set()
    for label in range(len(table.classes)):
        taken.update(_draw(table.digests[table.labels == label], fraction, salt))
    inside: Bool[np.ndarray, ' n'] = np.array([d in taken for d in table.digests], bool)
    rest, part = table.select(~inside), table.select(inside)
    for lost in np.flatnonzero((rest.counts == 0) & (table.counts > 0)):
        path = part.paths[part.labels == lost][0]
        raise UserError(
            f'class {table.classes[lost]!r} holds nothing but copies of images of other classes',
            where=printable(path),
            mend='keep each image in the one class it belongs to',
        )
    return rest, part


def _draw(digests: np.ndarray, fraction: float, salt: str) -> list[str]:
    """Chooses among the distinct digests of one class."""
    distinct = sorted(set(digests), key=lambda digest: _rank(salt, digest))
    if len(distinct) < 2:
        return []
    count = int(fraction * len(distinct) + 0.5)
    return distinct[: min(max(count, 1), len(distinct) - 1)]


def _rank(salt: str, digest: str) -> bytes:
    return hashlib.sha256(f'{salt}\0{digest}'.encode()).digest()
