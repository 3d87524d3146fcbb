"""Translations of operations that move elements: shapes, slices, look-ups."""

import dataclasses

import numpy as np
from onnx import helper

from tlflax.export.jaxpr import arrangement, checks
from tlflax.export.jaxpr.arrangement import Ranges, Rows
from tlflax.export.jaxpr.sizes import Shape
from tlflax.export.onnx_graph.elementwise import Translation
from tlflax.export.onnx_graph.graph import Graph, Value, constant
from tlflax.export.onnx_graph.operation import Operation, of

_END = np.iinfo(np.int64).max


def _broadcast_in_dim(graph: Graph, operation: Operation) -> list[Value]:
    x, kept = operation.inputs[0], operation.params['broadcast_dimensions']
    x = graph.ordered(x, tuple(range(len(x.order))))
    shape: list = [1] * len(operation.shape)
    for axis, size in zip(kept, x.shape, strict=True):
        shape[axis] = size
    order = tuple(range(len(shape)))
    if isinstance(x.held, np.ndarray):
        return [Value(x.held.reshape(shape), tuple(shape), order, x.label)]
    added = [axis for axis in order if axis not in kept]
    name = graph.node('Unsqueeze', x.held, graph.integers(added)) if added else x.held
    return [Value(name, tuple(shape), order)]


def _reshape(graph: Graph, operation: Operation) -> list[Value]:
    checks.reshaping(operation)
    return [of(graph.reshaped(operation.plain(graph), operation.shape), operation.shape)]


def _squeeze(graph: Graph, operation: Operation) -> list[Value]:
    axes = graph.integers(operation.params['dimensions'])
    return [of(graph.node('Squeeze', operation.plain(graph), axes), operation.shape)]


def _transpose(graph: Graph, operation: Operation) -> list[Value]:
    x = operation.inputs[0]
    order = tuple(x.order[axis] for axis in operation.params['permutation'])
    return [dataclasses.replace(x, order=order)]


def _concatenate(graph: Graph, operation: Operation) -> list[Value]:
    parts = [operation.plain(graph, number) for number in range(len(operation.inputs))]
    axis = operation.params['dimension']
    return [of(graph.node('Concat', *parts, axis=axis), operation.shape)]


def _stack(graph: Graph, operation: Operation) -> list[Value]:
    axis, shape = operation.params['axis'], operation.shape
    parts = [
        graph.node('Unsqueeze', operation.plain(graph, number), graph.integers([axis]))
        for number in range(len(operation.inputs))
    ]
    return [of(graph.node('Concat', *parts, axis=axis), shape)]


def _tile(graph: Graph, operation: Operation) -> list[Value]:
    repeats = graph.integers(operation.params['reps'])
    return [of(graph.node('Tile', operation.plain(graph), repeats), operation.shape)]


def _split(graph: Graph, operation: Operation) -> list[Value]:
    sizes = graph.integers(operation.params['sizes'])
    names = graph.nodes(
        'Split',
        len(operation.shapes),
        operation.plain(graph),
        sizes,
        axis=operation.params['axis'],
    )
    return [of(name, shape) for name, shape in zip(names, operation.shapes, strict=True)]


def _sliced(graph: Graph, x: Value, ranges: Ranges, shape: Shape) -> Value:
    """Returns part of a value in full size.

    Args:
        graph: The graph.
        x: The value.
        ranges: What is taken.
        shape: Of the result.
    """
    if not ranges:
        return x
    columns = [(first, _END if end is None else end, step) for first, end, step in ranges.values()]
    starts, ends, steps = (graph.integers(column) for column in zip(*columns, strict=True))
    axes = graph.integers([x.order[axis] for axis in ranges])
    name = graph.node('Slice', graph.tensor(x), starts, ends, axes, steps)
    return Value(name, _as_held(x, shape), x.order)


def _as_held(x: Value, shape: Shape) -> Shape:
    """Returns the shape of the tensor of a value of this shape, in the order of `x`."""
    held = list(x.shape)
    for axis, size in enumerate(shape):
        held[x.order[axis]] = size
    return tuple(held)


