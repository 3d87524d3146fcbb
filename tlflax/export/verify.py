"""Whether a file computes what the classifier computes, on the validation images of its run."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from tlflax.data.table import ImageTable
from tlflax.export.model import Options
from tlflax.inference.splits import load_split
from tlflax.inference.trained import Trained
from tlflax.models.linear.calibration import temper
from tlflax.utils.errors import UserError, as_user_error
from tlflax.utils.progress import progress

MOST_IMAGES = 1000
CALIBRATION_IMAGES = 200
TOLERANCE = 1e-4
ROUNDED = 2e-2  # where the classifier computes, or keeps features, with fewer digits than the file
MOST_POINTS = 0.5  # of accuracy that a file with fewer digits may lose

_BATCH = 32

Program = Callable[[UInt8[np.ndarray, 'b h w 3']], Float[np.ndarray, 'b classes']]
"""From pixels to probabilities."""


class Sample(NamedTuple):
    """Images, and what the classifier says of them.

    Attributes:
        pixels: u8[n, h, w, 3].
        labels: i64[n], the true classes.
        probabilities: f64[n, classes].
        tolerance: The largest difference that is none.
    """

    pixels: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    tolerance: float


class Checked(NamedTuple):
    """What a check found.

    Attributes:
        images: How many were compared.
        difference: The largest one of a probability.
        labels: How many images get another class.
        accuracy: Of the file.
        classifier_accuracy: Of the classifier.
        probabilities: f[images, classes], what the file gave.
    """

    images: int
    difference: float
    labels: int
    accuracy: float
    classifier_accuracy: float
    probabilities: np.ndarray


def sample(trained: Trained, options: Options) -> Sample:
    """Returns validation images: all, or the `MOST_IMAGES` that their digests choose.

    Args:
        trained: The classifier.
        options: What the file is to be.

    Raises:
        UserError: The images cannot be read, or are not those of the run; no temperature is known.
    """
    table = trained.val_table()
    table = table.select(chosen(table))
    found = trained.evaluate_table(table).probabilities.astype(np.float64)
    if options.calibrated:
        found = temper(found, trained.known_temperature())
    config = trained.config
    exact = config.model.dtype == config.features.dtype == 'float32'
    tolerance = TOLERANCE if exact else ROUNDED
    if options.precision != 'float32':
        tolerance = np.inf  # accuracy decides
    return Sample(pixels(trained, table), np.asarray(table.labels), found, tolerance)


def chosen(table: ImageTable, most: int | None = None) -> Int[np.ndarray, ' n']:
    """Returns the rows of at most `most` images (`MOST_IMAGES`), in order."""
    return np.sort(np.argsort(table.digests, kind='stable')[: most or MOST_IMAGES])


def calibration(trained: Trained) -> UInt8[np.ndarray, 'n h w 3']:
    """Returns training images, at most `CALIBRATION_IMAGES`, as the network sees them.

    Raises:
        UserError: The images cannot be read.
    """
    table = load_split(trained, 'train')
    return pixels(trained, table.select(chosen(table, CALIBRATION_IMAGES)))


def pixels(trained: Trained, table: ImageTable) -> UInt8[np.ndarray, 'n h w 3']:
    """Returns the images of a table as the network sees them."""
    return np.concatenate(list(_batches(trained, table)))


def _batches(trained: Trained, table: ImageTable) -> Iterator[UInt8[np.ndarray, 'b h w 3']]:
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
    accuracy, own = (
        float((one.argmax(1) == images.labels).mean()) for one in (found, images.probabilities)
    )
    if not np.isfinite(found).all():
        raise UserError('it returns what is not a number', where=where, fix=fix)
    if images.tolerance == np.inf and 100 * (own - accuracy) > MOST_POINTS + 1e-9:
        raise UserError(
            f'it classifies {accuracy:.2%} of {len(found)} validation images correctly, the '
            f'classifier {own:.2%}, and it may lose {MOST_POINTS} points',
            where=where,
            fix='it is not kept; export with --precision=float32',
        )
    exact = images.tolerance == TOLERANCE
    if not difference <= images.tolerance or (exact and labels):
        raise UserError(
            f'its probabilities of {len(found)} validation images differ from those of the '
            f'classifier by up to {difference:.2g}, and {labels} get another class',
            where=where,
            fix=fix,
        )
    return Checked(len(found), difference, labels, accuracy, own, found)
