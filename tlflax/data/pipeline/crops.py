"""From an image of any size to one of the network's: resized as a whole, or a part of it."""

from collections.abc import Mapping

from tlflax.config.schema import AugmentConfig
from tlflax.data._tensorflow import tf
from tlflax.data.pipeline.resize import resize_image


def resize(
    image: tf.Tensor,
    parameters: Mapping[str, tf.Tensor],
    *,
    size: tuple[int, int],
    mode: str,
    antialias: bool,
    augment: AugmentConfig,
) -> tf.Tensor:
    """Resizes an image, or the part that its parameters ask for.

    Args:
        image: uint8 [h, w, 3], of any h and w.
        parameters: One image's row of `tlflax.data.augment.apply.parameters`. With `crop`, the
            image is resized to more than `size`, of which a corner or the center is cut out. With
            `crop_area`, a random part of it is resized (see `random_box`), and `mode` is not used.
        size: (height, width) to come out.
        mode: See `tlflax.data.pipeline.resize.resize_image`.
        antialias: Widen the filter when shrinking, as Pillow does.
        augment: Says how large a crop is.

    Returns:
        float32 [*size, 3].
    """
    if 'crop' in parameters:
        larger = larger_size(size, augment.crop_fraction)
        image = resize_image(image, larger, mode, antialias=antialias)
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
    return resize_image(image, size, mode, antialias=antialias)


def random_box(
    shape: tf.Tensor,
    area: tf.Tensor,
    ratio: tf.Tensor,
    place: tf.Tensor,
    *,
    bounds: tuple[float, ...],
) -> tf.Tensor:
    """Returns the part of an image that Szegedy et al. 2014 (arXiv:1409.4842) train on.

    As torchvision's `RandomResizedCrop.get_params`: the first box that fits the image; if none
    does, the largest central one whose aspect ratio is within bounds.

    Args:
        shape: int32 [2], (height, width) of the image.
        area: float32 [tries], parts of the image's area.
        ratio: float32 [tries], widths by heights.
        place: float32 [2], where the box is, 0 to 1 from top to bottom and from left to right.
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
    """Returns the (height, width) of which a crop of `size` is the fraction."""
    return round(size[0] / fraction), round(size[1] / fraction)


def offsets(larger: tuple[int, int], size: tuple[int, int]) -> list[list[int]]:
    """Returns the (top, left) of each of `sampling.CROPS`, as torchvision's FiveCrop."""
    down, across = larger[0] - size[0], larger[1] - size[1]
    return [[0, 0], [0, across], [down, 0], [down, across], [round(down / 2), round(across / 2)]]
