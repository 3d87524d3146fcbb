"""How the equations of a jaxpr are walked through, whatever they are translated to."""

from typing import Any

from jax.extend import core

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
