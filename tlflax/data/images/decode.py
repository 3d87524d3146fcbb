"""The reference decoder: the bytes of an image file to RGB pixels, by Pillow.

Every way of reading images agrees with this one. What a file is, is decided by its bytes, never by
its extension. What is done to each format:

- EXIF (and XMP, TIFF) orientation is applied; unreadable metadata count as none.
- Grayscale is repeated over three channels; palettes are looked up; 16 bits keep the high byte.
- CMYK and YCCK become RGB by Pillow's formula (Adobe's inverted storage undone, no ICC profile).
- Transparency is composited over a background color, black unless asked otherwise.
- Of an animation or a multi-page file, the first picture counts.
- Truncated files are errors. (A JPEG carries no checksum: damage in the middle that still decodes
  cannot be told from a picture.)
"""

import contextlib
import io
import os
import threading
import unicodedata
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, TiffImagePlugin

from tlflax.data.images import color_modes, perceptual_hash, sniff
from tlflax.utils.errors import UserError

MAX_PIXELS = 178_956_970  # where Pillow too stops by default: half a gigabyte of RGB

# Pillow warns of odd metadata in files that decode well; a picture that fails raises anyway.
warnings.filterwarnings('ignore', category=UserWarning, module=r'PIL\.')

_JPEG = ('JPEG', 'MPO')  # several JPEGs in one file, as some phones write
_FORMATS = (*sniff.READABLE, 'MPO')
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TF_MAX_BYTES = 1 << 29  # tf.io.decode_jpeg refuses more

Source = str | os.PathLike[str] | bytes


class ImageInfo(NamedTuple):
    """What `probe` finds.

    Attributes:
        format: Pillow's name: JPEG, MPO, PNG, GIF, BMP, WEBP, TIFF or PPM.
        width: Pixels, after orientation.
        height: Pixels, after orientation.
        mode: Pillow's color mode of the file (RGB, L, P, CMYK, RGBA, I;16, ...).
        orientation: The EXIF value, 1 (upright) to 8.
        plain_jpeg: A JPEG that TensorFlow's decoder reads to the same pixels: baseline or
            progressive Huffman coding, 8 bits, 1 or 3 components, upright.
    """

    format: str
    width: int
    height: int
    mode: str
    orientation: int
    plain_jpeg: bool


def read_image(
    source: Source,
    *,
    background: tuple[int, int, int] = (0, 0, 0),
    max_pixels: int = MAX_PIXELS,
    name: str = 'image',
) -> UInt8[np.ndarray, 'h w 3']:
    """Decodes an image file, or its bytes, to upright RGB.

    Args:
        source: A path, or the whole file as bytes.
        background: The RGB color, 0..255, behind transparent pixels.
        max_pixels: Larger images are refused before memory is spent on them.
        name: What to call `source` in an error where it is bytes.

    Raises:
        UserError: The file cannot be opened or decoded; names it and says what its bytes are.
    """
    data, name = _bytes(source, name)
    with _blaming(data, name):
        image, layout, _ = _open(data, max_pixels)
        image.load()
        rgb = color_modes.to_rgb(image, layout, background)
        orientation = _orientation(image)
        if orientation != 1:
            rgb = rgb.transpose(_UPRIGHT[orientation])
        return np.array(rgb)


def probe(source: Source, *, max_pixels: int = MAX_PIXELS, name: str = 'image') -> ImageInfo:
    """Reads the header and makes sure, by decoding, that `read_image` will succeed.

    JPEGs are decoded at down to an eighth of their size: every coefficient is still read, in half
    the time.

    Args:
        source: A path, or the whole file as bytes.
        max_pixels: Larger images are refused.
        name: What to call `source` in an error where it is bytes.

    Raises:
        UserError: As `read_image`.
    """
    return examine(source, max_pixels=max_pixels, name=name)[0]


