"""Pictures of a run's outcome: the confusion matrix, and the most confident mistakes."""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from tlflax.utils.errors import printable

_TEXT, _LINE, _MARGIN = 13, 16, 8  # pixels; _TEXT is the height of the font
_SIDE = 160  # pixels of the longer side of a mistake
_COLUMNS = 3
_TITLE = 'rows: true class, columns: predicted class'
_NAMED = 60  # most classes whose names are beside a matrix
_BLUE, _RED = np.array([33, 102, 172.0]), np.array([178, 24, 43.0])


@dataclasses.dataclass(frozen=True, eq=False)
class Mistake:
    """An image that was classified wrongly.

    Attributes:
        pixels: RGB, of any size.
        true: Its class.
        predicted: The class of the highest probability.
        probability: Of the predicted class.
    """

    pixels: UInt8[np.ndarray, '_ _ 3']
    true: str
    predicted: str
    probability: float


def png(pixels: UInt8[np.ndarray, '_ _ 3']) -> bytes:
    """Returns a PNG of an RGB image."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, 'PNG')
    return stream.getvalue()


def confusion_matrix(
    counts: Int[np.ndarray, 'classes classes'], class_names: Sequence[str]
) -> UInt8[np.ndarray, '_ _ 3']:
    """Draws a confusion matrix: right predictions in blue, wrong ones in red.

    The color of a cell is its share of the images of its row.

    Args:
        counts: `[true][predicted]`, numbers of images.
        class_names: In the order of the rows.
    """
    n = len(counts)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    hue = np.where(np.eye(n, dtype=bool)[:, :, None], _BLUE, _RED)
    # The root makes single mistakes visible.
    cells = np.round(255 + (hue - 255) * np.sqrt(share)[:, :, None]).astype(np.uint8)
    side = max(1, min(48, 960 // n))
    font = ImageFont.load_default(_TEXT)
    names = [_short(name) for name in class_names] if n <= _NAMED and side >= _TEXT else []
    left = int(max((font.getlength(name) for name in names), default=0)) + 2 * _MARGIN + _LINE
    top = 2 * _MARGIN + 2 * _LINE
    below = int(max((font.getlength(name) for name in names), default=0)) + _MARGIN
    width = max(left + n * side, int(font.getlength(_TITLE)) + _MARGIN) + _MARGIN
    size = (width, top + n * side + below + _MARGIN)
    image = Image.new('RGB', size, 'white')
    image.paste(Image.fromarray(cells.repeat(side, 0).repeat(side, 1)), (left, top))
    canvas = ImageDraw.Draw(image)
    canvas.text((_MARGIN, _MARGIN), _TITLE, 'black', font)
    for number, name in enumerate(names):
        middle = number * side + side // 2
        canvas.text((left - _MARGIN, top + middle), name, 'black', font, anchor='rm')
        label = _turned(name, font)
        image.paste(label, (left + middle - label.width // 2, top + n * side + _MARGIN))
    if side >= 24:
        _write_counts(canvas, counts, share, side, (left, top))
    return np.asarray(image)


def _write_counts(
    canvas: ImageDraw.ImageDraw,
    counts: Int[np.ndarray, 'classes classes'],
    share: np.ndarray,
    side: int,
    corner: tuple[int, int],
) -> None:
    """Writes the number of images in each cell that has any."""
    left, top = corner
    font = ImageFont.load_default(_TEXT if side >= 32 else 9)
    for row, column in np.argwhere(counts).tolist():
        place = (left + column * side + side // 2, top + row * side + side // 2)
        color = 'white' if share[row, column] > 0.25 else 'black'
        canvas.text(place, str(counts[row, column]), color, font, anchor='mm')


def _turned(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    """Returns a text that runs upwards."""
    label = Image.new('RGB', (max(int(font.getlength(text)), 1), _LINE), 'white')
    ImageDraw.Draw(label).text((0, 0), text, 'black', font)
    return label.transpose(Image.Transpose.ROTATE_90)


def mistakes(shown: Sequence[Mistake]) -> UInt8[np.ndarray, '_ _ 3']:
    """Draws mistakes side by side, each over its true class and the predicted one."""
    width, height = _SIDE + _MARGIN, _SIDE + _MARGIN + 2 * _LINE
    rows = -(-len(shown) // _COLUMNS)
    size = (min(len(shown), _COLUMNS) * width + _MARGIN, rows * height + _MARGIN)
    grid = Image.new('RGB', size, 'white')
    canvas, font = ImageDraw.Draw(grid), ImageFont.load_default(_TEXT)
    for number, one in enumerate(shown):
        left = _MARGIN + number % _COLUMNS * width
        top = _MARGIN + number // _COLUMNS * height
        grid.paste(_fitted(one.pixels), (left, top))
        lines = f'true {one.true}', f'{one.probability:.2f} for {one.predicted}'
        for line, text in enumerate(lines):
            canvas.text((left, top + _SIDE + line * _LINE), _short(text, 24), 'black', font)
    return np.asarray(grid)


def _fitted(pixels: UInt8[np.ndarray, '_ _ 3']) -> Image.Image:
    """Returns an image whose longer side has `_SIDE` pixels."""
    image = Image.fromarray(pixels)
    scale = _SIDE / max(image.size)
    width, height = (max(1, round(scale * length)) for length in image.size)
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
    return image.resize((width, height), how)


def _short(text: str, most: int = 20) -> str:
    text = printable(text)
    return text if len(text) <= most else f'{text[: most - 1]}…'
