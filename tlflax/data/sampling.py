"""Every random choice of the data side: the order of an epoch and the draws of its augmentations.

Row `i` of an epoch gets its values from a counter-based generator (Philox) as a function of
(seed, epoch, purpose, i) alone, so they do not depend on the number of rows, the batch size, the
workers or the processes, and any step of any epoch can be computed without the ones before it.
Each purpose has its own stream: switching one augmentation on does not change another. There is no
TensorFlow here, so that the live pipeline and the feature cache, which runs without it, share the
same draws. Raw generator words are turned into values by our own arithmetic, because NumPy
guarantees the words of a bit generator across its versions, but not what `Generator` makes of them
(NEP 19).
"""

import itertools
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Float64, Int, Int64, Shaped, UInt64

from tlflax.config import AugmentConfig
from tlflax.errors import UserError

Draws = dict[str, Shaped[np.ndarray, ' n']]

FLIPS = ('horizontal_flip', 'vertical_flip')


def permutation(seed: int, epoch: int, n: int) -> Int64[np.ndarray, ' n']:
    """Returns the order in which `epoch` visits `n` rows: uniform over all orders."""
    # Sorting random 64-bit keys; a tie, less likely than n^2 / 2^65, keeps row order.
    return np.argsort(_words(seed, epoch, 'permutation', n), kind='stable').astype(np.int64)


def epoch_order(
    seed: int, epoch: int, labels: Int[np.ndarray, ' n'], *, balanced: bool
) -> Int64[np.ndarray, ' n']:
    """Returns the rows that `epoch` visits, in their order.

    Args:
        seed: The run's seed.
        epoch: Counted from 0.
        labels: The class of each row.
        balanced: False: a `permutation`. True: each of the n places draws a class, all that have
            rows being equally likely, and takes the next of its rows in the permutation's order,
            from the start again where they run out. So the rows of one class are drawn equally
            often, but for one time.
    """
    n = len(labels)
    order = permutation(seed, epoch, n)
    if not balanced:
        return order
    present, label, counts = np.unique(labels[order], return_inverse=True, return_counts=True)
    by_class = order[np.argsort(label, kind='stable')]
    drawn = (_unit(_words(seed, epoch, 'class', n)) * len(present)).astype(np.int64)
    places = np.argsort(drawn, kind='stable')
    times = np.bincount(drawn, minlength=len(present))
    turn = np.arange(n) - np.repeat(np.cumsum(times) - times, times)
    of = drawn[places]
    order[places] = by_class[(np.cumsum(counts) - counts)[of] + turn % counts[of]]
    return order


