"""From a pure function of JAX to operations of TensorFlow, by one table of primitives.

What `jax2tf` writes is one operation around StableHLO. The converter of TensorFlow Lite takes it,
but not with any number of images, and finds no bias and no ReLU to join to a convolution in it, on
which the speed of eight bits depends; and TensorFlow reads it only where it is as new as JAX. So
the jaxpr is translated, to what TensorFlow Lite has built in: what depends on no image is computed
now; calls are inlined; every other primitive has its translation in `TABLE`, or is refused by name.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from jax.extend import core

from tlflax.export.onnx_graph import jaxprs
from tlflax.export.onnx_graph.jaxprs import is_symbolic
from tlflax.export.tf_graph import arrangement, elementwise, reductions
from tlflax.export.tf_graph.elementwise import Translation
from tlflax.export.tf_graph.operation import Images, Operation, Refused, Value

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
    (found,) = _run(Images(traced.shape, image), closed, [*leaves, image])
    (aval,) = closed.out_avals
    return tf.ensure_shape(found, (None, *aval.shape[1:]))


def specification(shape: str, name: str) -> tf.TensorSpec:
    """Returns what TensorFlow calls images of a shape; see `compute`."""
    sizes = [None if is_symbolic(one) else one for one in jax.export.symbolic_shape(shape)]
    return tf.TensorSpec(sizes, tf.uint8, name)


def _run(images: Images, closed: core.ClosedJaxpr, inputs: list[Value]) -> list[Value]:
    """Translates the equations of a jaxpr, in order."""
    jaxpr = closed.jaxpr
    known: dict[Any, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
    known |= dict(zip(jaxpr.constvars, map(np.asarray, closed.consts), strict=True))

    def read(variable: Any) -> Value:
        if isinstance(variable, core.Literal):
            aval: Any = variable.aval
            return np.asarray(variable.val, aval.dtype)
        return known[variable]

    for equation in jaxprs.used(jaxpr):
        outputs = _equation(images, equation, [read(one) for one in equation.invars])
        known |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _equation(images: Images, equation: Any, inputs: list[Value]) -> list[Value]:
    """Translates one equation."""
    name, params = equation.primitive.name, equation.params
    if name in jaxprs.UNCHANGED:
        return inputs
    if name == 'platform_index':  # choose what is not made for one kind of device
        return [np.array(jaxprs.default_branch(params['platforms']), np.int32)]
    if name == 'cond' and isinstance(inputs[0], np.ndarray):
        branch = int(np.clip(inputs[0], 0, len(params['branches']) - 1))
        return _run(images, params['branches'][branch], inputs[1:])
    if name in jaxprs.CALLS:
        return _run(images, jaxprs.called(params), inputs)
    if any(jax.dtypes.issubdtype(one.aval.dtype, jax.dtypes.extended)
           for one in (*equation.invars, *equation.outvars)):  # fmt: skip
        raise _unknown(name)  # random keys
    operation = _operation(images, equation, inputs)
    if (folded := _computed(equation, operation)) is not None:
        return folded
    if name == 'dim_as_value':
        return [tf.cast(images.size(params['dim']), operation.dtype)]
    if name not in TABLE:
        raise _unknown(name)
    return TABLE[name](operation)


def _unknown(name: str) -> Refused:
    return Refused(f'the model has the operation {name!r}, which is not translated to TensorFlow')


def _operation(images: Images, equation: Any, inputs: list[Value]) -> Operation:
    before = [variable.aval for variable in equation.invars]
    after = [variable.aval for variable in equation.outvars]
    return Operation(
        images=images,
        name=equation.primitive.name,
        params=equation.params,
        inputs=inputs,
        in_shapes=[one.shape for one in before],
        in_dtypes=[np.dtype(one.dtype) for one in before],
        shapes=[one.shape for one in after],
        dtypes=[np.dtype(one.dtype) for one in after],
    )


def _computed(equation: Any, operation: Operation) -> list[Value] | None:
    """Returns the outputs of an operation that depends on no image, or None.

    Where the images have a part in a shape alone, operations on elements are computed before the
    broadcast that gives them that shape.
    """
    arrays = operation.inputs
    if not arrays or not all(isinstance(one, np.ndarray) for one in arrays):
        return None
    if operation.name == 'broadcast_in_dim':
        return None
    shapes = [*operation.in_shapes, *operation.shapes]
    if not any(is_symbolic(size) for shape in shapes for size in shape):
        pairs = zip(arrays, operation.in_shapes, strict=True)
        arrays = [np.broadcast_to(array, shape) for array, shape in pairs]
    elif operation.name in elementwise.TABLE:
        arrays = list(np.broadcast_arrays(*arrays))
    else:
        return None
    found = equation.primitive.bind(*map(jnp.asarray, arrays), **equation.params)
    several = found if equation.primitive.multiple_results else [found]
    return [np.asarray(one) for one in several]
