"""What is done to an RGB image in 0..255 before a network; it belongs to the network's weights."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

Image = UInt8[Array, '*b h w 3'] | Float[Array, '*b h w 3']
Preprocessed = Float[Array, '*b h w 3']


def caffe(image: Image) -> Preprocessed:
    """RGB to BGR, then minus the mean of ImageNet's pixels; for the Oxford/Keras weights.

    Args:
        image: RGB in 0..255, any shape [..., 3].

    Returns:
        float32 of the same shape, as `keras.applications.vgg16.preprocess_input`.
    """
    return image.astype(jnp.float32)[..., ::-1] - jnp.array([103.939, 116.779, 123.68], jnp.float32)


def torch(image: Image) -> Preprocessed:
    """To 0..1, minus ImageNet's mean, over its standard deviation; for torchvision's weights.

    Args:
        image: RGB in 0..255, any shape [..., 3].

    Returns:
        float32 of the same shape.
    """
    mean = jnp.array([0.485, 0.456, 0.406], jnp.float32)
    deviation = jnp.array([0.229, 0.224, 0.225], jnp.float32)
    return (rescale(image) - mean) / deviation


def rescale(image: Image) -> Preprocessed:
    """To 0..1 and nothing else: fits neither set of ImageNet weights; for comparison.

    Args:
        image: RGB in 0..255, any shape [..., 3].

    Returns:
        float32 of the same shape.
    """
    return image.astype(jnp.float32) / 255


PREPROCESS: dict[str, Callable[[Image], Preprocessed]] = {
    'caffe': caffe,
    'torch': torch,
    'rescale': rescale,
}
