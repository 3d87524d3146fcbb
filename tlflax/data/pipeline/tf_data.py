"""The image pipeline: files to batches of uint8 RGB, by tf.data.

Decoding, resizing and augmentation run in float32 and are rounded once. Batches come in the order
asked for, all of one shape, as NumPy arrays. Nothing here is random, so an epoch can start at any
step. Closing an iterator of batches, or reading it to its end, ends its threads.
"""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Unpack

import numpy as np
import tensorflow as tf
from jaxtyping import Int64

from tlflax.config.schema import AugmentConfig
from tlflax.data._tensorflow import on_cpu
from tlflax.data.augment import apply as augmentation
from tlflax.data.augment import mixup, ranges, sampling
from tlflax.data.images.decode import read_image
from tlflax.data.images.format import ImageFormat
from tlflax.data.pipeline import one_image, tf_decode
from tlflax.data.pipeline.batch import Batches, BatchFormat
from tlflax.data.pipeline.examples import Examples, make_batch, make_items, pick
from tlflax.data.table import ImageTable
from tlflax.utils import cpu

_DEFAULT = AugmentConfig()
_IN_FLIGHT = 8  # images in progress for each core, so that a slow one does not hold up the others
_AHEAD = 2  # batches ready before they are asked for, which bounds the memory


def train_epoch(
    table: ImageTable,
    *,
    augment: AugmentConfig,
    seed: int,
    epoch: int,
    balanced: bool = False,
    start_step: int = 0,
    **batch_format: Unpack[BatchFormat],
) -> Batches:
    """Yields the batches of one epoch, shuffled and augmented as (seed, epoch) decide.

    Args:
        table: The training images.
        augment: The augmentations.
        seed: The run's seed.
        epoch: Counted from 0.
        balanced: Draw classes equally often; see `tlflax.data.augment.sampling.epoch_order`.
        start_step: Batches to skip at the start.
        **batch_format: See `batches`.

    Raises:
        UserError: See `batches`; or `augment` contradicts itself.
    """
    ranges.check(augment, batch_format['image_format'].image_size)
    order = sampling.epoch_order(seed, epoch, table.labels, balanced=balanced)
    return augmented(
        table,
        order,
        augment=augment,
        seed=seed,
        epoch=epoch,
        start_step=start_step,
        **batch_format,
    )


def augmented(
    table: ImageTable,
    rows: Int64[np.ndarray, ' m'],
    *,
    augment: AugmentConfig,
    seed: int,
    epoch: int,
    start_step: int = 0,
    **batch_format: Unpack[BatchFormat],
) -> Batches:
    """Yields rows of the table as an epoch augments them; see `train_epoch`."""
    size = batch_format['image_format'].image_size
    draws = sampling.draw(augment, seed, epoch, len(table.labels))
    mixing = mixup.draw(augment, seed, epoch, len(table.labels), size)
    examples = Examples(rows, pick(draws, rows))
    if mixing is not None:
        mixing = mixing.select(rows)
        examples = Examples(rows, examples.draws, mixing, pick(draws, mixing.partner))
    return _batches(table, examples, augment, start_step, **batch_format)


def eval_epoch(
    table: ImageTable,
    *,
    augment: AugmentConfig = _DEFAULT,
    view: sampling.View | None = None,
    **batch_format: Unpack[BatchFormat],
) -> Batches:
    """Yields every image once, in the table's order, all in one view; see `batches`.

    Args:
        table: The images.
        augment: The augmentations of training, which decide the default view.
        view: How every image is shown; None: as `tlflax.data.augment.sampling.plain` says.
        **batch_format: See `batches`.
    """
    n = len(table.labels)
    draws = sampling.repeat(sampling.plain(augment) if view is None else view, n)
    return batches(table, np.arange(n), draws=draws, augment=augment, **batch_format)


