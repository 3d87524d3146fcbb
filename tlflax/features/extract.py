"""Features of a frozen backbone: computed once for each (image, view), ever, and then drawn from.

A *view* is what augmentation makes of an image. Where augmentation has finitely many outcomes
(flips, right angles, corner crops) all that the epochs will draw are computed, and training from
them equals training from images; continuous augmentation is approximated by `features.views`
sampled views.
"""

import dataclasses
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int, UInt8, UInt64

from tlflax.config.schema import AugmentConfig, Config
from tlflax.data.augment import sampling
from tlflax.data.table import ImageTable
from tlflax.features.cache import quota, store
from tlflax.features.cache.store import Store
from tlflax.models import classifier as classifiers
from tlflax.models import preprocess
from tlflax.models.classifier import Classifier, Params
from tlflax.models.vgg import autotune, fast_cpu
from tlflax.train import steps
from tlflax.utils import assets
from tlflax.utils.progress import progress

BATCH = 32  # images computed at once on a CPU, where more would leave the cache
ACCELERATOR_BATCH = 256  # on each accelerator, to fill it
_VERSION = 1  # of the arithmetic from file to feature: raise it when their values change
_WORTH_MEASURING = 20_000 * 224**2  # pixels, about half an hour on two cores
Compute = Callable[[UInt8[np.ndarray, 'b h w 3']], jax.Array]
"""Turns a batch of images into features on the device, f[b, ...]."""


@dataclasses.dataclass(frozen=True)
class Views:
    """The views of a table's images.

    Attributes:
        names: For each view, what was done, the same for every image; or one name for each image.
        draws: For each view, the augmentation parameters of every image.
        choose: Epoch to each image's view, i64[n].
        exact: Whether drawing from the views equals augmenting anew.
    """

    names: Sequence[str | Sequence[str]]
    draws: Sequence[sampling.Draws]
    choose: Callable[[int], Int[np.ndarray, ' n']]
    exact: bool


def fixed_views(views: Sequence[sampling.View], augment: AugmentConfig, n: int) -> Views:
    """The given views of each of `n` images; every epoch shows the first."""
    return Views(
        names=[sampling.describe(view, augment) for view in views],
        draws=[sampling.repeat(view, n) for view in views],
        choose=lambda epoch: np.zeros(n, np.int64),
        exact=True,
    )


def training_views(augment: AugmentConfig, *, seed: int, n: int, samples: int) -> Views:
    """Returns the views from which each epoch's images are drawn.

    Args:
        augment: The augmentations.
        seed: The run's seed.
        n: Number of images.
        samples: Views of each image where the outcomes are endless.
    """
    outcomes = sampling.outcomes(augment)
    if outcomes is not None:
        return dataclasses.replace(
            fixed_views(outcomes, augment, n),
            choose=lambda epoch: sampling.outcome_numbers(
                sampling.draw(augment, seed, epoch, n), outcomes, n
            ),
        )
    # Epochs beyond any real one, so that no view is what some live epoch would show.
    draws = [sampling.draw(augment, seed, 2**32 + k, n) for k in range(samples)]
    settings = _changed(augment)
    return Views(
        names=[[f'{settings} {row}' for row in _rows(view, n)] for view in draws],
        draws=draws,
        choose=lambda epoch: sampling.choose(seed, epoch, n, samples),
        exact=False,
    )


def _changed(augment: AugmentConfig) -> str:
    """The settings that differ from their defaults, as text: draws do not hold all of them."""
    return ' '.join(
        f'{field.name}={value}'
        for field in dataclasses.fields(augment)
        if (value := getattr(augment, field.name)) != field.default
    )


def joined(separate: Sequence[Views]) -> list[Views]:
    """Returns views that choose as the given ones do, all from the same names and draws."""
    if all(views.exact for views in separate):  # the outcomes of an augmentation are the same
        return list(separate)
    names = [name for views in separate for name in views.names]
    draws = [draw for views in separate for draw in views.draws]
    starts = np.cumsum([0] + [len(views.names) for views in separate])

    def choose(views: Views, start: int) -> Callable[[int], Int[np.ndarray, ' n']]:
        return lambda epoch: start + views.choose(epoch)

    return [
        dataclasses.replace(views, names=names, draws=draws, choose=choose(views, int(start)))
        for views, start in zip(separate, starts, strict=False)
    ]


def _rows(draws: sampling.Draws, n: int) -> list[str]:
    """Each image's parameters as text."""
    names = sorted(draws)
    columns = [draws[name].tolist() for name in names]
    return [str(list(zip(names, row, strict=True))) for row in zip(*columns, strict=True)] or [
        ''
    ] * n


def keys(
    digests: Sequence[str] | np.ndarray, name: str | Sequence[str]
) -> UInt64[np.ndarray, 'n 2']:
    """Returns the store's keys of one view of some images."""
    if isinstance(name, str):
        return store.row_keys(digests, name)
    mixed = [
        hashlib.sha256(f'{digest} {view}'.encode()).hexdigest()
        for digest, view in zip(digests, name, strict=True)
    ]
    return store.row_keys(mixed, '')


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
    put: Callable[[dict[str, np.ndarray]], dict[str, jax.Array]],
) -> Compute:
    """Returns the fastest way to compute features here.

    Args:
        backbone: Its parameters.
        classifier: Says what is computed, with which preprocessing and up to which layer.
        image_size: (height, width) in pixels.
        images: How many there will be; for many, it pays to measure what is fastest.
        put: Splits a batch over the devices.
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
    return lambda image: steps.backbone_step(
        backbone, put({'image': image})['image'], classifier=classifier
    )


def needed(
    views: Views, epochs: int, n: int, order: Callable[[int], Int[np.ndarray, ' n']]
) -> Bool[np.ndarray, 'views n']:
    """Returns which view of which image some epoch draws; `order` says which images it visits."""
    drawn = np.zeros((len(views.names), n), bool)
    for epoch in range(epochs):
        rows = order(epoch)
        drawn[views.choose(epoch)[rows], rows] = True
        if drawn.all():
            break
    return drawn


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
    all_keys = np.stack([keys(table.digests, view) for view in views.names])
    rows = np.stack([opened.lookup(view_keys) for view_keys in all_keys])
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
        rows = np.stack([opened.lookup(view_keys) for view_keys in all_keys])
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
