"""A map of images in two dimensions on which those with similar features are near each other.

The features are reduced to principal components, and these by t-SNE, which starts at the first two
components (Kobak & Berens 2019, doi:10.1038/s41467-019-13056-x). NumPy uses one thread, because
sums that threads share differ from run to run.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from threadpoolctl import threadpool_limits

from tlflax.data.table import ImageTable
from tlflax.report.gather.cards import shown_path
from tlflax.report.gather.choice import places
from tlflax.report.gather.t_sne import t_sne
from tlflax.report.page.contents import Point

MOST = 1000
"""Images on a map: more would hide each other."""

_COMPONENTS = 50
_FEWEST = 10  # fewer images have no neighborhoods
_PERPLEXITY = 30.0  # about how many neighbors count for each image


class Images(NamedTuple):
    """Images of a split.

    Attributes:
        split: 'train' or 'validation'.
        table: The images.
        vectors: Their features; see `tlflax.inference.embeddings`.
        wrong: Whether each was classified wrongly; None: not known.
    """

    split: str
    table: ImageTable
    vectors: Float32[np.ndarray, 'n d']
    wrong: Bool[np.ndarray, ' n'] | None = None


def feature_map(splits: Sequence[Images], most: int = MOST) -> tuple[list[Point], str]:
    """Returns the places of images on a map, and a sentence that says how it was made.

    If there are more than `most`, a part of each class of each split is shown: first those that
    were classified wrongly, then an equal share of each class and split, at least one image, chosen
    by the digests of the files. So the map does not depend on their names.

    Args:
        splits: The images; features of all splits have one length.
        most: How many are shown.
    """
    rows = _chosen(splits, most)
    if not len(rows):
        return [], 'There are no images to show.'
    vectors = np.stack([splits[number].vectors[row] for number, row in rows])
    spots, how = _places(vectors.astype(np.float64))
    total = sum(len(images.table) for images in splits)
    count = f'{len(rows):,} of {total:,}' if len(rows) < total else f'all {total:,}'
    points = [
        _point(splits[number], row, spot)
        for (number, row), spot in zip(rows.tolist(), spots, strict=True)
    ]
    return points, how.format(count=count)


def _point(images: Images, row: int, place: Float64[np.ndarray, '2']) -> Point:
    table = images.table
    return Point(
        x=float(place[0]),
        y=float(place[1]),
        label=int(table.labels[row]),
        split=images.split,
        path=shown_path(table, row),
        wrong=images.wrong is not None and bool(images.wrong[row]),
    )


def _chosen(splits: Sequence[Images], most: int) -> Int64[np.ndarray, 'm 2']:
    """Returns the number of the split and the row of each image that is shown.

    They are ordered by split, class and digest.
    """
    rows: list[tuple[float, int, int, str, int]] = []
    for number, (_, table, _, wrong) in enumerate(splits):
        labels, digests = table.labels.tolist(), table.digests.tolist()
        for row, place in enumerate(places(table.labels, table.digests).tolist()):
            first = wrong is not None and bool(wrong[row])
            rows.append((-1.0 if first else place, number, labels[row], digests[row], row))
    shown = sorted(rows)[:most]
    ordered = [(number, row) for _, number, _, _, row in sorted(shown, key=lambda one: one[1:])]
    return np.array(ordered, np.int64).reshape(-1, 2)


def _places(vectors: Float64[np.ndarray, 'n d']) -> tuple[Float64[np.ndarray, 'n 2'], str]:
    """Returns places in 0..1, and how they were made; '{count}' in it stands for the images."""
    with threadpool_limits(1):
        components, shares = principal_components(vectors, _COMPONENTS)
        if len(vectors) < _FEWEST or not shares.sum():
            how = (
                'The first two principal components of the features of {count} images, '
                f'which hold {shares[:2].sum():.0%} of their variance.'
            )
            return _scaled(_two(components)), how
        how = (
            't-SNE (van der Maaten & Hinton 2008) of {count} images, from '
            f'{components.shape[1]} principal components of their features, which hold '
            f'{shares.sum():.0%} of the variance.'
        )
        return _scaled(_by_t_sne(components)), how


def principal_components(
    vectors: Float64[np.ndarray, 'n d'], most: int
) -> tuple[Float64[np.ndarray, 'n k'], Float64[np.ndarray, ' k']]:
    """Returns the first principal components of vectors, and their shares of the variance.

    The sign of each is such that its value of greatest magnitude is positive. Those without
    variance are left out.
    """
    centered = vectors - vectors.mean(0)
    n, d = centered.shape
    wide = d > n  # then the Gram matrix is smaller than the covariance
    squares, axes = np.linalg.eigh(centered @ centered.T if wide else centered.T @ centered)
    squares, axes = squares[::-1][:most], axes[:, ::-1][:, :most]
    total = (centered**2).sum()
    some = squares > 1e-12 * total
    squares, axes = squares[some], axes[:, some]
    values = axes * np.sqrt(squares) if wide else centered @ axes
    largest = np.take_along_axis(values, np.abs(values).argmax(0)[None], 0)
    return values * np.sign(largest), squares / total if total else squares


def _two(components: Float64[np.ndarray, 'n k']) -> Float64[np.ndarray, 'n 2']:
    return np.pad(components[:, :2], ((0, 0), (0, max(0, 2 - components.shape[1]))))


def _by_t_sne(components: Float64[np.ndarray, 'n k']) -> Float64[np.ndarray, 'n 2']:
    """Returns what t-SNE makes of principal components."""
    start = _two(components)
    start = 1e-4 * start / start[:, 0].std()
    perplexity = min(_PERPLEXITY, (len(start) - 1) / 3)
    return t_sne(components, start, perplexity).astype(np.float64)


def _scaled(places: Float64[np.ndarray, 'n 2']) -> Float64[np.ndarray, 'n 2']:
    """Returns places in 0..1, with one scale for both axes."""
    low, high = places.min(0), places.max(0)
    extent = (high - low).max()
    return np.clip(0.5 + (places - (low + high) / 2) / (extent if extent > 0 else 1), 0, 1)
