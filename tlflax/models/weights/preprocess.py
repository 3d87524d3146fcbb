"""Preprocessing of RGB images in 0..255; which one is right depends on the network's weights."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

Image = UInt8[Array | np.ndarray, '*b h w 3'] | Float[Array | np.ndarray, '*b h w 3']
Preprocessed = Float[Array, '*b h w 3']


def caffe(image: Image) -> Preprocessed:
    """Converts RGB to BGR and subtracts ImageNet's mean; for the Oxford and Keras weights.

    Args:
        image: RGB in 0..255, any shape [..., 3].

    Returns:
        float32 of the same shape, as `keras.applications.vgg16.preprocess_input`.
    """
    return jax.lax.rev(jnp.asarray(image, jnp.float32), (image.ndim - 1,)) - jnp.array(
        [103.939, 116.779, 123.68], jnp.float32
    )


def torch(image: Image) -> Preprocessed:
    """Scales to 0..1 and standardizes by ImageNet's mean and deviation; for torchvision's weights.

    Args:
        image: RGB in 0..255, any shape [..., 3].

    Returns:
        float32 of the same shape.
    """
    mean = jnp.array([0.485, 0.456, 0.406], jnp.float32)
    deviation = jnp.array([0.229, 0.224, 0.225], jnp.float32)
    return (rescale(image) - mean) / deviation


def rescale(image: Image) -> Preprocessed:
    """Scales to 0..1; for comparison, as it fits neither set of ImageNet weights.

    Args:
        image: RGB in 0..255, any shape [..., 3].

    Returns:
        float32 of the same shape.
    """
    return jnp.asarray(image, jnp.float32) / 255


def tf(image: Image) -> Preprocessed:
    """Scales to -1..1; for networks trained so, such as Keras's MobileNet and Google's ViT.

    Args:
        image: RGB in 0..255, any shape [..., 3].

    Returns:
        float32 of the same shape.
    """
    return jnp.asarray(image, jnp.float32) / 127.5 - 1


def none(image: Image) -> Preprocessed:
    """Leaves 0..255 as it is; for networks that normalize their input themselves.

    Args:
        image: RGB in 0..255, any shape [..., 3].

    Returns:
        float32 of the same shape.
    """
    return jnp.asarray(image, jnp.float32)


PREPROCESS: dict[str, Callable[[Image], Preprocessed]] = {
    'caffe': caffe,
    'torch': torch,
    'rescale': rescale,
    'tf': tf,
    'none': none,
}
