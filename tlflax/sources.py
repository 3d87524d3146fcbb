"""Where batches come from: images through the pipeline, or features from the cache."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import Bool, Int

from tlflax import extraction, steps
from tlflax.config import Config
from tlflax.data import sampling
from tlflax.data.folder import ImageTable
from tlflax.errors import UserError
from tlflax.runner import HostBatch, Runner, Source, replicate
from tlflax.store import Store

_RESIDENT_BYTES = 4 * 2**30  # larger feature sets are streamed from the memory map


class ImageSource:
    """Decodes, resizes and augments images anew for every epoch.

    Args:
        table: The images.
        config: Says how they are read, augmented and put into batches.
    """

    resident: steps.Resident | None = None

    def __init__(self, table: ImageTable, config: Config) -> None:
        self.num_examples = len(table)
        self._table, self._config = table, config

    def train_batches(self, epoch: int, start_step: int) -> Iterator[HostBatch]:
        """See `tlflax.runner.Source`."""
        from tlflax.data import pipeline  # TensorFlow is imported only where images are read

        return pipeline.train_epoch(
            self._table,
            augment=self._config.augment,
            seed=self._config.train.seed,
            epoch=epoch,
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

    def eval_batches(self) -> Iterator[HostBatch]:
        """See `tlflax.runner.Source`."""
        from tlflax.data import pipeline

        return pipeline.eval_epoch(
            self._table,
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
        """Images are never resident."""
        raise NotImplementedError

    def eval_rows(self) -> Int[np.ndarray, 'steps b']:
        """Images are never resident."""
        raise NotImplementedError


class ComputedSource:
    """Runs a frozen backbone on every batch of images.

    Args:
        images: Where they come from.
        compute: The backbone.
    """

    resident: steps.Resident | None = None

    def __init__(self, images: ImageSource, compute: extraction.Compute) -> None:
        self.num_examples = images.num_examples
        self._images, self._compute = images, compute
        self.train_rows, self.eval_rows = images.train_rows, images.eval_rows

    def train_batches(self, epoch: int, start_step: int) -> Iterator[HostBatch]:
        """See `tlflax.runner.Source`."""
        return self._features(self._images.train_batches(epoch, start_step))

    def eval_batches(self) -> Iterator[HostBatch]:
        """See `tlflax.runner.Source`."""
        return self._features(self._images.eval_batches())

    def _features(self, batches: Iterator[HostBatch]) -> Iterator[HostBatch]:
        for batch in batches:
            yield {**batch, 'features': self._compute(batch.pop('image'))}


class FeatureSource:
    """Draws each image's view of the epoch from features computed before.

    Args:
        opened: The store.
        labels: i32[n].
        rows: Row numbers in the store, i64[views, n].
        choose: Epoch to each image's view, i64[n].
        batch_size: Examples per batch.
        seed: Of the order.
        put: Puts an array on every device.
    """

    def __init__(
        self,
        opened: Store,
        labels: Int[np.ndarray, ' n'],
        rows: Int[np.ndarray, 'views n'],
        *,
        choose: Callable[[int], Int[np.ndarray, ' n']],
        batch_size: int,
        seed: int,
        put: Callable[[Any], Any],
    ) -> None:
        self.num_examples = len(labels)
        self._opened, self._labels, self._rows = opened, labels, rows
        self._choose, self._batch_size, self._seed = choose, batch_size, seed
        self._position = np.cumsum(rows.ravel() >= 0).reshape(rows.shape) - 1
        self.resident: steps.Resident | None = None
        wanted = rows[rows >= 0]
        if len(wanted) * opened.row_bytes <= _RESIDENT_BYTES:
            label = np.broadcast_to(labels, rows.shape)[rows >= 0]
            self.resident = steps.Resident(put(opened.read(wanted)), put(label))
            opened.close()  # others may evict what is in memory now

    def reordered(
        self, seed: int, choose: Callable[[int], Int[np.ndarray, ' n']]
    ) -> 'FeatureSource':
        """Returns a source of the same features in another order and choice of views."""
        other = copy.copy(self)
        other._seed, other._choose = seed, choose
        return other

    def train_batches(self, epoch: int, start_step: int) -> Iterator[HostBatch]:
        """See `tlflax.runner.Source`."""
        return self._batches(self._train_order(epoch)[start_step:], self._choose(epoch))

    def eval_batches(self) -> Iterator[HostBatch]:
        """See `tlflax.runner.Source`."""
        return self._batches(self._eval_order(), np.zeros(self.num_examples, np.int64))

    def train_rows(self, epoch: int) -> Int[np.ndarray, 'steps b']:
        """See `tlflax.runner.Source`."""
        order = self._train_order(epoch)
        return np.where(order >= 0, self._position[self._choose(epoch)[order], order], -1)

    def eval_rows(self) -> Int[np.ndarray, 'steps b']:
        """See `tlflax.runner.Source`."""
        order = self._eval_order()
        return np.where(order >= 0, self._position[0, order], -1)

    def _train_order(self, epoch: int) -> Int[np.ndarray, 'steps b']:
        order = sampling.permutation(self._seed, epoch, self.num_examples)
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
            label = np.where(mask, self._labels[indices], 0).astype(np.int32)
            yield {'features': features, 'label': label, 'mask': mask, 'index': indices}


def require_resident(source: Source) -> steps.Resident:
    """Returns a source's features on the device.

    Raises:
        UserError: The backbone runs on every batch, or its features are too many.
    """
    if source.resident is not None:
        return source.resident
    if not isinstance(source, FeatureSource):
        raise UserError(
            'this needs features that are kept, and the backbone runs on every batch',
            where='config.features.cache, config.augment and config.optim.labels',
            mend='freeze the backbone and allow the cache; of the augmentations only flips are '
            "exact, the others need features.cache='True'",
        )
    raise UserError(
        f'the features of {source.num_examples} images are more than the '
        f'{_RESIDENT_BYTES / 2**30:.0f} GiB kept on the device',
        where='config.data.train and config.data.val',
        mend='use fewer or smaller images, or train one head with python -m tlflax.train',
    )


@dataclasses.dataclass(frozen=True)
class Maker:
    """Makes the source of each split: live, or from the feature cache.

    Attributes:
        config: The experiment.
        weights_digest: Of the pretrained backbone.
        runner: Holds the backbone.
        backbone_learns: No features are kept of what changes.
    """

    config: Config
    weights_digest: str
    runner: Runner
    backbone_learns: bool
    _programs: list[extraction.Compute] = dataclasses.field(default_factory=list, repr=False)

    def train(self, table: ImageTable) -> Source:
        """Returns the source of augmented training examples."""
        config, n = self.config, len(table)
        views = extraction.training_views(
            config.augment, seed=config.train.seed, n=n, samples=config.features.views
        )
        if config.features.cache == 'auto' and not self.backbone_learns and not views.exact:
            logging.info(
                'augmentation has endless outcomes, so the backbone runs on every batch; '
                'features.cache=True would draw from %d views of each image',
                config.features.views,
            )
        if not self._cached(views):
            return self.live(table)
        if not views.exact:
            logging.info('augmentation is approximated by %d views', config.features.views)
        wanted = extraction.needed(views, config.train.epochs, n)
        return self._from_features(table, views, wanted, 'training')

    def train_resident(self, table: ImageTable, seeds: Sequence[int]) -> dict[int, FeatureSource]:
        """Returns a source for each seed; all share one array of features on the device.

        Raises:
            UserError: See `require_resident`.
        """
        config, n = self.config, len(table)
        sampled = [
            extraction.training_views(config.augment, seed=seed, n=n, samples=config.features.views)
            for seed in seeds
        ]
        if not self._cached(sampled[0]):
            require_resident(ImageSource(table, config))
        views = extraction.joined(sampled)
        wanted = np.logical_or.reduce(
            [extraction.needed(v, config.train.epochs, n) for v in views], axis=0
        )
        shared = self._from_features(table, views[0], wanted, 'training')
        require_resident(shared)
        return {
            seed: shared.reordered(seed, v.choose) for seed, v in zip(seeds, views, strict=True)
        }

    def eval(self, table: ImageTable, name: str) -> Source:
        """Returns the source of a split that is not augmented."""
        views = extraction.no_views(len(table))
        if not self._cached(views):
            return self.live(table)
        return self._from_features(table, views, np.ones((1, len(table)), bool), name)

    def live(self, table: ImageTable) -> Source:
        """Returns a source that reads the images anew and keeps nothing."""
        images = ImageSource(table, self.config)
        return images if self.backbone_learns else ComputedSource(images, self._compute(len(table)))

    def _cached(self, views: extraction.Views) -> bool:
        wish = self.config.features.cache
        if wish == 'True' and self.backbone_learns:
            raise UserError(
                'features of a backbone that learns cannot be kept',
                where='config.features.cache',
                mend="set it to 'auto', or label all of the backbone 'frozen' in optim.labels",
            )
        if wish == 'False' or self.backbone_learns or jax.process_count() > 1:
            return False
        return views.exact or wish == 'True'

    def _compute(self, images: int) -> extraction.Compute:
        """Returns the backbone's program, which all splits share."""
        if not self._programs:
            program = extraction.backbone_program(
                self.runner.frozen['backbone'],
                self.runner.classifier,
                image_size=self.config.data.image_size,
                images=images,
                put=self.runner.put,
            )
            self._programs.append(program)
        return self._programs[0]

    def _from_features(
        self,
        table: ImageTable,
        views: extraction.Views,
        wanted: Bool[np.ndarray, 'views n'],
        name: str,
    ) -> FeatureSource:
        opened = extraction.open_store(
            self.config,
            weights_digest=self.weights_digest,
            preprocess=self.runner.classifier.preprocess,
            backbone=self.runner.frozen['backbone'],
        )
        rows = extraction.fill(opened, table, views, wanted, self._compute, self.config, name)
        return FeatureSource(
            opened,
            table.labels,
            rows,
            choose=views.choose,
            batch_size=self.config.train.batch_size,
            seed=self.config.train.seed,
            put=functools.partial(replicate, mesh=self.runner.mesh),
        )
