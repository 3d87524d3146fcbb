"""The reference decoder: the bytes of an image file to RGB pixels, by Pillow.

Every other way of reading images gives the same pixels. The bytes of a file decide what it is, and
never its extension. Of each format:

- EXIF (and XMP, TIFF) orientation is applied; unreadable metadata are ignored.
- Grayscale is repeated over three channels; palettes are looked up; 16 bits keep the high byte.
- CMYK and YCCK become RGB by Pillow's formula (Adobe's inverted storage undone, no ICC profile).
- Transparency is composited over a background color, black unless asked otherwise.
- The first picture of an animation or of a multi-page file is read.
- Metadata of a PNG that decide neither pixels nor orientation are not read, damaged or not.
- Truncated files are errors. (A JPEG carries no checksum: damage in the middle that still decodes
  cannot be told from a picture.)
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import cast

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from tlflax.data.images import color_modes, perceptual_hash, pillow, sniff
from tlflax.data.images.files import ScannedFile
from tlflax.utils.errors import UserError, as_user_error, printable, reason
from tlflax.utils.files import regular

MAX_PIXELS = 178_956_970  # where Pillow too stops by default: half a gigabyte of RGB

# Larger images have at least a byte for this many pixels, however well they compress. What claims
# more is made to fill the memory: 42 bytes of GIF can announce half a gigabyte of RGB.
_LARGE, _PIXELS_PER_BYTE = 50_000_000, 100

_JPEG = ('JPEG', 'MPO')  # several JPEGs in one file, as some phones write
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FLAT = 8  # of 255, the most by which the pixels of a picture of nothing differ
_TF_MAX_BYTES = 1 << 29  # tf.io.decode_jpeg refuses more

Source = str | os.PathLike[str] | bytes


def read_image(
    source: Source,
    *,
    background: tuple[int, int, int] = (0, 0, 0),
    max_pixels: int = MAX_PIXELS,
    name: str = 'image',
    side: int | None = None,
) -> UInt8[np.ndarray, 'h w 3']:
    """Decodes an image file, or its bytes, to upright RGB.

    Args:
        source: A path, or the whole file as bytes.
        background: The RGB color, 0..255, behind transparent pixels.
        max_pixels: Larger images are refused before memory is spent on them.
        name: What to call `source` in an error where it is bytes.
        side: A JPEG may be decoded at down to an eighth of its size, at least this wide and high:
            for pictures that people look at. None: at its size.

    Raises:
        UserError: The file cannot be opened or decoded; names it and says what its bytes are.
    """
    data, name = _bytes(source, name)
    with _decoding(data, name, max_pixels):
        image, layout, _ = _open(data)
        if side is not None and image.format in _JPEG:
            image.draft(None, (side, side))
        return _upright_rgb(image, layout, background)


def from_pillow(
    image: Image.Image,
    *,
    background: tuple[int, int, int] = (0, 0, 0),
    max_pixels: int = MAX_PIXELS,
    name: str = 'image',
) -> UInt8[np.ndarray, 'h w 3']:
    """Converts a Pillow image, loaded or not, to upright RGB.

    Args:
        image: The image.
        background: See `read_image`.
        max_pixels: See `read_image`.
        name: What to call it in an error.

    Raises:
        UserError: It is too large or cannot be decoded, or its mode has no defined colors.
    """
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(width, height, f'more than the limit of {max_pixels:,}', name)
    fix = 'give it in mode RGB'
    with as_user_error('cannot be decoded: {reason}', where=name, fix=fix):
        return _upright_rgb(image, _layout(image), background)


def _upright_rgb(
    image: Image.Image, layout: str, background: tuple[int, int, int]
) -> UInt8[np.ndarray, 'h w 3']:
    image.load()
    rgb = color_modes.to_rgb(image, layout, background)
    orientation = _orientation(image)
    if orientation != 1:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    return np.array(rgb)


def probe(
    source: Source,
    *,
    background: tuple[int, int, int] = (0, 0, 0),
    max_pixels: int = MAX_PIXELS,
    name: str = 'image',
) -> ScannedFile:
    """Reads the header and makes sure, by decoding, that `read_image` will succeed.

    JPEGs are decoded at down to an eighth of their size: every coefficient is still read, in half
    the time.

    Args:
        source: See `read_image`.
        background: See `read_image`; seen in the thumbnail.
        max_pixels: See `read_image`.
        name: See `read_image`.

    Returns:
        A good image, with its thumbnail and without its perceptual hash.

    Raises:
        UserError: As `read_image`.
    """
    data, name = _bytes(source, name)
    with _decoding(data, name, max_pixels):
        image, layout, plain = _open(data)
        size, mode = image.size, image.mode
        thumbnail, flat = _thumbnail(image, layout, background)
        if image.format not in _JPEG:
            size = image.size  # a TIFF turns itself on loading
        orientation = _orientation(image)
        if orientation != 1:
            thumbnail = thumbnail.transpose(_UPRIGHT[orientation])
        width, height = size if orientation < 5 else size[::-1]
    return ScannedFile(
        kind=sniff.sniff(data[: sniff.HEAD_BYTES]),
        digest=hashlib.sha256(data).hexdigest(),
        format=str(image.format),
        mode=mode,
        width=width,
        height=height,
        orientation=orientation,
        plain_jpeg=plain and orientation == 1 and 3 * width * height < _TF_MAX_BYTES,
        flat=flat,
        thumbnail=thumbnail.tobytes(),
    )


def _thumbnail(
    image: ImageFile.ImageFile, layout: str, background: tuple[int, int, int]
) -> tuple[Image.Image, bool]:
    """Decodes an image, a JPEG to no more pixels than a thumbnail needs; tells if it is flat."""
    is_jpeg, drafted = image.format in _JPEG, None
    if is_jpeg:
        drafted = image.draft(None, (perceptual_hash.SIDE, perceptual_hash.SIDE))
    image.load()
    plain_rgb = is_jpeg and image.mode == 'RGB'
    rgb = image if plain_rgb else color_modes.to_rgb(image, layout, background)
    # The last row or column of a draft may stand for a part of a pixel.
    thumbnail = perceptual_hash.thumbnail(rgb, drafted[1] if drafted else None)
    # A thumbnail of fine texture is flat too, so the pixels decide; few have to be looked at.
    return thumbnail, _is_flat(thumbnail) and _is_flat(rgb)


def _is_flat(rgb: Image.Image) -> bool:
    bands = cast(tuple[tuple[int, int], ...], rgb.getextrema())
    return all(high - low <= _FLAT for low, high in bands)


def _bytes(source: Source, name: str) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return source, name
    return read_bytes(source), printable(os.fspath(source))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Returns the contents of a file.

    Raises:
        UserError: It cannot be read.
    """
    name, fix = printable(os.fspath(path)), 'check its path and permissions'
    with (
        as_user_error('cannot be read: {reason}', where=name, fix=fix, of=(OSError,)),
        open(path, 'rb', opener=regular) as file,
    ):
        return file.read()


