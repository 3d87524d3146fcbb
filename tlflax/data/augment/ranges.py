"""The ranges of the continuous augmentations, and checks of the settings.

The module does not import TensorFlow, so mistakes are found before it is loaded.
"""

import math

from tlflax.config.schema import AugmentConfig
from tlflax.utils.errors import UserError


def check(augment: AugmentConfig, image_size: tuple[int, int]) -> None:
    """Checks that the settings do not contradict each other or the size of the images.

    Raises:
        UserError: They do; names the key.
    """
    continuous(augment)
    if augment.right_angles and image_size[0] != image_size[1]:
        raise UserError(
            f'an image of {image_size[0]}x{image_size[1]} pixels cannot be turned by right angles',
            where='config.augment.right_angles and config.data.image_size',
            fix='give a square image_size, or augment.right_angles=False',
        )
    if augment.crops and augment.random_resized_crop:
        raise UserError(
            'fixed crops and random crops cannot be combined',
            where='config.augment.crops and config.augment.random_resized_crop',
            fix='keep one of them',
        )
    for key, most in (
        ('random_crop_scale', 1.0),
        ('random_crop_ratio', math.inf),
        ('erasing_scale', 1.0),
        ('erasing_ratio', math.inf),
    ):
        _require_range(getattr(augment, key), key, positive=True, most=most)


def continuous(augment: AugmentConfig) -> dict[str, tuple[float, float]]:
    """Returns the (low, high) of each active augmentation that is one uniform number.

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
        _require_range(augment.brightness_range, 'brightness_range')
        ranges['brightness'] = augment.brightness_range[0], augment.brightness_range[1]
    for name in ('jitter_brightness', 'jitter_contrast', 'jitter_saturation'):
        if most := getattr(augment, name):
            ranges[name] = max(0.0, 1 - most), 1 + most
    if augment.jitter_hue:
        ranges['jitter_hue'] = -augment.jitter_hue, augment.jitter_hue
    return ranges


def _require_range(
    values: tuple[float, ...], key: str, *, positive: bool = False, most: float = math.inf
) -> None:
    ordered = len(values) == 2 and 0 <= values[0] <= values[1] <= most
    if ordered and math.isfinite(values[1]) and (values[0] > 0 or not positive):
        return
    lower = '0 < low' if positive else '0 <= low'
    upper = '' if math.isinf(most) else f' <= {most:g}'
    off = '' if positive else ', or () for none'
    raise UserError(
        f'{values!r} is not a range',
        where=f'config.augment.{key}',
        fix=f'give two numbers, {lower} <= high{upper}, such as (0.8, {1.0 if upper else 1.2})'
        f'{off}',
    )
