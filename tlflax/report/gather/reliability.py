"""The bins of the reliability diagram: what was predicted, and how often it was right."""

import math

import numpy as np
from jaxtyping import Float, Int

from tlflax.report.page.contents import Bin
from tlflax.train.metrics.proportions import wilson_interval
from tlflax.train.metrics.scores import BINS, calibration_gaps


def reliability(
    labels: Int[np.ndarray, ' n'], probabilities: Float[np.ndarray, 'n classes'], bins: int = BINS
) -> list[Bin]:
    """Returns the bins whose weighted gaps make the expected calibration error.

    That is the mean of |accuracy - confidence| over the bins, weighted by their counts; see
    `tlflax.train.metrics.scores.calibration_error`.

    Args:
        labels: The true classes.
        probabilities: Of each class.
        bins: How many of equal width there are between 0 and 1.
    """
    number, gaps = calibration_gaps(labels, probabilities, bins)
    confidence = probabilities.max(-1).astype(np.float64)
    count = np.bincount(number, minlength=bins)
    confident = np.bincount(number, weights=confidence, minlength=bins)
    right = np.bincount(number, weights=gaps + confidence, minlength=bins)
    found = []
    for k in range(bins):
        n, hits = int(count[k]), round(right[k])
        found.append(
            Bin(
                low=k / bins,
                high=(k + 1) / bins,
                count=n,
                confidence=float(confident[k] / n) if n else math.nan,
                accuracy=hits / n if n else math.nan,
                interval=wilson_interval(hits, n) if n else None,
            )
        )
    return found
