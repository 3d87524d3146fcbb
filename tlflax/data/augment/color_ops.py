"""Changes of brightness, contrast, saturation, hue and sharpness, as Pillow and torchvision.

Each takes and returns float32 [h, w, 3] with values in 0..255. All but hue mix the image with a
degenerate one, as `PIL.ImageEnhance`: factor 0 gives that one, 1 the image, above 1 exaggerates.
Pillow rounds results down, here they keep their fraction: both agree to within one level.
"""

from collections.abc import Callable, Mapping

import tensorflow as tf

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's mode L


def to_uint8(image: tf.Tensor) -> tf.Tensor:
    """Rounds values in 0..255."""
    return tf.cast(image + 0.5, tf.uint8)  # the cast truncates, so halves go up, as in Pillow


def gray(image: tf.Tensor) -> tf.Tensor:
    """Returns float32 [h, w, 1]."""
    flat = tf.matmul(tf.reshape(image, [-1, 3]), tf.constant(_LUMA)[:, None])
    return tf.reshape(flat, [*image.shape[:2], 1])


def brightness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Mixes with black."""
    return tf.minimum(image * factor, 255.0)


def contrast(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Mixes with the mean gray of the image."""
    return _mix(tf.round(tf.reduce_mean(gray(image))), image, factor)


def saturation(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Mixes with the gray image."""
    return _mix(gray(image), image, factor)


def hue(image: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
    """Rotates the hue of HSV by a fraction of the color circle, -0.5..0.5."""
    return tf.raw_ops.AdjustHue(images=image, delta=turn)


def sharpness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Mixes with the image smoothed by Pillow's SMOOTH filter; the border stays as it is."""
    height, width, _ = image.shape
    if min(height, width) < 3:
        return image
    rows = image[:, :-2] + image[:, 1:-1] + image[:, 2:]
    box = rows[:-2] + rows[1:-1] + rows[2:]
    center = image[1:-1, 1:-1]
    smooth = (box + 4.0 * center) / 13.0
    change = (factor - 1.0) * (center - smooth)
    return tf.clip_by_value(image + tf.pad(change, [[1, 1], [1, 1], [0, 0]]), 0.0, 255.0)


def _mix(degenerate: tf.Tensor, image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(degenerate + factor * (image - degenerate), 0.0, 255.0)


JITTER: Mapping[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    'jitter_brightness': brightness,
    'jitter_contrast': contrast,
    'jitter_saturation': saturation,
    'jitter_hue': hue,
}
"""Color jitter, in the order in which it is applied; torchvision draws an order each time."""
