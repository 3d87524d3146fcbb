"""Translations of operations that move elements: shapes, slices, look-ups."""

import dataclasses

import numpy as np
from jax import lax
from onnx import helper

from tlflax.export.onnx_graph.elementwise import Translation
from tlflax.export.onnx_graph.graph import Graph, Refused, Value, constant
from tlflax.export.onnx_graph.jaxprs import Shape, is_symbolic
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
    if operation.params.get('dimensions') is not None:
        raise Refused("'reshape' in another order of the axes")
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


def _sliced(graph: Graph, x: Value, ranges: dict[int, tuple[int, int, int]], shape: Shape) -> Value:
    """Returns part of a value in full size.

    Args:
        graph: The graph.
        x: The value.
        ranges: (first, after the last, step) by axis.
        shape: Of the result.
    """
    if not ranges:
        return x
    starts, ends, steps = (graph.integers(column) for column in zip(*ranges.values(), strict=True))
    axes = graph.integers([x.order[axis] for axis in ranges])
    name = graph.node('Slice', graph.tensor(x), starts, ends, axes, steps)
    held = list(x.shape)
    for axis, size in enumerate(shape):
        held[x.order[axis]] = size
    return Value(name, tuple(held), x.order)


def _slice(graph: Graph, operation: Operation) -> list[Value]:
    params, before = operation.params, operation.in_shapes[0]
    strides = params['strides'] or (1,) * len(before)
    ranges = {}
    for axis, (start, stop, stride) in enumerate(
        zip(params['start_indices'], params['limit_indices'], strides, strict=True)
    ):
        if is_symbolic(start) or (is_symbolic(stop) and stop != before[axis]):
            raise Refused("'slice' at a place that depends on the number of images")
        end = _END if is_symbolic(stop) else int(stop)
        if start != 0 or stop != before[axis] or stride != 1:
            ranges[axis] = (int(start), end, int(stride))
    return [_sliced(graph, operation.dense(graph), ranges, operation.shape)]


def _dynamic_slice(graph: Graph, operation: Operation) -> list[Value]:
    starts = [one.constant for one in operation.inputs[1:]]
    if any(start is None for start in starts):
        raise Refused("'dynamic_slice' at a place that depends on the image")
    firsts = [int(start) for start in starts if start is not None]
    return [_block(graph, operation, firsts, operation.params['slice_sizes'])]


def _block(graph: Graph, operation: Operation, starts: list[int], sizes: Shape) -> Value:
    """Returns the block of a size that begins at a place, or as near as it fits."""
    before, ranges = operation.in_shapes[0], {}
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        if size != before[axis]:
            first = min(max(start, 0), before[axis] - size)
            ranges[axis] = (first, first + int(size), 1)
    return _sliced(graph, operation.dense(graph), ranges, tuple(sizes))


def _rev(graph: Graph, operation: Operation) -> list[Value]:
    ranges = dict.fromkeys(operation.params['dimensions'], (-1, -_END, -1))
    return [_sliced(graph, operation.dense(graph), ranges, operation.shape)]


def _pad(graph: Graph, operation: Operation) -> list[Value]:
    x, config = operation.dense(graph), operation.params['padding_config']
    if any(interior for *_, interior in config):
        raise Refused("'pad' between elements")
    added = {axis: pair for axis, pair in enumerate(config) if pair[0] or pair[1]}
    if not added:
        return [x]
    # Negative amounts cut off, in ONNX as in JAX.
    amounts = [int(pair[side]) for side in (0, 1) for pair in added.values()]
    axes = graph.integers([x.order[axis] for axis in added])
    filling = operation.plain(graph, 1)
    name = graph.node('Pad', graph.tensor(x), graph.integers(amounts), filling, axes)
    held = list(x.shape)
    for axis, size in enumerate(operation.shape):
        held[x.order[axis]] = size
    return [Value(name, tuple(held), x.order)]


def _iota(graph: Graph, operation: Operation) -> list[Value]:
    axis, shape = operation.params['dimension'], operation.shape
    if is_symbolic(shape[axis]):
        return [_counted(graph, operation, axis)]
    counted = [shape[axis] if one == axis else 1 for one in range(len(shape))]
    return [constant(np.arange(shape[axis], dtype=operation.dtype).reshape(counted))]


