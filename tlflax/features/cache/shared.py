"""Which of several processes computes a feature, and which ones have it.

Each process sees one folder, its own or one that others share. Nothing is assumed of what it shows:
processes tell each other which features they find there.
"""

import numpy as np
from jaxtyping import Bool, Int

from tlflax.utils.parallel import processes


def to_compute(
    wanted: Bool[np.ndarray, 'views n'], have: Bool[np.ndarray, 'views n']
) -> tuple[Int[np.ndarray, ' m'], Int[np.ndarray, ' m']]:
    """Returns the part of the missing features that this process is to compute.

    Args:
        wanted: Which view of which image is needed; the same in all processes.
        have: Those that this process finds.

    Returns:
        Their views and images.
    """
    missing = np.flatnonzero(wanted & ~_found(have).any(0))
    mine = missing[processes.index() :: processes.count()]
    view, image = np.unravel_index(mine, wanted.shape)
    return view, image


def owners(
    wanted: Bool[np.ndarray, 'views n'], have: Bool[np.ndarray, 'views n']
) -> tuple[Int[np.ndarray, 'views n'], bool]:
    """Returns which process reads each feature, and whether every process finds all of them.

    Args:
        wanted: See `to_compute`.
        have: See `to_compute`.

    Returns:
        The first process that finds it; -1 where none does, or it is not wanted.
    """
    found = _found(have)
    owner = np.where(wanted & found.any(0), found.argmax(0), -1)
    return owner, bool((found | ~wanted).all())


def _found(have: Bool[np.ndarray, 'views n']) -> Bool[np.ndarray, 'processes views n']:
    packed = processes.gather_arrays(np.packbits(have))
    return np.stack([np.unpackbits(one, count=have.size).reshape(have.shape) > 0 for one in packed])