def batch_rows(
    order: Int64[np.ndarray, ' m'],
    batch_size: int,
    *,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Int64[np.ndarray, 'steps b']:
    """Cuts an order into batches of one size, the last padded with -1.

    Args:
        order: Rows in the order they are visited.
        batch_size: Rows of a batch over all processes.
        start_step: Batches left out at the start.
        process_index: Which contiguous part of each batch to return.
        process_count: Into how many equal parts each batch is cut; b = batch_size / process_count.

    Raises:
        UserError: Batches cannot be cut into so many equal parts.
    """
    if batch_size % process_count:
        raise UserError(
            f'{batch_size} images cannot be shared equally by {process_count} processes',
            where='config.train.batch_size',
            mend=f'give a multiple of {process_count}',
        )
    steps = -(-len(order) // batch_size)
    padded = np.full(steps * batch_size, -1, np.int64)
    padded[: len(order)] = order
    parts = padded.reshape(steps, process_count, batch_size // process_count)
    return parts[start_step:, process_index]


def draw(augment: AugmentConfig, seed: int, epoch: int, n: int) -> Draws:
    """Returns the parameters of every active augmentation for the rows 0..n-1.

    Args:
        augment: Which augmentations are active, and their ranges.
        seed: The run's seed, below 2**64.
        epoch: The epoch, counted from 0.
        n: Number of rows of the table that is augmented.

    Returns:
        One array [n] for each active augmentation: `horizontal_flip`, `vertical_flip` (bool);
        float32 `rotation` and `shear` (degrees), `width_shift`, `height_shift` (fractions of the
        size), `zoom_width`, `zoom_height`, `brightness` (factors), `channel_shift` (grey levels).

    Raises:
        UserError: `augment.brightness_range` is not a range.
    """
    draws: Draws = {
        flip: (_words(seed, epoch, flip, n) >> np.uint64(63)) == 1
        for flip in FLIPS
        if getattr(augment, flip)
    }
    for name, (low, high) in _ranges(augment).items():
        draws[name] = _uniform(seed, epoch, name, n, low, high)
    return draws


def choose(seed: int, epoch: int, n: int, views: int) -> Int64[np.ndarray, ' n']:
    """Returns, for each of `n` rows, one of `views` stored views, all equally likely.

    For approximating a continuous augmentation by a fixed number of sampled views.
    """
    uniform = _unit(_words(seed, epoch, 'view', n))
    return (uniform * views).astype(np.int64)


def outcomes(augment: AugmentConfig) -> list[dict[str, bool]] | None:
    """Returns every view of an image that `augment` can produce, or None where they are endless.

    A view holds one value for each array of `draw`; without augmentation there is one view, `{}`.

    Raises:
        UserError: `augment.brightness_range` is not a range.
    """
    if _ranges(augment):
        return None
    flips = [flip for flip in FLIPS if getattr(augment, flip)]
    return [
        dict(zip(flips, values, strict=True))
        for values in itertools.product((False, True), repeat=len(flips))
    ]


def outcome_numbers(
    draws: Mapping[str, np.ndarray], views: Sequence[Mapping[str, bool]], n: int
) -> Int64[np.ndarray, ' n']:
    """Returns the position in `views` (from `outcomes`) of the view that each row of `draws` drew.

    Args:
        draws: Arrays [n], from `draw` of the same augmentations.
        views: The views, from `outcomes`.
        n: Number of rows, for there may be no array in `draws`.
    """
    numbers = np.zeros(n, np.int64)
    for number, view in enumerate(views):
        same = [draws[name] == value for name, value in view.items()]
        numbers[np.logical_and.reduce(same, axis=0) if same else slice(None)] = number
    return numbers


def repeat(view: Mapping[str, bool], n: int) -> Draws:
    """Returns draws that give each of `n` rows the same view."""
    return {name: np.full(n, value) for name, value in view.items()}


def _ranges(augment: AugmentConfig) -> dict[str, tuple[float, float]]:
    """The active continuous augmentations and their (low, high)."""
    symmetric = {
        'rotation': augment.rotation_range,
        'width_shift': augment.width_shift_range,
        'height_shift': augment.height_shift_range,
        'shear': augment.shear_range,
        'channel_shift': augment.channel_shift_range,
    }
    ranges = {name: (-high, high) for name, high in symmetric.items() if high}
    if augment.zoom_range:
        around_one = (1 - augment.zoom_range, 1 + augment.zoom_range)
        ranges |= {'zoom_width': around_one, 'zoom_height': around_one}
    if augment.brightness_range:
        if len(augment.brightness_range) != 2 or not (
            0 <= augment.brightness_range[0] <= augment.brightness_range[1] < np.inf
        ):
            raise UserError(
                f'{augment.brightness_range!r} is not a range',
                where='config.augment.brightness_range',
                mend='give two factors, 0 <= low <= high, such as (0.8, 1.2), or () for none',
            )
        ranges['brightness'] = augment.brightness_range
    return ranges


def _uniform(
    seed: int, epoch: int, purpose: str, n: int, low: float, high: float
) -> Float32[np.ndarray, ' n']:
    values = low + (high - low) * _unit(_words(seed, epoch, purpose, n))
    return values.astype(np.float32)


def _unit(words: UInt64[np.ndarray, ' n']) -> Float64[np.ndarray, ' n']:
    """Uniform in [0, 1): the 53 high bits, as many as float64 holds."""
    return (words >> np.uint64(11)) * 2.0**-53


def _words(seed: int, epoch: int, purpose: str, n: int) -> UInt64[np.ndarray, ' n']:
    """The first `n` words of the stream (seed, epoch, purpose)."""
    key = np.array([seed, epoch], np.uint64)
    # The low half of the 256-bit counter counts words, the purpose stands above it: no overlap.
    counter = np.array([0, 0, zlib.crc32(purpose.encode()), 0], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(n)
