"""Files to pixels inside tf.data: JPEGs by TensorFlow, which is faster, all others by Pillow."""

import os
from collections.abc import Callable

import numpy as np
from jaxtyping import Int64

from tlflax.data._tensorflow import tf
from tlflax.data.images.decode import printable, read_image
from tlflax.data.table import ImageTable
from tlflax.utils.errors import UserError


def decode_file(
    path: tf.Tensor, plain_jpeg: tf.Tensor, by_pillow: Callable[[bytes], np.ndarray]
) -> tf.Tensor:
    """u8[?, ?, 3] from a file, with the pixels of `read_image`, which is slower for a JPEG."""
    image = tf.cond(
        plain_jpeg,
        lambda: _decode_jpeg(path),
        lambda: tf.numpy_function(by_pillow, [path], tf.uint8),
    )
    image.set_shape([None, None, 3])
    return image


def _decode_jpeg(path: tf.Tensor) -> tf.Tensor:
    # Pillow too uses the accurate transform; TensorFlow's default is faster and less exact.
    return tf.io.decode_jpeg(tf.io.read_file(path), channels=3, dct_method='INTEGER_ACCURATE')


def explain(table: ImageTable, rows: Int64[np.ndarray, ' m'], max_pixels: int) -> None:
    """Raises a UserError naming the first of these files that cannot be decoded, if there is one.

    An error from inside tf.data names no file.
    """
    for path, plain_jpeg in zip(table.paths[rows], table.plain_jpeg[rows], strict=True):
        read_image(path, max_pixels=max_pixels)
        try:
            # Its decoder takes other formats too, some with one axis more.
            sound = not plain_jpeg or _decode_jpeg(tf.constant(os.fsencode(path))).shape.rank == 3
        except tf.errors.OpError:
            sound = False
        if not sound:
            raise UserError(
                'cannot be decoded as the plain JPEG that was found at the start',
                where=printable(path),
                fix='run again if it has changed since, else save it anew as PNG',
            )
