"""From a pure function of JAX to an ONNX model, by one table of primitives.

The function is traced for any number of images, and where it resizes, for any size of them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx

from tlflax.export.jaxpr.sizes import Dim
from tlflax.export.jaxpr.walk import Target, translated
from tlflax.export.onnx_graph import arrangement, elementwise, reductions
from tlflax.export.onnx_graph.elementwise import Translation
from tlflax.export.onnx_graph.fusion import fuse
from tlflax.export.onnx_graph.graph import INPUT, Graph, Value, constant
from tlflax.export.onnx_graph.operation import Operation, of
from tlflax.utils.trees import flatten

TABLE: dict[str, Translation] = {**elementwise.TABLE, **arrangement.TABLE, **reductions.TABLE}
"""The translations, by the name of JAX's primitive."""


def to_model(
    function: Callable[[Any, jax.Array], jax.Array],
    constants: Any,
    shape: str,
    metadata: dict[str, str],
) -> onnx.ModelProto:
    """Returns the model of a function of images.

    Args:
        function: (constants, image u8[b, h, w, 3]) to f32[b, n].
        constants: A tree of arrays, which become the model's initializers, named by path.
        shape: Of the images; see `jax.export.symbolic_shape`.
        metadata: Text by name.

    Raises:
        UserError: A primitive has no translation; names it.
    """
    image = jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape), jnp.uint8)
    closed = jax.make_jaxpr(function)(constants, image)
    graph = Graph(image.shape)
    leaves = [constant(np.asarray(leaf), path) for path, leaf in flatten(constants).items()]
    outputs = translated(closed, [*leaves, of(INPUT, image.shape)], _target(graph))
    (found,) = closed.out_avals
    graph.finish(outputs[0], found.shape)
    model = graph.model(found.shape[1], metadata)
    fuse(model)
    return model


def _target(graph: Graph) -> Target[Value, Operation]:
    """Returns how operations are added to a graph."""
    return Target(
        name='ONNX',
        where='--format=onnx',
        fix='replace it in the head or backbone, or export as stablehlo or safetensors',
        operation=Operation,
        table={name: functools.partial(one, graph) for name, one in TABLE.items()},
        elementwise=elementwise.TABLE,
        constant=_constant,
        array=lambda value: value.constant,
        size=functools.partial(_size, graph),
        keeps_float16=True,
    )


def _constant(array: np.ndarray, inputs: Sequence[Value]) -> Value:
    """Returns a constant that is called as the only named input that it was computed of."""
    labels = {one.label for one in inputs} - {''}
    return constant(array, labels.pop() if len(labels) == 1 else '')


def _size(graph: Graph, size: Dim, dtype: np.dtype) -> Value:
    name = graph.node('Cast', graph.sizes([size]), to=onnx.helper.np_dtype_to_tensor_dtype(dtype))
    return of(graph.node('Squeeze', name, graph.integers([0])), ())
