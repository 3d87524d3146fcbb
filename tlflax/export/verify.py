"""Whether a file computes what the classifier computes, on the validation images of its run."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from tlflax.data.table import ImageTable
from tlflax.inference.trained import Trained
from tlflax.models.linear.calibration import temper
from tlflax.utils.errors import UserError, as_user_error
from tlflax.utils.progress import progress

MOST_IMAGES = 1000
TOLERANCE = 1e-4
ROUNDED = 2e-2  # where the classifier computes, or keeps features, with fewer digits than the file

_BATCH = 32

Program = Callable[[UInt8[np.ndarray, 'b h w 3']], Float[np.ndarray, 'b classes']]
"""From pixels to probabilities."""


class Sample(NamedTuple):
    """Images, and what the classifier says of them.

    Attributes:
        pixels: u8[n, h, w, 3].
        probabilities: f64[n, classes].
        tolerance: The largest difference that is none.
    """

    pixels: np.ndarray
    probabilities: np.ndarray
    tolerance: float


class Checked(NamedTuple):
    """What a check found.

    Attributes:
        images: How many were compared.
        difference: The largest one of a probability.
        labels: How many images get another class.
    """

    images: int
    difference: float
    labels: int


def sample(trained: Trained, *, calibrated: bool) -> Sample:
    """Returns validation images: all, or the `MOST_IMAGES` that their digests choose.

    Args:
        trained: The classifier.
        calibrated: Apply its temperature.

    Raises:
        UserError: The images cannot be read, or are not those of the run; no temperature is known.
    """
    table = trained.val_table()
    table = table.select(chosen(table))
    found = trained.evaluate_table(table).probabilities.astype(np.float64)
    if calibrated:
        found = temper(found, trained.known_temperature())
    config = trained.config
    exact = config.model.dtype == config.features.dtype == 'float32'
    pixels = np.concatenate(list(_pixels(trained, table)))
    return Sample(pixels, found, TOLERANCE if exact else ROUNDED)


def chosen(table: ImageTable) -> Int[np.ndarray, ' n']:
    """Returns the rows of at most `MOST_IMAGES` images, in order."""
    return np.sort(np.argsort(table.digests, kind='stable')[:MOST_IMAGES])


def _pixels(trained: Trained, table: ImageTable) -> Iterator[UInt8[np.ndarray, 'b h w 3']]:
    """Yields images as the network sees them."""
    from tlflax.data.pipeline import tf_data  # imports TensorFlow

    batches = tf_data.eval_epoch(
        table,
        augment=trained.config.augment,
        image_format=trained.sources.image_format,
        batch_size=_BATCH,
    )
    for batch in batches:
        yield batch['image'][batch['mask']]


def check(program: Program, images: Sample, where: str) -> Checked:
    """Compares a file with the classifier.

    Args:
        program: Runs the file.
        images: On what.
        where: The file, for messages.

    Raises:
        UserError: The file cannot be run, or computes something else.
    """
    parts = []
    fix = 'it is not kept; please report the message, or choose another --format'
    with progress('check', len(images.pixels)) as tick:
        for start in range(0, len(images.pixels), _BATCH):
            part = images.pixels[start : start + _BATCH]
            with as_user_error('it cannot be run: {reason}', where=where, fix=fix):
                parts.append(np.asarray(program(part)))
            tick(len(part))
    found = np.concatenate(parts)
    if found.shape != images.probabilities.shape:
        raise UserError(f'it returns the shape {found.shape}', where=where, fix=fix)
    difference = float(np.abs(found - images.probabilities).max())
    labels = int((found.argmax(1) != images.probabilities.argmax(1)).sum())
    exact = images.tolerance == TOLERANCE
    if not difference <= images.tolerance or (exact and labels):
        raise UserError(
            f'its probabilities of {len(found)} validation images differ from those of the '
            f'classifier by up to {difference:.2g}, and {labels} get another class',
            where=where,
            fix=fix,
        )
    return Checked(len(found), difference, labels)
