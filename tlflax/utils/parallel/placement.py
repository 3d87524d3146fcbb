"""A wide head that is split over the devices by class, with the arrays that belong to it.

The class is the last axis of its kernel, bias, moments, moving average and logits. Each device has
an equal part of the columns; the last ones of the last device are padding where their number does
not divide the classes. A batch is split over the same devices by example, so what the layer reads
is gathered, and no array of kernel or logits size is: everything that is asked of the logits is a
sum, a maximum or a minimum over the classes.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from tlflax.utils.parallel import columns
from tlflax.utils.parallel.mesh import Tree, replicate

FROM = 2**28
"""Bytes of a layer's parameters from which 'auto' splits it: 1 GiB with gradient and two moments.
"""

_NOT_A_CLASS = -1e30  # the logit of padding: its probability is 0, and it is finite


@dataclasses.dataclass(frozen=True)
class ClassShards:
    """How the last layer of a head is split over the devices.

    Attributes:
        mesh: Devices along one axis, 'data'.
        num_classes: Columns without padding.
        leaves: Paths of the parameters whose last axis is the class, such as `head/logits/kernel`.
    """

    mesh: Mesh
    num_classes: int
    leaves: frozenset[str]

    @property
    def width(self) -> int:
        """Columns with padding: a multiple of the number of devices."""
        return self.num_classes + -self.num_classes % self.mesh.size

    def holds(self, path: str, shape: tuple[int, ...]) -> bool:
        """Whether a leaf is split: a parameter, or what an optimizer keeps under its path."""
        own = any(path == leaf or path.endswith(f'/{leaf}') for leaf in self.leaves)
        return own and bool(shape) and shape[-1] in (self.num_classes, self.width)

    def place(self, tree: Tree) -> Tree:
        """Puts a tree of host arrays on the mesh: a part of what is split, a copy of the others.

        No device ever has a whole array of those that are split.
        """

        def put(path: str, leaf: Any) -> Any:
            if not self.holds(path, leaf.shape):
                return replicate(leaf, self.mesh)
            sharding = self._by_class(leaf.ndim)
            if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
                return leaf
            shape, host = (*leaf.shape[:-1], self.width), np.asarray(leaf)
            return jax.make_array_from_callback(
                shape, sharding, lambda index: columns.part(host, index, self.width)
            )

        return _with_paths(put, tree)

    def fetch(self, tree: Tree) -> Tree:
        """Returns a tree whose split leaves are whole, unpadded arrays of the host.

        All processes call it together; no device ever has a whole array.
        """

        def get(path: str, leaf: Any) -> Any:
            if isinstance(leaf, jax.Array) and self.holds(path, leaf.shape):
                return columns.on_host(leaf, self.num_classes)
            return leaf

        return _with_paths(get, tree)

    def keep(self, tree: Tree) -> Tree:
        """Makes a compiled program leave a tree as `place` puts it."""

        def constrain(path: str, leaf: Any) -> Any:
            held = self.holds(path, leaf.shape)
            sharding = self._by_class(leaf.ndim) if held else self._sharding()
            return jax.lax.with_sharding_constraint(leaf, sharding)

        return _with_paths(constrain, tree)

    def gathered(self, tree: Tree) -> Tree:
        """Gathers arrays that are split by example."""
        return jax.tree.map(
            lambda leaf: jax.lax.with_sharding_constraint(leaf, self._sharding()), tree
        )

    def product(
        self, x: Float[Array, 'b d'], kernel: Float[Array, 'd width'], **options: Any
    ) -> Float[Array, 'b width']:
        """Multiplies what is split by example with what is split by class: gathers `x`.

        The gradient of `kernel` needs no other device; that of `x` is summed and scattered.
        """

        def local(x: Array, kernel: Array) -> Array:
            x = jax.lax.all_gather(x, 'data', tiled=True)
            return jax.lax.dot(x, kernel, **options)

        rows, columns = PartitionSpec('data', None), PartitionSpec(None, 'data')
        split = jax.shard_map(local, mesh=self.mesh, in_specs=(rows, columns), out_specs=columns)
        return split(x, kernel)

    def masked(self, logits: Float[Array, 'b width']) -> Float[Array, 'b width']:
        """Splits logits by class, and sets those of padding."""
        logits = jax.lax.with_sharding_constraint(logits, self._by_class(2))
        return jnp.where(self._real(), logits, _NOT_A_CLASS) if self._padded else logits

    def by_example(self, values: Float[Array, 'b width']) -> Float[Array, 'b num_classes']:
        """Splits values of all classes by example instead of by class; drops padding."""
        rows = NamedSharding(self.mesh, PartitionSpec('data'))
        values = jax.lax.with_sharding_constraint(values, rows)
        return jax.lax.with_sharding_constraint(values[:, : self.num_classes], rows)

    def padded(self, values: Float[Any, ' num_classes']) -> Float[Array, ' width']:
        """Returns a number of each class, 0 for padding."""
        return jnp.pad(jnp.asarray(values), (0, self.width - self.num_classes))

    def of_label(
        self, values: Float[Array, 'b width'], label: Int[Array, ' b']
    ) -> Float[Array, ' b']:
        """Returns each row's value of its label; a gather would make the row whole first."""
        own = self._numbers() == label[:, None]
        return jnp.where(own, values, 0).sum(-1)

    def mean(self, values: Float[Array, 'b width']) -> Float[Array, ' b']:
        """Returns each row's mean over the classes."""
        values = jnp.where(self._real(), values, 0) if self._padded else values
        return values.sum(-1) / self.num_classes

    def argmax(self, values: Float[Array, 'b width']) -> Int[Array, ' b']:
        """Returns each row's class of the highest value, the first of equal ones."""
        highest = values.max(-1, keepdims=True)
        place = jnp.where(values == highest, self._numbers(), self.num_classes - 1)
        return place.min(-1)

    @property
    def _padded(self) -> bool:
        return self.width != self.num_classes

    def _numbers(self) -> Int[Array, '1 width']:
        return jax.lax.broadcasted_iota(jnp.int32, (1, self.width), 1)

    def _real(self) -> Bool[Array, '1 width']:
        return self._numbers() < self.num_classes

    def _by_class(self, ndim: int) -> NamedSharding:
        return self._sharding(*[None] * (ndim - 1), 'data')

    def _sharding(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))


