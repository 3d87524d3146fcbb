"""Predicts labels from the values of one property, by cross-validation."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64

FOLDS = 5


def divide(labels: Int64[np.ndarray, ' n'], digests: Sequence[str]) -> Int64[np.ndarray, ' n']:
    """Divides each class evenly, in the order of the contents' hashes, which is random."""
    order = np.lexsort((np.array([int(digest[:15], 16) for digest in digests]), labels))
    sizes = np.bincount(labels)
    ranks = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    folds = np.empty(len(labels), np.int64)
    folds[order] = ranks % FOLDS
    return folds


def cross_validate(
    codes: Int64[np.ndarray, ' n'],
    labels: Int64[np.ndarray, ' n'],
    folds: Int64[np.ndarray, ' n'],
) -> tuple[Bool[np.ndarray, ' n'], Bool[np.ndarray, ' n'], Int64[np.ndarray, ' c']]:
    """Predicts labels from values; a value that the other folds lack is given the largest class.

    Returns:
        Whether the value tells the label of each row, whether it tells it from all other labels,
        and how many rows it takes for one of each label, rather than of all others.
    """
    sizes = np.bincount(labels)
    classes, values = len(sizes), int(codes.max()) + 1
    # Pairs of value and class that exist; the largest class with every value, to fall back on.
    keys = np.concatenate([codes * classes + labels, np.arange(values) * classes + sizes.argmax()])
    pairs, pair = np.unique(keys, return_inverse=True)
    pair, value, label = pair[: len(codes)], pairs // classes, pairs % classes
    starts = np.flatnonzero(np.diff(value, prepend=-1))
    rank = np.empty(classes, np.int64)  # of two classes equally frequent, the larger one counts
    by_size = np.lexsort((-np.arange(classes), sizes))
    rank[by_size] = np.arange(classes)
    all_pairs = np.bincount(pair, minlength=len(pairs))
    right, own = np.zeros(len(codes), bool), np.zeros(len(codes), bool)
    claimed = np.zeros(classes, np.int64)
    for fold in range(FOLDS):
        rows = np.flatnonzero(folds == fold)
        held = np.bincount(pair[rows], minlength=len(pairs))
        known = all_pairs - held
        best = by_size[np.maximum.reduceat(known * classes + rank[label], starts) % classes]
        right[rows] = best[codes[rows]] == labels[rows]
        twice, here = 2 * known, np.add.reduceat(known, starts)[value]
        claims = (twice > here) | ((twice == here) & (2 * sizes[label] > len(labels)))
        own[rows] = claims[pair[rows]]
        of_value = np.add.reduceat(held, starts)[value]
        claimed += np.bincount(label, of_value * claims, classes).astype(np.int64)
    return right, own, claimed
