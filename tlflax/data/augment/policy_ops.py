"""The operations of `tlflax.data.augment.policies` on one image.

They are Pillow's (ImageOps, ImageEnhance, affine transforms), which the papers used, with two
differences: resampling is bilinear, and `augment.fill_mode` says what stands outside the image,
where Pillow leaves black. Each operation takes and returns integers, as in Pillow.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf
from jaxtyping import Int32, Int64

from tlflax.data.augment import color_ops, policies
from tlflax.data.augment.warp import warp

# All geometric operations are one branch; their matrices tell them apart.
_BRANCHES = ('identity', 'warp', *(op for op in policies.OPS[1:] if op not in policies.GEOMETRIC))


def branches(op: Int64[np.ndarray, '...']) -> Int32[np.ndarray, '...']:
    """Returns the branch of `apply` for each position in `policies.OPS`."""
    names = ['warp' if name in policies.GEOMETRIC else name for name in policies.OPS]
    return np.array([_BRANCHES.index(name) for name in names], np.int32)[op]


def apply(
    image: tf.Tensor,
    branch: tf.Tensor,
    value: tf.Tensor,
    matrix: tf.Tensor,
    *,
    fill_mode: str,
    cval: float,
) -> tf.Tensor:
    """Applies operations one after another.

    Args:
        image: uint8 [h, w, 3] of known shape.
        branch: int32 [k], from `branches`.
        value: float32 [k], from `policies.values`.
        matrix: float64 [k, 2, 3], from `policies.matrices`.
        fill_mode: See `tlflax.data.augment.warp.warp`.
        cval: The value for 'constant'.
    """
    shape = image.shape

    def one(number: tf.Tensor, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        done = _one(image, branch[number], value[number], matrix[number], fill_mode, cval)
        return number + 1, tf.ensure_shape(done, shape)

    # In a loop, the graph holds the branches once.
    count = branch.shape[0]
    return tf.while_loop(lambda number, _: number < count, one, [tf.constant(0), image])[1]


def _one(
    image: tf.Tensor,
    branch: tf.Tensor,
    value: tf.Tensor,
    matrix: tf.Tensor,
    fill_mode: str,
    cval: float,
) -> tf.Tensor:
    def rounded(function: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> Callable[[], tf.Tensor]:
        # The conversion is inside the branch, so that other branches do not pay for it.
        return lambda: color_ops.to_uint8(function(tf.cast(image, tf.float32), value))

    functions: dict[str, Callable[[], tf.Tensor]] = {
        'identity': lambda: image,
        'warp': rounded(lambda floats, _: warp(floats, matrix, fill_mode=fill_mode, cval=cval)),
        'brightness': rounded(color_ops.brightness),
        'color': rounded(color_ops.saturation),
        'contrast': rounded(color_ops.contrast),
        'sharpness': rounded(color_ops.sharpness),
        'posterize': lambda: posterize(image, value),
        'solarize': lambda: solarize(image, value),
        'autocontrast': lambda: autocontrast(image),
        'equalize': lambda: equalize(image),
    }
    return tf.switch_case(branch, [functions[name] for name in _BRANCHES])


def posterize(image: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Keeps the highest bits of each value, as `PIL.ImageOps.posterize`."""
    kept = tf.bitwise.left_shift(255, 8 - tf.cast(bits, tf.int32))
    return tf.bitwise.bitwise_and(image, tf.cast(kept & 255, tf.uint8))


def solarize(image: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Inverts values of at least `threshold`, as `PIL.ImageOps.solarize`."""
    lowest = tf.cast(tf.math.ceil(threshold), tf.uint8)
    return tf.where(image < lowest, image, 255 - image)


def autocontrast(image: tf.Tensor) -> tf.Tensor:
    """Stretches each channel to 0..255, rounding down, as `PIL.ImageOps.autocontrast`."""
    values = tf.cast(image, tf.float32)
    low, high = tf.reduce_min(values, [0, 1]), tf.reduce_max(values, [0, 1])
    stretched = (values - low) * 255.0 / tf.maximum(high - low, 1.0)
    return tf.where(high > low, tf.cast(stretched, tf.uint8), image)


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Equalizes the histogram of each channel, as `PIL.ImageOps.equalize`."""
    # The three channels as one histogram of 768.
    index = tf.cast(image, tf.int32) + tf.constant([0, 256, 512])
    counts = tf.math.bincount(tf.reshape(index, [-1]), minlength=768, maxlength=768)
    counts = tf.reshape(counts, [3, 256])
    last = 255 - tf.argmax(tf.reverse(counts, [1]) > 0, axis=1, output_type=tf.int32)
    step = (tf.reduce_sum(counts, 1) - tf.gather(counts, last, batch_dims=1))[:, None] // 255
    before = tf.cumsum(counts, axis=1, exclusive=True)
    table = tf.minimum((step // 2 + before) // tf.maximum(step, 1), 255)
    table = tf.where(step > 0, table, tf.range(256)[None, :])
    return tf.gather(tf.reshape(tf.cast(table, tf.uint8), [-1]), index)
