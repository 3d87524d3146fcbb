"""From one decoded image to what the network sees of it, in the pipeline and without one."""

import functools
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf
from jaxtyping import UInt8

from tlflax.config.schema import AugmentConfig
from tlflax.data._tensorflow import on_cpu
from tlflax.data.augment import apply as augmentation
from tlflax.data.augment import sampling
from tlflax.data.images.format import ImageFormat
from tlflax.data.pipeline import crops


def transform(
    image: tf.Tensor,
    parameters: Mapping[str, tf.Tensor],
    image_format: ImageFormat,
    augment: AugmentConfig,
) -> tf.Tensor:
    """Resizes and augments one image.

    Args:
        image: uint8 [h, w, 3], of any h and w.
        parameters: One image's row of `tlflax.data.augment.apply.parameters`.
        image_format: How it is resized.
        augment: The settings of the augmentations that were drawn.

    Returns:
        uint8 [*image_size, 3].
    """
    image = crops.resize(image, parameters, image_format, augment)
    return augmentation.apply(image, parameters, augment)


def show(
    image: UInt8[np.ndarray, 'h w 3'],
    view: sampling.View,
    image_format: ImageFormat,
    augment: AugmentConfig,
) -> UInt8[np.ndarray, 'height width 3']:
    """Returns one view of an image, the same pixels as `tf_data.eval_epoch`; thread-safe."""
    with on_cpu():
        program = _program(tuple(sorted(view.items())), image_format, augment)
        return program(tf.constant(image)).numpy()


@functools.lru_cache(maxsize=64)  # as many as there are views of a run
def _program(
    view: tuple[tuple[str, bool | int], ...], image_format: ImageFormat, augment: AugmentConfig
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the function of images of any size that shows a view of each."""
    drawn = sampling.repeat(dict(view), 1)
    rows = augmentation.parameters(drawn, image_format.image_size, augment)
    parameters = {name: values[0] for name, values in rows.items()}

    def shown(image: tf.Tensor) -> tf.Tensor:
        constants = {name: tf.constant(value) for name, value in parameters.items()}
        return transform(image, constants, image_format, augment)

    signature = [tf.TensorSpec([None, None, 3], tf.uint8)]
    return tf.function(shown, input_signature=signature, autograph=False)
