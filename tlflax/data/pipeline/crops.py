"""From an image of any size to one of the network's size: all of it resized, or a part."""

import functools
from collections.abc import Mapping

import tensorflow as tf

from tlflax.config.schema import AugmentConfig
from tlflax.data.images.format import ImageFormat
from tlflax.data.pipeline.resize import resize_image


def resize(
    image: tf.Tensor,
    parameters: Mapping[str, tf.Tensor],
    image_format: ImageFormat,
    augment: AugmentConfig,
) -> tf.Tensor:
    """Resizes an image, or the part of it that its parameters choose.

    Args:
        image: uint8 [h, w, 3], of any h and w.
        parameters: One image's row of `tlflax.data.augment.apply.parameters`. With `crop`, the
            image is resized to more than `image_size`, and a corner or the center is cut out of it.
            With `crop_area`, a random part of it is resized (see `random_box`), and
            `image_format.resize` is not used.
        image_format: The size, and how it is reached.
        augment: The size of a crop and the limits of a random one's aspect ratio.

    Returns:
        float32 [*image_size, 3].
    """
    size, mode = image_format.image_size, image_format.resize
    resized = functools.partial(
        resize_image,
        antialias=image_format.antialias,
        interpolation=image_format.interpolation,
    )
    if 'crop' in parameters:
        larger = larger_size(size, augment.crop_fraction)
        image = resized(image, larger, mode)
        top, left = tf.unstack(tf.gather(offsets(larger, size), parameters['crop']))
        image = tf.slice(image, [top, left, 0], [*size, 3])
        image.set_shape([*size, 3])
        return image
    if 'crop_area' in parameters:
        top, left, height, width = tf.unstack(
            random_box(
                tf.shape(image)[:2],
                parameters['crop_area'],
                parameters['crop_ratio'],
                parameters['crop_place'],
                bounds=augment.random_crop_ratio,
            )
        )
        image, mode = image[top : top + height, left : left + width], 'stretch'
    return resized(image, size, mode)


def random_box(
    shape: tf.Tensor,
    area: tf.Tensor,
    ratio: tf.Tensor,
    place: tf.Tensor,
    *,
    bounds: tuple[float, ...],
) -> tf.Tensor:
    """Returns a random box of an image, as Szegedy et al. 2014 (arXiv:1409.4842) crop it.

    As in torchvision's `RandomResizedCrop.get_params`, it is the first box that fits the image; if
    none does, it is the largest central one whose aspect ratio is within bounds.

    Args:
        shape: int32 [2], (height, width) of the image.
        area: float32 [tries], fractions of the image's area.
        ratio: float32 [tries], aspect ratios, width / height.
        place: float32 [2], where the box is, 0..1 from top to bottom and from left to right.
        bounds: (low, high) of `ratio`.

    Returns:
        int32 [4], (top, left, height, width).
    """
    size = tf.cast(shape, tf.float64)
    area, ratio, place = (tf.cast(value, tf.float64) for value in (area, ratio, place))
    pixels = area * size[0] * size[1]
    sides = tf.round(tf.stack([tf.sqrt(pixels / ratio), tf.sqrt(pixels * ratio)], axis=1))
    fits = tf.reduce_all((sides >= 1) & (sides <= size), axis=1)
    drawn = tf.gather(sides, tf.argmax(fits))
    across = tf.clip_by_value(size[1] / size[0], bounds[0], bounds[1])
    largest = tf.minimum(size, tf.round(tf.stack([size[1] / across, size[0] * across])))
    side = tf.where(tf.reduce_any(fits), drawn, tf.maximum(largest, 1.0))
    free = size - side
    corner = tf.minimum(tf.floor(place * (free + 1)), free)  # a place may be rounded to 1
    corner = tf.where(tf.reduce_any(fits), corner, tf.floor(free / 2))
    return tf.cast(tf.concat([corner, side], axis=0), tf.int32)


def larger_size(size: tuple[int, int], fraction: float) -> tuple[int, int]:
    """Returns the (height, width) of the image from which crops of `size` are cut."""
    return round(size[0] / fraction), round(size[1] / fraction)


def offsets(larger: tuple[int, int], size: tuple[int, int]) -> list[list[int]]:
    """Returns the (top, left) of each of `sampling.CROPS`, as torchvision's FiveCrop."""
    down, across = larger[0] - size[0], larger[1] - size[1]
    return [[0, 0], [0, across], [down, 0], [down, across], [round(down / 2), round(across / 2)]]
