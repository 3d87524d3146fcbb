"""The continuous augmentations as ranges, and settings of augmentation that cannot be.

Without TensorFlow, so that mistakes are found before it is loaded.
"""

import math

from tlflax.config import AugmentConfig
from tlflax.errors import UserError


def check(augment: AugmentConfig, image_size: tuple[int, int]) -> None:
    """Refuses settings that contradict each other or the size of the images.

    Raises:
        UserError: What is wrong, by its key.
    """
    continuous(augment)
    if augment.right_angles and image_size[0] != image_size[1]:
        raise UserError(
            f'an image of {image_size[0]}x{image_size[1]} pixels cannot be turned by right angles',
            where='config.augment.right_angles and config.data.image_size',
            mend='give a square image_size, or augment.right_angles=False',
        )


def continuous(augment: AugmentConfig) -> dict[str, tuple[float, float]]:
    """Returns the active augmentations that are one uniform number each, and their (low, high).

    Raises:
        UserError: `augment.brightness_range` is not a range.
    """
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
        _require_range(augment.brightness_range, 'brightness_range', 'two factors', '(0.8, 1.2)')
        ranges['brightness'] = augment.brightness_range[0], augment.brightness_range[1]
    return ranges


def _require_range(
    values: tuple[float, ...], key: str, what: str, example: str, *, most: float = math.inf
) -> None:
    if len(values) == 2 and 0 <= values[0] <= values[1] < math.inf and values[1] <= most:
        return
    limit = '' if math.isinf(most) else f' <= {most:g}'
    raise UserError(
        f'{values!r} is not a range',
        where=f'config.augment.{key}',
        mend=f'give {what}, 0 <= low <= high{limit}, such as {example}, or () for none',
    )
