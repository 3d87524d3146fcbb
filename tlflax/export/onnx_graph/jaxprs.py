"""How the equations of a jaxpr are walked through, whatever they are translated to."""

import itertools
import math
from typing import Any

import numpy as np
from jax.extend import core

Dim = Any
"""An integer, or an expression of the sizes of the input, as `jax.export.symbolic_shape` has it."""
Shape = tuple[Dim, ...]

UNCHANGED = ('stop_gradient', 'copy', 'copy_p', 'optimization_barrier', 'sharding_constraint')
"""Primitives whose outputs are their inputs."""

CALLS = """
    jit pjit closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr checkpoint
    remat2
""".split()
"""Primitives that call a jaxpr; see `called`."""

_CALLED = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')  # where these keep what they call


def called(params: dict[str, Any]) -> core.ClosedJaxpr:
    """Returns what one of `CALLS` calls.

    Args:
        params: The parameters of its equation.
    """
    inner = next(params[key] for key in _CALLED if key in params)
    return inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ())


def used(jaxpr: Any) -> list[Any]:
    """Returns the equations that outputs depend on; the keys of dropout that is off are not."""
    needed, found = {one for one in jaxpr.outvars if isinstance(one, core.Var)}, []
    for equation in reversed(jaxpr.eqns):
        if not needed.isdisjoint(equation.outvars):
            needed |= {one for one in equation.invars if isinstance(one, core.Var)}
            found.append(equation)
    return found[::-1]


def default_branch(platforms: tuple[Any, ...]) -> int:
    """Returns the number of the branch that is for every platform."""
    return next(n for n, names in enumerate(platforms) if names is None)


def is_symbolic(size: Dim) -> bool:
    """Whether a size depends on those of the input."""
    return not isinstance(size, int | np.integer)


def factors(size: Dim, shape: Shape) -> tuple[tuple[int, ...], int] | None:
    """Returns a symbolic size as the product of sizes of the input and a number.

    Args:
        size: Such as 3 * images * height.
        shape: Of the input, such as (images, height, width, 3).

    Returns:
        The axes of the input, and the number; None where it is no such product.
    """
    symbols = [axis for axis, one in enumerate(shape) if is_symbolic(one)]
    for count in range(1, len(symbols) + 1):
        for axes in itertools.combinations(symbols, count):
            product = math.prod(shape[axis] for axis in axes)
            if size % product == 0 and not is_symbolic(size // product):
                return axes, int(size // product)
    return None
