"""A picture of the augmentation: images beside what epochs make of them, with the values drawn.

The first column shows images as evaluation sees them, each further column as one epoch does.
"""

import os
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from jaxtyping import Int, Int64, UInt8
from PIL import Image, ImageDraw, ImageFont

from tlflax.config.schema import AugmentConfig
from tlflax.data._tensorflow import on_cpu
from tlflax.data.augment import apply as augmentation
from tlflax.data.augment import mixup, policies, ranges, sampling
from tlflax.data.images.decode import read_image
from tlflax.data.images.format import ImageFormat
from tlflax.data.pipeline import crops, tf_data
from tlflax.data.pipeline.batch import BatchFormat
from tlflax.data.table import ImageTable
from tlflax.utils.errors import as_user_error, printable
from tlflax.utils.files import replacing

_MARGIN, _TEXT, _LINE = 12, 13, 16  # pixels; _TEXT is the height of the font
_SMALLEST = 200  # pixels across a cell; smaller images are enlarged by a whole factor
Cell = tuple[UInt8[np.ndarray, 'h w 3'], list[str]]
Drawn = dict[str, Any]  # NumPy scalars and arrays: one image's row of `sampling.Draws`
"""An image and the lines of text under it."""

_FORMATS = {  # of draws that are one number
    'rotation': 'rotation {:+.1f}°',
    'width_shift': 'width shift {:+.3f}',
    'height_shift': 'height shift {:+.3f}',
    'shear': 'shear {:+.1f}°',
    'zoom_width': 'zoom width {:.3f}',
    'zoom_height': 'zoom height {:.3f}',
    'channel_shift': 'channel shift {:+.1f}',
    'brightness': 'brightness {:.3f}',
    'jitter_brightness': 'jitter brightness {:.3f}',
    'jitter_contrast': 'jitter contrast {:.3f}',
    'jitter_saturation': 'jitter saturation {:.3f}',
    'jitter_hue': 'jitter hue {:+.3f}',
}


def draw_grid(
    table: ImageTable,
    path: str | Path,
    image_format: ImageFormat,
    augment: AugmentConfig,
    seed: int,
    *,
    images: int = 6,
    epochs: int = 5,
) -> None:
    """Writes a PNG of some training images, one a row, as they are and as epochs augment them.

    Args:
        table: The training images; the rows show all classes in turn.
        path: The PNG; it is written whole or not at all.
        image_format: How the images are read.
        augment: The augmentations.
        seed: The run's seed.
        images: Rows of the picture.
        epochs: Columns after the first: epochs 0 to `epochs` - 1.

    Raises:
        UserError: `path` cannot be written, or `augment` contradicts itself.
    """
    picture = grid(table, image_format, augment, seed, images=images, epochs=epochs)
    with (
        as_user_error(
            'the picture cannot be written: {reason}',
            where=str(path),
            fix='name a file in a folder of yours',
            of=(OSError,),
        ),
        replacing(Path(path)) as partial,
    ):
        picture.save(partial, format='PNG')


def grid(
    table: ImageTable,
    image_format: ImageFormat,
    augment: AugmentConfig,
    seed: int,
    *,
    images: int,
    epochs: int,
) -> Image.Image:
    """Returns the picture that `draw_grid` writes.

    Raises:
        UserError: `augment` contradicts itself.
    """
    ranges.check(augment, image_format.image_size)
    rows = sampling.of_all_classes(table.labels, seed, images)
    columns = [
        _column(table, rows, image_format, augment, seed, epoch) for epoch in (None, *range(epochs))
    ]
    heads = ['as evaluation sees it', *(f'epoch {epoch}' for epoch in range(epochs))]
    return _draw(columns, heads)


def pixels(
    table: ImageTable,
    rows: Int64[np.ndarray, ' m'],
    image_format: ImageFormat,
    augment: AugmentConfig,
    seed: int,
    epoch: int | None,
) -> UInt8[np.ndarray, 'm h w 3']:
    """Returns each row's image as an epoch augments it; epoch None: as evaluation sees it.

    Raises:
        UserError: An image cannot be read, or `augment` contradicts itself.
    """
    size = image_format.image_size
    ranges.check(augment, size)
    if not len(rows):
        return np.zeros((0, *size, 3), np.uint8)
    form: BatchFormat = {'image_format': image_format, 'batch_size': len(rows)}
    if epoch is None:
        (batch,) = tf_data.eval_epoch(table.select(rows), augment=augment, **form)
    else:
        (batch,) = tf_data.augmented(table, rows, augment=augment, seed=seed, epoch=epoch, **form)
    return batch['image']


