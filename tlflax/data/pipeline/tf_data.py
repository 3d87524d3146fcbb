"""The one image pipeline: files to batches of uint8 RGB, by tf.data.

Decode, resize and augment run in float32 and are rounded once. Batches come in the order asked for,
all of one shape, as NumPy arrays; nothing here is random, so any step can be the first.
"""

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NotRequired, TypedDict, Unpack

import numpy as np
from jaxtyping import Int64, Shaped

from tlflax.config.schema import AugmentConfig
from tlflax.data._tensorflow import tf
from tlflax.data.augment import apply as augmentation
from tlflax.data.augment import mixup, ranges, sampling
from tlflax.data.images.decode import MAX_PIXELS, read_image
from tlflax.data.pipeline import crops, tf_decode
from tlflax.data.table import ImageTable
from tlflax.utils import cpu

Batch = dict[str, np.ndarray]

_DEFAULT = AugmentConfig()
_IN_FLIGHT = 8  # images begun for each core, lest a slow one holds up the others
_AHEAD = 2  # batches ready before they are asked for: what this pipeline holds is bounded


class BatchFormat(TypedDict):
    """What all batches have in common; see `batches`."""

    image_size: tuple[int, int]
    resize: str
    antialias: bool
    batch_size: int
    process_index: NotRequired[int]
    process_count: NotRequired[int]
    background: NotRequired[tuple[int, int, int]]
    max_pixels: NotRequired[int]


def train_epoch(
    table: ImageTable,
    *,
    augment: AugmentConfig,
    seed: int,
    epoch: int,
    balanced: bool = False,
    start_step: int = 0,
    **batch_format: Unpack[BatchFormat],
) -> Iterator[Batch]:
    """Yields an epoch's batches, shuffled and augmented as (seed, epoch) decide.

    Args:
        table: The training images.
        augment: What is done to them.
        seed: The run's seed.
        epoch: Counted from 0.
        balanced: Draw classes equally often; see `tlflax.data.augment.sampling.epoch_order`.
        start_step: Batches left out at the start.
        **batch_format: See `batches`, and for what is yielded.

    Raises:
        UserError: See `batches`; or `augment` contradicts itself.
    """
    ranges.check(augment, batch_format['image_size'])
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
) -> Iterator[Batch]:
    """Yields rows of the table as they are augmented in an epoch; see `train_epoch`."""
    draws = sampling.draw(augment, seed, epoch, len(table.labels))
    mixed = mixup.draw(augment, seed, epoch, len(table.labels), batch_format['image_size'])
    return batches(
        table,
        rows,
        draws=_pick(draws, rows),
        augment=augment,
        mixed=mixed.select(rows) if mixed else None,
        partner_draws=_pick(draws, mixed.partner[rows]) if mixed else None,
        start_step=start_step,
        **batch_format,
    )


def eval_epoch(
    table: ImageTable,
    *,
    augment: AugmentConfig = _DEFAULT,
    view: sampling.View | None = None,
    **batch_format: Unpack[BatchFormat],
) -> Iterator[Batch]:
    """Yields every image once, in the table's order, all in one view; see `batches`.

    Args:
        table: The images.
        augment: What training does to them, which decides how evaluation sees them.
        view: What is done to all of them; None: what `tlflax.data.augment.sampling.plain` says.
        **batch_format: See `batches`.
    """
    n = len(table.labels)
    draws = sampling.repeat(sampling.plain(augment) if view is None else view, n)
    return batches(table, np.arange(n), draws=draws, augment=augment, **batch_format)


def batches(
    table: ImageTable,
    indices: Int64[np.ndarray, ' m'],
    *,
    image_size: tuple[int, int],
    resize: str,
    antialias: bool,
    batch_size: int,
    draws: Mapping[str, Shaped[np.ndarray, ' m']] | None = None,
    augment: AugmentConfig = _DEFAULT,
    mixed: mixup.Mixing | None = None,
    partner_draws: sampling.Draws | None = None,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    background: tuple[int, int, int] = (0, 0, 0),
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Batch]:
    """Yields images in the order of `indices`, in batches of one shape.

    Args:
        table: The images.
        indices: Rows of the table; a row may come more than once.
        image_size: (height, width) of a batch's images.
        resize: 'stretch', 'pad' or 'crop'; see `tlflax.data.pipeline.resize.resize_image`.
        antialias: Widen the filter when shrinking, as Pillow does.
        batch_size: Images of a batch over all processes.
        draws: Augmentation parameters, as from `tlflax.data.augment.sampling.draw`; entry j is for
            `indices[j]`. None: images are not augmented.
        augment: The settings that `draws` do not hold, such as `fill_mode`.
        mixed: How entry j is mixed with another row of the table; None: not at all.
        partner_draws: That row's augmentation parameters.
        start_step: Batches left out at the start; those that follow do not depend on it.
        process_index: This process, whose contiguous part of each batch is returned.
        process_count: Processes among which each batch is shared.
        background: RGB, 0..255, behind transparent pixels.
        max_pixels: Larger images are refused, as when they were found.

    Yields:
        `image` u8[b, h, w, 3], `label` i32[b], `mask` bool[b], `index` i64[b] (the row), where b is
        batch_size / process_count. Padding: image 0, label 0, mask False, index -1. Of images that
        are mixed also `mix_label` i32[b] and `mix` f32[b]: the part `mix` belongs to `label`, the
        rest to `mix_label`. Padding: 0 and 1.

    Raises:
        UserError: A file cannot be read or decoded; names it. Batches cannot be shared equally.
    """
    draws = draws or {}
    if any(len(values) != len(indices) for values in draws.values()):
        raise ValueError('draws and indices differ in length')
    plan = sampling.batch_rows(
        np.arange(len(indices)),
        batch_size,
        start_step=start_step,
        process_index=process_index,
        process_count=process_count,
    )
    # Padding stands at the end of the last batch only: `positions` are the plan without it.
    positions = plan[plan >= 0]
    items = _items(table, indices[positions], _pick(draws, positions), image_size, augment)
    rows = np.append(indices, -1)[plan]
    reads, extra = rows, {}
    if mixed is not None:
        part = mixed.select(positions)
        others = _pick(partner_draws or {}, positions)
        items |= {'mix': part.mix, 'box': part.box}
        items['partner'] = _items(table, part.partner, others, image_size, augment)
        reads = np.concatenate([rows, np.append(mixed.partner, -1)[plan]], axis=1)
        label = np.append(table.labels[mixed.partner], 0)[plan].astype(np.int32)
        extra = {'mix_label': label, 'mix': np.append(mixed.mix, np.float32(1))[plan]}
    dataset = _dataset(
        items,
        image_size=image_size,
        resize=resize,
        antialias=antialias,
        batch_size=plan.shape[1],
        augment=augment,
        background=background,
        max_pixels=max_pixels,
    )
    return _assemble(table, rows, dataset, image_size, max_pixels, reads, extra)


