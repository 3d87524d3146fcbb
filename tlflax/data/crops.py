"""From an image of any size to one of the network's: resized as a whole, or a part of it."""

from collections.abc import Mapping

from tlflax.config import AugmentConfig
from tlflax.data._tensorflow import tf
from tlflax.data.resize import resize_image


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
        parameters: One image's row of `tlflax.data.augment.parameters`. With `crop`, the image is
            resized to more than `size`, of which a corner or the centre is cut out.
        size: (height, width) to come out.
        mode: See `tlflax.data.resize.resize_image`.
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
    return resize_image(image, size, mode, antialias=antialias)


def larger_size(size: tuple[int, int], fraction: float) -> tuple[int, int]:
    """Returns the (height, width) of which a crop of `size` is the fraction."""
    return round(size[0] / fraction), round(size[1] / fraction)


def offsets(larger: tuple[int, int], size: tuple[int, int]) -> list[list[int]]:
    """Returns the (top, left) of each of `sampling.CROPS`, as torchvision's FiveCrop."""
    down, across = larger[0] - size[0], larger[1] - size[1]
    return [[0, 0], [0, across], [down, 0], [down, across], [round(down / 2), round(across / 2)]]
