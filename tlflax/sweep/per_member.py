"""A function of one member of a group, compiled for all of them."""

from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tlflax.utils import cpu

Operands = tuple[Any, ...]


def members(
    function: Callable[..., Any], in_axes: Operands, mesh: Mesh, *, donate: bool = False
) -> Callable[..., Any]:
    """Returns `jax.jit(jax.vmap(function, in_axes))`; on one CPU device, a call for each member.

    There products of many small matrices are slow, and add up in another order. One by one, as many
    at a time as there are cores, each member's result is to the last bit what it is alone.

    Args:
        function: Of arrays; returns arrays.
        in_axes: For each operand, or each leaf of it: 0 where it has a leading axis of members,
            None where all members share it.
        mesh: Where the operands are.
        donate: The first operand's memory may be reused.
    """
    if one_by_one(mesh):
        return _calls(jax.jit(function), in_axes)
    return jax.jit(jax.vmap(function, in_axes=in_axes), donate_argnums=0 if donate else ())


def one_by_one(mesh: Mesh) -> bool:
    """Whether `members` calls the function for each member, so that any number is one program."""
    return mesh.size == 1 and mesh.devices.item().platform == 'cpu'


def _calls(one: Any, in_axes: Operands) -> Callable[..., Any]:
    pool = ThreadPoolExecutor(cpu.cores(), thread_name_prefix='members')
    compiled: dict[Hashable, Callable[..., Any]] = {}

    def run(*operands: Any) -> Any:
        each = _split(operands, in_axes)
        shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(each[0]))
        if shapes not in compiled:  # before the threads start, which would each do it
            compiled[shapes] = one.lower(*each[0]).compile()
        program = compiled[shapes]
        results = pool.map(lambda own: jax.block_until_ready(program(*own)), each)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

    return run


def _split(operands: Operands, in_axes: Operands) -> list[Operands]:
    """Returns each member's operands; see `members`."""
    own = jax.tree.map(lambda axis: axis == 0, in_axes, is_leaf=lambda axis: axis is None)
    leaves, tree = jax.tree.flatten(operands)
    owned = jax.tree.leaves(jax.tree.broadcast(own, operands))
    pairs = list(zip(leaves, owned, strict=True))
    # On the host a row is a view; on the device it would take a program of its own.
    pairs = [(np.asarray(leaf) if own else leaf, own) for leaf, own in pairs]
    count = next(len(leaf) for leaf, own in pairs if own)
    return [
        jax.tree.unflatten(tree, [leaf[i] if own else leaf for leaf, own in pairs])
        for i in range(count)
    ]
