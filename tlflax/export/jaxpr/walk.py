"""How a jaxpr is walked through, whatever it is translated to.

What depends on no image is computed now; calls are inlined; every other primitive has its
translation in the table of the target, or is refused by name.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from tlflax.export.jaxpr.operation import Operation, V
from tlflax.export.jaxpr.refused import Refused
from tlflax.export.jaxpr.sizes import Dim, is_symbolic
from tlflax.utils.errors import UserError

OperationT = TypeVar('OperationT', bound=Operation)
"""What the translations of a target take."""

_UNCHANGED = ('stop_gradient', 'copy', 'copy_p', 'optimization_barrier', 'sharding_constraint')
# Primitives that call a jaxpr, and where they keep it.
_CALLS = """
    jit pjit closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr checkpoint
    remat2
""".split()
_CALLED = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')


@dataclasses.dataclass(frozen=True)
class Target(Generic[V, OperationT]):
    """What a jaxpr is translated to.

    Attributes:
        name: For a message.
        where: Of a refusal; see `UserError`.
        fix: Of a refusal.
        operation: Makes what translations take, of the attributes of `Operation` by name.
        table: The translations, by the name of JAX's primitive.
        elementwise: Those of operations on single elements.
        constant: (array, the inputs that it was computed of) to a value.
        array: The array of a constant, None for other values.
        size: (size that depends on those of the input, type) to a value.
        keeps_float16: Whether constants of 16 bits stay so, and are converted when it runs.
    """

    name: str
    where: str
    fix: str
    operation: Callable[..., OperationT]
    table: Mapping[str, Callable[[OperationT], list[V]]]
    elementwise: Collection[str]
    constant: Callable[[np.ndarray, Sequence[V]], V]
    array: Callable[[V], np.ndarray | None]
    size: Callable[[Dim, np.dtype], V]
    keeps_float16: bool = False


def translated(closed: core.ClosedJaxpr, inputs: list[V], target: Target[V, OperationT]) -> list[V]:
    """Translates a jaxpr.

    Args:
        closed: The jaxpr.
        inputs: Of the jaxpr.
        target: What it is translated to.

    Returns:
        Its outputs.

    Raises:
        UserError: A primitive has no translation; names it.
    """
    try:
        return _run(target, closed, inputs)
    except Refused as error:
        raise UserError(str(error), where=target.where, fix=target.fix) from error


def _run(target: Target[V, OperationT], closed: core.ClosedJaxpr, inputs: list[V]) -> list[V]:
    """Translates the equations of a jaxpr, in order."""
    jaxpr = closed.jaxpr
    known: dict[Any, V] = dict(zip(jaxpr.invars, inputs, strict=True))
    for variable, array in zip(jaxpr.constvars, closed.consts, strict=True):
        known[variable] = target.constant(np.asarray(array), ())

    def read(variable: Any) -> V:
        if isinstance(variable, core.Literal):
            aval: Any = variable.aval
            return target.constant(np.asarray(variable.val, aval.dtype), ())
        return known[variable]

    for equation in _used(jaxpr):
        outputs = _equation(target, equation, [read(one) for one in equation.invars])
        known |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _used(jaxpr: Any) -> list[Any]:
    """Returns the equations that outputs depend on; the keys of dropout that is off are not."""
    needed, found = {one for one in jaxpr.outvars if isinstance(one, core.Var)}, []
    for equation in reversed(jaxpr.eqns):
        if not needed.isdisjoint(equation.outvars):
            needed |= {one for one in equation.invars if isinstance(one, core.Var)}
            found.append(equation)
    return found[::-1]


def _equation(target: Target[V, OperationT], equation: Any, inputs: list[V]) -> list[V]:
    """Translates one equation."""
    name, params = equation.primitive.name, equation.params
    if name in _UNCHANGED:
        return inputs
    if name == 'platform_index':
        return [target.constant(_default_branch(params['platforms']), ())]
    if name == 'cond' and (index := target.array(inputs[0])) is not None:
        branch = int(np.clip(index, 0, len(params['branches']) - 1))
        return _run(target, params['branches'][branch], inputs[1:])
    if name in _CALLS:
        return _run(target, _called(params), inputs)
    if any(jax.dtypes.issubdtype(one.aval.dtype, jax.dtypes.extended)
           for one in (*equation.invars, *equation.outvars)):  # fmt: skip
        raise _unknown(target, name)  # random keys
    operation = _operation(target, equation, inputs)
    if (folded := _computed(target, equation, operation)) is not None:
        return folded
    if name == 'dim_as_value':
        return [target.size(params['dim'], operation.dtype)]
    if name not in target.table:
        raise _unknown(target, name)
    return target.table[name](operation)


def _default_branch(platforms: tuple[Any, ...]) -> np.ndarray:
    """Returns the number of the branch that is not made for one kind of device, i32[]."""
    return np.array(next(n for n, names in enumerate(platforms) if names is None), np.int32)


def _called(params: dict[str, Any]) -> core.ClosedJaxpr:
    """Returns what one of `_CALLS` calls."""
    inner = next(params[key] for key in _CALLED if key in params)
    return inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ())


def _unknown(target: Target, name: str) -> Refused:
    return Refused(
        f'the model has the operation {name!r}, which is not translated to {target.name}'
    )


def _operation(target: Target[V, OperationT], equation: Any, inputs: list[V]) -> OperationT:
    before = [variable.aval for variable in equation.invars]
    after = [variable.aval for variable in equation.outvars]
    return target.operation(
        name=equation.primitive.name,
        params=equation.params,
        inputs=inputs,
        constants=list(map(target.array, inputs)),
        in_shapes=[one.shape for one in before],
        in_dtypes=[np.dtype(one.dtype) for one in before],
        shapes=[one.shape for one in after],
        dtypes=[np.dtype(one.dtype) for one in after],
    )


def _computed(
    target: Target[V, OperationT], equation: Any, operation: OperationT
) -> list[V] | None:
    """Returns the outputs of an operation that depends on no image, or None.

    Where the images have a part in a shape alone, operations on elements are computed before the
    broadcast that gives them that shape.
    """
    arrays = [one for one in operation.constants if one is not None]
    if not arrays or len(arrays) < len(operation.inputs) or operation.name == 'broadcast_in_dim':
        return None
    from_16_bits = operation.name == 'convert_element_type' and operation.in_dtypes == [np.float16]
    if from_16_bits and target.keeps_float16:
        return None
    shapes = [*operation.in_shapes, *operation.shapes]
    if not any(is_symbolic(size) for shape in shapes for size in shape):
        pairs = zip(arrays, operation.in_shapes, strict=True)
        arrays = [np.broadcast_to(array, shape) for array, shape in pairs]
    elif operation.name in target.elementwise:
        arrays = list(np.broadcast_arrays(*arrays))
    else:
        return None
    found = equation.primitive.bind(*map(jnp.asarray, arrays), **equation.params)
    several = found if equation.primitive.multiple_results else [found]
    return [target.constant(np.asarray(one), operation.inputs) for one in several]
