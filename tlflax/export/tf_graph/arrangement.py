"""Translations of operations that move elements: shapes, slices, look-ups."""

import numpy as np
import tensorflow as tf
from jax import lax

from tlflax.export.onnx_graph.jaxprs import Shape, is_symbolic
from tlflax.export.tf_graph.elementwise import Translation
from tlflax.export.tf_graph.operation import Operation, Refused, Value, reshaped


def _broadcast_in_dim(operation: Operation) -> list[Value]:
    x, kept = operation.inputs[0], operation.params['broadcast_dimensions']
    added = [axis for axis in range(len(operation.shape)) if axis not in kept]
    if isinstance(x, np.ndarray):
        return [np.expand_dims(x, tuple(added))]
    for axis in added:
        x = tf.expand_dims(x, axis)
    return [x]


def _reshape(operation: Operation) -> list[Value]:
    if operation.params.get('dimensions') is not None:
        raise Refused("'reshape' in another order of the axes")
    return [reshaped(operation.images, operation.dense(), operation.shape)]


def _squeeze(operation: Operation) -> list[Value]:
    return [tf.squeeze(operation.inputs[0], operation.params['dimensions'])]


def _transpose(operation: Operation) -> list[Value]:
    return [tf.transpose(operation.inputs[0], operation.params['permutation'])]


def _all_dense(operation: Operation) -> list[Value]:
    return [operation.dense(number) for number in range(len(operation.inputs))]


def _concatenate(operation: Operation) -> list[Value]:
    return [tf.concat(_all_dense(operation), operation.params['dimension'])]


def _stack(operation: Operation) -> list[Value]:
    return [tf.stack(_all_dense(operation), operation.params['axis'])]


def _tile(operation: Operation) -> list[Value]:
    return [tf.tile(operation.dense(), operation.params['reps'])]


def _split(operation: Operation) -> list[Value]:
    return list(tf.split(operation.dense(), operation.params['sizes'], operation.params['axis']))


def _sliced(x: Value, ranges: dict[int, tuple[int, int | None, int]]) -> Value:
    """Returns part of a value: (first, after the last, step) by axis; None is the end."""
    if not ranges:
        return x
    return x[tuple(slice(*ranges.get(axis, (None,))) for axis in range(len(x.shape)))]


def _slice(operation: Operation) -> list[Value]:
    params, before = operation.params, operation.in_shapes[0]
    strides = params['strides'] or (1,) * len(before)
    ranges = {}
    for axis, (start, stop, stride) in enumerate(
        zip(params['start_indices'], params['limit_indices'], strides, strict=True)
    ):
        if is_symbolic(start) or (is_symbolic(stop) and stop != before[axis]):
            raise Refused("'slice' at a place that depends on the number of images")
        if start != 0 or stop != before[axis] or stride != 1:
            end = None if is_symbolic(stop) else int(stop)
            ranges[axis] = (int(start), end, int(stride))
    return [_sliced(operation.dense(), ranges)]


def _dynamic_slice(operation: Operation) -> list[Value]:
    starts = operation.inputs[1:]
    if not all(isinstance(start, np.ndarray) for start in starts):
        raise Refused("'dynamic_slice' at a place that depends on the image")
    sizes = operation.params['slice_sizes']
    return [_block(operation, [int(start) for start in starts], sizes)]


def _block(operation: Operation, starts: list[int], sizes: Shape) -> Value:
    """Returns the block of a size that begins at a place, or as near as it fits."""
    before, ranges = operation.in_shapes[0], {}
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        if size != before[axis]:
            first = min(max(start, 0), before[axis] - size)
            ranges[axis] = (first, first + int(size), 1)
    return _sliced(operation.dense(), ranges)


def _rev(operation: Operation) -> list[Value]:
    x = operation.inputs[0]
    for axis in operation.params['dimensions']:  # TensorFlow Lite reverses one
        x = tf.reverse(x, [axis])
    return [x]


def _pad(operation: Operation) -> list[Value]:
    x, config = operation.dense(), operation.params['padding_config']
    if any(interior for *_, interior in config):
        raise Refused("'pad' between elements")
    filling = operation.inputs[1]
    amounts = [[max(int(low), 0), max(int(high), 0)] for low, high, _ in config]
    if any(map(any, amounts)):
        x = tf.pad(x, amounts, constant_values=filling)
    cut = {
        axis: (max(-int(low), 0), int(high) if high < 0 else None, 1)
        for axis, (low, high, _) in enumerate(config)
        if low < 0 or high < 0
    }
    return [_sliced(x, cut)]


def _iota(operation: Operation) -> list[Value]:
    axis, shape = operation.params['dimension'], operation.shape
    counted = [shape[axis] if one == axis else 1 for one in range(len(shape))]
    if is_symbolic(shape[axis]):
        numbers = tf.range(operation.images.size(shape[axis]))
        return [reshaped(operation.images, tf.cast(numbers, operation.dtype), tuple(counted))]
    return [np.arange(shape[axis], dtype=operation.dtype).reshape(counted)]


def _gather(operation: Operation) -> list[Value]:
    """Translates a look-up of blocks whose places are known, but along one axis at most."""
    numbers, before = operation.params['dimension_numbers'], operation.in_shapes[0]
    along, gone = numbers.start_index_map, numbers.collapsed_slice_dims
    places = operation.in_shapes[1][:-1]
    known = _known_starts(operation.inputs[1], along)
    if places and along and len(known) == len(along):  # the same block again and again
        known.pop(next((axis for axis in along if axis in gone), along[0]))
    looked_up = [axis for axis in along if axis not in known]
    batching = numbers.operand_batching_dims or numbers.start_indices_batching_dims
    if batching or len(looked_up) > 1 or not set(looked_up) <= set(gone):
        raise Refused("'gather' other than along one axis")
    sizes = list(operation.params['slice_sizes'])
    for axis in looked_up:
        sizes[axis] = before[axis]
    found = _block(operation, [known.get(axis, 0) for axis in range(len(before))], tuple(sizes))
    dropped = [axis for axis in gone if axis not in looked_up]
    if dropped:
        found = tf.squeeze(found, dropped)
    if not looked_up:
        return [found]
    axis = looked_up[0]
    return [_along_axis(operation, found, axis, axis - sum(one < axis for one in dropped))]


def _known_starts(index: Value, along: tuple[int, ...]) -> dict[int, int]:
    """Returns the axes along which all places are known and the same, and where they are."""
    if not isinstance(index, np.ndarray) or index.size == 0:
        return {}
    columns = dict(zip(along, index.reshape(-1, len(along)).T, strict=True))
    return {axis: int(one[0]) for axis, one in columns.items() if (one == one[0]).all()}


def _along_axis(operation: Operation, x: Value, axis: int, place: int) -> Value:
    """Looks up rows of an axis; TensorFlow puts the axes of the places where the axis was.

    Args:
        operation: The look-up.
        x: The block to look up in.
        axis: Of the input.
        place: The same axis of the block.
    """
    numbers, last = operation.params['dimension_numbers'], operation.in_shapes[0][axis] - 1
    rows = operation.dense(1)[..., numbers.start_index_map.index(axis)]
    if operation.params['mode'] == lax.GatherScatterMode.CLIP:
        rows = tf.clip_by_value(rows, 0, last)
    found = tf.gather(x, rows, axis=place)
    offset = numbers.offset_dims
    own = [one for one in range(len(operation.shape)) if one not in offset]
    order = (*offset[:place], *own, *offset[place:])  # where each axis of the tensor belongs
    return found if order == tuple(range(len(order))) else tf.transpose(found, np.argsort(order))


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
