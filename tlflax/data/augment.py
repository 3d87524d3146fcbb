"""Augmentations of one image as TensorFlow operations on explicit parameters: nothing random here.

They do what Keras's ImageDataGenerator does with the same parameters, in the same order: rotation,
shift, shear and zoom as one affine warp about the centre (bilinear), channel shift, flips,
brightness. Three differences, all deliberate:

- Keras 3 exchanges the axes of its matrix after centring it, so that its `height_shift_range` moves
  an image sideways and the centre of an image that is not square is off. Here shifts do what their
  names say and the centre is the centre; on square images with the shifts exchanged both agree.
- Keras truncates to integers before and after brightness; here an image is rounded, once, at the
  end.
- A shift is always a fraction of the size, never a number of pixels.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64, Shaped

from tlflax.data._tensorflow import tf

_GEOMETRIC = ('rotation', 'width_shift', 'height_shift', 'shear', 'zoom_width', 'zoom_height')


def parameters(
    draws: Mapping[str, Shaped[np.ndarray, ' n']], image_size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Turns draws into what `apply` takes: the geometric ones become one matrix.

    Args:
        draws: Arrays [n] as `tlflax.data.sampling.draw` returns them.
        image_size: (height, width) of the images to be augmented.

    Returns:
        `matrix` [n, 2, 3] (float64, only where a geometric draw is present) and, unchanged, the
        other draws [n].
    """
    result = {name: values for name, values in draws.items() if name not in _GEOMETRIC}
    geometric = {name: values for name, values in draws.items() if name in _GEOMETRIC}
    if geometric:
        result['matrix'] = affine_matrices(geometric, image_size)
    return result


def affine_matrices(
    draws: Mapping[str, Shaped[np.ndarray, ' n']], image_size: tuple[int, int]
) -> Float64[np.ndarray, 'n 2 3']:
    """Returns the maps from output pixels to input pixels, in (row, column) order.

    The composition is Keras's: rotation @ shift @ shear @ zoom, about the centre of the image.

    Args:
        draws: Any of `rotation`, `shear` (degrees), `width_shift`, `height_shift` (fractions),
            `zoom_width`, `zoom_height` (factors; above 1 shows more, smaller), each [n].
        image_size: (height, width).
    """
    height, width = image_size
    n = len(next(iter(draws.values())))

    def get(name: str, default: float) -> Float64[np.ndarray, ' n']:
        return np.asarray(draws.get(name, np.full(n, default)), np.float64)

    theta, phi = np.deg2rad(get('rotation', 0.0)), np.deg2rad(get('shear', 0.0))
    cos, sin = np.cos(theta), np.sin(theta)
    rotation = _matrix(n, {(0, 0): cos, (0, 1): sin, (1, 0): -sin, (1, 1): cos})
    rows, columns = get('height_shift', 0.0) * height, get('width_shift', 0.0) * width
    shift = _matrix(n, {(0, 2): rows, (1, 2): columns})
    shear = _matrix(n, {(0, 0): np.cos(phi), (1, 0): -np.sin(phi)})
    zoom = _matrix(n, {(0, 0): get('zoom_height', 1.0), (1, 1): get('zoom_width', 1.0)})
    row, column = np.full(n, height / 2 - 0.5), np.full(n, width / 2 - 0.5)
    to_centre = _matrix(n, {(0, 2): row, (1, 2): column})
    from_centre = _matrix(n, {(0, 2): -row, (1, 2): -column})
    return (to_centre @ rotation @ shift @ shear @ zoom @ from_centre)[:, :2]


def _matrix(
    n: int, entries: Mapping[tuple[int, int], Float64[np.ndarray, ' n']]
) -> Float64[np.ndarray, 'n 3 3']:
    """Identity matrices with some entries replaced."""
    matrix = np.tile(np.eye(3), (n, 1, 1))
    for (row, column), values in entries.items():
        matrix[:, row, column] = values
    return matrix


