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
MOST_SIZES = 16
CALIBRATION_IMAGES = 200
TOLERANCE = 1e-4
ROUNDED = 2e-2  # where the classifier computes, or keeps features, with fewer digits than the file
MOST_POINTS = 0.5  # of accuracy that a file with fewer digits may lose

_BATCH = 32
_FIX = 'it is not kept; please report the message, or choose another --format'

Program = Callable[[UInt8[np.ndarray, 'b h w 3']], Float[np.ndarray, 'b classes']]
"""From pixels to probabilities."""


class Sample(NamedTuple):
    """Images, and what the classifier says of them.

    Attributes:
        pixels: u8[n, h, w, 3].
        labels: i64[n], the true classes.
        probabilities: f64[n, classes].
        tolerance: The largest difference that is none.
        photographs: Row, and the image as it was decoded, where the file resizes.
    """

    pixels: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    tolerance: float
    photographs: tuple[tuple[int, np.ndarray], ...] = ()

    def batches(self) -> Iterator[tuple[Int[np.ndarray, ' b'], UInt8[np.ndarray, 'b h w 3']]]:
        """Yields rows and their images, all that are compared."""
        for start in range(0, len(self.pixels), _BATCH):
            part = self.pixels[start : start + _BATCH]
            yield np.arange(start, start + len(part)), part
        for row, image in self.photographs:
            yield np.array([row]), image[None]


class Checked(NamedTuple):
    """What a check found.

    Attributes:
        images: How many were compared.
        difference: The largest one of a probability.
        labels: How many images get another class.
        accuracy: Of the file.
        classifier_accuracy: Of the classifier.
        true: i[images], the true classes.
        probabilities: f[images, classes], what the file gave.
    """

    images: int
    difference: float
    labels: int
    accuracy: float
    classifier_accuracy: float
    true: np.ndarray
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
    shown = pixels(trained, table)
    photographs = tuple(_photographs(trained, table)) if options.resize else ()
    if options.resize and trained.config.augment.crops:
        shown = shown[:0]  # a part of each image, which would be cut once more
    return Sample(shown, np.asarray(table.labels), found, tolerance, photographs)


def _photographs(
    trained: Trained, table: ImageTable
) -> Iterator[tuple[int, UInt8[np.ndarray, 'h w 3']]]:
    """Yields decoded images with their rows, of at most `MOST_SIZES` sizes, which take time."""
    sizes = set()
    for row, path in enumerate(table.paths):
        image = trained.sources.image_format.read(path)
        sizes.add(image.shape)
        if len(sizes) > MOST_SIZES:
            return
        yield row, image


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
    rows, found = _run(program, images, where)
    expected = images.probabilities[rows]
    if found.shape != expected.shape:
        raise UserError(f'it returns the shape {found.shape}', where=where, fix=_FIX)
    if not np.isfinite(found).all():
        raise UserError('it returns what is not a number', where=where, fix=_FIX)
    compared, once = np.unique(rows, return_index=True)
    labels, other = images.labels[compared], found.argmax(1) != expected.argmax(1)
    checked = Checked(
        images=len(compared),
        difference=float(np.abs(found - expected).max()),
        labels=len(np.unique(rows[other])),
        accuracy=float((found[once].argmax(1) == labels).mean()),
        classifier_accuracy=float((expected[once].argmax(1) == labels).mean()),
        true=labels,
        probabilities=found[once],
    )
    _accept(checked, images.tolerance, where)
    return checked


def _run(
    program: Program, images: Sample, where: str
) -> tuple[Int[np.ndarray, ' m'], Float[np.ndarray, 'm ...']]:
    """Returns what a file gives for images, and their rows, some of which may come twice."""
    rows, parts = [], []
    with progress('check', len(images.pixels) + len(images.photographs)) as tick:
        for numbers, part in images.batches():
            with as_user_error('it cannot be run: {reason}', where=where, fix=_FIX):
                parts.append(np.asarray(program(part)))
            rows.append(numbers)
            tick(len(part))
    return np.concatenate(rows), np.concatenate(parts)


def _accept(found: Checked, tolerance: float, where: str) -> None:
    """Checks that a file computes what the classifier does, or with fewer bits, as well."""
    lost = 100 * (found.classifier_accuracy - found.accuracy)
    if tolerance == np.inf and lost > MOST_POINTS + 1e-9:
        raise UserError(
            f'it classifies {found.accuracy:.2%} of {found.images} validation images correctly, '
            f'the classifier {found.classifier_accuracy:.2%}, and it may lose {MOST_POINTS} points',
            where=where,
            fix='it is not kept; export with --precision=float32',
        )
    if found.difference > tolerance or (tolerance == TOLERANCE and found.labels):
        raise UserError(
            f'its probabilities of {found.images} validation images differ from those of the '
            f'classifier by up to {found.difference:.2g}, and {found.labels} get another class',
            where=where,
            fix=_FIX,
        )