def batches(
    table: ImageTable,
    rows: Int64[np.ndarray, ' m'],
    *,
    draws: sampling.Draws | None = None,
    augment: AugmentConfig = _DEFAULT,
    start_step: int = 0,
    **batch_format: Unpack[BatchFormat],
) -> Batches:
    """Yields images in the order of `rows`, in batches of one shape.

    Args:
        table: The images.
        rows: Rows of the table; a row may occur more than once.
        draws: Augmentation parameters, as from `tlflax.data.augment.sampling.draw`; entry j is for
            `rows[j]`. None: images are not augmented.
        augment: The settings that `draws` do not hold, such as `fill_mode`.
        start_step: Batches to skip at the start; those that follow do not depend on it.
        **batch_format: `image_format`, how images are read; `batch_size`, images of a batch over
            all processes; `process_index` and `process_count`, which part of each batch to yield
            (default: all of it).

    Yields:
        Batches of b = batch_size / process_count examples; see `tlflax.data.pipeline.batch.Batch`.

    Raises:
        UserError: A file cannot be read or decoded; names it. Batches cannot be shared equally.
    """
    draws = dict(draws or {})
    if any(len(values) != len(rows) for values in draws.values()):
        raise ValueError('draws and rows differ in length')
    return _batches(table, Examples(rows, draws), augment, start_step, **batch_format)


def _batches(
    table: ImageTable,
    examples: Examples,
    augment: AugmentConfig,
    start_step: int,
    *,
    image_format: ImageFormat,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Builds the pipeline of some examples; see `batches`."""
    plan = sampling.batch_rows(
        np.arange(len(examples.rows)),
        batch_size,
        start_step=start_step,
        process_index=process_index,
        process_count=process_count,
    )
    # The last batch alone is padded, at its end: without padding the plan is one sequence.
    items = make_items(table, examples.select(plan[plan >= 0]), image_format.image_size, augment)
    with on_cpu():
        dataset = tf.data.Dataset.from_tensor_slices(items)
    dataset = dataset.map(_loader(image_format, augment), num_parallel_calls=in_flight())
    dataset = dataset.batch(plan.shape[1]).prefetch(_AHEAD).with_options(options())
    return _assemble(table, examples, plan, dataset, image_format)


def _assemble(
    table: ImageTable,
    examples: Examples,
    plan: Int64[np.ndarray, 'steps b'],
    dataset: tf.data.Dataset,
    image_format: ImageFormat,
) -> Batches:
    """Adds labels to the images of a pipeline, and padding."""
    with on_cpu():
        images = dataset.as_numpy_iterator()
    nothing = np.zeros((0, *image_format.image_size, 3), np.uint8)
    try:
        for step in plan:
            mask = step >= 0
            real = examples.select(step[mask])
            failure = None
            try:
                # In the last batch, a process may have nothing but padding.
                image = next(images) if mask.any() else nothing
            except tf.errors.OpError as error:
                failure = error.with_traceback(None)  # its frames refer to the iterator
                failure.__context__ = None
            if failure is not None:
                tf_decode.explain(table, real.files, image_format.max_pixels)
                raise failure
            yield make_batch(table, real, mask, image)
    finally:
        del images, dataset  # their threads end now, even if an exception refers to this frame


def in_flight() -> int:
    """Returns how many images are in progress at a time."""
    return _IN_FLIGHT * cpu.cores()


def options() -> tf.data.Options:
    """Returns the options under which the pipeline runs."""
    how = tf.data.Options()
    how.deterministic = True
    how.autotune.enabled = False  # it has nothing to decide here, and at times it stalls the rest
    how.experimental_optimization.apply_default_optimizations = False  # slower to start
    how.threading.private_threadpool_size = cpu.cores() + 2  # some wait for others
    how.threading.max_intra_op_parallelism = 1  # one image, one thread
    return how


@functools.lru_cache(maxsize=16)  # tracing the function takes longer than a few batches
def _loader(
    image_format: ImageFormat, augment: AugmentConfig
) -> Callable[[Mapping[str, tf.Tensor]], tf.Tensor]:
    """Returns the function that makes one image u8[h, w, 3] of one of `make_items`."""

    def by_pillow(path: bytes) -> np.ndarray:
        return read_image(
            os.fsdecode(path),
            background=image_format.background,
            max_pixels=image_format.max_pixels,
        )

    def view(item: Mapping[str, tf.Tensor]) -> tf.Tensor:
        image = tf_decode.decode_file(item['path'], item['plain_jpeg'], by_pillow)
        return one_image.transform(image, item['parameters'], image_format, augment)

    def load(item: Mapping[str, tf.Tensor]) -> tf.Tensor:
        image = view(item)
        if 'partner' not in item:
            return image
        return augmentation.mix(image, lambda: view(item['partner']), item['mix'], item['box'])

    return tf.function(load, autograph=False)