def apply(
    image: tf.Tensor, parameters: Mapping[str, tf.Tensor], *, fill_mode: str, cval: float
) -> tf.Tensor:
    """Augments one image and rounds it, once.

    Args:
        image: float32 [h, w, 3] with known h and w, values in 0..255.
        parameters: One image's row of each array of `parameters`; none: rounding only.
        fill_mode: What stands outside the image after a warp: 'nearest', 'constant', 'reflect' or
            'wrap', each as in `scipy.ndimage.affine_transform`.
        cval: The value for 'constant', 0..255.

    Returns:
        uint8 [h, w, 3].
    """
    if 'matrix' in parameters:
        image = warp(image, parameters['matrix'], fill_mode=fill_mode, cval=cval)
    if 'channel_shift' in parameters:
        low, high = tf.reduce_min(image), tf.reduce_max(image)
        image = tf.clip_by_value(image + parameters['channel_shift'], low, high)
    if 'brightness' in parameters:
        image = tf.minimum(image * parameters['brightness'], 255.0)
    image = tf.cast(image + 0.5, tf.uint8)  # the cast truncates, so halves go up, as in Pillow
    # Flips touch no value, so they come last, where a pixel is three bytes.
    for name, axis in (('horizontal_flip', 1), ('vertical_flip', 0)):
        if name in parameters:
            image = tf.cond(
                parameters[name],
                lambda image=image, axis=axis: tf.reverse(image, [axis]),
                lambda image=image: image,
            )
    if 'quarter_turns' in parameters:
        image = tf.switch_case(
            tf.cast(parameters['quarter_turns'], tf.int32),
            [lambda turns=turns: tf.image.rot90(image, turns) for turns in range(4)],
        )
    return image


def warp(image: tf.Tensor, matrix: tf.Tensor, *, fill_mode: str, cval: float) -> tf.Tensor:
    """Resamples an image bilinearly at `matrix` times each output pixel's (row, column, 1).

    TensorFlow's own projective transform blends the border with the fill value and wraps with
    another period than SciPy, on which Keras builds; hence the sampling here.

    Args:
        image: float32 [h, w, c] with known shape.
        matrix: float64 [2, 3].
        fill_mode: See `apply`.
        cval: See `apply`.
    """
    height, width, channels = image.shape
    rows = tf.range(height, dtype=tf.float64)[:, None]
    columns = tf.range(width, dtype=tf.float64)[None, :]
    y = matrix[0, 0] * rows + matrix[0, 1] * columns + matrix[0, 2]
    x = matrix[1, 0] * rows + matrix[1, 1] * columns + matrix[1, 2]
    top, bottom, down = _neighbours(_inside(y, height, fill_mode), height)
    left, right, across = _neighbours(_inside(x, width, fill_mode), width)
    pixels = tf.reshape(image, [height * width, channels])

    def row(start: tf.Tensor) -> tf.Tensor:
        a, b = (tf.gather(pixels, start * width + side) for side in (left, right))
        return a + (b - a) * across

    above = row(top)
    result = above + (row(bottom) - above) * down
    if fill_mode == 'constant':
        outside = (y < 0) | (y > height - 1) | (x < 0) | (x > width - 1)
        result = tf.where(outside[..., None], tf.cast(cval, tf.float32), result)
    return result


def _neighbours(position: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The pixels before and after each position [h, w], and the weight [h, w, 1] of the latter."""
    before = tf.cast(position, tf.int32)
    weight = tf.cast(position - tf.cast(before, tf.float64), tf.float32)
    return before, tf.minimum(before + 1, size - 1), weight[..., None]


def _inside(position: tf.Tensor, size: int, fill_mode: str) -> tf.Tensor:
    """Maps each position to the one in [0, size - 1] whose value the fill mode puts there."""
    last = float(size - 1)
    if fill_mode == 'reflect':  # d c b a | a b c d | d c b a
        position = tf.math.floormod(position + 0.5, 2.0 * size)
        position = tf.minimum(position, 2.0 * size - position) - 0.5
    elif fill_mode == 'wrap' and size > 1:  # SciPy lets the last pixel and the first coincide
        beyond = (position < 0) | (position > last)
        position = tf.where(beyond, tf.math.floormod(position, last), position)
    return tf.clip_by_value(position, 0.0, last)
