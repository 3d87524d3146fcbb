"""Translations of operations that move elements: shapes, slices, look-ups."""

import numpy as np
import tensorflow as tf

from tlflax.export.jaxpr import arrangement, checks
from tlflax.export.jaxpr.arrangement import Ranges, Rows
from tlflax.export.tf_graph.elementwise import Translation
from tlflax.export.tf_graph.operation import Operation, Value, reshaped


def _broadcast_in_dim(operation: Operation) -> list[Value]:
    x, kept = operation.inputs[0], operation.params['broadcast_dimensions']
    added = [axis for axis in range(len(operation.shape)) if axis not in kept]
    if isinstance(x, np.ndarray):
        return [np.expand_dims(x, tuple(added))]
    for axis in added:
        x = tf.expand_dims(x, axis)
    return [x]


def _reshape(operation: Operation) -> list[Value]:
    checks.reshaping(operation)
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


def _sliced(x: Value, ranges: Ranges) -> Value:
    """Returns part of a value in full size."""
    if not ranges:
        return x
    return x[tuple(slice(*ranges.get(axis, (None,))) for axis in range(len(x.shape)))]


def _slice(operation: Operation) -> list[Value]:
    return [_sliced(operation.dense(), arrangement.sliced(operation))]


def _dynamic_slice(operation: Operation) -> list[Value]:
    return [_sliced(operation.dense(), arrangement.dynamically_sliced(operation))]


def _rev(operation: Operation) -> list[Value]:
    x = operation.inputs[0]
    for axis in operation.params['dimensions']:  # TensorFlow Lite reverses one
        x = tf.reverse(x, [axis])
    return [x]


def _pad(operation: Operation) -> list[Value]:
    x, pairs = operation.dense(), arrangement.padding(operation)
    amounts = [[max(low, 0), max(high, 0)] for low, high in pairs]
    if any(map(any, amounts)):
        x = tf.pad(x, amounts, constant_values=operation.inputs[1])
    cut: Ranges = {
        axis: (max(-low, 0), high if high < 0 else None, 1)
        for axis, (low, high) in enumerate(pairs)
        if low < 0 or high < 0
    }
    return [_sliced(x, cut)]


def _iota(operation: Operation) -> list[Value]:
    shape, numbers = arrangement.counted(operation)
    if numbers is not None:
        return [numbers]
    count = operation.images.size(operation.shape[operation.params['dimension']])
    return [reshaped(operation.images, tf.cast(tf.range(count), operation.dtype), shape)]


def _gather(operation: Operation) -> list[Value]:
    ranges, _, dropped, rows = arrangement.looked_up(operation)
    found = _sliced(operation.dense(), ranges)
    if dropped:
        found = tf.squeeze(found, dropped)
    return [found if rows is None else _read(operation, found, rows)]


def _read(operation: Operation, block: Value, rows: Rows) -> Value:
    """Looks up rows of a block; TensorFlow puts the axes of the places where the axis was."""
    places = operation.dense(1)[..., rows.column]
    if rows.clipped:
        places = tf.clip_by_value(places, 0, rows.last)
    found, order = tf.gather(block, places, axis=rows.axis), rows.order
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