def examine(
    source: Source,
    *,
    background: tuple[int, int, int] = (0, 0, 0),
    max_pixels: int = MAX_PIXELS,
    name: str = 'image',
) -> tuple[ImageInfo, bytes]:
    """Does what `probe` does; returns the pixels of a thumbnail besides, see `looks`."""
    data, name = _bytes(source, name)
    with _blaming(data, name):
        image, layout, plain = _open(data, max_pixels)
        width, height = image.size
        mode, file_format = image.mode, str(image.format)
        is_jpeg, drafted = file_format in _JPEG, None
        if is_jpeg:
            drafted = image.draft(
                None, (perceptual_hash.SIDE, perceptual_hash.SIDE)
            )  # no smaller than that
        image.load()
        plain_rgb = is_jpeg and image.mode == 'RGB'
        rgb = image if plain_rgb else color_modes.to_rgb(image, layout, background)
        # Its last row or column may stand for a part of a pixel.
        thumb = perceptual_hash.thumbnail(rgb, drafted[1] if drafted else None)
        if not is_jpeg:
            width, height = image.size  # a TIFF turns itself on loading
        orientation = _orientation(image)
        if orientation != 1:
            thumb = thumb.transpose(_UPRIGHT[orientation])
        if orientation >= 5:
            width, height = height, width
        plain = plain and orientation == 1 and 3 * width * height < _TF_MAX_BYTES
        info = ImageInfo(file_format, width, height, mode, orientation, plain)
        return info, thumb.tobytes()


def _bytes(source: Source, name: str) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return source, name
    name = printable(os.fspath(source))
    try:
        with open(source, 'rb') as file:
            return file.read(), name
    except OSError as error:
        what = f'cannot be read: {error.strerror}'
        raise UserError(what, where=name, fix='check its path and permissions') from error


def printable(path: str) -> str:
    """Returns a path, or other outside text, that is safe to print and to encode."""
    return ''.join('�' if unicodedata.category(char) in ('Cc', 'Cs') else char for char in path)


class _TooLarge(Exception):
    """More pixels than allowed."""


@contextlib.contextmanager
def _blaming(data: bytes, name: str) -> Iterator[None]:
    """Turns whatever Pillow raises on bad bytes into a sentence.

    Its decoders raise a dozen types (SyntaxError, struct.error, IndexError, ...) on damaged files,
    so every Exception from inside is taken as the file's fault.
    """
    try:
        yield
    except _TooLarge as error:
        raise UserError(f'has {error}', where=name, fix='shrink it or remove it') from None
    except Exception as error:
        what = f'is {_fault(data, error)}'
        raise UserError(what, where=name, fix='replace or remove it') from error


def _fault(data: bytes, error: Exception) -> str:
    kind = sniff.sniff(data[: sniff.HEAD_BYTES])
    if kind not in sniff.READABLE:
        return sniff.describe(kind)
    if 'truncat' in str(error).lower() or sniff.is_cut_short(kind, data):
        return f'a truncated {kind}'
    reason = (
        '' if isinstance(error, Image.UnidentifiedImageError) else f' ({printable(str(error))})'
    )
    return f'a {kind} that cannot be decoded{reason}'


_PILLOW_LIMIT = threading.Lock()


def _open(data: bytes, max_pixels: int) -> tuple[Image.Image, str, bool]:
    """Parses the header.

    Returns:
        The image, not yet decoded; Pillow's name of its sample layout; whether every decoder reads
        it alike.
    """
    # Pillow's own limit is a global that only the process can set; ours is an argument. It is
    # lifted while a header is parsed, which allocates nothing.
    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    width, height = image.size
    if width * height > max_pixels:
        raise _TooLarge(f'{width}x{height} pixels, more than the limit of {max_pixels:,}')
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        color_modes.check_tiff(image)
    layout = image.tile[0][3] if isinstance(image, ImageFile.ImageFile) and image.tile else ''
    fault, plain = sniff.check_jpeg(data) if image.format in _JPEG else ('', False)
    if fault:
        raise ValueError(fault)
    layout_name = str(layout[0] if isinstance(layout, tuple) else layout)
    return image, layout_name, plain and image.format == 'JPEG'


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # damaged metadata of a sound picture, as every viewer has it
        return 1
    return value if value in _UPRIGHT else 1
