"""Translations of operations on single elements."""

from collections.abc import Callable

import numpy as np
from onnx import helper

from tlflax.export.jaxpr import checks
from tlflax.export.jaxpr.sizes import Dim
from tlflax.export.onnx_graph.graph import Graph, Value, constant
from tlflax.export.onnx_graph.operation import Operation

ONE_NODE = {
    'abs': 'Abs', 'acos': 'Acos', 'acosh': 'Acosh', 'add': 'Add',
    'asin': 'Asin', 'asinh': 'Asinh', 'atan': 'Atan', 'atanh': 'Atanh', 'ceil': 'Ceil',
    'cos': 'Cos', 'cosh': 'Cosh', 'div': 'Div', 'eq': 'Equal', 'erf': 'Erf', 'exp': 'Exp',
    'floor': 'Floor', 'ge': 'GreaterOrEqual', 'gt': 'Greater', 'le': 'LessOrEqual', 'log': 'Log',
    'logistic': 'Sigmoid', 'lt': 'Less', 'max': 'Max', 'min': 'Min', 'mul': 'Mul', 'neg': 'Neg',
    'pow': 'Pow', 'sign': 'Sign', 'sin': 'Sin', 'sinh': 'Sinh', 'sqrt': 'Sqrt', 'sub': 'Sub',
    'tan': 'Tan', 'tanh': 'Tanh',
}  # fmt: skip
LOGICAL = {'and': 'And', 'or': 'Or', 'xor': 'Xor', 'not': 'Not'}

Translation = Callable[[Graph, Operation], list[Value]]
Rule = Callable[[Graph, Operation, list[str]], str]


def elementwise(rule: Rule) -> Translation:
    """Returns the translation of an operation by a rule for tensors whose axes agree."""

    def translate(graph: Graph, operation: Operation) -> list[Value]:
        order, inputs = aligned(graph, operation.inputs)
        names = [graph.tensor(one) for one in inputs]
        shape = _broadcast([one.shape for one in inputs])
        return [Value(rule(graph, operation, names), shape, order)]

    return translate


def aligned(graph: Graph, inputs: list[Value]) -> tuple[tuple[int, ...], list[Value]]:
    """Returns inputs that hold their axes in one order, and the order; scalars have none."""
    leading = [one for one in inputs if one.constant is None and one.order]
    leading += [one for one in inputs if one.order]
    order = leading[0].order if leading else ()
    return order, [graph.ordered(one, order) if one.order else one for one in inputs]


def _broadcast(shapes: list[tuple[Dim, ...]]) -> tuple[Dim, ...]:
    rank = max(map(len, shapes))
    full = [shape for shape in shapes if len(shape) == rank]
    return tuple(
        next((one for one in sizes if not (isinstance(one, int) and one == 1)), 1)
        for sizes in zip(*full, strict=True)
    )


def one_node(kind: str) -> Rule:
    """Returns the rule of an operation that ONNX has too."""
    return lambda graph, operation, inputs: graph.node(kind, *inputs)


def logical(kind: str) -> Rule:
    """Returns the rule of an operation on truth values; on integers it acts on bits."""

    def rule(graph: Graph, operation: Operation, inputs: list[str]) -> str:
        checks.logical(operation)
        return graph.node(kind, *inputs)

    return rule


def scalar(graph: Graph, operation: Operation, value: float) -> str:
    """Returns the name of a constant of the type of an operation's first input."""
    return graph.tensor(constant(np.array(value, operation.in_dtypes[0])))


def _unequal(graph: Graph, operation: Operation, inputs: list[str]) -> str:
    return graph.node('Not', graph.node('Equal', *inputs))


def _reciprocal_root(graph: Graph, operation: Operation, inputs: list[str]) -> str:
    return graph.node('Reciprocal', graph.node('Sqrt', *inputs))


def _square(graph: Graph, operation: Operation, inputs: list[str]) -> str:
    return graph.node('Mul', *inputs, *inputs)


def _integer_power(graph: Graph, operation: Operation, inputs: list[str]) -> str:
    if operation.params['y'] == 2:
        return _square(graph, operation, inputs)
    return graph.node('Pow', *inputs, scalar(graph, operation, operation.params['y']))


def _log1p(graph: Graph, operation: Operation, inputs: list[str]) -> str:
    return graph.node('Log', graph.node('Add', *inputs, scalar(graph, operation, 1)))


def _expm1(graph: Graph, operation: Operation, inputs: list[str]) -> str:
    return graph.node('Sub', graph.node('Exp', *inputs), scalar(graph, operation, 1))


def _exp2(graph: Graph, operation: Operation, inputs: list[str]) -> str:
    return graph.node('Pow', scalar(graph, operation, 2), *inputs)


def _erfc(graph: Graph, operation: Operation, inputs: list[str]) -> str:
    return graph.node('Sub', scalar(graph, operation, 1), graph.node('Erf', *inputs))


def _round(graph: Graph, operation: Operation, inputs: list[str]) -> str:
    checks.rounding(operation)
    return graph.node('Round', *inputs)


def _remainder(graph: Graph, operation: Operation, inputs: list[str]) -> str:
    return graph.node('Mod', *inputs, fmod=1)


def _is_finite(graph: Graph, operation: Operation, inputs: list[str]) -> str:
    faults = [graph.node(kind, *inputs) for kind in ('IsInf', 'IsNaN')]
    return graph.node('Not', graph.node('Or', *faults))


def _clamp(graph: Graph, operation: Operation, inputs: list[str]) -> str:
    low, x, high = inputs
    return graph.node('Min', graph.node('Max', x, low), high)


def _select(graph: Graph, operation: Operation, inputs: list[str]) -> str:
    checks.selection(operation)
    which, if_false, if_true = inputs
    return graph.node('Where', which, if_true, if_false)


def _convert(graph: Graph, operation: Operation, inputs: list[str]) -> str:
    return graph.node('Cast', *inputs, to=helper.np_dtype_to_tensor_dtype(operation.dtype))


RULES: dict[str, Rule] = {
    **{name: one_node(kind) for name, kind in ONE_NODE.items()},
    **{name: logical(kind) for name, kind in LOGICAL.items()},
    'clamp': _clamp,
    'convert_element_type': _convert,
    'erfc': _erfc,
    'exp2': _exp2,
    'expm1': _expm1,
    'integer_pow': _integer_power,
    'is_finite': _is_finite,
    'log1p': _log1p,
    'ne': _unequal,
    'rem': _remainder,
    'round': _round,
    'rsqrt': _reciprocal_root,
    'select_n': _select,
    'square': _square,
}
TABLE: dict[str, Translation] = {name: elementwise(rule) for name, rule in RULES.items()}
"""By the name of JAX's primitive."""
