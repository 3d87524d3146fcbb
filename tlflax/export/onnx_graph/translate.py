"""From a pure function of JAX to an ONNX model, by one table of primitives.

The function is traced for any number of images, and where it resizes, for any size of them. What
depends on no image is computed now; calls are inlined; every other primitive has its translation in
`TABLE`, or is refused by name.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax.extend import core

from tlflax.export.onnx_graph import arrangement, elementwise, jaxprs, reductions
from tlflax.export.onnx_graph.elementwise import Translation
from tlflax.export.onnx_graph.fusion import fuse
from tlflax.export.onnx_graph.graph import INPUT, Graph, Refused, Value, constant
from tlflax.export.onnx_graph.jaxprs import is_symbolic
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
    outputs = _run(graph, closed, [*leaves, of(INPUT, image.shape)])
    (found,) = closed.out_avals
    graph.finish(outputs[0], found.shape)
    model = graph.model(found.shape[1], metadata)
    fuse(model)
    return model


def _run(graph: Graph, closed: core.ClosedJaxpr, inputs: list[Value]) -> list[Value]:
    """Translates the equations of a jaxpr, in order."""
    jaxpr = closed.jaxpr
    known: dict[Any, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
    for variable, array in zip(jaxpr.constvars, closed.consts, strict=True):
        known[variable] = constant(np.asarray(array))

    def read(variable: Any) -> Value:
        if isinstance(variable, core.Literal):
            aval: Any = variable.aval
            return constant(np.asarray(variable.val, aval.dtype))
        return known[variable]

    for equation in jaxprs.used(jaxpr):
        outputs = _equation(graph, equation, [read(one) for one in equation.invars])
        known |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _equation(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """Translates one equation."""
    name, params = equation.primitive.name, equation.params
    if name in jaxprs.UNCHANGED:
        return inputs
    if name == 'platform_index':  # choose what is not made for one kind of device
        return [constant(np.array(jaxprs.default_branch(params['platforms']), np.int32))]
    if name == 'cond' and inputs[0].constant is not None:
        branch = int(np.clip(inputs[0].constant, 0, len(params['branches']) - 1))
        return _run(graph, params['branches'][branch], inputs[1:])
    if name in jaxprs.CALLS:
        return _run(graph, jaxprs.called(params), inputs)
    if any(jax.dtypes.issubdtype(one.aval.dtype, jax.dtypes.extended)
           for one in (*equation.invars, *equation.outvars)):  # fmt: skip
        raise _unknown(name)  # random keys
    operation = _operation(equation, inputs)
    if (folded := _computed(equation, operation)) is not None:
        return folded
    if name == 'dim_as_value':
        return _size(graph, operation)
    if name not in TABLE:
        raise _unknown(name)
    return TABLE[name](graph, operation)


def _unknown(name: str) -> Refused:
    return Refused(f'the model has the operation {name!r}, which is not translated to ONNX')


def _operation(equation: Any, inputs: list[Value]) -> Operation:
    before = [variable.aval for variable in equation.invars]
    after = [variable.aval for variable in equation.outvars]
    return Operation(
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
    arrays = [one.constant for one in operation.inputs if one.constant is not None]
    if not arrays or len(arrays) < len(operation.inputs) or operation.name == 'broadcast_in_dim':
        return None
    if operation.name == 'convert_element_type' and operation.in_dtypes == [np.float16]:
        return None  # parameters of 16 bits stay so in the file
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
    labels = {one.label for one in operation.inputs} - {''}
    label = labels.pop() if len(labels) == 1 else ''
    return [constant(np.asarray(one), label) for one in several]


def _size(graph: Graph, operation: Operation) -> list[Value]:
    size = graph.sizes([operation.params['dim']])
    name = graph.node('Cast', size, to=onnx.helper.np_dtype_to_tensor_dtype(operation.dtype))
    return [of(graph.node('Squeeze', name, graph.integers([0])), ())]
