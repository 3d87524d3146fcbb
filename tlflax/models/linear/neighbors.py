"""Classifiers that compare images by cosine similarity: nearest class mean, nearest neighbors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tlflax.models.linear.representations import row_normalized

_CHUNK = 256  # queries whose similarities to all training rows are in memory at once
_TEMPERATURE = 0.07  # of votes, as in Wu et al. 2018, arXiv:1805.01978
_NO_VOTE = 1e-6  # the smallest share of the votes that a class gets


def class_means(
    features: Float[np.ndarray, 'n d'], label: Int[np.ndarray, ' n'], num_classes: int
) -> Float[np.ndarray, 'num_classes d']:
    """Returns the direction of each class's mean; zeros for a class without rows.

    Rows are first scaled to unit norm, so each counts the same (after Mensink et al. 2013,
    'Distance-based image classification').
    """
    sums = np.eye(num_classes, dtype=np.float32)[label].T @ unit(features)
    return unit(sums)


def class_mean_scores(
    features: Float[np.ndarray, 'n d'],
    label: Int[np.ndarray, ' n'],
    num_classes: int,
    fold: Int[np.ndarray, ' n'],
) -> Float[np.ndarray, 'n num_classes']:
    """Returns the cosine of each training row with the class means computed without its fold.

    Args:
        features: f32[n, d].
        label: i32[n].
        num_classes: Number of classes.
        fold: The fold of each row; the scores of one in no fold (-1) are NaN.
    """
    rows = unit(features)
    found = np.full((len(rows), num_classes), np.nan, np.float32)
    for held in range(int(fold.max()) + 1):
        out = fold == held
        found[out] = rows[out] @ class_means(features[~out], label[~out], num_classes).T
    return found


def neighbor_scores(
    queries: Float[np.ndarray, 'm d'],
    features: Float[np.ndarray, 'n d'],
    label: Int[np.ndarray, ' n'],
    num_classes: int,
    neighbors: int,
    query_fold: Int[np.ndarray, ' m'] | None = None,
    fold: Int[np.ndarray, ' n'] | None = None,
) -> Float[np.ndarray, 'm num_classes']:
    """Returns log-probabilities from the votes of the nearest training rows by cosine similarity.

    A vote counts exp(similarity / 0.07), as in Wu et al. 2018 (arXiv:1805.01978).

    Args:
        queries: f32[m, d].
        features: Of the training images.
        label: Of the training images.
        num_classes: Number of classes.
        neighbors: How many vote; all training rows if there are fewer.
        query_fold: The fold of each query; rows of the same fold do not vote. None: all vote.
        fold: The fold of each training row, where `query_fold` is given.
    """
    bank = row_normalized(jnp.asarray(features))
    votes = jax.nn.one_hot(label, num_classes)
    own = np.full(len(features), -1) if fold is None else fold
    asked = np.full(len(queries), -2) if query_fold is None else query_fold
    count = min(neighbors, len(features))
    found = []
    for start in range(0, len(queries), _CHUNK):
        stop = min(start + _CHUNK, len(queries))
        rows = np.zeros((_CHUNK, queries.shape[1]), np.float32)
        rows[: stop - start] = queries[start:stop]
        folds = np.full(_CHUNK, -2)
        folds[: stop - start] = asked[start:stop]
        scores = _vote(jnp.asarray(rows), bank, votes, jnp.asarray(folds), jnp.asarray(own), count)
        found.append(np.asarray(scores)[: stop - start])
    return np.concatenate(found) if found else np.zeros((0, num_classes), np.float32)


@functools.partial(jax.jit, static_argnames=('count',))
def _vote(
    queries: Float[Array, 'm d'],
    bank: Float[Array, 'n d'],
    votes: Float[Array, 'n num_classes'],
    query_fold: Int[Array, ' m'],
    fold: Int[Array, ' n'],
    count: int,
) -> Float[Array, 'm num_classes']:
    """Returns the log-probabilities of a chunk of queries."""
    return vote(queries, bank, votes, count, query_fold[:, None] == fold)


def vote(
    queries: Float[Array, 'm d'],
    bank: Float[Array, 'n d'],
    votes: Float[Array, 'n num_classes'],
    count: int,
    barred: Bool[Array, 'm n'] | None = None,
) -> Float[Array, 'm num_classes']:
    """Returns log-probabilities from the votes of the nearest rows; see `neighbor_scores`.

    Args:
        queries: Rows of any norm.
        bank: Rows of unit norm.
        votes: Of each row of the bank, one-hot.
        count: How many rows vote.
        barred: Which rows do not vote for which query.
    """
    cosine = jnp.dot(row_normalized(queries), bank.T, precision='highest')
    if barred is not None:
        cosine = jnp.where(barred, -jnp.inf, cosine)
    nearest, index = jax.lax.top_k(cosine, count)
    share = jax.nn.softmax(nearest / _TEMPERATURE, axis=1)
    found = jnp.einsum('mk,mkc->mc', share, votes[index], precision='highest')
    return jnp.log((1 - _NO_VOTE) * found + _NO_VOTE / votes.shape[1])


def unit(rows: Float[np.ndarray, 'n d']) -> Float[np.ndarray, 'n d']:
    """Returns the rows scaled to unit norm."""
    return np.asarray(row_normalized(jnp.asarray(rows)))
