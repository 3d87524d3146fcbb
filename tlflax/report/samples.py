"""Samples of the augmentation: training images, and what the first epochs make of them."""

import os

from tlflax.config.schema import AugmentConfig
from tlflax.data.images.format import ImageFormat
from tlflax.data.table import ImageTable
from tlflax.report.page.contents import Augmented
from tlflax.report.page.pictures import picture


def samples(
    table: ImageTable,
    image_format: ImageFormat,
    augment: AugmentConfig,
    seed: int,
    *,
    images: int = 4,
    epochs: int = 4,
    side: int = 128,
) -> list[Augmented]:
    """Returns some training images as evaluation sees them, and as the first epochs do.

    They are those of `python -m tlflax.data --show`. Reads and decodes them, which imports
    TensorFlow.

    Args:
        table: The training images, of which all classes are shown in turn.
        image_format: How images are read.
        augment: The augmentations.
        seed: The run's seed.
        images: How many.
        epochs: How many.
        side: Pixels of the longer side of each picture.

    Raises:
        UserError: An image cannot be read any more, or `augment` contradicts itself.
    """
    from tlflax.data.pipeline import preview

    rows = preview.examples(table, seed, images)
    original, *later = (
        preview.pixels(table, rows, image_format, augment, seed, epoch)
        for epoch in (None, *range(epochs))
    )
    return [
        Augmented(
            label=table.class_names[table.labels[row]],
            path=os.path.relpath(table.paths[row], table.root),
            original=picture(original[number], side),
            epochs=[picture(epoch[number], side) for epoch in later],
        )
        for number, row in enumerate(rows)
    ]
