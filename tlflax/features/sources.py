"""Batches of features from the cache: on the device if they fit there, or streamed to it."""

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int, Shaped

from tlflax.data.pipeline.batch import Batches
from tlflax.data.table import ImageTable
from tlflax.features.batches import OnDevice, Order, Source
from tlflax.features.cache.store import Store
from tlflax.features.extract import Filled
from tlflax.features.live_sources import weighted
from tlflax.utils.errors import UserError
from tlflax.utils.parallel import processes
from tlflax.utils.parallel.mesh import exchange, pad, replicate

_EXCHANGED = 2**26  # bytes that processes send each other at once
_HOST_BYTES = 4 * 2**30  # beyond it, on a CPU, the memory map serves as well as a copy


def on_device_limit() -> int:
    """Returns how many bytes of a split's features are kept on the device, not streamed to it."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if 'bytes_limit' not in stats:
        return _HOST_BYTES // jax.local_device_count()
    return (stats['bytes_limit'] - stats.get('bytes_in_use', 0)) // 2  # the rest is for the steps


@dataclasses.dataclass(frozen=True, eq=False)
class CachedFeatures:
    """Views of a split's images, all of whose features are in the store, and their order.

    Attributes:
        store: The features.
        table: The images.
        filled: Where the features are.
        choose: Epoch to the number of each image's view, i64[n].
        order: How examples are put into batches.
        mesh: The devices.
        evaluated: The number of the view that evaluation sees.
    """

    store: Store
    table: ImageTable
    filled: Filled
    choose: Callable[[int], Int[np.ndarray, ' n']]
    order: Order
    mesh: Mesh
    evaluated: int = 0

    def train(self, epoch: int) -> tuple[Int[np.ndarray, 'steps b'], Int[np.ndarray, ' n']]:
        """Returns the positions of an epoch's examples, and each image's view."""
        return self.order.train(epoch, self.table.labels), self.choose(epoch)

    def eval(self) -> tuple[Int[np.ndarray, 'steps b'], Int[np.ndarray, ' n']]:
        """Returns the positions of all examples in order, and each image's view."""
        n = len(self.table)
        return self.order.eval(n), np.full(n, self.evaluated)

    @property
    def wanted(self) -> Bool[np.ndarray, 'views n']:
        """Which view of which image is ever drawn."""
        return self.filled.owner >= 0

    def read(
        self, view: Int[np.ndarray, ' b'], image: Int[np.ndarray, ' b']
    ) -> Shaped[np.ndarray, 'b ...']:
        """Returns features that this process reads; zeros for those of others and image -1."""
        mine = image >= 0
        if not self.filled.everywhere:
            mine = mine & (self.filled.owner[view, image] == processes.index())
        features = np.zeros((len(image), *self.store.row_shape), self.store.dtype)
        features[mine] = self.store.read(self.filled.rows[view[mine], image[mine]])
        return features


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedFeatures:
    """Reads the features of every batch from the store.

    Attributes:
        cached: Which views of which images they are, and their order.
    """

    cached: CachedFeatures

    @property
    def num_examples(self) -> int:
        """Examples in an epoch."""
        return len(self.cached.table)

    def train_batches(self, epoch: int, start_step: int) -> Batches:
        """See `tlflax.features.batches.StreamedSource`."""
        positions, view = self.cached.train(epoch)
        return weighted(self._batches(positions[start_step:], view), self.cached.table.weights)

    def eval_batches(self) -> Batches:
        """See `tlflax.features.batches.StreamedSource`."""
        return self._batches(*self.cached.eval())

    def _batches(
        self, positions: Int[np.ndarray, 'steps b'], view: Int[np.ndarray, ' n']
    ) -> Batches:
        table, count = self.cached.table, processes.count()
        for whole in positions.reshape(len(positions), count, positions.shape[1] // count):
            index = whole[processes.index()]
            mask = index >= 0
            label = np.where(mask, table.labels[index], 0).astype(np.int32)
            features = self._read(whole, view)
            yield {'features': features, 'label': label, 'mask': mask, 'index': index}

    def _read(
        self, whole: Int[np.ndarray, 'processes b'], view: Int[np.ndarray, ' n']
    ) -> Float[np.ndarray, 'b ...'] | Float[jax.Array, '_b ...']:
        """Returns this process's part of a batch; where others have rows of it, the whole."""
        cached = self.cached
        if cached.filled.everywhere:
            index = whole[processes.index()]
            return cached.read(view[index], index)
        padded = pad(whole.T, len(cached.mesh.local_devices), fill=-1).T.ravel()
        return exchange(cached.read(view[padded], padded), cached.mesh, split=True)


@dataclasses.dataclass(frozen=True, eq=False)
class OnDeviceFeatures:
    """Chooses the rows of every batch from features on the device.

    Attributes:
        cached: Which views of which images they are, and their order.
        on_device: The features of all views that are ever drawn, in the order of `cached.wanted`.
        places: Where in `on_device` each view of each image is.
    """

    cached: CachedFeatures
    on_device: OnDevice
    places: Int[np.ndarray, 'views n']

    @property
    def num_examples(self) -> int:
        """Examples in an epoch."""
        return len(self.cached.table)

    def train_rows(self, epoch: int) -> Int[np.ndarray, 'steps b']:
        """See `tlflax.features.batches.OnDeviceSource`."""
        return self._rows(*self.cached.train(epoch))

    def eval_rows(self) -> Int[np.ndarray, 'steps b']:
        """See `tlflax.features.batches.OnDeviceSource`."""
        return self._rows(*self.cached.eval())

    def _rows(
        self, positions: Int[np.ndarray, 'steps b'], view: Int[np.ndarray, ' n']
    ) -> Int[np.ndarray, 'steps b']:
        return np.where(positions >= 0, self.places[view[positions], positions], -1)


FeatureSource = StreamedFeatures | OnDeviceFeatures


def feature_source(cached: CachedFeatures) -> FeatureSource:
    """Returns a source of features, on every device of the mesh if they fit there.

    The store is closed if they do, so that others may evict what is in memory now.
    """
    wanted = cached.wanted
    size = int(wanted.sum()) * cached.store.row_bytes
    if not all(processes.gather(size <= on_device_limit())):
        return StreamedFeatures(cached)

    def put(values: Shaped[np.ndarray, 'rows ...']) -> jax.Array:
        return cast(jax.Array, replicate(values, cached.mesh))

    image, weights = np.nonzero(wanted)[1], cached.table.weights
    on_device = OnDevice(
        features=put(_whole(cached)),
        label=put(cached.table.labels[image]),
        weight=None if weights is None else put(weights[image]),
    )
    cached.store.close()
    places = np.cumsum(wanted.ravel()).reshape(wanted.shape) - 1
    return OnDeviceFeatures(cached, on_device, places)


def _whole(cached: CachedFeatures) -> Shaped[np.ndarray, 'rows ...']:
    """Returns the features of all views that are ever drawn, those of other processes included."""
    view, image = np.nonzero(cached.wanted)
    if cached.filled.everywhere:
        return cached.store.read(cached.filled.rows[view, image])
    step = max(1, _EXCHANGED // cached.store.row_bytes)
    parts = [
        np.asarray(exchange(cached.read(view[at : at + step], image[at : at + step]), cached.mesh))
        for at in range(0, len(view), step)
    ]
    return np.concatenate(parts)


def evaluating(source: FeatureSource, view: int) -> FeatureSource:
    """Returns a source of the same features whose evaluation sees another view of each image."""
    return replace(source, cached=replace(source.cached, evaluated=view))


def reordered(
    source: OnDeviceFeatures, seed: int, choose: Callable[[int], Int[np.ndarray, ' n']]
) -> OnDeviceFeatures:
    """Returns a source of the same features in another order and choice of views."""
    order = replace(source.cached.order, seed=seed)
    return replace(source, cached=replace(source.cached, order=order, choose=choose))


def require_on_device(source: Source) -> OnDeviceFeatures:
    """Returns a source that is on the device.

    Raises:
        UserError: The backbone runs on every batch, or its features are too many.
    """
    if isinstance(source, OnDeviceFeatures):
        return source
    if not isinstance(source, StreamedFeatures):
        raise UserError(
            'this needs features that are kept, and the backbone runs on every batch',
            where='config.features.cache, config.augment and config.optim.labels',
            fix='freeze the first layers of the backbone and allow the cache; of the augmentations '
            'only flips, right angles and corner crops are exact, mixup and cutmix cannot be kept, '
            "the others need features.cache='True'",
        )
    raise UserError(
        f'the features of {source.num_examples} images are more than the '
        f'{on_device_limit() / 2**30:.0f} GiB kept on the device',
        where='config.data.train and config.data.val',
        fix='use fewer or smaller images, or train one head with python -m tlflax.train',
    )