def _pick(draws: Mapping[str, np.ndarray], entries: Int64[np.ndarray, ' k']) -> sampling.Draws:
    return {name: values[entries] for name, values in draws.items()}


def _items(
    table: ImageTable,
    rows: Int64[np.ndarray, ' m'],
    draws: sampling.Draws,
    image_size: tuple[int, int],
    augment: AugmentConfig,
) -> dict[str, Any]:
    """What it takes to make an image of each of these rows."""
    return {
        # File names are bytes that need not be UTF-8.
        'path': np.array([os.fsencode(path) for path in table.paths[rows]], object),
        'plain_jpeg': table.plain_jpeg[rows],
        'parameters': augmentation.parameters(draws, image_size, augment),
    }


def _assemble(
    table: ImageTable,
    plan: Int64[np.ndarray, 'steps b'],
    dataset: tf.data.Dataset,
    image_size: tuple[int, int],
    max_pixels: int,
    reads: Int64[np.ndarray, 'steps r'],
    extra: Mapping[str, Shaped[np.ndarray, 'steps b']],
) -> Iterator[Batch]:
    """Puts the images beside their labels and `extra`, and pads; `reads` are the rows to blame."""
    images = dataset.as_numpy_iterator()
    for step, rows in enumerate(plan):
        mask = rows >= 0
        try:
            # A process may have nothing but padding in the last batch.
            image = next(images) if mask.any() else np.zeros((0, *image_size, 3), np.uint8)
        except tf.errors.OpError:
            tf_decode.explain(table, reads[step][reads[step] >= 0], max_pixels)
            raise
        if len(image) < len(rows):
            missing = np.zeros((len(rows) - len(image), *image_size, 3), np.uint8)
            image = np.concatenate([image, missing])
        label = np.where(mask, table.labels[rows], 0).astype(np.int32)
        more = {name: values[step] for name, values in extra.items()}
        yield {'image': image, 'label': label, 'mask': mask, 'index': rows, **more}


def _dataset(
    items: dict[str, Any],
    *,
    image_size: tuple[int, int],
    resize: str,
    antialias: bool,
    batch_size: int,
    augment: AugmentConfig,
    background: tuple[int, int, int],
    max_pixels: int,
) -> tf.data.Dataset:
    """A tf.data pipeline over images u8[b, h, w, 3]; the last batch may be short."""
    load = _loader(image_size, resize, antialias, augment, background, max_pixels)
    dataset = tf.data.Dataset.from_tensor_slices(items).map(load, num_parallel_calls=in_flight())
    return dataset.batch(batch_size).prefetch(_AHEAD).with_options(options())


def in_flight() -> int:
    """How many images are begun at a time."""
    return _IN_FLIGHT * cpu.cores()


def options() -> tf.data.Options:
    """How the pipeline is run."""
    how = tf.data.Options()
    how.deterministic = True
    how.autotune.enabled = False  # nothing here is left to it, and at times it halts the rest
    how.experimental_optimization.apply_default_optimizations = False  # slower to start
    how.threading.private_threadpool_size = cpu.cores() + 2  # some wait for others
    how.threading.max_intra_op_parallelism = 1  # one image, one thread
    return how


@functools.lru_cache(maxsize=16)  # tracing it takes longer than a few batches
def _loader(
    image_size: tuple[int, int],
    resize: str,
    antialias: bool,
    augment: AugmentConfig,
    background: tuple[int, int, int],
    max_pixels: int,
) -> Callable[[dict[str, Any]], tf.Tensor]:
    """What makes one image u8[h, w, 3] of one of `_items`."""

    def by_pillow(path: bytes) -> np.ndarray:
        return read_image(os.fsdecode(path), background=background, max_pixels=max_pixels)

    def view(item: dict[str, Any]) -> tf.Tensor:
        image = tf_decode.decode_file(item['path'], item['plain_jpeg'], by_pillow)
        image = crops.resize(
            image,
            item['parameters'],
            size=image_size,
            mode=resize,
            antialias=antialias,
            augment=augment,
        )
        return augmentation.apply(image, item['parameters'], augment)

    def load(item: dict[str, Any]) -> tf.Tensor:
        image = view(item)
        if 'partner' not in item:
            return image
        return augmentation.mix(image, lambda: view(item['partner']), item['mix'], item['box'])

    return tf.function(load, autograph=False)
