"""Translations of operations that sum, or otherwise reduce, over elements."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tlflax.export.jaxpr import checks
from tlflax.export.jaxpr.reductions import Factor, inverse, pick, product, still_axes
from tlflax.export.jaxpr.refused import Refused
from tlflax.export.tf_graph.elementwise import Translation
from tlflax.export.tf_graph.operation import Operation, Value, reshaped


def _conv(operation: Operation) -> list[Value]:
    params, numbers = operation.params, operation.params['dimension_numbers']
    checks.convolution(operation)
    spatial = len(operation.shape) - 2
    if spatial not in (1, 2):
        raise Refused(f"'conv_general_dilated' along {spatial} axes")
    x = _moved(operation.dense(), (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
    kernel = _moved(
        operation.dense(1), (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0])
    )
    sizes = [operation.in_shapes[0][axis] for axis in numbers.lhs_spec[2:]]
    strides, dilation = list(params['window_strides']), list(params['rhs_dilation'])
    window = [(one - 1) * by + 1 for one, by in zip(kernel.shape, dilation, strict=False)]
    pads = list(params['padding'])
    if spatial == 1:  # rows of height 1
        x, kernel = x[:, None], kernel[None]
        sizes, strides, dilation = [1, *sizes], [1, *strides], [1, *dilation]
        window, pads = [1, *window], [(0, 0), *pads]
    x, padding = _padded(x, pads, 0.0, _same(sizes, window, strides))
    found = _convolved(x, kernel, strides, dilation, padding, params['feature_group_count'])
    found = found[:, 0] if spatial == 1 else found
    place = numbers.out_spec
    return [_moved(found, inverse((place[0], *place[2:], place[1])))]


def _convolved(
    x: Value, kernel: Value, strides: list[int], dilation: list[int], padding: str, groups: int
) -> tf.Tensor:
    """Convolves [b, h, w, c] with [h, w, c / groups, n]."""
    if groups == 1:
        return tf.nn.conv2d(x, kernel, strides, padding, dilations=dilation)
    height, width, part, out = kernel.shape
    if part == 1 and strides[0] == strides[1]:
        kernel = tf.reshape(kernel, (height, width, groups, out // groups))
        return tf.nn.depthwise_conv2d(x, kernel, [1, *strides, 1], padding, dilations=dilation)
    pairs = zip(tf.split(x, groups, -1), tf.split(kernel, groups, -1), strict=True)
    found = [tf.nn.conv2d(a, b, strides, padding, dilations=dilation) for a, b in pairs]
    return tf.concat(found, -1)


def _moved(x: Value, axes: Sequence[int]) -> Value:
    """Returns a value whose axis i is axis `axes[i]` of what it was."""
    if list(axes) == list(range(len(axes))):
        return x
    return x.transpose(axes) if isinstance(x, np.ndarray) else tf.transpose(x, axes)


def _same(sizes: Sequence[int], window: Sequence[int], strides: Sequence[int]) -> list[Any]:
    """Returns the padding that TensorFlow calls SAME, [(before, after)] by axis."""
    amounts = [
        max((math.ceil(size / stride) - 1) * stride + one - size, 0)
        for size, one, stride in zip(sizes, window, strides, strict=True)
    ]
    return [(amount // 2, amount - amount // 2) for amount in amounts]


def _padded(x: Value, pads: Sequence[Any], filling: float, same: list[Any]) -> tuple[Value, str]:
    """Returns [b, h, w, c] and the padding that is left to an operation."""
    pads = [(int(low), int(high)) for low, high in pads]
    if not any(map(any, pads)):
        return x, 'VALID'
    if pads == same:
        return x, 'SAME'
    return tf.pad(x, [(0, 0), *pads, (0, 0)], constant_values=filling), 'VALID'


def _dot(operation: Operation) -> list[Value]:
    left, right, shape = product(operation)
    found = tf.matmul(_matrix(operation, 0, left), _matrix(operation, 1, right))
    if all(one is None for one in operation.constants):
        # The converter of TensorFlow Lite joins a ReLU to a product of two tensors, and then loses
        # it, unless there is an operation between them that it does not leave out.
        found = tf.minimum(found, found.dtype.max if found.dtype.is_integer else np.inf)
    if operation.shape != shape:
        found = reshaped(operation.images, found, operation.shape)
    return [found]


def _matrix(operation: Operation, number: int, factor: Factor) -> Value:
    """Returns an input as a factor of a product, in the type of the output."""
    x = _moved(operation.dense(number), factor.axes)
    if operation.in_dtypes[number] != operation.dtype:
        x = tf.cast(x, operation.dtype)
    if pick(operation.in_shapes[number], factor.axes) == factor.shape:
        return x
    return reshaped(operation.images, x, factor.shape)


def _reduce(function: Callable[..., tf.Tensor], operation: Operation) -> list[Value]:
    return [function(operation.dense(), list(operation.params['axes']))]


def _arg(function: Callable[..., tf.Tensor], operation: Operation) -> list[Value]:
    (axis,) = operation.params['axes']
    return [tf.cast(function(operation.dense(), axis, tf.int32), operation.dtype)]


def _cumsum(operation: Operation) -> list[Value]:
    params = operation.params
    return [tf.cumsum(operation.dense(), params['axis'], reverse=params['reverse'])]


def _top_k(operation: Operation) -> list[Value]:
    rank, axis = len(operation.shape), operation.params.get('axis', -1)
    if axis % rank != rank - 1:
        raise Refused("'top_k' along another axis than the last")
    values, rows = tf.math.top_k(operation.dense(), operation.params['k'])
    return [values, tf.cast(rows, operation.dtypes[1])]


def _window(kind: str, operation: Operation) -> list[Value]:
    """Translates pooling: TensorFlow Lite slides over the middle two of four axes."""
    params = operation.params
    window, strides, pads = (
        params[key] for key in ('window_dimensions', 'window_strides', 'padding')
    )
    if any(one != 1 for one in (*params['base_dilation'], *params['window_dilation'])):
        raise Refused(f'{operation.name!r} with a dilation')
    still = still_axes(operation)
    if len(window) != 4 or len(still) < 2:
        raise Refused(f'{operation.name!r} over all axes, or in another shape than four axes')
    sliding = [axis for axis in range(4) if axis not in (still[0], still[-1])]
    order = (still[0], *sliding, still[-1])
    x = _moved(operation.dense(), order)
    sizes, window, strides = (
        [int(one[axis]) for axis in sliding] for one in (operation.in_shapes[0], window, strides)
    )
    # SAME averages leave out what is beyond the edge, so a sum is padded.
    same = [] if kind == 'sum' else _same(sizes, window, strides)
    x = -x if kind == 'min' else x
    filling = 0.0 if kind == 'sum' else float(np.finfo(np.float32).min)
    x, padding = _padded(x, [pads[axis] for axis in sliding], filling, same)
    if kind == 'sum':
        found = tf.nn.avg_pool2d(x, window, strides, padding) * np.float32(math.prod(window))
    else:
        found = tf.nn.max_pool2d(x, window, strides, padding)
    return [_moved(-found if kind == 'min' else found, inverse(order))]


TABLE: dict[str, Translation] = {
    'argmax': functools.partial(_arg, tf.argmax),
    'argmin': functools.partial(_arg, tf.argmin),
    'conv_general_dilated': _conv,
    'cumsum': _cumsum,
    'dot_general': _dot,
    'reduce_and': functools.partial(_reduce, tf.reduce_all),
    'reduce_max': functools.partial(_reduce, tf.reduce_max),
    'reduce_min': functools.partial(_reduce, tf.reduce_min),
    'reduce_or': functools.partial(_reduce, tf.reduce_any),
    'reduce_prod': functools.partial(_reduce, tf.reduce_prod),
    'reduce_sum': functools.partial(_reduce, tf.reduce_sum),
    'reduce_window_max': functools.partial(_window, 'max'),
    'reduce_window_min': functools.partial(_window, 'min'),
    'reduce_window_sum': functools.partial(_window, 'sum'),
    'top_k': _top_k,
}
"""By the name of JAX's primitive."""
