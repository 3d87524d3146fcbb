"""Features of a frozen backbone: computed once for each (image, view), and kept."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int, Shaped, UInt64

from tlflax.data.images.format import ImageFormat
from tlflax.data.table import ImageTable
from tlflax.features.cache import mirror, quota, shared
from tlflax.features.cache.store import Store
from tlflax.features.derive import LowerLayers
from tlflax.features.programs import Compute, batch_size
from tlflax.features.views import Views, view_keys
from tlflax.models.base.backbone import FastProgram
from tlflax.utils.errors import UserError
from tlflax.utils.parallel import processes
from tlflax.utils.progress import progress

Counted = tuple[Shaped[np.ndarray, 'b ...'], int]
"""A batch, and how many of its rows are real; the others are padding."""


class Filled(NamedTuple):
    """Where features are.

    Attributes:
        rows: Row numbers in this process's store; -1 for views that it lacks or are not wanted.
        owner: The first process that has each; -1 for views that are not wanted.
        everywhere: Whether every process has all that are wanted.
    """

    rows: Int[np.ndarray, 'views n']
    owner: Int[np.ndarray, 'views n']
    everywhere: bool


def fill(
    store: Store,
    table: ImageTable,
    views: Views,
    wanted: Bool[np.ndarray, 'views n'],
    program: Callable[[int], Compute],
    *,
    lower: LowerLayers,
    image_format: ImageFormat,
    max_bytes: float,
    name: str,
) -> Filled:
    """Computes the features that are missing, each by one process, and returns where all are.

    They are computed from the nearest lower layer whose features are kept, and from images where
    none are. What was computed before an interruption or error stays in the store.

    Args:
        store: Where features are kept.
        table: The images.
        views: Their views.
        wanted: Which view of which image is needed.
        program: Number of images to the program that computes their features.
        lower: Finds features of lower layers.
        image_format: How images are read.
        max_bytes: The limit of all stores together.
        name: The split, for the log.

    Raises:
        UserError: They cannot be stored, or not read back.
    """
    keys = np.stack([view_keys(table.digests, view) for view in views.names])
    mirror.fetch(store, keys[wanted][processes.index() :: processes.count()], max_bytes)
    rows = np.stack([store.lookup(view) for view in keys])
    view, index = shared.to_compute(wanted, wanted & (rows >= 0))
    if len(index):
        missing, of = keys[view, index], int(wanted.sum())
        rest = _from_lower(store, lower, missing, max_bytes, f'of {of} views', name)
        if len(rest):
            logging.info(
                '%s: computing features of %d of %d views of %d images (%.0f MB)',
                *(name, len(rest), of, len(table), _bytes(store, len(rest)) / 1e6),
            )
            view, index = view[rest], index[rest]
            compute = program(len(rest))
            step = compute.step if isinstance(compute, FastProgram) else batch_size()
            batches = _images(table, index, views, view, image_format, step)
            _append(store, missing[rest], batches, compute, name)
    if len(index) or processes.count() > 1:
        processes.gather('all is computed')
        store.refresh()
        rows = np.stack([store.lookup(view) for view in keys])
    rows = np.where(wanted, rows, -1)
    owner, everywhere = shared.owners(wanted, rows >= 0)
    _check_found(store, int((wanted & (owner < 0)).sum()))
    mirror.send(store, keys[owner == processes.index()])
    return Filled(rows, owner, everywhere)


def _from_lower(
    store: Store,
    lower: LowerLayers,
    missing: UInt64[np.ndarray, 'm 2'],
    max_bytes: float,
    of: str,
    name: str,
) -> Int[np.ndarray, ' n']:
    """Reserves room for features, and computes those that follow from kept ones of lower layers.

    Returns:
        The positions of the others.
    """
    size, left = _bytes(store, len(missing)), np.ones(len(missing), bool)
    with contextlib.ExitStack() as opened:
        parts = lower.find(store.root, missing, opened)
        try:
            quota.reserve(store.root, size, max_bytes)
        except UserError:
            if not parts:
                raise
            logging.info('%s: no room for features beside those that they could come from', name)
            parts = []
            opened.close()
            quota.reserve(store.root, size, max_bytes)
        for part in parts:
            logging.info(
                '%s: computing features of %d %s from %s (%.0f MB)',
                *(name, len(part.rows), of, part.layer, _bytes(store, len(part.rows)) / 1e6),
            )
            compute = lower.program(part.layer)
            _append(store, missing[part.which], part.batches(), compute, name)
            left[part.which] = False
    return np.flatnonzero(left)


def _bytes(store: Store, rows: int) -> int:
    return quota.predict_bytes(rows, store.row_shape, store.dtype.name)


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
    store: Store,
    keys: UInt64[np.ndarray, 'm 2'],
    batches: Generator[Counted, None, None],
    compute: Callable[[np.ndarray], jax.Array],
    name: str,
) -> None:
    """Computes features from batches, and stores each under its key."""
    began, done = time.perf_counter(), 0
    with progress(f'{name} features', len(keys)) as tick, contextlib.closing(batches):
        for values in _compute_all(batches, compute):
            last = done + len(values)
            store.append(keys[done:last], values)
            tick(len(values))
            done = last
    store.flush()
    logging.info('%s: %.1f images/s', name, len(keys) / (time.perf_counter() - began))


def _compute_all(
    batches: Generator[Counted, None, None], compute: Callable[[np.ndarray], jax.Array]
) -> Iterator[Float[np.ndarray, 'b ...']]:
    """Yields each batch's features while the next batch is being computed."""
    before: tuple[int, jax.Array] | None = None
    for batch in itertools.chain(batches, [None]):
        after = None if batch is None else (batch[1], compute(batch[0]))
        if before is not None:
            count, values = before
            yield np.asarray(values)[:count]
        before = after


def _images(
    table: ImageTable,
    rows: Int[np.ndarray, ' m'],
    views: Views,
    view: Int[np.ndarray, ' m'],
    image_format: ImageFormat,
    step: int,
) -> Generator[Counted, None, None]:
    """Yields batches of images in their views; the last one is padded to a multiple of `step`."""
    from tlflax.data.pipeline import tf_data  # imports TensorFlow, which cached runs spare

    images = tf_data.batches(
        table,
        rows,
        draws=views.drawn(view, rows),
        augment=views.augment,
        image_format=image_format,
        batch_size=batch_size(),
    )
    with contextlib.closing(images):
        for batch in images:
            count = int(batch['mask'].sum())
            yield batch['image'][: math.ceil(count / step) * step], count
