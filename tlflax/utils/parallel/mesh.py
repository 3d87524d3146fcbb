"""The mesh of devices, and the placement of arrays on it."""

from collections.abc import Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, Shaped

from tlflax.utils.errors import UserError

Tree = TypeVar('Tree')


def default_mesh() -> Mesh:
    """Returns a mesh of all devices along one axis, 'data'."""
    return jax.make_mesh((jax.device_count(),), ('data',), axis_types=(AxisType.Auto,))


def require_one_process() -> None:
    """Checks that JAX runs in this process alone.

    Raises:
        UserError: Several processes run together.
    """
    if jax.process_count() > 1:
        raise UserError(
            f'{jax.process_count()} processes run together, and tlflax does not support that yet',
            where='jax.distributed',
            fix='start one process, which uses all devices of its machine',
        )


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Puts a tree of arrays on every device of a mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def put_batch(batch: Mapping[str, object], mesh: Mesh) -> dict[str, jax.Array]:
    """Splits a batch over the devices, padded to a multiple of their number.

    Args:
        batch: Arrays [b, ...]; 'index' stays on the host and is not returned.
        mesh: The devices, along the axis 'data'.
    """
    sharding = NamedSharding(mesh, PartitionSpec('data'))
    local = len(mesh.local_devices)

    def put(value: object) -> jax.Array:
        if isinstance(value, jax.Array) and value.sharding.device_set == sharding.device_set:
            return value  # these features were computed on the mesh
        return jax.make_array_from_process_local_data(sharding, pad(np.asarray(value), local))

    return {key: put(value) for key, value in batch.items() if key != 'index'}


def put_rows(rows: Int[np.ndarray, 'steps b'], mesh: Mesh) -> Int[jax.Array, 'steps _b']:
    """Splits the row numbers of many batches over the devices; padding is -1."""
    padded = pad(rows.T, mesh.size, fill=-1).T
    return jax.device_put(padded, NamedSharding(mesh, PartitionSpec(None, 'data')))


def local_rows(array: jax.Array) -> Shaped[np.ndarray, 'rows ...']:
    """Returns the rows of a sharded array that are on this process's devices, in order."""
    shards = {str(shard.index): shard for shard in array.addressable_shards}
    ordered = sorted(shards.values(), key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in ordered])


def pad(value: np.ndarray, multiple: int, fill: int = 0) -> np.ndarray:
    """Appends rows of `fill` until the length is a multiple of `multiple`."""
    missing = -len(value) % multiple
    if not missing:
        return value
    return np.concatenate([value, np.full((missing, *value.shape[1:]), fill, value.dtype)])
