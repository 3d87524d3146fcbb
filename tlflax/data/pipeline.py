"""The one image pipeline: files to batches of uint8 RGB, by tf.data.

Decode, resize and augment run in float32 and are rounded once. Batches come in the order asked for,
all of one shape, as NumPy arrays; nothing here is random, so any step can be the first.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import NotRequired, TypedDict, Unpack

import numpy as np
from jaxtyping import Int64, Shaped

from tlflax.config import AugmentConfig
from tlflax.data import augment as augmentation
from tlflax.data import sampling
from tlflax.data._tensorflow import tf
from tlflax.data.decode import MAX_PIXELS, printable, read_image
from tlflax.data.folder import ImageTable
from tlflax.data.resize import resize_image
from tlflax.errors import UserError

Batch = dict[str, np.ndarray]

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
    start_step: int = 0,
    **batch_format: Unpack[BatchFormat],
) -> Iterator[Batch]:
    """Yields an epoch's batches, shuffled and augmented as (seed, epoch) decide.

    Args:
        table: The training images.
        augment: What is done to them.
        seed: The run's seed.
        epoch: Counted from 0.
        start_step: Batches left out at the start.
        **batch_format: See `batches`, and for what is yielded.

    Raises:
        UserError: See `batches`; or a range of `augment` is not one.
    """
    order = sampling.permutation(seed, epoch, len(table.labels))
    draws = sampling.draw(augment, seed, epoch, len(order))
    return batches(
        table,
        order,
        draws={name: values[order] for name, values in draws.items()},
        fill_mode=augment.fill_mode,
        cval=augment.cval,
        start_step=start_step,
        **batch_format,
    )


def eval_epoch(table: ImageTable, **batch_format: Unpack[BatchFormat]) -> Iterator[Batch]:
    """Yields every image once, in the table's order, never augmented; see `batches`."""
    return batches(table, np.arange(len(table.labels)), **batch_format)


