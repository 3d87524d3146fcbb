"""Translations of operations that sum, or otherwise reduce, over elements."""

import functools
import math

import numpy as np
from onnx import helper

from tlflax.export.jaxpr import checks
from tlflax.export.jaxpr.reductions import Factor, inverse, pick, product, still_axes
from tlflax.export.jaxpr.refused import Refused
from tlflax.export.jaxpr.sizes import is_symbolic
from tlflax.export.onnx_graph.elementwise import Translation
from tlflax.export.onnx_graph.graph import Graph, Value, constant
from tlflax.export.onnx_graph.operation import Operation, of


def _conv(graph: Graph, operation: Operation) -> list[Value]:
    params, numbers = operation.params, operation.params['dimension_numbers']
    checks.convolution(operation)
    x = graph.ordered(operation.dense(graph), inverse(numbers.lhs_spec))
    kernel = graph.ordered(operation.dense(graph, 1), inverse(numbers.rhs_spec))
    name = graph.node(
        'Conv',
        graph.tensor(x),
        graph.tensor(kernel),
        strides=params['window_strides'],
        dilations=params['rhs_dilation'],
        pads=[int(pair[side]) for side in (0, 1) for pair in params['padding']],
        group=params['feature_group_count'],
    )
    shape = tuple(operation.shape[axis] for axis in numbers.out_spec)
    return [Value(name, shape, inverse(numbers.out_spec))]


def _dot(graph: Graph, operation: Operation) -> list[Value]:
    left, right, shape = product(operation)
    a, b = _matrix(graph, operation, 0, left), _matrix(graph, operation, 1, right)
    name = graph.node('MatMul', a, b)
    if operation.shape != shape:
        name = graph.reshaped(name, operation.shape)
    return [of(name, operation.shape)]


def _matrix(graph: Graph, operation: Operation, number: int, factor: Factor) -> str:
    """Returns the name of an input as a factor of a product, in the type of the output."""
    x, shape = graph.ordered(operation.dense(graph, number), inverse(factor.axes)), factor.shape
    if isinstance(x.held, np.ndarray) and not any(map(is_symbolic, shape)):
        array = x.held.reshape([int(size) for size in shape]).astype(operation.dtype)
        return graph.tensor(constant(array, x.label))
    name = graph.tensor(x)
    if operation.in_dtypes[number] != operation.dtype:
        name = graph.node('Cast', name, to=helper.np_dtype_to_tensor_dtype(operation.dtype))
    return name if x.shape == shape else graph.reshaped(name, shape)


def _reduce(kind: str, graph: Graph, operation: Operation) -> list[Value]:
    x = operation.dense(graph)
    axes = [x.order[axis] for axis in operation.params['axes']]
    if not axes:
        return [x]
    name, logical = graph.tensor(x), operation.dtype == np.bool_
    if logical:  # ONNX reduces numbers only
        name = graph.node('Cast', name, to=helper.np_dtype_to_tensor_dtype(np.dtype(np.int32)))
    name = graph.node(kind, name, graph.integers(axes), keepdims=0)
    if logical:
        name = graph.node('Cast', name, to=helper.np_dtype_to_tensor_dtype(operation.dtype))
    return [_without(name, x, axes)]


def _without(name: str, x: Value, gone: list[int]) -> Value:
    """Returns what is left of a value without some axes of its tensor."""
    left = [axis for axis in range(len(x.shape)) if axis not in gone]
    order = tuple(left.index(axis) for axis in x.order if axis not in gone)
    return Value(name, tuple(x.shape[axis] for axis in left), order)


def _arg(kind: str, graph: Graph, operation: Operation) -> list[Value]:
    x, (axis,) = operation.dense(graph), operation.params['axes']
    name = graph.node(kind, graph.tensor(x), axis=x.order[axis], keepdims=0)
    name = graph.node('Cast', name, to=helper.np_dtype_to_tensor_dtype(operation.dtype))
    return [_without(name, x, [x.order[axis]])]


def _cumsum(graph: Graph, operation: Operation) -> list[Value]:
    x, axis = operation.dense(graph), operation.params['axis']
    place = graph.tensor(constant(np.array(x.order[axis], np.int64)))
    name = graph.node('CumSum', graph.tensor(x), place, reverse=int(operation.params['reverse']))
    return [Value(name, x.shape, x.order)]


def _top_k(graph: Graph, operation: Operation) -> list[Value]:
    rank, axis = len(operation.shape), operation.params.get('axis', -1)
    count = graph.integers([operation.params['k']])
    values, rows = graph.nodes('TopK', 2, operation.plain(graph), count, axis=axis % rank)
    rows = graph.node('Cast', rows, to=helper.np_dtype_to_tensor_dtype(operation.dtypes[1]))
    return [of(values, operation.shapes[0]), of(rows, operation.shapes[1])]


def _window(kind: str, graph: Graph, operation: Operation) -> list[Value]:
    """Translates pooling: ONNX slides over all axes but the first two."""
    params = operation.params
    window, strides = params['window_dimensions'], params['window_strides']
    pads, dilation = params['padding'], params['window_dilation']
    if any(one != 1 for one in params['base_dilation']):
        raise Refused(f'{operation.name!r} over a dilated input')
    still = still_axes(operation)
    if len(still) < 2:
        raise Refused(f'{operation.name!r} over all axes')
    moved = [axis for axis in range(len(window)) if axis not in still[:2]]
    order = (*still[:2], *moved)
    x = graph.ordered(operation.dense(graph), inverse(order))
    name = graph.tensor(x)
    options = {'count_include_pad': 1} if kind == 'AveragePool' else {}
    name = graph.node('Neg', name) if kind == 'MinPool' else name
    name = graph.node(
        'MaxPool' if kind == 'MinPool' else kind,
        name,
        kernel_shape=[window[axis] for axis in moved],
        strides=[strides[axis] for axis in moved],
        dilations=[dilation[axis] for axis in moved],
        pads=[int(pads[axis][side]) for side in (0, 1) for axis in moved],
        **options,
    )
    if kind == 'MinPool':
        name = graph.node('Neg', name)
    if kind == 'AveragePool':
        size = graph.tensor(constant(np.array(math.prod(window), np.float32)))
        name = graph.node('Mul', name, size)
    return [Value(name, pick(operation.shape, order), inverse(order))]


TABLE: dict[str, Translation] = {
    'argmax': functools.partial(_arg, 'ArgMax'),
    'argmin': functools.partial(_arg, 'ArgMin'),
    'conv_general_dilated': _conv,
    'cumsum': _cumsum,
    'dot_general': _dot,
    'reduce_and': functools.partial(_reduce, 'ReduceMin'),
    'reduce_max': functools.partial(_reduce, 'ReduceMax'),
    'reduce_min': functools.partial(_reduce, 'ReduceMin'),
    'reduce_or': functools.partial(_reduce, 'ReduceMax'),
    'reduce_prod': functools.partial(_reduce, 'ReduceProd'),
    'reduce_sum': functools.partial(_reduce, 'ReduceSum'),
    'reduce_window_max': functools.partial(_window, 'MaxPool'),
    'reduce_window_min': functools.partial(_window, 'MinPool'),
    'reduce_window_sum': functools.partial(_window, 'AveragePool'),
    'top_k': _top_k,
}
"""By the name of JAX's primitive."""
