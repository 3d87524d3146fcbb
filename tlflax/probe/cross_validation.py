"""Scores of training images by probes that did not see them, for each strength of a path."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float, Int

from tlflax.models.linear import calibration, logistic_regression
from tlflax.models.linear.compression import compress
from tlflax.probe.rows import Representation, Rows


def held_out_scores(
    rows: Rows,
    fold: Int[np.ndarray, ' n'],
    representation: Representation,
    strengths: Iterable[float],
) -> Iterator[Float[np.ndarray, 'n num_classes']]:
    """Yields, for every strength, the scores of each row by the probe fitted without its fold.

    Moments are those of the rows that a probe is fitted on. Moments of all rows would show it the
    held-out ones: where images are few, a column that is zero in all others then has the deviation
    that the held-out image gives it, and the estimate is too good.

    Args:
        rows: The training rows.
        fold: The fold of each row; -1: in the training side of every fold. At least one is not.
        representation: How the columns are normalized.
        strengths: L2 penalties for normalized rows, from strong to weak. Each is taken when the
            scores of the one before were used.
    """
    if representation != 'standard':
        problems = [(compress(rows.features), fold)]
    else:
        problems = [
            (
                compress(rows.normalized(rows.moments(representation, fold != held))),
                np.where(fold == held, 0, -1),
            )
            for held in np.unique(fold[fold >= 0])
        ]
    own = itertools.tee(strengths, len(problems))
    paths = [
        logistic_regression.cross_validate(
            part,
            rows.label,
            rows.num_classes,
            held,
            _relative(l2s, part.scale),
        )
        for (part, held), l2s in zip(problems, own, strict=True)
    ]
    for points in zip(*paths, strict=True):
        scores = np.full((len(fold), rows.num_classes), np.nan, np.float32)
        for point, (_, held) in zip(points, problems, strict=True):
            scores[held >= 0] = point.held_out[held >= 0]
        yield scores


def assess(
    scores: Float[np.ndarray, 'n num_classes'], label: Int[np.ndarray, ' n']
) -> tuple[float, float]:
    """Returns mean cross-entropy and accuracy over the rows that were held out."""
    held_out = np.isfinite(scores).all(1)
    scores, label = scores[held_out], label[held_out]
    costs = -calibration.log_softmax(scores)[np.arange(len(label)), label]
    return float(costs.mean()), float((scores.argmax(1) == label).mean())


def _relative(l2s: Iterable[float], scale: float) -> Iterator[float]:
    """Turns penalties for rows as they are into strengths for rows of a mean square norm of one."""
    return (l2 / scale**2 for l2 in l2s)
