"""Images named one by one, for prediction."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tlflax.data.images.decode import MAX_PIXELS, probe
from tlflax.data.images.scan import read_file
from tlflax.data.table import ImageTable
from tlflax.utils.errors import UserError, printable


def find(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Returns the files among `paths`, and every image below its folders, sorted.

    Raises:
        UserError: A path does not exist, or a folder holds no image.
    """
    found: list[str] = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(
                'no such file or folder', where=printable(str(path)), fix='check its path'
            )
        files = [path]
        if path.is_dir():
            files = sorted(p for p in path.rglob('*') if p.is_file() and _is_image(p))
            if not files:
                raise UserError(
                    'no image is in this folder', where=printable(str(path)), fix='name another'
                )
        found += map(str, files)
    return found


def _is_image(path: Path) -> bool:
    """Whether a file in a folder is an image, good or bad, and so meant to be classified."""
    return read_file(str(path)).is_image


def table(paths: Sequence[str], *, max_pixels: int = MAX_PIXELS) -> tuple[ImageTable, list[str]]:
    """Returns an unlabeled table of the files that are images, and a sentence for each other.

    Args:
        paths: The files.
        max_pixels: Larger images are faults.
    """
    rows, faults = [], []
    for path in paths:
        try:
            rows.append((path, probe(path, max_pixels=max_pixels).plain_jpeg))
        except UserError as error:
            faults.append(str(error))
    n = len(rows)
    good = ImageTable(
        root='',
        paths=np.array([path for path, _ in rows], object),
        labels=np.zeros(n, np.int32),
        class_names=('',),
        digests=np.full(n, '', object),
        plain_jpeg=np.array([plain for _, plain in rows], bool),
    )
    return good, faults
