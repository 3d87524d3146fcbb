"""Every random choice of the data: the order of an epoch and the draws of its augmentations.

All are functions of (seed, epoch, row); see `tlflax.data.augment.random_bits`. The module does not
import TensorFlow, so the live pipeline and the feature cache, which runs without it, share the
same draws.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int, Int64, Shaped

from tlflax.config.schema import AugmentConfig
from tlflax.data.augment import policies, random_bits, ranges
from tlflax.utils.errors import UserError

Draws = dict[str, Shaped[np.ndarray, '_n ...']]
View = dict[str, bool | int]
"""One value for each array of `Draws`: one outcome of augmenting an image."""

FLIPS = ('horizontal_flip', 'vertical_flip')
TRIES = 10  # for a box that fits, as torchvision
CROPS = (
    'top_left',
    'top_right',
    'bottom_left',
    'bottom_right',
    'centre',
)  # spelled as in stored keys


def permutation(seed: int, epoch: int, n: int) -> Int64[np.ndarray, ' n']:
    """Returns the order in which `epoch` visits `n` rows: uniform over all orders."""
    return random_bits.permutation(seed, epoch, 'permutation', n)


def epoch_order(
    seed: int, epoch: int, labels: Int[np.ndarray, ' n'], *, balanced: bool
) -> Int64[np.ndarray, ' n']:
    """Returns the rows that `epoch` visits, in their order.

    Args:
        seed: The run's seed.
        epoch: Counted from 0.
        labels: The class of each row.
        balanced: False: the order is a `permutation`. True: each of the n places draws one of the
            classes that have rows, all equally likely, and takes its next row in the order of the
            permutation, from the first again after the last. The numbers of times that two rows of
            a class are drawn differ by one at most.
    """
    n = len(labels)
    order = permutation(seed, epoch, n)
    if not balanced:
        return order
    present, label, counts = np.unique(labels[order], return_inverse=True, return_counts=True)
    by_class = order[np.argsort(label, kind='stable')]
    drawn = random_bits.below(seed, epoch, 'class', n, 1, len(present))[:, 0]
    places = np.argsort(drawn, kind='stable')
    times = np.bincount(drawn, minlength=len(present))
    turn = np.arange(n) - np.repeat(np.cumsum(times) - times, times)
    of = drawn[places]
    order[places] = by_class[(np.cumsum(counts) - counts)[of] + turn % counts[of]]
    return order


def of_all_classes(labels: Int[np.ndarray, ' n'], seed: int, count: int) -> Int64[np.ndarray, ' m']:
    """Returns up to `count` random rows, of all classes in turn."""
    order = permutation(seed, 0, len(labels))
    seen: dict[int, int] = {}
    turn = []
    for label in labels[order].tolist():
        seen[label] = seen.get(label, -1) + 1
        turn.append((seen[label], label))
    by_turn = sorted(range(len(order)), key=turn.__getitem__)
    return order[by_turn[:count]]


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
        order: Rows in the order in which they are visited.
        batch_size: Rows of a batch over all processes.
        start_step: Batches to skip at the start.
        process_index: The contiguous part of each batch to return.
        process_count: Number of equal parts of each batch; b = batch_size / process_count.

    Raises:
        UserError: Batches cannot be cut into so many equal parts.
    """
    check_shared(batch_size, process_count)
    steps = -(-len(order) // batch_size)
    padded = np.full(steps * batch_size, -1, np.int64)
    padded[: len(order)] = order
    parts = padded.reshape(steps, process_count, batch_size // process_count)
    return parts[start_step:, process_index]


def check_shared(batch_size: int, process_count: int) -> None:
    """Checks that batches can be cut into equal parts.

    Raises:
        UserError: They cannot.
    """
    if batch_size % process_count:
        raise UserError(
            f'{batch_size} images cannot be shared equally by {process_count} processes',
            where='config.train.batch_size',
            fix=f'give a multiple of {process_count}',
        )


def draw(augment: AugmentConfig, seed: int, epoch: int, n: int) -> Draws:
    """Returns the parameters of every active augmentation for the rows 0..n-1.

    Args:
        augment: Which augmentations are active, and their ranges.
        seed: The run's seed, below 2**64.
        epoch: The epoch, counted from 0.
        n: Number of rows of the table that is augmented.

    Returns:
        One array [n] for each active augmentation: `horizontal_flip`, `vertical_flip` (bool);
        `quarter_turns` (i64, 0..3, counterclockwise); `crop` (i64, position in `CROPS`);
        float32 `rotation` and `shear` (degrees), `width_shift`, `height_shift` (fractions of the
        size), `zoom_width`, `zoom_height`, `brightness` (factors), `channel_shift` (gray levels),
        `jitter_brightness`, `jitter_contrast`, `jitter_saturation` (factors), `jitter_hue`
        (part of the circle). Arrays [n, ...], float32 unless said otherwise: `crop_area` (part of
        the image), `crop_ratio` (width by height), each [n, TRIES], and `crop_place` [n, 2] (from
        top and left, 0..1); `erase` (bool [n]), `erase_area`, `erase_ratio` (height by width),
        `erase_place`, `erase_seed` (i32 [n, 2]); `policy_op` (i64 [n, ops], position in
        `policies.OPS`), `policy_level` (i64 [n, ops], -30..30).

    Raises:
        UserError: `augment.brightness_range` is not a range.
    """
    draws: Draws = {
        name: np.array(values)[random_bits.below(seed, epoch, name, n, 1, len(values))[:, 0]]
        for name, values in _finite(augment).items()
    }
    for name, (low, high) in ranges.continuous(augment).items():
        uniform = random_bits.units(seed, epoch, name, n, 1)[:, 0]
        draws[name] = (low + (high - low) * uniform).astype(np.float32)
    if augment.random_resized_crop:
        scale, ratio = augment.random_crop_scale, augment.random_crop_ratio
        draws |= _boxes('crop', seed, epoch, n, scale, ratio)
    if augment.policy:
        draws |= policies.draw(augment, seed, epoch, n)
    if augment.erasing:
        draws['erase'] = random_bits.units(seed, epoch, 'erase', n, 1)[:, 0] < augment.erasing
        draws |= _boxes('erase', seed, epoch, n, augment.erasing_scale, augment.erasing_ratio)
        # The high halves of words, as signed numbers.
        seeds = random_bits.words(seed, epoch, 'erase_seed', 2 * n) >> np.uint64(32)
        draws['erase_seed'] = seeds.astype(np.uint32).view(np.int32).reshape(n, 2)
    return draws


def _boxes(
    name: str, seed: int, epoch: int, n: int, scale: Sequence[float], ratio: Sequence[float]
) -> Draws:
    """Draws areas, aspect ratios and places; the first pair that fits the image will be used."""
    area = random_bits.units(seed, epoch, f'{name}_area', n, TRIES)
    aspect = random_bits.units(seed, epoch, f'{name}_ratio', n, TRIES)
    low, high = np.log(ratio)
    return {
        f'{name}_area': (scale[0] + (scale[1] - scale[0]) * area).astype(np.float32),
        f'{name}_ratio': np.exp(low + (high - low) * aspect).astype(np.float32),
        f'{name}_place': random_bits.units(seed, epoch, f'{name}_place', n, 2).astype(np.float32),
    }


def choose(seed: int, epoch: int, n: int, views: int) -> Int64[np.ndarray, ' n']:
    """Draws one of `views` stored views for each of `n` rows, all equally likely.

    Used to approximate a continuous augmentation by a fixed number of sampled views.
    """
    return random_bits.below(seed, epoch, 'view', n, 1, views)[:, 0]


def outcomes(augment: AugmentConfig) -> list[View] | None:
    """Returns every view of an image that `augment` can produce; None if they are endless.

    Those of a policy are so many that they count as endless. All views returned are equally likely;
    without augmentation there is one view, `{}`.

    Raises:
        UserError: `augment.brightness_range` is not a range.
    """
    endless = augment.random_resized_crop or augment.policy or augment.erasing
    return None if endless or ranges.continuous(augment) else _views(augment)


def plain(augment: AugmentConfig) -> View:
    """Returns the view that evaluation sees: the center crop if training sees crops.

    Objects then have the same size in evaluation as in training.
    """
    return {'crop': CROPS.index('centre')} if augment.crops else {}


def test_views(augment: AugmentConfig) -> list[View]:
    """Returns the views over which test-time augmentation averages.

    They are those that the discrete part of `augment` can produce, always with their mirror images.
    """
    return _views(dataclasses.replace(augment, horizontal_flip=True))


def describe(view: View, augment: AugmentConfig) -> str:
    """Returns the name of a view, which contains every setting that decides its pixels."""
    words = []
    for name, value in view.items():
        if name == 'crop':
            words.append(f'crop={CROPS[value]}/{augment.crop_fraction:g}')
        elif value:
            words.append(name if value is True else f'{name}={value}')
    return ' '.join(words)


def outcome_numbers(
    draws: Mapping[str, np.ndarray], views: Sequence[View], n: int
) -> Int64[np.ndarray, ' n']:
    """Returns the position in `views` (from `outcomes`) of the view that each row of `draws` drew.

    Args:
        draws: Arrays [n], from `draw` of the same augmentations.
        views: The views, from `outcomes`.
        n: Number of rows; `draws` may be empty.
    """
    numbers = np.zeros(n, np.int64)
    for number, view in enumerate(views):
        same = [draws[name] == value for name, value in view.items()]
        numbers[np.logical_and.reduce(same, axis=0) if same else slice(None)] = number
    return numbers


def repeat(view: View, n: int) -> Draws:
    """Returns draws that give each of `n` rows the same view."""
    return {name: np.full(n, value) for name, value in view.items()}


def _finite(augment: AugmentConfig) -> dict[str, list[int]]:
    """Returns the values of the active discrete augmentations, all equally likely."""
    turned = augment.right_angles
    # With quarter turns, one flip or two give the same eight outcomes, equally likely.
    active: dict[str, list[int]] = {}
    if augment.horizontal_flip or augment.crops == 'ten' or (augment.vertical_flip and turned):
        active['horizontal_flip'] = [False, True]
    if augment.vertical_flip and not turned:
        active['vertical_flip'] = [False, True]
    if turned:
        active['quarter_turns'] = [0, 1, 2, 3]
    if augment.crops:
        active['crop'] = list(range(len(CROPS)))
    return active


def _views(augment: AugmentConfig) -> list[View]:
    active = _finite(augment)
    return [
        dict(zip(active, values, strict=True)) for values in itertools.product(*active.values())
    ]
