"""Augments one image by TensorFlow operations on explicit parameters; nothing here is random.

First come the operations of Keras's ImageDataGenerator, in its order: rotation, shift,
shear and zoom as one affine warp about the center (bilinear), channel shift, brightness. Three
differences, all deliberate:

- Keras 3 exchanges the axes of its matrix after centering it, so that its `height_shift_range`
  moves an image sideways and the center of an image that is not square is wrong. Here shifts do
  what their names say; on square images with the shifts exchanged both agree.
- Keras truncates to integers before and after brightness; here an image is rounded, once, after
  color jitter.
- A shift is always a fraction of the size, never a number of pixels.

Then color jitter, the operations of a policy, flips, right angles and erasing.
"""

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf
from jaxtyping import Shaped

from tlflax.config.schema import AugmentConfig
from tlflax.data.augment import color_ops, geometry, mixup, policies, policy_ops, sampling
from tlflax.data.augment.warp import warp

_GEOMETRIC = ('rotation', 'width_shift', 'height_shift', 'shear', 'zoom_width', 'zoom_height')
_ERASE = ('erase', 'erase_area', 'erase_ratio', 'erase_place')
_IMAGENET_MEAN = (124, 116, 104)
_DEFAULT = AugmentConfig()


def parameters(
    draws: Mapping[str, Shaped[np.ndarray, 'n ...']],
    image_size: tuple[int, int],
    augment: AugmentConfig = _DEFAULT,
) -> dict[str, np.ndarray]:
    """Turns draws into the parameters of `apply`: matrices, boxes and strengths.

    Args:
        draws: Arrays [n, ...] as `tlflax.data.augment.sampling.draw` returns them.
        image_size: (height, width) of the images to be augmented.
        augment: The settings they were drawn with.

    Returns:
        `matrix` f64[n, 2, 3] in place of the geometric draws, `erase_box` i32[n, 4] (top, left,
        height, width), `policy_branch` i32[n, k], `policy_value` f32[n, k] and `policy_matrix`
        f64[n, k, 2, 3], each where it was drawn, and the other draws as they are.
    """
    given = dict(draws)
    result: dict[str, np.ndarray] = {}
    if geometric := {name: given.pop(name) for name in _GEOMETRIC if name in given}:
        result['matrix'] = geometry.affine_matrices(geometric, image_size)
    if 'erase' in given:
        erase, area, ratio, place = (given.pop(name) for name in _ERASE)
        result['erase_box'] = geometry.erasing_boxes(erase, area, ratio, place, image_size)
    if 'policy_op' in given:
        op, level = given.pop('policy_op'), given.pop('policy_level')
        value = policies.values(augment.policy, op, level, image_size)
        result['policy_branch'] = policy_ops.branches(op)
        result['policy_value'] = value
        result['policy_matrix'] = policies.matrices(op, value, image_size)
    return result | given


def apply(
    image: tf.Tensor, parameters: Mapping[str, tf.Tensor], augment: AugmentConfig
) -> tf.Tensor:
    """Augments one image of the network's size.

    Args:
        image: float32 [h, w, 3] with known h and w, values in 0..255.
        parameters: One image's row of each array of `parameters`; if empty, it is only rounded.
        augment: The settings of what is outside the image after a warp and of what erases it.

    Returns:
        uint8 [h, w, 3].
    """
    if 'matrix' in parameters:
        image = warp(image, parameters['matrix'], fill_mode=augment.fill_mode, cval=augment.cval)
    if 'channel_shift' in parameters:
        low, high = tf.reduce_min(image), tf.reduce_max(image)
        image = tf.clip_by_value(image + parameters['channel_shift'], low, high)
    if 'brightness' in parameters:
        image = tf.minimum(image * parameters['brightness'], 255.0)
    for name, function in color_ops.JITTER.items():
        if name in parameters:
            image = function(image, parameters[name])
    image = color_ops.to_uint8(image)
    if 'policy_branch' in parameters:
        image = policy_ops.apply(
            image,
            parameters['policy_branch'],
            parameters['policy_value'],
            parameters['policy_matrix'],
            fill_mode=augment.fill_mode,
            cval=augment.cval,
        )
    image = _mirror_and_turn(image, parameters)
    if 'erase_box' in parameters:
        image = erase(
            image, parameters['erase_box'], parameters['erase_seed'], augment.erasing_fill
        )
    return image


def _mirror_and_turn(image: tf.Tensor, parameters: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Flips and turns by right angles after rounding: values stay, and a pixel is 3 bytes."""
    for name, axis in zip(sampling.FLIPS, (1, 0), strict=True):
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


def erase(image: tf.Tensor, box: tf.Tensor, seed: tf.Tensor, fill: str) -> tf.Tensor:
    """Erases a rectangle (random erasing, Zhong et al. 2017, arXiv:1708.04896).

    Args:
        image: uint8 [h, w, 3] of known shape.
        box: int32 [4], (top, left, height, width); if it is empty, nothing is erased.
        seed: int32 [2], the seed of the pixels of 'noise'.
        fill: 'noise', 'mean' (the mean color of ImageNet) or 'black'.
    """
    height, width, _ = image.shape
    _, _, rows, columns = tf.unstack(box)

    def painted() -> tf.Tensor:
        if fill == 'noise':
            words = tf.random.stateless_uniform(
                [rows, columns], seed, minval=None, maxval=None, dtype=tf.uint32, alg='philox'
            )
            patch = tf.bitcast(words, tf.uint8)[..., :3]
        else:
            color = _IMAGENET_MEAN if fill == 'mean' else (0, 0, 0)
            patch = tf.broadcast_to(tf.constant(color, tf.uint8), [rows, columns, 3])
        return paste(patch, image, box)

    return tf.ensure_shape(tf.cond(rows * columns > 0, painted, lambda: image), [height, width, 3])


def mix(
    image: tf.Tensor, other: Callable[[], tf.Tensor], part: tf.Tensor, box: tf.Tensor
) -> tf.Tensor:
    """Mixes two images as `tlflax.data.augment.mixup` describes.

    Args:
        image: uint8 [h, w, 3] of known shape.
        other: Makes the other image; not called if nothing of it would be seen.
        part: float32 scalar, the fraction of `image` in the mixture (MixUp).
        box: int32 [4], the box replaced by the same box of the other image (CutMix), if not empty.
    """
    top, left, rows, columns = tf.unstack(box)

    def mixed() -> tf.Tensor:
        second = other()  # called once: its graph is as large as all the rest

        def cut() -> tf.Tensor:
            return paste(second[top : top + rows, left : left + columns], image, box)

        def blend() -> tf.Tensor:
            one, two = tf.cast(image, tf.float32), tf.cast(second, tf.float32)
            return color_ops.to_uint8(two + part * (one - two))

        return tf.ensure_shape(tf.cond(rows * columns > 0, cut, blend), image.shape)

    seen = (rows * columns > 0) | (part <= 1 - mixup.UNSEEN)
    return tf.ensure_shape(tf.cond(seen, mixed, lambda: image), image.shape)


def paste(patch: tf.Tensor, image: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    """Returns `image` with `patch` in place of the pixels of `box` (top, left, height, width)."""
    top, left, rows, columns = tf.unstack(box)
    across = image[top : top + rows]
    middle = tf.concat([across[:, :left], patch, across[:, left + columns :]], axis=1)
    return tf.concat([image[:top], middle, image[top + rows :]], axis=0)
