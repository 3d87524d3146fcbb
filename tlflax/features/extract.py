"""Features of a frozen backbone: computed once for each (image, view), and kept."""

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8, UInt64

from tlflax.config.schema import AugmentConfig
from tlflax.data.augment import sampling
from tlflax.data.images.format import ImageFormat
from tlflax.data.pipeline.batch import Batches
from tlflax.data.table import ImageTable
from tlflax.features.cache import quota
from tlflax.features.cache.store import Store
from tlflax.features.views import Views, view_keys
from tlflax.models.base.modules import Variables
from tlflax.models.classifier import Classifier
from tlflax.models.weights import preprocess
from tlflax.utils import assets
from tlflax.utils.errors import UserError
from tlflax.utils.progress import progress
from tlflax.utils.sharding import put_batch

BATCH = 32  # images computed at once on a CPU: the activations of more do not fit its cache
ACCELERATOR_BATCH = 256  # on each accelerator, to fill it
_VERSION = 1  # of the arithmetic from file to feature: raise it when values of features change
_WORTH_MEASURING = 20_000 * 224**2  # pixels, about half an hour on two cores
Compute = Callable[[UInt8[np.ndarray, 'b h w 3']], jax.Array]
"""Turns a batch of images into features on the device, f[b, ...]."""


def describe_space(
    image_format: ImageFormat, classifier: Classifier, *, weights_digest: str
) -> dict[str, object]:
    """Returns everything that determines a feature apart from the image and its view.

    Args:
        image_format: How image files are read.
        classifier: Its preprocessing, backbone, cut and compute type.
        weights_digest: The digest of the backbone's variables.
    """
    backbone, layer = classifier.backbone, classifier.cut
    background, corrected = image_format.background, backbone.corrected.get(layer)
    interpolation = image_format.interpolation
    return {
        'version': _VERSION,
        'weights': weights_digest,
        'preprocess': classifier.preprocess,
        'image_size': list(image_format.image_size),
        'resize': image_format.resize,
        'antialias': image_format.antialias,
        'layer': layer,
        'compute': classifier.dtype,
        **({'taps': list(map(str, classifier.taps))} if classifier.taps else {}),
        # Features computed before there was a choice of backgrounds stay valid.
        **({'background': list(background)} if any(background) else {}),
        **({'interpolation': interpolation} if interpolation != 'bilinear' else {}),
        # Released versions kept other values under this layer's name.
        **({corrected: True} if corrected else {}),
        # The digest of the weights tells built-in backbones apart; another may compute anything.
        **({'code': backbone.code, 'backbone': backbone.name} if backbone.code else {}),
    }


def open_store(space: Mapping[str, object], row_shape: Sequence[int], dtype: str) -> Store:
    """Opens the store of a feature space in the user's cache folder; see `Store`."""
    return Store(assets.cache_folder() / 'features', space, row_shape, dtype)


@functools.partial(jax.jit, static_argnames=('classifier',))
def backbone_step(
    backbone: Variables, image: Shaped[Array, 'b h w 3'], *, classifier: Classifier
) -> Float[Array, 'b ...']:
    """Returns the features of a batch of RGB images in 0..255."""
    return classifier.features(backbone, image)


def batch_size() -> int:
    """Returns how many images are computed at once on the devices of this process."""
    on_cpu = jax.default_backend() == 'cpu'
    return BATCH if on_cpu else ACCELERATOR_BATCH * jax.device_count()


def backbone_program(
    backbone: Variables,
    classifier: Classifier,
    *,
    image_size: tuple[int, int],
    images: int,
    mesh: Mesh,
) -> Compute:
    """Returns the fastest program for features on these devices.

    Args:
        backbone: The backbone's variables.
        classifier: The preprocessing, the cut and the compute type.
        image_size: (height, width) in pixels.
        images: Number of images to come; for many, it pays to measure what is fastest.
        mesh: The devices over which batches are split.
    """
    fast_cpu = classifier.backbone.fast_cpu
    if fast_cpu and jax.default_backend() == 'cpu' and classifier.dtype != 'bfloat16':
        program = fast_cpu(
            backbone.params,
            layer=classifier.cut,
            taps=classifier.taps,
            shape=(BATCH, *image_size),
            before=preprocess.PREPROCESS[classifier.preprocess],
            measured=images * math.prod(image_size) > _WORTH_MEASURING,
        )
        if program is not None:
            return program
    return lambda image: backbone_step(
        backbone, put_batch({'image': image}, mesh)['image'], classifier=classifier
    )


