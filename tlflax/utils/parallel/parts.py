"""Sums over a batch that is split over devices, added up in one operation.

XLA adds up each array of a gradient by itself, and before it the number of examples. Where CPUs are
connected, each of these operations waits for all devices several times, which takes longer than the
step of a small head.
"""

import contextvars
import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.extend import random as jex_random
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool

Tree = TypeVar('Tree')
Whole = TypeVar('Whole')

_LARGE = 2**20  # bytes from which an array is added up by itself: copying it would cost more

_INSIDE: contextvars.ContextVar[bool] = contextvars.ContextVar('inside', default=False)


def sums(
    function: Callable[[Whole, dict[str, Array]], Tree],
    whole: Whole,
    batch: dict[str, Array],
    mesh: Mesh,
) -> Tree:
    """Returns `function(whole, batch)`, computed by each device for its part of the batch.

    Args:
        function: Returns a tree of float32 sums over the examples. What it computes of an example
            depends on that alone and, by `bernoulli`, on its place in the batch.
        whole: What all devices have.
        batch: Arrays [b, ...], where b is a multiple of the number of devices.
        mesh: The devices, along the axis 'data'.
    """

    def local(whole: Whole, part: dict[str, Array]) -> Tree:
        token = _INSIDE.set(True)
        try:
            return _added(function(whole, part))
        finally:
            _INSIDE.reset(token)

    split = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec('data')),
        out_specs=PartitionSpec(),
        check_vma=False,  # it would add up each array of a gradient by itself
    )
    return split(whole, batch)


def divides(batch: dict[str, Array], mesh: Mesh) -> bool:
    """Returns whether every device gets as many examples."""
    return not any(len(value) % mesh.size for value in batch.values())


def inside() -> bool:
    """Returns whether what is traced computes the part of a batch that one device has."""
    return _INSIDE.get()


def draws_by_place() -> bool:
    """Returns whether `bernoulli` draws what `jax.random.bernoulli` does."""
    config = jax.config
    return bool(config.jax_threefry_partitionable) and (  # type: ignore[attr-defined]
        config.jax_default_prng_impl == 'threefry2x32'  # type: ignore[attr-defined]
    )


def bernoulli(key: Array, p: float, shape: tuple[int, ...]) -> Bool[Array, '...']:
    """Returns this device's rows of what `jax.random.bernoulli` draws for the whole batch.

    Within `sums`; a number depends on the key and its place alone, so that nothing is drawn for
    other devices.

    Args:
        key: Of the whole batch.
        p: The probability of True.
        shape: That of this device's rows.
    """
    size = math.prod(shape)
    first = jax.lax.axis_index('data').astype(jnp.uint32) * jnp.uint32(size)
    place = first + jnp.arange(size, dtype=jnp.uint32)
    pair = jex_random.threefry_2x32(
        jax.random.key_data(key), jnp.concatenate([jnp.zeros_like(place), place])
    )
    bits = pair[:size] ^ pair[size:]
    one = jnp.uint32(0x3F800000)  # the exponent of floats from 1 to 2
    uniform = jax.lax.bitcast_convert_type((bits >> 9) | one, jnp.float32) - 1
    return (uniform < jnp.float32(p)).reshape(shape)


def _added(tree: Tree) -> Tree:
    """Adds up the arrays of all devices, small ones as one array."""
    leaves, structure = jax.tree.flatten(tree)
    small, large = ([a for a in leaves if (a.nbytes >= _LARGE) == kind] for kind in (False, True))
    flat, restore = ravel_pytree(small)
    added = {
        False: iter(restore(jax.lax.psum(flat, 'data'))),
        True: iter(jax.lax.psum(large, 'data')),
    }
    return jax.tree.unflatten(structure, [next(added[a.nbytes >= _LARGE]) for a in leaves])
