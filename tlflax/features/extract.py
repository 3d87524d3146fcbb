"""Features of a frozen backbone: computed once for each (image, view), ever, and kept."""

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from tlflax.config.schema import Config
from tlflax.data.augment import sampling
from tlflax.data.table import ImageTable
from tlflax.features.cache import quota
from tlflax.features.cache.store import Store
from tlflax.features.views import Views, view_keys
from tlflax.models import classifier as classifiers
from tlflax.models import preprocess
from tlflax.models.classifier import Classifier, Params
from tlflax.models.vgg import autotune, fast_cpu
from tlflax.utils import assets
from tlflax.utils.progress import progress
from tlflax.utils.sharding import put_batch

BATCH = 32  # images computed at once on a CPU, where more would leave the cache
ACCELERATOR_BATCH = 256  # on each accelerator, to fill it
_VERSION = 1  # of the arithmetic from file to feature: raise it when their values change
_WORTH_MEASURING = 20_000 * 224**2  # pixels, about half an hour on two cores
Compute = Callable[[UInt8[np.ndarray, 'b h w 3']], jax.Array]
"""Turns a batch of images into features on the device, f[b, ...]."""


def describe_space(config: Config, *, weights_digest: str, preprocess: str) -> dict[str, Any]:
    """Returns everything that determines a feature apart from the image and its view."""
    background = config.data.background
    return {
        'version': _VERSION,
        'weights': weights_digest,
        'preprocess': preprocess,
        'image_size': list(config.data.image_size),
        'resize': config.data.resize,
        'antialias': config.data.antialias,
        'layer': config.features.layer,
        'compute': config.model.dtype,
        # Features computed before this was a choice stay valid.
        **({'background': list(background)} if any(background) else {}),
    }


def open_store(config: Config, *, weights_digest: str, preprocess: str, backbone: Params) -> Store:
    """Opens the store of the features that a configuration asks for."""
    shape = classifiers.feature_shape(
        backbone, image_size=config.data.image_size, layer=config.features.layer
    )
    described = describe_space(config, weights_digest=weights_digest, preprocess=preprocess)
    return Store(assets.cache_folder() / 'features', described, shape, config.features.dtype)


@functools.partial(jax.jit, static_argnames=('classifier',))
def backbone_step(
    backbone: Params, image: Shaped[Array, 'b h w 3'], *, classifier: Classifier
) -> Float[Array, 'b ...']:
    """Returns a batch's features, for the cache."""
    return classifier.features(backbone, image)


def batch_size() -> int:
    """Returns how many images are computed at once here."""
    on_cpu = jax.default_backend() == 'cpu'
    return BATCH if on_cpu else ACCELERATOR_BATCH * jax.device_count()


def backbone_program(
    backbone: Params,
    classifier: Classifier,
    *,
    image_size: tuple[int, int],
    images: int,
    mesh: Mesh,
) -> Compute:
    """Returns the fastest way to compute features here.

    Args:
        backbone: Its parameters.
        classifier: Says what is computed, with which preprocessing and up to which layer.
        image_size: (height, width) in pixels.
        images: How many there will be; for many, it pays to measure what is fastest.
        mesh: The devices over which batches are split.
    """
    if jax.default_backend() == 'cpu' and classifier.dtype != 'bfloat16':
        chosen = autotune.choose(
            backbone,
            (BATCH, *image_size),
            assets.cache_folder() / 'plans',
            measured=images * math.prod(image_size) > _WORTH_MEASURING,
        )
        before = preprocess.PREPROCESS[classifier.preprocess]
        return fast_cpu.compiled(backbone, chosen, layer=classifier.layer, before=before)
    return lambda image: backbone_step(
        backbone, put_batch({'image': image}, mesh)['image'], classifier=classifier
    )


def fill(
    opened: Store,
    table: ImageTable,
    views: Views,
    wanted: Bool[np.ndarray, 'views n'],
    program: Callable[[int], Compute],
    config: Config,
    name: str,
) -> Int[np.ndarray, 'views n']:
    """Computes what is missing and returns the row number of every wanted view, -1 elsewhere.

    Whatever was computed before an interruption or error stays in the store.
    """
    all_keys = np.stack([view_keys(table.digests, view) for view in views.names])
    rows = np.stack([opened.lookup(row_keys) for row_keys in all_keys])
    view, index = np.nonzero(wanted & (rows < 0))
    if len(index):
        size = quota.predict_bytes(len(index), opened.row_shape, config.features.dtype)
        logging.info(
            '%s: computing features of %d of %d views of %d images (%.0f MB)',
            *(name, len(index), int(wanted.sum()), len(table), size / 1e6),
        )
        quota.reserve(opened.root, size, config.features.max_gb * 1e9)
        compute = program(len(index))
        draws = {
            parameter: np.stack([draws[parameter] for draws in views.draws])[view, index]
            for parameter in views.draws[0]
        }
        began = time.perf_counter()
        with progress(f'{name} features', len(index)) as tick:
            done = 0
            for values in _compute_all(_images(table, index, draws, config), compute):
                last = done + len(values)
                opened.append(all_keys[view[done:last], index[done:last]], values)
                tick(len(values))
                done = last
        opened.flush()
        logging.info('%s: %.1f images/s', name, len(index) / (time.perf_counter() - began))
        rows = np.stack([opened.lookup(row_keys) for row_keys in all_keys])
    return np.where(wanted, rows, -1)


def _compute_all(
    batches: Iterator[dict[str, np.ndarray]], compute: Compute
) -> Iterator[Float[np.ndarray, 'b ...']]:
    """Yields each batch's features, while the next batch is under way."""
    before: tuple[int, jax.Array] | None = None
    for batch in itertools.chain(batches, [None]):
        after = None if batch is None else (int(batch['mask'].sum()), compute(batch['image']))
        if before is not None:
            count, values = before
            yield np.asarray(values)[:count]
        before = after


def _images(
    table: ImageTable,
    indices: Int[np.ndarray, ' m'],
    draws: sampling.Draws,
    config: Config,
) -> Iterator[dict[str, np.ndarray]]:
    from tlflax.data.pipeline import tf_data  # TensorFlow is imported only where images are read

    return tf_data.batches(
        table,
        indices,
        image_size=config.data.image_size,
        resize=config.data.resize,
        antialias=config.data.antialias,
        background=config.data.background,
        max_pixels=config.data.max_pixels,
        batch_size=batch_size(),
        draws=draws,
        augment=config.augment,
    )
