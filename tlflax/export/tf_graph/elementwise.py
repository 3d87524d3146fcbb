"""Translations of operations on single elements, to what TensorFlow Lite has built in."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tlflax.export.jaxpr import checks
from tlflax.export.tf_graph.operation import Operation, Value

Translation = Callable[[Operation], list[Value]]

ONE_OPERATION: dict[str, Callable[..., tf.Tensor]] = {
    'abs': tf.abs, 'add': tf.add, 'ceil': tf.math.ceil, 'clamp': lambda low, x, high:
    tf.minimum(tf.maximum(x, low), high), 'cos': tf.cos, 'exp': tf.exp,
    'floor': tf.floor, 'log': tf.math.log, 'logistic': tf.sigmoid, 'min': tf.minimum,
    'mul': tf.multiply, 'neg': tf.negative, 'pow': tf.pow, 'rsqrt': tf.math.rsqrt, 'sign': tf.sign,
    'sin': tf.sin, 'sqrt': tf.sqrt, 'square': tf.square, 'sub': tf.subtract, 'tanh': tf.tanh,
    'tan': lambda x: tf.sin(x) / tf.cos(x),
    'exp2': lambda x: tf.exp(x * np.float32(np.log(2))),
    'expm1': lambda x: tf.exp(x) - 1,
    'log1p': lambda x: tf.math.log(x + 1),
    'cosh': lambda x: (tf.exp(x) + tf.exp(-x)) / 2,
    'sinh': lambda x: (tf.exp(x) - tf.exp(-x)) / 2,
    'is_finite': lambda x: tf.abs(x) <= np.finfo(np.float32).max,
}  # fmt: skip
COMPARISONS = {
    'eq': tf.equal, 'ne': tf.not_equal, 'lt': tf.less, 'le': tf.less_equal, 'gt': tf.greater,
    'ge': tf.greater_equal,
}  # fmt: skip
LOGICAL = {
    'and': tf.logical_and,
    'or': tf.logical_or,
    'xor': tf.not_equal,
    'not': tf.logical_not,
}
_NARROW = (np.uint8, np.int8, np.uint16, np.int16)  # TensorFlow Lite can do little with these


def _short(operation: Operation) -> list[Value]:
    """Returns the inputs, constants without leading axes of size 1, so that biases are seen."""
    most = max(len(shape) for shape in operation.in_shapes)
    tensors = any(
        not isinstance(one, np.ndarray) and len(one.shape) == most for one in operation.inputs
    )
    return [_without_ones(one) if tensors else one for one in operation.inputs]


def _without_ones(x: Value) -> Value:
    if not isinstance(x, np.ndarray):
        return x
    while x.ndim and x.shape[0] == 1:
        x = x[0]
    return x


def _one_operation(function: Callable[..., tf.Tensor]) -> Translation:
    return lambda operation: [function(*_short(operation))]


def _comparison(function: Callable[..., tf.Tensor]) -> Translation:
    def translate(operation: Operation) -> list[Value]:
        inputs = _short(operation)
        if operation.in_dtypes[0] in _NARROW:
            inputs = [tf.cast(one, tf.int32) for one in inputs]
        return [function(*inputs)]

    return translate


def _division(function: Callable[..., tf.Tensor]) -> Translation:
    def translate(operation: Operation) -> list[Value]:
        inputs = _short(operation)
        if operation.dtype in _NARROW:
            inputs = [tf.cast(one, tf.int32) for one in inputs]
        found = function(*inputs)
        return [tf.cast(found, operation.dtype) if operation.dtype in _NARROW else found]

    return translate


def _quotient(x: Value, y: Value) -> tf.Tensor:
    """Divides; integers are cut off towards zero, as in JAX."""
    return tf.raw_ops.Div(x=x, y=y)


def _remainder(x: Value, y: Value) -> tf.Tensor:
    """Computes what a division leaves, with the sign of x, as in JAX.

    A quotient of floats is rounded, and may be too large by one where little is left.
    """
    if tf.as_dtype(x.dtype).is_floating:
        return tf.sign(x) * tf.math.floormod(tf.abs(x), tf.abs(y))
    return x - y * _quotient(x, y)


def _logical(function: Callable[..., tf.Tensor]) -> Translation:
    def translate(operation: Operation) -> list[Value]:
        checks.logical(operation)
        return [function(*_short(operation))]

    return translate


def _max(operation: Operation) -> list[Value]:
    for one, other in (operation.inputs, operation.inputs[::-1]):
        if isinstance(other, np.ndarray) and operation.dtype == np.float32 and not other.any():
            return [tf.nn.relu(one)]
    return [tf.maximum(*_short(operation))]


def _integer_power(operation: Operation) -> list[Value]:
    (x,), power = operation.inputs, operation.params['y']
    found = tf.square(x) if abs(power) == 2 else tf.pow(x, np.array(abs(power), operation.dtype))
    return [found if power > 0 else 1 / found]


def erf(x: tf.Tensor) -> tf.Tensor:
    """Computes the error function within 2e-7 (Abramowitz and Stegun, 7.1.26)."""
    size = tf.abs(x)
    t = 1 / (1 + 0.3275911 * size)
    series = tf.zeros_like(t)
    for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + factor) * t
    return tf.sign(x) * (1 - series * tf.exp(-size * size))


def _round(operation: Operation) -> list[Value]:
    checks.rounding(operation)
    return [tf.round(operation.inputs[0])]


def _select(operation: Operation) -> list[Value]:
    checks.selection(operation)
    which, if_false, if_true = operation.inputs
    return [tf.where(which, if_true, if_false)]


def _convert(operation: Operation) -> list[Value]:
    return [tf.cast(operation.inputs[0], operation.dtype)]


TABLE: dict[str, Translation] = {
    **{name: _one_operation(function) for name, function in ONE_OPERATION.items()},
    **{name: _comparison(function) for name, function in COMPARISONS.items()},
    **{name: _logical(function) for name, function in LOGICAL.items()},
    'convert_element_type': _convert,
    'div': _division(_quotient),
    'erf': _one_operation(erf),
    'erfc': _one_operation(lambda x: 1 - erf(x)),
    'integer_pow': _integer_power,
    'max': _max,
    'rem': _division(_remainder),
    'round': _round,
    'select_n': _select,
}
"""By the name of JAX's primitive."""
