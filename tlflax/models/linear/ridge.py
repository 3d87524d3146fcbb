"""Ridge regression on one-hot targets, at all strengths from one eigendecomposition.

Minimizes, over weights W and an intercept b,

    mean over the examples of |x W + b - target|^2  +  strength * sum of W squared,

where the target is one for the example's class and zero for the others. A larger score means a
likelier class; `tlflax.models.linear.calibration` turns scores into probabilities.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from tlflax.models.linear.compression import Compressed
from tlflax.models.linear.strengths import CrossValidated

STRENGTHS = tuple(np.logspace(0, -5, 11))
"""Strengths of regularization, relative to the mean square norm of a row, strong to weak."""


class _Decomposed(NamedTuple):
    """Centered coordinates as U diag(roots) V.T.

    Attributes:
        left: f64[n, k], U.
        roots: f64[k], singular values.
        right: f64[r, k], V.
        center: f64[r], the mean of the coordinates.
    """

    left: Float[np.ndarray, 'n k']
    roots: Float[np.ndarray, ' k']
    right: Float[np.ndarray, 'r k']
    center: Float[np.ndarray, ' r']


def cross_validate(
    rows: Compressed,
    label: Int[np.ndarray, ' n'],
    num_classes: int,
    fold: Int[np.ndarray, ' n'],
    strengths: Iterable[float] = STRENGTHS,
) -> Iterator[CrossValidated]:
    """Solves for every strength on all rows; the scores without each fold follow exactly.

    A prediction is a linear function of the targets, H y. Without the rows of a fold f, the error
    there is (I - H_ff)^-1 (y - H y)_f: no fold is fitted (Cook & Weisberg 1982, 'Residuals and
    Influence in Regression', 2.2). Folds of one row give leave-one-out scores.

    Args:
        rows: The training features.
        label: i32[n].
        num_classes: Number of classes.
        fold: The fold of each row; -1: in the training side of every fold.
        strengths: Relative to the mean square norm of a row.
    """
    n = len(label)
    parts = _decompose(rows.coordinates.astype(np.float64))
    target = np.eye(num_classes)[label]
    mean = target.mean(0)
    projected = parts.left.T @ (target - mean)
    for strength in strengths:
        shrink = parts.roots**2 / (parts.roots**2 + strength * n)
        error = target - mean - parts.left @ (shrink[:, None] * projected)
        weights = parts.right @ ((shrink / parts.roots)[:, None] * projected)
        yield CrossValidated(
            strength,
            (target - _without_folds(parts.left, shrink, error, fold)).astype(np.float32),
            weights.astype(np.float32),
            (mean - parts.center @ weights).astype(np.float32),
        )


def _without_folds(
    left: Float[np.ndarray, 'n k'],
    shrink: Float[np.ndarray, ' k'],
    error: Float[np.ndarray, 'n num_classes'],
    fold: Int[np.ndarray, ' n'],
) -> Float[np.ndarray, 'n num_classes']:
    """Returns the error on each row of the model fitted without its fold."""
    found = np.full_like(error, np.nan)
    if np.bincount(fold[fold >= 0]).max(initial=0) == 1:  # leave-one-out: only the diagonal of H
        kept = 1 - 1 / len(fold) - left**2 @ shrink
        return np.where(fold[:, None] >= 0, error / kept[:, None], found)
    for held in range(int(fold.max()) + 1):
        inside = np.flatnonzero(fold == held)
        own = left[inside]
        kept = np.eye(len(inside)) - 1 / len(fold) - (own * shrink) @ own.T
        found[inside] = np.linalg.solve(kept, error[inside])
    return found


def _decompose(x: Float[np.ndarray, 'n r']) -> _Decomposed:
    """Decomposes centered coordinates by the eigenvectors of the smaller of their two products."""
    center = x.mean(0)
    x = x - center
    wide = x.shape[0] < x.shape[1]
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    kept = values > 1e-12 * max(values[-1], np.finfo(np.float64).tiny)
    roots, vectors = np.sqrt(values[kept]), vectors[:, kept]
    other = (x.T if wide else x) @ vectors / roots
    left, right = (vectors, other) if wide else (other, vectors)
    return _Decomposed(left, roots, right, center)
