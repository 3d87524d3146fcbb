"""Decodes files inside tf.data: plain JPEGs by TensorFlow, which is faster, others by Pillow."""

import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from jaxtyping import Int64

from tlflax.data._tensorflow import on_cpu
from tlflax.data.images.decode import read_image
from tlflax.data.table import ImageTable
from tlflax.utils.errors import UserError, printable


def decode_file(
    path: tf.Tensor, plain_jpeg: tf.Tensor, by_pillow: Callable[[bytes], np.ndarray]
) -> tf.Tensor:
    """Returns the pixels of a file, the same as `read_image`.

    Args:
        path: string scalar.
        plain_jpeg: bool scalar, whether TensorFlow decodes the file as Pillow does.
        by_pillow: Decodes every other file.

    Returns:
        uint8 [h, w, 3], of any h and w.
    """
    image = tf.cond(
        plain_jpeg,
        lambda: _decode_jpeg(path),
        lambda: tf.numpy_function(by_pillow, [path], tf.uint8),
    )
    image.set_shape([None, None, 3])
    return image


def _decode_jpeg(path: tf.Tensor) -> tf.Tensor:
    # Pillow uses the accurate transform; TensorFlow's default is faster and less exact.
    return tf.io.decode_jpeg(tf.io.read_file(path), channels=3, dct_method='INTEGER_ACCURATE')


def explain(table: ImageTable, rows: Int64[np.ndarray, ' m'], max_pixels: int) -> None:
    """Names the first of these files that cannot be decoded: an error inside tf.data names none.

    Raises:
        UserError: A file cannot be decoded. If all of them can be, nothing is raised.
    """
    for path, plain_jpeg in zip(table.paths[rows], table.plain_jpeg[rows], strict=True):
        read_image(path, max_pixels=max_pixels)
        try:
            # Its decoder accepts other formats too, some with an additional axis.
            with on_cpu():
                sound = not plain_jpeg or _decode_jpeg(tf.constant(os.fsencode(path))).ndim == 3
        except tf.errors.OpError:
            sound = False
        if not sound:
            raise UserError(
                'cannot be decoded as the plain JPEG that was found at the start',
                where=printable(path),
                fix='run again if it has changed since, or save it as PNG',
            )
