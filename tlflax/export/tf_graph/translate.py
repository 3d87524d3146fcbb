"""From a pure function of JAX to operations of TensorFlow, by one table of primitives.

What `jax2tf` writes is one operation around StableHLO. The converter of TensorFlow Lite takes it,
but not with any number of images, and finds no bias and no ReLU to join to a convolution in it, on
which the speed of eight bits depends; and TensorFlow reads it only where it is as new as JAX. So
the jaxpr is translated, to what TensorFlow Lite has built in.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf

from tlflax.export.jaxpr.sizes import Dim, is_symbolic
from tlflax.export.jaxpr.walk import Target, translated
from tlflax.export.tf_graph import arrangement, elementwise, reductions
from tlflax.export.tf_graph.elementwise import Translation
from tlflax.export.tf_graph.operation import Images, Operation, Value

TABLE: dict[str, Translation] = {**elementwise.TABLE, **arrangement.TABLE, **reductions.TABLE}
"""The translations, by the name of JAX's primitive."""


def compute(
    function: Callable[[Any, jax.Array], jax.Array],
    constants: Any,
    shape: str,
    image: tf.Tensor,
    held: Sequence[tf.Tensor] | None = None,
) -> tf.Tensor:
    """Returns a function of images as TensorFlow computes it.

    Args:
        function: (constants, image u8[b, h, w, 3]) to f32[b, n].
        constants: A tree of arrays.
        shape: Of the images; see `jax.export.symbolic_shape`.
        image: tf.Tensor u8[b, h, w, 3], as `specification` has it.
        held: What the leaves of `constants` are read from; None: they become part of the graph.

    Raises:
        UserError: A primitive has no translation; names it.
    """
    traced = jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape), jnp.uint8)
    closed = jax.make_jaxpr(function)(constants, traced)
    leaves = list(held or map(np.asarray, jax.tree.leaves(constants)))
    (found,) = translated(closed, [*leaves, image], _target(Images(traced.shape, image)))
    (aval,) = closed.out_avals
    return tf.ensure_shape(found, (None, *aval.shape[1:]))


def specification(shape: str, name: str) -> tf.TensorSpec:
    """Returns what TensorFlow calls images of a shape; see `compute`."""
    sizes = [None if is_symbolic(one) else one for one in jax.export.symbolic_shape(shape)]
    return tf.TensorSpec(sizes, tf.uint8, name)


def _target(images: Images) -> Target[Value, Operation]:
    """Returns how operations are computed for images."""

    def size(one: Dim, dtype: np.dtype) -> tf.Tensor:
        return tf.cast(images.size(one), dtype)

    return Target(
        name='TensorFlow',
        where='--format',
        fix='replace it in the head or backbone, or export as onnx or stablehlo',
        operation=functools.partial(Operation, images=images),
        table=TABLE,
        elementwise=elementwise.TABLE,
        constant=lambda array, inputs: array,
        array=lambda value: value if isinstance(value, np.ndarray) else None,
        size=size,
    )
