"""A function of one member of a group, compiled for all of them."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tlflax.utils.threads import Operands, ThreadedProgram

Result = TypeVar('Result')


def members(
    function: Callable[..., Result], in_axes: Operands, mesh: Mesh, *, donate: bool = False
) -> Callable[..., Result]:
    """Returns `jax.jit(jax.vmap(function, in_axes))`; on one CPU device, a call for each member.

    On a CPU, batched products of many small matrices are slow, and add up in another order. One
    call for each member, as many at a time as there are cores, gives each member bit for bit the
    result that it has alone.

    Args:
        function: Takes and returns trees of arrays.
        in_axes: For each operand, or each leaf of it: 0 where it has a leading axis of members,
            None where all members share it.
        mesh: Where the operands are.
        donate: Whether the first operand's memory may be reused; a CPU device never does.
    """
    if not one_by_one(mesh):
        return jax.jit(jax.vmap(function, in_axes=in_axes), donate_argnums=0 if donate else ())
    program = ThreadedProgram(function, name='members')

    def run(*operands: object) -> Result:
        results = program.map(_split(operands, in_axes))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

    return run


def one_by_one(mesh: Mesh) -> bool:
    """Returns whether `members` makes one call per member, so that any number is one program."""
    return mesh.size == 1 and mesh.devices.item().platform == 'cpu'


def _split(operands: Operands, in_axes: Operands) -> list[Operands]:
    """Returns each member's operands; see `members`."""
    has_axis = jax.tree.map(lambda axis: axis == 0, in_axes, is_leaf=lambda axis: axis is None)
    leaves, tree = jax.tree.flatten(operands)
    own = jax.tree.leaves(jax.tree.broadcast(has_axis, operands))
    # On the host a row is a view; on the device it would take a program of its own.
    leaves = [np.asarray(leaf) if mine else leaf for leaf, mine in zip(leaves, own, strict=True)]
    count = len(leaves[own.index(True)])
    return [
        jax.tree.unflatten(
            tree, [leaf[i] if mine else leaf for leaf, mine in zip(leaves, own, strict=True)]
        )
        for i in range(count)
    ]
