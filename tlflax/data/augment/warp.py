"""Bilinear resampling of an image at affinely mapped positions, as in SciPy."""

import tensorflow as tf


def warp(image: tf.Tensor, matrix: tf.Tensor, *, fill_mode: str, cval: float) -> tf.Tensor:
    """Resamples an image bilinearly at `matrix` times each output pixel's (row, column, 1).

    TensorFlow's own projective transform blends the border with the fill value and wraps with
    a period other than that of SciPy, on which Keras builds, so pixels are sampled here.

    Args:
        image: float32 [h, w, c] with known shape.
        matrix: float64 [2, 3].
        fill_mode: What is outside the image: 'nearest', 'constant', 'reflect' or 'wrap',
            each as in `scipy.ndimage.affine_transform`.
        cval: The value for 'constant'.
    """
    height, width, _ = image.shape
    rows = tf.range(height, dtype=tf.float64)[:, None]
    columns = tf.range(width, dtype=tf.float64)[None, :]
    y = matrix[0, 0] * rows + matrix[0, 1] * columns + matrix[0, 2]
    x = matrix[1, 0] * rows + matrix[1, 1] * columns + matrix[1, 2]
    # Not a constant, lest the compiler sees that it changes nothing.
    zero = tf.shape(matrix)[0] - 2
    result = _sample(image, _inside(y, height, fill_mode), _inside(x, width, fill_mode), zero)
    if fill_mode == 'constant':
        outside = (y < 0) | (y > height - 1) | (x < 0) | (x > width - 1)
        result = tf.where(outside[..., None], tf.cast(cval, tf.float32), result)
    return result


def _inside(position: tf.Tensor, size: int, fill_mode: str) -> tf.Tensor:
    """Maps each position to one whose nearest in [0, size - 1] has the value of the fill mode."""
    last = float(size - 1)
    if fill_mode == 'reflect':  # d c b a | a b c d | d c b a
        position = tf.math.floormod(position + 0.5, 2.0 * size)
        position = tf.minimum(position, 2.0 * size - position) - 0.5
    elif fill_mode == 'wrap' and size > 1:  # in SciPy the last pixel and the first coincide
        beyond = (position < 0) | (position > last)
        position = tf.where(beyond, tf.math.floormod(position, last), position)
    return position


# Compiled to one loop over the pixels, it takes a quarter of the time.
@tf.function(jit_compile=tf.test.is_built_with_xla(), autograph=False)
def _sample(image: tf.Tensor, y: tf.Tensor, x: tf.Tensor, zero: tf.Tensor) -> tf.Tensor:
    """Interpolates between the four pixels about each position, or the nearest in the image.

    Args:
        image: float32 [h, w, c] with known shape.
        y: Rows, float64 [h, w].
        x: Columns, likewise.
        zero: int32, 0; see `blend`.
    """
    height, width, channels = image.shape
    top, bottom, down = _neighbors(y, height)
    left, right, across = _neighbors(x, width)
    pixels = tf.reshape(image, [height * width, channels])

    def blend(a: tf.Tensor, b: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        # Where a processor can, a compiler makes one operation of a product and a sum, which rounds
        # once. Here an operation on bits is between them, so pixels are the same everywhere.
        product = tf.bitcast((b - a) * weight, tf.int32)
        return a + tf.bitcast(tf.bitwise.bitwise_xor(product, zero), tf.float32)

    def row(start: tf.Tensor) -> tf.Tensor:
        a, b = (tf.gather(pixels, start * width + side) for side in (left, right))
        return blend(a, b, across)

    return blend(row(top), row(bottom), down)


def _neighbors(position: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the pixels before and after positions [h, w], and the weight of the latter."""
    position = tf.clip_by_value(position, 0.0, float(size - 1))
    before = tf.cast(position, tf.int32)
    weight = tf.cast(position - tf.cast(before, tf.float64), tf.float32)
    return before, tf.minimum(before + 1, size - 1), weight[..., None]
