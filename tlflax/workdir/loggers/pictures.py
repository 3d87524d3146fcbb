"""What is drawn of a run for its loggers: the augmentation, and the predictions at the end."""

import contextlib

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from tlflax.config.schema import AugmentConfig
from tlflax.data.images.format import ImageFormat
from tlflax.data.table import ImageTable
from tlflax.utils.errors import UserError
from tlflax.workdir.loggers import drawing
from tlflax.workdir.loggers.base import Pictures

_MISTAKES = 9
_LARGEST = 1000  # classes of a confusion matrix that is drawn
_IMAGES, _EPOCHS = 6, 3  # of the augmentation


def of_predictions(
    table: ImageTable,
    probabilities: Float[np.ndarray, 'n classes'],
    counts: Int[np.ndarray, 'classes classes'] | None,
    image_format: ImageFormat,
) -> Pictures:
    """Draws the confusion matrix, and the mistakes with the highest probabilities.

    Args:
        table: The images.
        probabilities: Of their classes.
        counts: The confusion matrix, `[true][predicted]`; None: it is not drawn.
        image_format: How the images are read.
    """
    pictures = {}
    if counts is not None and len(counts) <= _LARGEST:
        pictures['confusion matrix'] = drawing.confusion_matrix(counts, table.class_names)
    predicted, top = probabilities.argmax(-1), probabilities.max(-1)
    wrong = np.flatnonzero(predicted != np.asarray(table.labels))
    shown = []
    for row in wrong[np.argsort(-top[wrong], kind='stable')][:_MISTAKES]:
        with contextlib.suppress(UserError):  # it may be gone by now
            pixels = image_format.read(table.paths[row])
            true, taken = (table.class_names[i] for i in (table.labels[row], predicted[row]))
            shown.append(drawing.Mistake(pixels, true, taken, float(top[row])))
    if shown:
        pictures['mistakes'] = drawing.mistakes(shown)
    return pictures


def of_augmentation(
    table: ImageTable, image_format: ImageFormat, augment: AugmentConfig, seed: int
) -> Pictures:
    """Draws some training images beside what the first epochs make of them.

    Args:
        table: The training images.
        image_format: How they are read.
        augment: The augmentations.
        seed: The run's seed.
    """
    from tlflax.data.pipeline import preview  # imports TensorFlow, which cached runs spare

    grid: Image.Image = preview.grid(
        table, image_format, augment, seed, images=_IMAGES, epochs=_EPOCHS
    )
    return {'augmentation': np.asarray(grid)}