def fill(
    store: Store,
    table: ImageTable,
    views: Views,
    wanted: Bool[np.ndarray, 'views n'],
    program: Callable[[int], Compute],
    *,
    image_format: ImageFormat,
    max_bytes: float,
    name: str,
) -> Int[np.ndarray, 'views n']:
    """Computes the features that are missing and returns the row number of every wanted view.

    What was computed before an interruption or error stays in the store.

    Args:
        store: Where features are kept.
        table: The images.
        views: Their views.
        wanted: Which view of which image is needed.
        program: Number of images to the program that computes their features.
        image_format: How images are read.
        max_bytes: The limit of all stores together.
        name: The split, for the log.

    Returns:
        Row numbers in the store; -1 for views that are not wanted.

    Raises:
        UserError: They cannot be stored, or not read back.
    """
    keys = np.stack([view_keys(table.digests, view) for view in views.names])
    rows = np.stack([store.lookup(view) for view in keys])
    view, index = np.nonzero(wanted & (rows < 0))
    if len(index):
        size = quota.predict_bytes(len(index), store.row_shape, store.dtype.name)
        logging.info(
            '%s: computing features of %d of %d views of %d images (%.0f MB)',
            *(name, len(index), int(wanted.sum()), len(table), size / 1e6),
        )
        quota.reserve(store.root, size, max_bytes)
        compute = program(len(index))
        images = _images(table, index, views.drawn(view, index), views.augment, image_format)
        _append(store, keys[view, index], images, compute, name)
        rows = np.stack([store.lookup(view) for view in keys])
        _check_found(store, int((wanted & (rows < 0)).sum()))
    return np.where(wanted, rows, -1)


def _check_found(store: Store, lost: int) -> None:
    """Refuses to go on where features that were just written are not found."""
    if lost:
        raise UserError(
            f'{lost} features that were just written cannot be read back',
            where=str(store.folder),
            fix='the disk may be failing: set TLFLAX_CACHE to a folder on another one, or '
            'features.cache=False',
        )


def _append(
    store: Store, keys: UInt64[np.ndarray, 'm 2'], images: Batches, compute: Compute, name: str
) -> None:
    """Computes the features of images and stores each under its key."""
    began, done = time.perf_counter(), 0
    with progress(f'{name} features', len(keys)) as tick, contextlib.closing(images):
        for values in _compute_all(images, compute):
            last = done + len(values)
            store.append(keys[done:last], values)
            tick(len(values))
            done = last
    store.flush()
    logging.info('%s: %.1f images/s', name, len(keys) / (time.perf_counter() - began))


def _compute_all(batches: Batches, compute: Compute) -> Iterator[Float[np.ndarray, 'b ...']]:
    """Yields each batch's features while the next batch is being computed."""
    before: tuple[int, jax.Array] | None = None
    for batch in itertools.chain(batches, [None]):
        after = None if batch is None else (int(batch['mask'].sum()), compute(batch['image']))
        if before is not None:
            count, values = before
            yield np.asarray(values)[:count]
        before = after


def _images(
    table: ImageTable,
    rows: Int[np.ndarray, ' m'],
    draws: sampling.Draws,
    augment: AugmentConfig,
    image_format: ImageFormat,
) -> Batches:
    from tlflax.data.pipeline import tf_data  # imports TensorFlow, which cached runs spare

    return tf_data.batches(
        table,
        rows,
        draws=draws,
        augment=augment,
        image_format=image_format,
        batch_size=batch_size(),
    )
