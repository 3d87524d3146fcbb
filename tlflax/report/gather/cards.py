"""What is shown of single images: pictures, heat maps and the nearest training images."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, Float32

from tlflax.data.table import ImageTable
from tlflax.inference import heat_maps, nearest
from tlflax.inference.trained import Trained
from tlflax.report.gather import heat
from tlflax.report.gather.choice import Choice
from tlflax.report.page.contents import Example, Neighbor
from tlflax.report.page.pictures import Picture, Thumbnails
from tlflax.utils import cpu
from tlflax.utils.errors import UserError, printable

_NEIGHBORS = 4
_SIDE = 160  # pixels of a picture under a heat map


def shown_path(table: ImageTable, row: int) -> str:
    """Returns the path of an image relative to the folder of its split, fit to be shown."""
    return printable(os.path.relpath(table.paths[row], table.root))


def shown_name(table: ImageTable, label: int) -> str:
    """Returns the name of a class, fit to be shown."""
    return printable(table.class_names[label])


def heat_pictures(
    trained: Trained, table: ImageTable, rows: Sequence[int]
) -> tuple[dict[int, Picture], str]:
    """Returns the pictures of some images under their heat maps, and how these were made."""
    found = heat_maps.of_table(trained, table.select(np.array(rows, np.int64)))
    if found.maps is None:
        return {}, found.note
    image_format = trained.sources.image_format

    def made(row: int, heat_map: heat_maps.Map) -> Picture | None:
        try:
            pixels = image_format.read(table.paths[row])
        except UserError:
            return None
        seen = heat.as_seen(pixels, image_format, trained.config.augment)
        return heat.overlay(seen, heat_map, _SIDE)

    with ThreadPoolExecutor(cpu.cores()) as pool:
        pictures = zip(rows, pool.map(made, rows, found.maps), strict=True)
        return {row: one for row, one in pictures if one is not None}, found.note


def neighbors(
    vectors: Float32[np.ndarray, 'n d'],
    rows: Sequence[int],
    train: ImageTable,
    train_vectors: Float32[np.ndarray, 'm d'],
    thumbnails: Thumbnails,
) -> dict[int, list[Neighbor]]:
    """Returns the nearest training images of each of some images.

    Args:
        vectors: The features of the images.
        rows: What the images are called in the result.
        train: The training images.
        train_vectors: Their features.
        thumbnails: Makes pictures.
    """
    found = nearest.nearest(vectors, train_vectors, _NEIGHBORS)
    thumbnails.prepare(train.paths[found.rows.ravel()].tolist())
    return {
        row: [
            Neighbor(
                path=shown_path(train, at),
                label=shown_name(train, int(train.labels[at])),
                similarity=similarity,
                picture=thumbnails.of(train.paths[at]),
            )
            for at, similarity in zip(ats.tolist(), similarities.tolist(), strict=True)
        ]
        for row, ats, similarities in zip(rows, found.rows, found.similarities, strict=True)
    }


def examples(
    table: ImageTable,
    probabilities: Float[np.ndarray, 'n classes'],
    choice: Choice,
    thumbnails: Thumbnails,
    *,
    heats: Mapping[int, Picture],
    near: Mapping[int, Sequence[Neighbor]],
) -> dict[int, Example]:
    """Returns what is shown of each image of a choice, by its row."""
    predicted = probabilities.argmax(1)
    thumbnails.prepare(table.paths[np.array(choice.rows, np.int64)].tolist())
    return {
        row: Example(
            number=row,
            path=shown_path(table, row),
            true=shown_name(table, int(table.labels[row])),
            predicted=shown_name(table, int(predicted[row])),
            probability=float(probabilities[row, predicted[row]]),
            true_probability=float(probabilities[row, table.labels[row]]),
            picture=thumbnails.of(table.paths[row]),
            heat=heats.get(row),
            neighbors=near.get(row, ()),
        )
        for row in choice.rows
    }
