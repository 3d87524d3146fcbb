"""Where batches come from: images through the pipeline, or features from the cache."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int

from tlflax.config.schema import Config
from tlflax.data.augment import sampling
from tlflax.data.table import ImageTable
from tlflax.features import extract
from tlflax.features.batches import HostBatch, OnDevice, Source
from tlflax.features.cache.store import Store
from tlflax.utils.errors import UserError

_HOST_BYTES = 4 * 2**30  # beyond, on a CPU, the memory map serves as well as a copy of it


def on_device_limit() -> int:
    """Returns how many bytes of a split's features are kept on the device, not streamed to it."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if 'bytes_limit' not in stats:
        return _HOST_BYTES // jax.local_device_count()
    return (stats['bytes_limit'] - stats.get('bytes_in_use', 0)) // 2  # the rest is for the steps


class ImageSource:
    """Decodes, resizes and augments images anew for every epoch.

    Args:
        table: The images.
        config: Says how they are read, augmented and put into batches.
        view: In which evaluation sees them; None: the plain one.
    """

    on_device: OnDevice | None = None

    def __init__(
        self, table: ImageTable, config: Config, view: sampling.View | None = None
    ) -> None:
        self.num_examples = len(table)
        self._table, self._config, self._view = table, config, view

    def train_batches(self, epoch: int, start_step: int) -> Iterator[HostBatch]:
        """See `tlflax.features.batches.Source`."""
        from tlflax.data.pipeline import (
            tf_data,  # TensorFlow is imported only where images are read
        )

        batches = tf_data.train_epoch(
            self._table,
            augment=self._config.augment,
            seed=self._config.train.seed,
            epoch=epoch,
            balanced=self._config.train.balanced_sampling,
            start_step=start_step,
            image_size=self._config.data.image_size,
            resize=self._config.data.resize,
            antialias=self._config.data.antialias,
            background=self._config.data.background,
            max_pixels=self._config.data.max_pixels,
            batch_size=self._config.train.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return _weighted(batches, self._table.weights)

    def eval_batches(self) -> Iterator[HostBatch]:
        """See `tlflax.features.batches.Source`."""
        from tlflax.data.pipeline import tf_data

        return tf_data.eval_epoch(
            self._table,
            augment=self._config.augment,
            view=self._view,
            image_size=self._config.data.image_size,
            resize=self._config.data.resize,
            antialias=self._config.data.antialias,
            background=self._config.data.background,
            max_pixels=self._config.data.max_pixels,
            batch_size=self._config.train.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def train_rows(self, epoch: int) -> Int[np.ndarray, 'steps b']:
        """Images are never on_device."""
        raise NotImplementedError

    def eval_rows(self) -> Int[np.ndarray, 'steps b']:
        """Images are never on_device."""
        raise NotImplementedError


class ComputedSource:
    """Runs a frozen backbone on every batch of images.

    Args:
        images: Where they come from.
        compute: The backbone.
    """

    on_device: OnDevice | None = None

    def __init__(self, images: ImageSource, compute: extract.Compute) -> None:
        self.num_examples = images.num_examples
        self._images, self._compute = images, compute
        self.train_rows, self.eval_rows = images.train_rows, images.eval_rows

    def train_batches(self, epoch: int, start_step: int) -> Iterator[HostBatch]:
        """See `tlflax.features.batches.Source`."""
        return self._features(self._images.train_batches(epoch, start_step))

    def eval_batches(self) -> Iterator[HostBatch]:
        """See `tlflax.features.batches.Source`."""
        return self._features(self._images.eval_batches())

    def _features(self, batches: Iterator[HostBatch]) -> Iterator[HostBatch]:
        for batch in batches:
            yield {**batch, 'features': self._compute(batch.pop('image'))}


class FeatureSource:
    """Draws each image's view of the epoch from features computed before.

    Args:
        opened: The store.
        table: The images.
        rows: Row numbers in the store, i64[views, n].
        choose: Epoch to each image's view, i64[n].
        batch_size: Examples per batch.
        seed: Of the order.
        balanced: Draw classes equally often; see `tlflax.data.augment.sampling.epoch_order`.
        put: Puts an array on every device.
    """

    def __init__(
        self,
        opened: Store,
        table: ImageTable,
        rows: Int[np.ndarray, 'views n'],
        *,
        choose: Callable[[int], Int[np.ndarray, ' n']],
        batch_size: int,
        seed: int,
        balanced: bool,
        put: Callable[[Any], Any],
    ) -> None:
        self.num_examples = len(table)
        self._opened, self._table, self._rows = opened, table, rows
        self._choose, self._batch_size = choose, batch_size
        self._seed, self._balanced = seed, balanced
        self._evaluated = 0
        self._position = np.cumsum(rows.ravel() >= 0).reshape(rows.shape) - 1
        self.on_device: OnDevice | None = None
        wanted = rows[rows >= 0]
        if len(wanted) * opened.row_bytes <= on_device_limit():
            image = np.nonzero(rows >= 0)[1]
            weight = None if table.weights is None else put(table.weights[image])
            features, label = put(opened.read(wanted)), put(table.labels[image])
            self.on_device = OnDevice(features, label, weight)
            opened.close()  # others may evict what is in memory now

    def reordered(
        self, seed: int, choose: Callable[[int], Int[np.ndarray, ' n']]
    ) -> 'FeatureSource':
        """Returns a source of the same features in another order and choice of views."""
        other = copy.copy(self)
        other._seed, other._choose = seed, choose
        return other

    def viewed(self, number: int) -> 'FeatureSource':
        """Returns a source of the same features that evaluates another view of each image."""
        other = copy.copy(self)
        other._evaluated = number
        return other

    def train_batches(self, epoch: int, start_step: int) -> Iterator[HostBatch]:
        """See `tlflax.features.batches.Source`."""
        batches = self._batches(self._train_order(epoch)[start_step:], self._choose(epoch))
        return _weighted(batches, self._table.weights)

    def eval_batches(self) -> Iterator[HostBatch]:
        """See `tlflax.features.batches.Source`."""
        view = np.full(self.num_examples, self._evaluated)
        return self._batches(self._eval_order(), view)

    def train_rows(self, epoch: int) -> Int[np.ndarray, 'steps b']:
        """See `tlflax.features.batches.Source`."""
        order = self._train_order(epoch)
        return np.where(order >= 0, self._position[self._choose(epoch)[order], order], -1)

    def eval_rows(self) -> Int[np.ndarray, 'steps b']:
        """See `tlflax.features.batches.Source`."""
        order = self._eval_order()
        return np.where(order >= 0, self._position[self._evaluated, order], -1)

    def _train_order(self, epoch: int) -> Int[np.ndarray, 'steps b']:
        labels = self._table.labels
        order = sampling.epoch_order(self._seed, epoch, labels, balanced=self._balanced)
        return sampling.batch_rows(order, self._batch_size)

    def _eval_order(self) -> Int[np.ndarray, 'steps b']:
        return sampling.batch_rows(np.arange(self.num_examples), self._batch_size)

    def _batches(
        self, order: Int[np.ndarray, 'steps b'], view: Int[np.ndarray, ' n']
    ) -> Iterator[HostBatch]:
        for indices in order:
            mask = indices >= 0
            real = indices[mask]
            features = np.zeros((len(indices), *self._opened.row_shape), self._opened.dtype)
            features[mask] = self._opened.read(self._rows[view[real], real])
            label = np.where(mask, self._table.labels[indices], 0).astype(np.int32)
            yield {'features': features, 'label': label, 'mask': mask, 'index': indices}


def _weighted(
    batches: Iterator[HostBatch], weights: Float32[np.ndarray, ' n'] | None
) -> Iterator[HostBatch]:
    """Adds the images' weights, where there are any, as `weight` f32[b]."""
    for batch in batches:
        if weights is not None:
            batch = {**batch, 'weight': np.where(batch['mask'], weights[batch['index']], 0)}
        yield batch


def require_on_device(source: Source) -> OnDevice:
    """Returns a source's features on the device.

    Raises:
        UserError: The backbone runs on every batch, or its features are too many.
    """
    if source.on_device is not None:
        return source.on_device
    if not isinstance(source, FeatureSource):
        raise UserError(
            'this needs features that are kept, and the backbone runs on every batch',
            where='config.features.cache, config.augment and config.optim.labels',
            fix='freeze the backbone and allow the cache; of the augmentations only flips, '
            'right angles and corner crops are exact, mixup and cutmix cannot be kept, the others '
            "need features.cache='True'",
        )
    raise UserError(
        f'the features of {source.num_examples} images are more than the '
        f'{on_device_limit() / 2**30:.0f} GiB kept on the device',
        where='config.data.train and config.data.val',
        fix='use fewer or smaller images, or train one head with python -m tlflax.train',
    )