def _counted(graph: Graph, operation: Operation, axis: int) -> Value:
    """Returns 0, 1, ... along an axis of a size that is known when the file is run."""
    kind = helper.np_dtype_to_tensor_dtype(operation.dtype)
    end = graph.node('Squeeze', graph.size(operation.shape[axis]), graph.integers([0]))
    zero, one = (graph.tensor(constant(np.array(number, operation.dtype))) for number in (0, 1))
    numbers = graph.node('Range', zero, graph.node('Cast', end, to=kind), one)
    shape = [operation.shape[axis] if n == axis else 1 for n in range(len(operation.shape))]
    return of(graph.reshaped(numbers, tuple(shape)), tuple(shape))


def _gather(graph: Graph, operation: Operation) -> list[Value]:
    """Translates a look-up of blocks whose places are known, but along one axis at most."""
    numbers, before = operation.params['dimension_numbers'], operation.in_shapes[0]
    along, gone = numbers.start_index_map, numbers.collapsed_slice_dims
    places = operation.in_shapes[1][:-1]
    known = _known_starts(operation.inputs[1].constant, along)
    if places and along and len(known) == len(along):  # the same block again and again
        known.pop(next((axis for axis in along if axis in gone), along[0]))
    looked_up = [axis for axis in along if axis not in known]
    batching = numbers.operand_batching_dims or numbers.start_indices_batching_dims
    if batching or len(looked_up) > 1 or not set(looked_up) <= set(gone):
        raise Refused("'gather' other than along one axis")
    sizes = list(operation.params['slice_sizes'])
    for axis in looked_up:
        sizes[axis] = before[axis]
    starts = [known.get(axis, 0) for axis in range(len(before))]
    block = _block(graph, operation, starts, tuple(sizes))
    dropped = [axis for axis in gone if axis not in looked_up]
    if not dropped and not looked_up:
        return [block]
    name = graph.tensor(graph.plain(block, tuple(sizes)))
    if dropped:
        name = graph.node('Squeeze', name, graph.integers(dropped))
    if not looked_up:
        return [of(name, operation.shape)]
    axis = looked_up[0]
    rows = _rows(graph, operation, axis)
    return [_along_axis(graph, operation, name, rows, axis - sum(one < axis for one in dropped))]


def _known_starts(index: np.ndarray | None, along: tuple[int, ...]) -> dict[int, int]:
    """Returns the axes along which all places are known and the same, and where they are."""
    if index is None or index.size == 0:
        return {}
    columns = dict(zip(along, index.reshape(-1, len(along)).T, strict=True))
    return {axis: int(one[0]) for axis, one in columns.items() if (one == one[0]).all()}


def _rows(graph: Graph, operation: Operation, axis: int) -> str:
    """Returns the name of the places along an axis."""
    index, along = operation.inputs[1].constant, operation.params['dimension_numbers']
    number, dtype = along.start_index_map.index(axis), operation.in_dtypes[1]
    last = operation.in_shapes[0][axis] - 1
    clipped = operation.params['mode'] == lax.GatherScatterMode.CLIP
    if index is not None:
        found = np.clip(index[..., number], 0, last) if clipped else index[..., number]
        return graph.tensor(constant(found))
    rows = graph.reshaped(operation.plain(graph, 1), operation.in_shapes[1][:-1])
    if clipped:
        low, high = (graph.tensor(constant(np.array(one, dtype))) for one in (0, last))
        rows = graph.node('Min', graph.node('Max', rows, low), high)
    return rows


def _along_axis(graph: Graph, operation: Operation, name: str, rows: str, axis: int) -> Value:
    """Looks up rows of an axis; ONNX puts the axes of the places where the axis was."""
    offset = operation.params['dimension_numbers'].offset_dims
    name = graph.node('Gather', name, rows, axis=axis)
    own = [one for one in range(len(operation.shape)) if one not in offset]
    order = (*offset[:axis], *own, *offset[axis:])  # where each axis of the tensor belongs
    shape = tuple(operation.shape[one] for one in order)
    return Value(name, shape, tuple(np.argsort(order).tolist()))


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