@contextlib.contextmanager
def _decoding(data: bytes, name: str, max_pixels: int) -> Iterator[None]:
    """Limits the pixels, and turns everything that Pillow raises on bad bytes into a sentence.

    Its decoders raise a dozen types (SyntaxError, struct.error, IndexError, ...) on damaged files,
    so every Exception from inside counts as the file's fault.
    """
    try:
        with pillow.decoding(min(max_pixels, max(_LARGE, _PIXELS_PER_BYTE * len(data)))):
            yield
    except pillow.TooLarge as error:
        width, height = error.args
        few = f'far more than {len(data):,} bytes can hold'
        why = f'more than the limit of {max_pixels:,}' if width * height > max_pixels else few
        raise _too_large(width, height, why, name) from None
    except Exception as error:
        what = f'is {_fault(data, error)}'
        raise UserError(what, where=name, fix='replace or remove it') from error


def _too_large(width: int, height: int, why: str, name: str) -> UserError:
    what = f'has {width}x{height} pixels, {why}'
    return UserError(what, where=name, fix='shrink it or remove it')


def _fault(data: bytes, error: Exception) -> str:
    kind = sniff.sniff(data[: sniff.HEAD_BYTES])
    if kind not in sniff.READABLE:
        return sniff.explain(kind)
    if 'truncat' in str(error).lower() or sniff.is_cut_short(kind, data):
        return f'a truncated {kind}'
    why: BaseException | None = error
    if isinstance(error, UnidentifiedImageError):
        # Causes of other types tell of Pillow's code, and not of the file.
        why = error.__cause__ if isinstance(error.__cause__, SyntaxError) else None
    said = f' ({printable(reason(why))})' if why else ''
    return f'a {kind} that cannot be decoded{said}'


def _open(data: bytes) -> tuple[ImageFile.ImageFile, str, bool]:
    """Parses the header.

    Returns:
        The image, not yet decoded; Pillow's name of its sample layout; whether every decoder reads
        it to the same pixels.
    """
    image = pillow.open_image(data)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        color_modes.check_tiff(image)
    fault, plain = sniff.check_jpeg(data) if image.format in _JPEG else ('', False)
    if fault:
        raise ValueError(fault)
    return image, _layout(image), plain and image.format == 'JPEG'


def _layout(image: Image.Image) -> str:
    """Returns Pillow's name of an image's sample layout; '' once it is loaded."""
    tile = getattr(image, 'tile', None)
    layout = tile[0][3] if tile else ''
    return str(layout[0] if isinstance(layout, tuple) else layout)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # damaged metadata; viewers show such a picture as it is stored
        return 1
    return value if value in _UPRIGHT else 1
