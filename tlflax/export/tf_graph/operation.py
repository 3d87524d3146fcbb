"""One equation of a jaxpr, as the translations to TensorFlow read it.

A value is a constant, np.ndarray, or a tf.Tensor. It has the rank that JAX gives it; an axis along
which it is the same may have size 1, as most operations of TensorFlow broadcast by themselves.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tlflax.export.jaxpr import operation
from tlflax.export.jaxpr.sizes import Dim, Shape, factors, is_symbolic, with_the_rest

Value = Any
"""np.ndarray or tf.Tensor."""


class Images:
    """The sizes of the input, which are known when the graph runs.

    Args:
        shape: The shape of the input, symbols included.
        image: tf.Tensor of the images.
    """

    def __init__(self, shape: Shape, image: tf.Tensor) -> None:
        self._shape, self._image = shape, image

    def sizes(self, shape: Sequence[Dim]) -> Any:
        """Returns a shape as TensorFlow takes it: integers, or a tensor i32[n]."""
        if not any(map(is_symbolic, shape)):
            return [int(one) for one in shape]
        return tf.stack([self.size(one) if is_symbolic(one) else int(one) for one in shape])

    def size(self, size: Dim) -> tf.Tensor:
        """Returns a size that depends on those of the input, i32[]."""
        axes, number = factors(size, self._shape)
        for axis in axes:
            number = tf.shape(self._image)[axis] * number
        return number


@dataclasses.dataclass(frozen=True, eq=False)
class Operation(operation.Operation[Value]):
    """A primitive with its inputs.

    Attributes:
        images: The sizes of the input.
    """

    images: Images

    def dense(self, number: int = 0) -> Value:
        """Returns an input with every axis in full size."""
        x, shape = self.inputs[number], self.in_shapes[number]
        if all(own != 1 or size == 1 for own, size in zip(x.shape, shape, strict=True)):
            return x
        if isinstance(x, np.ndarray) and not any(map(is_symbolic, shape)):
            return np.broadcast_to(x, shape)
        return tf.broadcast_to(x, self.images.sizes(shape))


def reshaped(images: Images, x: Value, shape: Shape) -> Value:
    """Returns a value in another shape."""
    return tf.reshape(x, images.sizes(with_the_rest(shape)))