def _column(
    table: ImageTable,
    rows: Int64[np.ndarray, ' m'],
    image_format: ImageFormat,
    augment: AugmentConfig,
    seed: int,
    epoch: int | None,
) -> list[Cell]:
    """Returns each row's image and the lines under it; see `pixels`."""
    size = image_format.image_size
    if epoch is None:
        texts = [[_class(table, row), _name(table, row)] for row in rows]
    else:
        draws = sampling.draw(augment, seed, epoch, len(table))
        mixed = mixup.draw(augment, seed, epoch, len(table), size)
        texts = [
            [*_label(table, row, mixed), *_values(table, row, _one(draws, row), size, augment)]
            for row in rows
        ]
    images = pixels(table, rows, image_format, augment, seed, epoch)
    return list(zip(images, texts, strict=True))


def _one(draws: sampling.Draws, row: int) -> Drawn:
    return {name: values[row] for name, values in draws.items()}


def _values(
    table: ImageTable,
    row: int,
    drawn: Drawn,
    size: tuple[int, int],
    augment: AugmentConfig,
) -> Iterator[str]:
    """Yields what was drawn for one image, a line for each augmentation that changed it."""
    for flip in sampling.FLIPS:
        if drawn.get(flip):
            yield flip.replace('_', ' ')
    if drawn.get('quarter_turns'):
        yield f'turned by {90 * drawn["quarter_turns"]}°'
    if 'crop' in drawn:
        yield f'crop {sampling.CROPS[drawn["crop"]].replace("_", " ")}'
    if 'crop_area' in drawn:
        shape = read_image(table.paths[row]).shape[:2]
        numbers = (drawn[f'crop_{name}'] for name in ('area', 'ratio', 'place'))
        with on_cpu():
            tensors = map(tf.constant, (shape, *numbers))
            box = crops.random_box(*tensors, bounds=augment.random_crop_ratio)
        yield f'crop {_box(box.numpy())} of {shape[1]}x{shape[0]}'
    for name, form in _FORMATS.items():
        if name in drawn:
            yield form.format(drawn[name])
    one_row = {name: value[None] for name, value in drawn.items()}
    made = augmentation.parameters(one_row, size, augment)
    for op, value in zip(
        drawn.get('policy_op', ()), made.get('policy_value', [()])[0], strict=True
    ):
        number = f' {value:.3g}' if value else ''
        yield f'{augment.policy}: {policies.OPS[op].replace("_", " ")}{number}'
    if drawn.get('erase'):
        yield f'erased {_box(made["erase_box"][0])}'


def _box(box: Int[np.ndarray, '4']) -> str:
    top, left, height, width = box
    return f'{width}x{height} at ({left}, {top})'


def _label(table: ImageTable, row: int, mixed: mixup.Mixing | None) -> Iterator[str]:
    """Yields the label as the loss sees it and, if the image is mixed, the other image."""
    if mixed is None or mixed.mix[row] == 1:
        yield _class(table, row)
        return
    partner, part = int(mixed.partner[row]), float(mixed.mix[row])
    yield f'{part:.2f} {_class(table, row)} + {1 - part:.2f} {_class(table, partner)}'
    yield f'{"cutmix" if mixed.box[row].any() else "mixup"} with {_name(table, partner)}'


def _class(table: ImageTable, row: int) -> str:
    return printable(table.class_names[table.labels[row]])


def _name(table: ImageTable, row: int) -> str:
    name = printable(os.path.basename(table.paths[row]))
    return name if len(name) <= 20 else f'{name[:8]}…{name[-11:]}'


def _draw(columns: Sequence[Sequence[Cell]], heads: Sequence[str]) -> Image.Image:
    """Draws the cells: each an image with its lines under it, in columns under their heads."""
    height, width, _ = columns[0][0][0].shape
    factor = max(1, -(-_SMALLEST // width))
    font = ImageFont.load_default(_TEXT)
    room = int(factor * width / font.getlength('abcdefghij 0123456789') * 21)
    wrapped = [
        [
            (image, [part for line in text for part in textwrap.wrap(line, room)])
            for image, text in c
        ]
        for c in columns
    ]
    # Each row is as high as its longest text.
    below = [_LINE * max(len(text) for _, text in cells) for cells in zip(*wrapped, strict=True)]
    step = factor * width + _MARGIN
    tops = np.cumsum([_LINE + 2 * _MARGIN, *(factor * height + _MARGIN + lines for lines in below)])
    grid = Image.new('RGB', (len(columns) * step + _MARGIN, int(tops[-1])), 'white')
    canvas = ImageDraw.Draw(grid)
    for number, (column, head) in enumerate(zip(wrapped, heads, strict=True)):
        left = _MARGIN + number * step
        canvas.text((left, _MARGIN), head, 'black', font)
        for top, (image, text) in zip(tops[:-1].tolist(), column, strict=True):
            enlarged = np.kron(image, np.ones((factor, factor, 1), np.uint8))
            grid.paste(Image.fromarray(enlarged), (left, top))
            for line, words in enumerate(text):
                place = (left, top + factor * height + 2 + line * _LINE)
                canvas.text(place, words, 'black', font)
    return grid
