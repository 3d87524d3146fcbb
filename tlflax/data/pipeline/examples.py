"""The examples of an epoch: what is read for each, and the batches that they become."""

import dataclasses
import os

import numpy as np
from jaxtyping import Bool, Int64, Shaped, UInt8

from tlflax.config.schema import AugmentConfig
from tlflax.data.augment.apply import parameters
from tlflax.data.augment.mixup import Mixing
from tlflax.data.augment.sampling import Draws
from tlflax.data.pipeline.batch import Batch
from tlflax.data.table import ImageTable


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images in the order in which they are read, and how each is augmented.

    Attributes:
        rows: Rows of the table.
        draws: Augmentation parameters; entry j is for `rows[j]`.
        mixing: How entry j is mixed with another row; None: no image is mixed.
        partner_draws: Augmentation parameters of the other rows.
    """

    rows: Int64[np.ndarray, ' m']
    draws: Draws
    mixing: Mixing | None = None
    partner_draws: Draws = dataclasses.field(default_factory=dict)

    def select(self, entries: Int64[np.ndarray, ' k']) -> 'Examples':
        """Returns some of the entries."""
        return Examples(
            self.rows[entries],
            pick(self.draws, entries),
            self.mixing.select(entries) if self.mixing else None,
            pick(self.partner_draws, entries),
        )

    @property
    def files(self) -> Int64[np.ndarray, ' m']:
        """The rows whose files are read."""
        if self.mixing is None:
            return self.rows
        return np.concatenate([self.rows, self.mixing.partner])


def pick(draws: Draws, entries: Int64[np.ndarray, ' k']) -> Draws:
    """Returns some entries of each array."""
    return {name: values[entries] for name, values in draws.items()}


def make_items(
    table: ImageTable, examples: Examples, image_size: tuple[int, int], augment: AugmentConfig
) -> dict[str, object]:
    """Returns arrays [m, ...], nested in dicts: for each example, what it takes to make its image.

    Args:
        table: The images.
        examples: Those to be made.
        image_size: (height, width) in pixels.
        augment: The settings of the augmentations that were drawn.

    Returns:
        `path` (bytes), `plain_jpeg` (bool) and `parameters` (see
        `tlflax.data.augment.apply.parameters`). If images are mixed also `mix`, `box` (see
        `tlflax.data.augment.mixup.Mixing`) and `partner`, which has the first three.
    """

    def item(rows: Int64[np.ndarray, ' m'], draws: Draws) -> dict[str, object]:
        return {
            # File names are bytes, which need not be UTF-8.
            'path': np.array([os.fsencode(path) for path in table.paths[rows]], object),
            'plain_jpeg': table.plain_jpeg[rows],
            'parameters': parameters(draws, image_size, augment),
        }

    items = item(examples.rows, examples.draws)
    if examples.mixing is not None:
        items |= {'mix': examples.mixing.mix, 'box': examples.mixing.box}
        items['partner'] = item(examples.mixing.partner, examples.partner_draws)
    return items


def make_batch(
    table: ImageTable,
    real: Examples,
    mask: Bool[np.ndarray, ' b'],
    image: UInt8[np.ndarray, 'm h w 3'],
) -> Batch:
    """Returns the batch of some examples.

    Args:
        table: The images.
        real: The m examples that stand where `mask` is True.
        mask: False for padding.
        image: Their images.
    """
    if len(image) < len(mask):
        padded = np.zeros((len(mask), *image.shape[1:]), np.uint8)
        padded[: len(image)] = image
        image = padded

    def place(values: Shaped[np.ndarray, ' m'], padding: int) -> Shaped[np.ndarray, ' b']:
        placed = np.full(len(mask), padding, values.dtype)
        placed[mask] = values
        return placed

    batch: Batch = {
        'image': image,
        'label': place(table.labels[real.rows].astype(np.int32), 0),
        'mask': mask,
        'index': place(real.rows, -1),
    }
    if real.mixing is not None:
        partner_label = table.labels[real.mixing.partner].astype(np.int32)
        batch['mix_label'] = place(partner_label, 0)
        batch['mix'] = place(real.mixing.mix, 1)
    return batch
