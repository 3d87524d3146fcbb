"""Paths of regularization strengths that extend themselves while their best is at an end."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Float

MOST_EXTENSIONS = 6


class CrossValidated(NamedTuple):
    """A linear model at one strength of regularization, and its scores on images it did not see.

    Attributes:
        strength: Relative to the mean square norm of a row.
        held_out: f32[n, num_classes]; the scores of each training row by the model fitted without
            its fold. NaN for a row that is in the training side of every fold.
        weights: f32[r, num_classes], of the coordinates of `Compressed`, fitted on all rows.
        bias: f32[num_classes].
    """

    strength: float
    held_out: Float[np.ndarray, 'n num_classes']
    weights: Float[np.ndarray, 'r num_classes']
    bias: Float[np.ndarray, ' num_classes']


def extended(
    strengths: Sequence[float], best: Callable[[], float], most: int = MOST_EXTENSIONS
) -> Iterator[float]:
    """Yields the strengths of a path, then further ones while the best so far is at an end.

    Each further strength continues the path at the ratio of its last two, or its first two. Logs
    whether the best of the whole path is still at an end.

    Args:
        strengths: At least two, from strong to weak.
        best: Returns the best of the strengths yielded so far; asked once each was assessed.
        most: The most further strengths at either end.
    """
    yield from strengths
    strongest, weakest = strengths[0], strengths[-1]
    weaker, stronger = weakest / strengths[-2], strongest / strengths[1]
    added = 0
    while best() == weakest and added < most:
        weakest *= weaker
        added += 1
        yield weakest
    added = 0
    while best() == strongest and added < most:
        strongest *= stronger
        added += 1
        yield strongest
    if best() in (weakest, strongest):
        end = 'weakest' if best() == weakest else 'strongest'
        logging.warning('the %s strength of regularization is the best: %.3g', end, best())
    elif (weakest, strongest) != (strengths[-1], strengths[0]):
        logging.info('the path of regularization now goes from %.3g to %.3g', strongest, weakest)
