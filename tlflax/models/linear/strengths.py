"""Paths of regularization strengths that extend themselves while their best is at an end."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Float

MOST_EXTENSIONS = 6
_GAIN = 0.005  # by which part a loss has to be lower to count as lower


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


def choose(strengths: Sequence[float], losses: Sequence[float]) -> int:
    """Returns the position of the strongest whose loss is within 0.5 % of the lowest."""
    enough = min(losses) * (1 + _GAIN)
    good = [position for position, loss in enumerate(losses) if loss <= enough]
    return max(good, key=lambda position: strengths[position])


def extended(
    strengths: Sequence[float], best: Callable[[], int], most: int = MOST_EXTENSIONS
) -> Iterator[float]:
    """Yields the strengths of a path, then further ones while the best so far is at an end.

    Further strengths continue the path at the ratio between its last two, or its first two. Logs
    whether the path was extended, and whether the best is still at an end.

    Args:
        strengths: At least two, from strong to weak.
        best: Returns the position of the best strength in the order they were yielded; asked when
            the last one yielded was assessed.
        most: The most further strengths at either end.
    """
    yielded = list(strengths)
    yield from strengths
    ends = {}
    for end, first, second in (('weakest', -1, -2), ('strongest', 0, 1)):
        ratio, last, added = strengths[first] / strengths[second], strengths[first], 0
        while yielded[best()] == last and added < most:
            last *= ratio
            added += 1
            yielded.append(last)
            yield last
        ends[last] = end
    chosen = yielded[best()]
    if chosen in ends:
        logging.warning('the %s strength of regularization is the best: %.3g', ends[chosen], chosen)
    elif len(yielded) > len(strengths):
        logging.info('regularization now goes from %.3g to %.3g', *sorted(ends, reverse=True))
