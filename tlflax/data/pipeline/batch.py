"""What a batch is, from the image pipeline and the feature cache to the training step."""

from collections.abc import Generator
from typing import NotRequired, TypedDict

import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32, Int64, UInt8

from tlflax.data.images.format import ImageFormat


class Batch(TypedDict):
    """A batch of `b` examples on the host, padded at its end to the size of all others.

    A batch has `image`, or `features` in its place.

    Attributes:
        image: RGB, 0..255. Padding: 0.
        features: What the frozen backbone makes of the images, in NumPy or on the device.
        label: The class of each example. Padding: 0.
        mask: False for padding.
        index: The row of each example in its table. Padding: -1.
        weight: The factor of each example's training loss, if the table has weights. Padding: 0.
        mix: The part of each example that belongs to `label`, if images are mixed. Padding: 1.
        mix_label: The class to which the rest belongs, if images are mixed. Padding: 0.
    """

    image: NotRequired[UInt8[np.ndarray, 'b h w 3']]
    features: NotRequired[Float[np.ndarray | Array, 'b ...']]
    label: Int32[np.ndarray, ' b']
    mask: Bool[np.ndarray, ' b']
    index: Int64[np.ndarray, ' b']
    weight: NotRequired[Float[np.ndarray, ' b']]
    mix: NotRequired[Float32[np.ndarray, ' b']]
    mix_label: NotRequired[Int32[np.ndarray, ' b']]


Batches = Generator[Batch, None, None]
"""Batches of one shape; closing it frees what they are read from."""


class BatchFormat(TypedDict):
    """What all batches of a run have in common; see `tlflax.data.pipeline.tf_data.batches`."""

    image_format: ImageFormat
    batch_size: int
    process_index: NotRequired[int]
    process_count: NotRequired[int]