def _slice(graph: Graph, operation: Operation) -> list[Value]:
    ranges = arrangement.sliced(operation)
    return [_sliced(graph, operation.dense(graph), ranges, operation.shape)]


def _dynamic_slice(graph: Graph, operation: Operation) -> list[Value]:
    ranges = arrangement.dynamically_sliced(operation)
    return [_sliced(graph, operation.dense(graph), ranges, operation.shape)]


def _rev(graph: Graph, operation: Operation) -> list[Value]:
    ranges: Ranges = dict.fromkeys(operation.params['dimensions'], (-1, -_END, -1))
    return [_sliced(graph, operation.dense(graph), ranges, operation.shape)]


def _pad(graph: Graph, operation: Operation) -> list[Value]:
    x, pairs = operation.dense(graph), arrangement.padding(operation)
    added = {axis: pair for axis, pair in enumerate(pairs) if any(pair)}
    if not added:
        return [x]
    # Negative amounts cut off, in ONNX as in JAX.
    amounts = [pair[side] for side in (0, 1) for pair in added.values()]
    axes = graph.integers([x.order[axis] for axis in added])
    filling = operation.plain(graph, 1)
    name = graph.node('Pad', graph.tensor(x), graph.integers(amounts), filling, axes)
    return [Value(name, _as_held(x, operation.shape), x.order)]


def _iota(graph: Graph, operation: Operation) -> list[Value]:
    shape, numbers = arrangement.counted(operation)
    return [_counted(graph, operation, shape) if numbers is None else constant(numbers)]


def _counted(graph: Graph, operation: Operation, shape: Shape) -> Value:
    """Returns 0, 1, ... along an axis of a size that is known when the file is run."""
    kind = helper.np_dtype_to_tensor_dtype(operation.dtype)
    size = operation.shape[operation.params['dimension']]
    end = graph.node('Squeeze', graph.size(size), graph.integers([0]))
    zero, one = (graph.tensor(constant(np.array(number, operation.dtype))) for number in (0, 1))
    numbers = graph.node('Range', zero, graph.node('Cast', end, to=kind), one)
    return of(graph.reshaped(numbers, shape), shape)


def _gather(graph: Graph, operation: Operation) -> list[Value]:
    ranges, sizes, dropped, rows = arrangement.looked_up(operation)
    block = _sliced(graph, operation.dense(graph), ranges, sizes)
    if not dropped and rows is None:
        return [block]
    name = graph.tensor(graph.plain(block, sizes))
    if dropped:
        name = graph.node('Squeeze', name, graph.integers(dropped))
    if rows is None:
        return [of(name, operation.shape)]
    # ONNX puts the axes of the places where the axis was.
    name = graph.node('Gather', name, _places(graph, operation, rows), axis=rows.axis)
    shape = tuple(operation.shape[one] for one in rows.order)
    return [Value(name, shape, tuple(np.argsort(rows.order).tolist()))]


def _places(graph: Graph, operation: Operation, rows: Rows) -> str:
    """Returns the name of the places along an axis."""
    index = operation.constants[1]
    if index is not None:
        found = index[..., rows.column]
        return graph.tensor(constant(np.clip(found, 0, rows.last) if rows.clipped else found))
    places = graph.reshaped(operation.plain(graph, 1), operation.in_shapes[1][:-1])
    if rows.clipped:
        dtype = operation.in_dtypes[1]
        low, high = (graph.tensor(constant(np.array(one, dtype))) for one in (0, rows.last))
        places = graph.node('Min', graph.node('Max', places, low), high)
    return places


TABLE: dict[str, Translation] = {
    'broadcast_in_dim': _broadcast_in_dim,
    'concatenate': _concatenate,
    'dynamic_slice': _dynamic_slice,
    'gather': _gather,
    'iota': _iota,
    'pad': _pad,
    'reshape': _reshape,
    'rev': _rev,
    'slice': _slice,
    'split': _split,
    'squeeze': _squeeze,
    'stack': _stack,
    'tile': _tile,
    'transpose': _transpose,
}
"""By the name of JAX's primitive."""
