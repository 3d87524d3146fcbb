"""Columns of arrays that are split over the devices by their last axis."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Shaped

_BLOCK = 2**26  # bytes that a device gathers at once of what other processes have


def part(
    host: Shaped[np.ndarray, '*rows classes'], index: tuple[slice, ...] | None, width: int
) -> Shaped[np.ndarray, '*rows part']:
    """Returns some columns of an array, with zeros beyond its last."""
    start, stop, _ = (index or (slice(None),))[-1].indices(width)
    own = host[..., start:stop]
    missing = stop - start - own.shape[-1]
    return np.pad(own, [(0, 0)] * (host.ndim - 1) + [(0, missing)]) if missing else own


def on_host(array: jax.Array, columns: int) -> Shaped[np.ndarray, '*rows {columns}']:
    """Returns the first columns of an array that is split by its last axis."""
    if array.is_fully_addressable:
        whole = np.empty((*array.shape[:-1], columns), array.dtype)
        for shard in array.addressable_shards:
            part = whole[..., shard.index[-1]]
            part[...] = np.asarray(shard.data)[..., : part.shape[-1]]
        return whole
    return _in_blocks(array, columns)


def _in_blocks(array: jax.Array, columns: int) -> Shaped[np.ndarray, '*rows {columns}']:
    """As `on_host`; every device gathers some rows at a time."""
    if array.ndim == 1:
        return _everywhere(array)[:columns]
    whole = np.empty((*array.shape[:-1], columns), array.dtype)
    rows = max(1, min(len(array), _BLOCK // max(array.nbytes // len(array), 1)))
    for start in range(0, len(array), rows):
        start = min(start, len(array) - rows)  # all blocks have one size: one program
        whole[start : start + rows] = _everywhere(_block(array, jnp.int32(start), rows))[
            ..., :columns
        ]
    return whole


def _everywhere(array: jax.Array) -> np.ndarray:
    """Gathers a small array on every device, and returns it."""
    mesh = array.sharding.mesh  # type: ignore[attr-defined]
    gather = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return np.asarray(gather(array).addressable_data(0))


@functools.partial(jax.jit, static_argnames=('rows',))
def _block(array: Array, start: Int[Array, ''], rows: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(array, start, rows)
