"""The mesh of devices, and the placement of arrays on it."""

import collections
import functools
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, Shaped

from tlflax.utils.errors import UserError
from tlflax.utils.parallel import processes

Tree = TypeVar('Tree')


def default_mesh() -> Mesh:
    """Returns a mesh of all devices of all processes along one axis, 'data'."""
    if processes.count() == 1:
        devices = jax.local_devices()
        return jax.make_mesh((len(devices),), ('data',), (AxisType.Auto,), devices=devices)
    return jax.make_mesh((jax.device_count(),), ('data',), axis_types=(AxisType.Auto,))


def local_mesh(mesh: Mesh) -> Mesh:
    """Returns the devices of this process, for programs that only it runs."""
    if mesh.size == len(mesh.local_devices):
        return mesh
    return Mesh(np.array(mesh.local_devices), ('data',), axis_types=(AxisType.Auto,))


def localized(tree: Tree, mesh: Mesh) -> Tree:
    """Returns replicated arrays as those of this process's devices, without a copy."""
    if processes.count() == 1:
        return tree
    sharding = NamedSharding(local_mesh(mesh), PartitionSpec())

    def get(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        parts = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts)

    return jax.tree.map(get, tree)


def on_one_device(tree: Tree) -> Tree:
    """Returns replicated arrays as those of one of this process's devices, without a copy.

    What is computed from replicated arrays is computed by every device.
    """

    def get(leaf: Any) -> Any:
        shared = isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
        return leaf.addressable_data(0) if shared else leaf

    return jax.tree.map(get, tree)


def require_one_process(what: str) -> None:
    """Checks that this process runs alone.

    Args:
        what: What would be done by each of several processes.

    Raises:
        UserError: Several processes run together.
    """
    if processes.count() > 1:
        raise UserError(
            f'{processes.count()} processes run together, and {what} takes one',
            where='jax.distributed',
            fix='start one process, which uses all devices of its machine',
        )


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Puts a tree of arrays on every device of a mesh; all processes give the same values."""
    sharding = NamedSharding(mesh, PartitionSpec())
    if processes.count() == 1:
        return jax.device_put(tree, sharding)

    def put(leaf: object) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding.device_set == sharding.device_set:
            return leaf
        return put_array(np.asarray(leaf), sharding)

    return jax.tree.map(put, tree)


def put_array(value: jax.Array | np.ndarray | np.generic, sharding: NamedSharding) -> jax.Array:
    """Puts an array that all processes have on devices, each its part."""
    if processes.count() == 1:
        return jax.device_put(value, sharding)
    host = np.asarray(value)  # `device_put` would send it around to compare it
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def put_batch(batch: Mapping[str, object], mesh: Mesh) -> dict[str, jax.Array]:
    """Splits a batch over the devices, padded to a multiple of their number.

    Args:
        batch: Arrays [b, ...], this process's part of the batch, on the host or on its devices; or
            features of the whole batch that are on the mesh already. 'index' stays on the host and
            is not returned.
        mesh: The devices, along the axis 'data'.
    """
    sharding = NamedSharding(mesh, PartitionSpec('data'))
    local = len(mesh.local_devices)

    def put(value: object) -> jax.Array:
        if isinstance(value, jax.Array):
            if value.sharding.device_set == sharding.device_set:
                return value  # these features were computed on the mesh
            if value.sharding.device_set == {*mesh.local_devices}:
                return _joined(value, sharding)
        return jax.make_array_from_process_local_data(sharding, pad(np.asarray(value), local))

    return {key: put(value) for key, value in batch.items() if key != 'index'}


def _joined(value: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Makes the parts that processes have on their devices one array, without a copy."""
    shape = (len(value) * processes.count(), *value.shape[1:])
    parts = [shard.data for shard in value.addressable_shards]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def put_rows(rows: Int[np.ndarray, 'steps b'], mesh: Mesh) -> Int[jax.Array, 'steps _b']:
    """Splits the row numbers of many batches over the devices; padding is -1."""
    padded = pad(rows.T, mesh.size, fill=-1).T
    sharding = NamedSharding(mesh, PartitionSpec(None, 'data'))
    return put_array(padded, sharding)


def local_rows(array: jax.Array) -> Shaped[np.ndarray, 'rows ...']:
    """Returns the rows of a sharded array that are on this process's devices, in order."""
    shards = {str(shard.index): shard for shard in array.addressable_shards}
    ordered = sorted(shards.values(), key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in ordered])


def to_host(tree: Tree) -> Tree:
    """Returns a tree of arrays as host arrays, whole in every process."""
    if processes.count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    def get(leaf: Any) -> np.ndarray:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_replicated or leaf.is_fully_addressable:
            return np.asarray(leaf)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(get, tree)


def exchange(
    part: Shaped[np.ndarray, 'n ...'], mesh: Mesh, *, split: bool = False
) -> Shaped[jax.Array, 'n ...']:
    """Returns rows each of which one process has, on the devices.

    Args:
        part: Zeros where another process has the row.
        mesh: The devices.
        split: Split over the devices, of whose number n is a multiple; or replicated.
    """
    bits = part.view(np.dtype(f'u{part.itemsize}'))  # sums of integers are exact, and 0 is 0
    grid = Mesh(
        mesh.devices.reshape(processes.count(), -1), ('process', 'device'),
        axis_types=(AxisType.Auto, AxisType.Auto),
    )  # fmt: skip
    parts = jax.make_array_from_process_local_data(
        NamedSharding(grid, PartitionSpec('process')), bits[None]
    )
    whole = PartitionSpec('data') if split else PartitionSpec()
    return _summed(parts, str(part.dtype), NamedSharding(mesh, whole))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _summed(parts: jax.Array, dtype: str, sharding: NamedSharding) -> jax.Array:
    total = jax.lax.with_sharding_constraint(parts.sum(0, dtype=parts.dtype), sharding)
    return jax.lax.bitcast_convert_type(total, jnp.dtype(dtype))


class Agreement:
    """Lets all processes know between steps what any of them wants, a few steps later.

    The answer travels with the steps, so that no step waits for it.

    Args:
        mesh: The devices.
        later: Steps after which a wish is known to all.
    """

    def __init__(self, mesh: Mesh, later: int = 2) -> None:
        self._mesh, self._later = mesh, later
        self._asked: collections.deque[jax.Array] = collections.deque()

    def __call__(self, *wishes: bool) -> tuple[bool, ...]:
        """Returns which wishes any process had `later` calls before; with one process, its own."""
        if processes.count() == 1:
            return wishes
        own = np.tile(np.array(wishes), (len(self._mesh.local_devices), 1))
        self._asked.append(_any(put_batch({'wishes': own}, self._mesh)['wishes']))
        if len(self._asked) <= self._later:
            return (False,) * len(wishes)
        return tuple(map(bool, np.asarray(self._asked.popleft())))


@jax.jit
def _any(wishes: jax.Array) -> jax.Array:
    return wishes.any(0)


def pad(value: np.ndarray, multiple: int, fill: int = 0) -> np.ndarray:
    """Appends rows of `fill` until the length is a multiple of `multiple`."""
    missing = -len(value) % multiple
    if not missing:
        return value
    return np.concatenate([value, np.full((missing, *value.shape[1:]), fill, value.dtype)])
