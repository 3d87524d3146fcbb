"""Finds the few images whose size or shape is far from that of the others of their split."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from tlflax.data.audit.problems import Item, Problem
from tlflax.data.inputs.listing import Scan
from tlflax.utils.errors import printable

FEWEST = 20  # images, below which no size is odd
DEVIATIONS = 6.0  # standard deviations from the median, at least, as the MAD estimates them
LARGER = 25.0  # the median area, or a 25th of it, is not odd up to here: 5 times each side
LONGER = 4.0  # nor are 4 times the median of width over height, or a fourth
RARE = 0.01  # of the images; more are no outliers, but images of a second kind


def check(split: str, scan: Scan) -> Iterator[Problem]:
    """Yields the images of an odd size or shape, if there are any."""
    good = [(entry.path, file) for entry, _, file in scan.rows() if file.is_good]
    if len(good) < FEWEST:
        return
    width, height = np.array([(file.width, file.height) for _, file in good], np.float64).T
    odd = _far(np.log(width * height), LARGER) | _far(np.log(width / height), LONGER)
    if not odd.any():
        return
    rows = np.flatnonzero(odd).tolist()
    items: list[Item] = [
        {
            'split': split,
            'path': printable(good[row][0]),
            'fault': f'has {good[row][1].width}x{good[row][1].height} pixels',
        }
        for row in rows
    ]
    what = (
        f'{split}: {len(items):,} images are of a size or shape far from that of all others, '
        f'whose median is {np.median(width):.0f}x{np.median(height):.0f} pixels'
    )
    yield Problem('odd_size', 'warning', len(items), what, 'see whether they belong here', items)


def _far(logarithms: Float[np.ndarray, ' n'], factor: float) -> Bool[np.ndarray, ' n']:
    """Whether each value is an outlier; none is where they are many."""
    distance = np.abs(logarithms - np.median(logarithms))
    deviation = 1.4826 * np.median(distance)  # the standard deviation of normal values
    far = distance > max(DEVIATIONS * deviation, np.log(factor))
    return far & (far.sum() <= max(1.0, RARE * len(far)))
