"""Samples of the augmentation: training images, and what the first epochs make of them."""

import numpy as np
from jaxtyping import Int64, UInt8

from tlflax.config.schema import AugmentConfig
from tlflax.data.augment import sampling
from tlflax.data.images.format import ImageFormat
from tlflax.data.table import ImageTable
from tlflax.report.gather.cards import shown_name, shown_path
from tlflax.report.gather.heat import as_seen
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

    They are those of `python -m tlflax.data --show`. Where images are flipped and nothing else,
    that needs no TensorFlow, which takes seconds to import.

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
    rows = sampling.of_all_classes(table.labels, seed, images)
    if not len(rows):
        return []
    original, *later = (
        _pixels(table, rows, image_format, augment, seed, epoch) for epoch in (None, *range(epochs))
    )
    return [
        Augmented(
            label=shown_name(table, int(table.labels[row])),
            path=shown_path(table, int(row)),
            original=picture(original[number], side),
            epochs=[picture(epoch[number], side) for epoch in later],
        )
        for number, row in enumerate(rows)
    ]


def _pixels(
    table: ImageTable,
    rows: Int64[np.ndarray, ' m'],
    image_format: ImageFormat,
    augment: AugmentConfig,
    seed: int,
    epoch: int | None,
) -> UInt8[np.ndarray, 'm h w 3']:
    """Returns each row's image as an epoch augments it; epoch None: as evaluation sees it."""
    draws = sampling.draw(augment, seed, epoch or 0, len(table))
    if not draws.keys() <= set(sampling.FLIPS) or augment.mixup or augment.cutmix:
        from tlflax.data.pipeline import preview

        return preview.pixels(table, rows, image_format, augment, seed, epoch)
    seen = []
    for row in rows.tolist():
        image = as_seen(image_format.read(table.paths[row]), image_format, augment)
        if epoch is not None and 'horizontal_flip' in draws and draws['horizontal_flip'][row]:
            image = image[:, ::-1]
        if epoch is not None and 'vertical_flip' in draws and draws['vertical_flip'][row]:
            image = image[::-1]
        seen.append(image)
    return np.stack(seen)
