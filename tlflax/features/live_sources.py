"""Batches of images, or of what a frozen backbone makes of them, computed in every epoch."""

import contextlib

import numpy as np
from jaxtyping import Float32

from tlflax.config.schema import AugmentConfig
from tlflax.data.augment import sampling
from tlflax.data.images.format import ImageFormat
from tlflax.data.pipeline.batch import Batches, BatchFormat
from tlflax.data.table import ImageTable
from tlflax.features.batches import Order
from tlflax.features.programs import Compute
from tlflax.utils.parallel import processes


class ImageSource:
    """Decodes, resizes and augments the images of every epoch.

    Args:
        table: The images.
        image_format: How they are read.
        augment: The augmentations of training.
        order: How they are put into batches.
        view: How evaluation shows them; None: as `tlflax.data.augment.sampling.plain` says.
    """

    def __init__(
        self,
        table: ImageTable,
        image_format: ImageFormat,
        augment: AugmentConfig,
        order: Order,
        view: sampling.View | None = None,
    ) -> None:
        self.num_examples = len(table)
        self._table, self._image_format, self._augment = table, image_format, augment
        self._order, self._view = order, view

    @property
    def _batch_format(self) -> BatchFormat:
        return {
            'image_format': self._image_format,
            'batch_size': self._order.batch_size,
            'process_index': processes.index(),
            'process_count': processes.count(),
        }

    def train_batches(self, epoch: int, start_step: int) -> Batches:
        """See `tlflax.features.batches.StreamedSource`."""
        from tlflax.data.pipeline import tf_data  # imports TensorFlow, which cached runs spare

        batches = tf_data.train_epoch(
            self._table,
            augment=self._augment,
            seed=self._order.seed,
            epoch=epoch,
            balanced=self._order.balanced,
            start_step=start_step,
            **self._batch_format,
        )
        return weighted(batches, self._table.weights)

    def eval_batches(self) -> Batches:
        """See `tlflax.features.batches.StreamedSource`."""
        from tlflax.data.pipeline import tf_data

        return tf_data.eval_epoch(
            self._table,
            augment=self._augment,
            view=self._view,
            **self._batch_format,
        )


class ComputedSource:
    """Runs a frozen backbone on every batch of images.

    Args:
        images: The source of the images.
        compute: The backbone.
    """

    def __init__(self, images: ImageSource, compute: Compute) -> None:
        self.num_examples = images.num_examples
        self._images, self._compute = images, compute

    def train_batches(self, epoch: int, start_step: int) -> Batches:
        """See `tlflax.features.batches.StreamedSource`."""
        return self._features(self._images.train_batches(epoch, start_step))

    def eval_batches(self) -> Batches:
        """See `tlflax.features.batches.StreamedSource`."""
        return self._features(self._images.eval_batches())

    def _features(self, batches: Batches) -> Batches:
        with contextlib.closing(batches):
            for batch in batches:
                batch['features'] = self._compute(batch.pop('image'))
                yield batch


def weighted(batches: Batches, weights: Float32[np.ndarray, ' n'] | None) -> Batches:
    """Adds the weights of the images to batches, if the table has any."""
    with contextlib.closing(batches):
        for batch in batches:
            if weights is not None:
                batch['weight'] = np.where(batch['mask'], weights[batch['index']], 0)
            yield batch