def batches(
    table: ImageTable,
    indices: Int64[np.ndarray, ' m'],
    *,
    image_size: tuple[int, int],
    resize: str,
    antialias: bool,
    batch_size: int,
    draws: Mapping[str, Shaped[np.ndarray, ' m']] | None = None,
    fill_mode: str = 'nearest',
    cval: float = 0.0,
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
        resize: 'stretch', 'pad' or 'crop'; see `tlflax.data.resize.resize_image`.
        antialias: Widen the filter when shrinking, as Pillow does.
        batch_size: Images of a batch over all processes.
        draws: Augmentation parameters, as from `tlflax.data.sampling.draw`; entry j is for
            `indices[j]`. None: images are not augmented.
        fill_mode: What stands outside an image after a warp; see `tlflax.data.augment.apply`.
        cval: The value for fill_mode='constant'.
        start_step: Batches left out at the start; those that follow do not depend on it.
        process_index: This process, whose contiguous part of each batch is returned.
        process_count: Processes among which each batch is shared.
        background: RGB, 0..255, behind transparent pixels.
        max_pixels: Larger images are refused, as when they were found.

    Yields:
        `image` u8[b, h, w, 3], `label` i32[b], `mask` bool[b], `index` i64[b] (the row), where b is
        batch_size / process_count. Padding: image 0, label 0, mask False, index -1.

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
    dataset = _dataset(
        table,
        indices[positions],
        augmentation.parameters(
            {name: values[positions] for name, values in draws.items()}, image_size
        ),
        image_size=image_size,
        resize=resize,
        antialias=antialias,
        batch_size=plan.shape[1],
        fill_mode=fill_mode,
        cval=cval,
        background=background,
        max_pixels=max_pixels,
    )
    return _assemble(table, np.append(indices, -1)[plan], dataset, image_size, max_pixels)


def _assemble(
    table: ImageTable,
    plan: Int64[np.ndarray, 'steps b'],
    dataset: tf.data.Dataset,
    image_size: tuple[int, int],
    max_pixels: int,
) -> Iterator[Batch]:
    """Puts the images beside their labels, and pads."""
    images = dataset.as_numpy_iterator()
    for rows in plan:
        mask = rows >= 0
        try:
            # A process may have nothing but padding in the last batch.
            image = next(images) if mask.any() else np.zeros((0, *image_size, 3), np.uint8)
        except tf.errors.OpError:
            _explain(table, rows[mask], max_pixels)
            raise
        if len(image) < len(rows):
            missing = np.zeros((len(rows) - len(image), *image_size, 3), np.uint8)
            image = np.concatenate([image, missing])
        label = np.where(mask, table.labels[rows], 0).astype(np.int32)
        yield {'image': image, 'label': label, 'mask': mask, 'index': rows}


def _dataset(
    table: ImageTable,
    rows: Int64[np.ndarray, ' m'],
    parameters: dict[str, Shaped[np.ndarray, 'm ...']],
    *,
    image_size: tuple[int, int],
    resize: str,
    antialias: bool,
    batch_size: int,
    fill_mode: str,
    cval: float,
    background: tuple[int, int, int],
    max_pixels: int,
) -> tf.data.Dataset:
    """A tf.data pipeline over images u8[b, h, w, 3]; the last batch may be short."""

    def by_pillow(path: bytes) -> np.ndarray:
        return read_image(os.fsdecode(path), background=background, max_pixels=max_pixels)

    @tf.autograph.experimental.do_not_convert
    def load(item: dict[str, tf.Tensor]) -> tf.Tensor:
        image = _decode(item['path'], item['plain_jpeg'], by_pillow)
        image = resize_image(image, image_size, resize, antialias=antialias)
        return augmentation.apply(image, item['parameters'], fill_mode=fill_mode, cval=cval)

    source = {
        # File names are bytes that need not be UTF-8.
        'path': np.array([os.fsencode(path) for path in table.paths[rows]], object),
        'plain_jpeg': table.plain_jpeg[rows],
        'parameters': parameters,
    }
    workers = _cores()
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = workers
    options.threading.max_intra_op_parallelism = 1  # one image, one thread
    dataset = tf.data.Dataset.from_tensor_slices(source)
    dataset = dataset.map(load, num_parallel_calls=workers).batch(batch_size).prefetch(_AHEAD)
    return dataset.with_options(options)


def _cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _decode(
    path: tf.Tensor, plain_jpeg: tf.Tensor, by_pillow: Callable[[bytes], np.ndarray]
) -> tf.Tensor:
    """u8[?, ?, 3] from a file, with the pixels of `read_image`, which is slower for a JPEG."""
    image = tf.cond(
        plain_jpeg,
        lambda: _decode_jpeg(path),
        lambda: tf.numpy_function(by_pillow, [path], tf.uint8),
    )
    image.set_shape([None, None, 3])
    return image


def _decode_jpeg(path: tf.Tensor) -> tf.Tensor:
    # Pillow too uses the accurate transform; TensorFlow's default is faster and less exact.
    return tf.io.decode_jpeg(tf.io.read_file(path), channels=3, dct_method='INTEGER_ACCURATE')


def _explain(table: ImageTable, rows: Int64[np.ndarray, ' m'], max_pixels: int) -> None:
    """Raises a UserError naming the first of these files that cannot be decoded, if there is one.

    An error from inside tf.data names no file.
    """
    for path, plain_jpeg in zip(table.paths[rows], table.plain_jpeg[rows], strict=True):
        read_image(path, max_pixels=max_pixels)
        try:
            # Its decoder takes other formats too, some with one axis more.
            sound = not plain_jpeg or _decode_jpeg(tf.constant(os.fsencode(path))).shape.rank == 3
        except tf.errors.OpError:
            sound = False
        if not sound:
            raise UserError(
                'cannot be decoded as the plain JPEG that was found at the start',
                where=printable(path),
                mend='run again if it has changed since, else save it anew as PNG',
            )
