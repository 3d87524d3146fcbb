"""Metrics of predicted probabilities: loss, calibration, top-k accuracy."""

import math

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64

BINS = 15
"""Of the expected calibration error."""

_BLOCK = 2**22  # values of an array at once: bounds memory


def calibration_gaps(
    labels: Int[np.ndarray, ' n'], probabilities: Float[np.ndarray, 'n classes'], bins: int = BINS
) -> tuple[Int64[np.ndarray, ' n'], Float64[np.ndarray, ' n']]:
    """Puts examples into bins by their confidence, which is their highest probability.

    Returns:
        Each example's bin, of `bins` of equal width that are closed on the right; and 1 where its
        prediction is right, else 0, less its confidence.
    """
    confidence = probabilities.max(-1).astype(np.float64)
    right = probabilities.argmax(-1) == labels
    number = np.clip(np.ceil(np.nan_to_num(confidence) * bins) - 1, 0, bins - 1).astype(np.int64)
    return number, right - confidence


def calibration_error(
    labels: Int[np.ndarray, ' n'], probabilities: Float[np.ndarray, 'n classes'], bins: int = BINS
) -> float:
    """Returns the expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3).

    It is the mean over the examples of their bin's |accuracy - confidence|.
    """
    number, gaps = calibration_gaps(labels, probabilities, bins)
    of_bins = np.bincount(number, weights=gaps, minlength=bins)
    return float(np.abs(of_bins).sum() / len(labels)) if len(labels) else math.nan


def cross_entropies(
    labels: Int[np.ndarray, ' n'], probabilities: Float[np.ndarray, 'n classes']
) -> Float64[np.ndarray, ' n']:
    """Returns minus the logarithm of each example's probability of its true class, in nats.

    A probability below the smallest normal float32 counts as that.
    """
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return -np.log(np.maximum(own, np.finfo(np.float32).tiny))


def in_top(
    labels: Int[np.ndarray, ' n'], probabilities: Float[np.ndarray, 'n classes'], k: int
) -> Bool[np.ndarray, ' n']:
    """Returns whether each example's class is among its `k` most probable.

    Ties go to lower labels.
    """
    found = np.zeros(len(labels), bool)
    step = max(1, _BLOCK // probabilities.shape[1])
    for start in range(0, len(labels), step):
        block, label = probabilities[start : start + step], labels[start : start + step, None]
        own = np.take_along_axis(block, label, axis=1)
        ahead = (block > own) | ((block == own) & (np.arange(block.shape[1]) < label))
        found[start : start + step] = ahead.sum(1) < k
    return found