_ACTIVE: contextvars.ContextVar[ClassShards | None] = contextvars.ContextVar('shards', default=None)


@contextlib.contextmanager
def splitting(shards: ClassShards | None) -> Iterator[None]:
    """Lets `class_product` split by class what is traced inside."""
    token = _ACTIVE.set(shards)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def class_product(x: Array, kernel: Array, dimensions: Any, **options: Any) -> Array:
    """Computes the matrix product of a head's last layer, in place of `lax.dot_general`."""
    shards = _ACTIVE.get()
    if shards is None:
        return jax.lax.dot_general(x, kernel, dimensions, **options)
    return shards.product(x, kernel, **options)


def _with_paths(function: Any, tree: Tree) -> Tree:
    def named(path: Any, leaf: Any) -> Any:
        return function(jax.tree_util.keystr(path, simple=True, separator='/'), leaf)

    return jax.tree.map_with_path(named, tree)


def place(tree: Tree, mesh: Mesh, shards: ClassShards | None) -> Tree:
    """Puts a tree of host arrays on the mesh; on every device what `shards` does not split."""
    return replicate(tree, mesh) if shards is None else shards.place(tree)


@contextlib.contextmanager
def on_host(shards: ClassShards | None) -> Iterator[None]:
    """Computes on the CPU what no device has room for, if something is split."""
    if shards is None:
        yield
        return
    try:
        cpu = jax.local_devices(backend='cpu')[0]
    except RuntimeError:  # JAX was told to leave the CPU alone
        cpu = None
    with jax.default_device(cpu):
        yield
