"""Images as people hand them to a classifier: files, their bytes, Pillow images and arrays."""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tlflax.data.images import decode
from tlflax.utils.errors import UserError, printable, shown

_CHANNELS = (1, 3, 4)
_SHAPES = '[h, w, 3], [h, w, 4], [h, w] or [b, h, w, 3]'


class Given(NamedTuple):
    """One image to be classified, not decoded yet.

    Attributes:
        name: What messages call it.
        source: A path, the bytes of a file, a Pillow image, or an array u8[h, w], or u8[h, w, c] of
            1, 3 (RGB) or 4 (RGBA) channels.
        path: The path of a file; '' for anything else.
    """

    name: str
    source: str | bytes | Image.Image | np.ndarray
    path: str = ''


def file(path: str) -> Given:
    """Returns the image in a file."""
    return Given(printable(path), path, path)


def is_one(value: object) -> bool:
    """Whether a value stands for one image, or is an array of them, and not a list of images."""
    return isinstance(value, (str, os.PathLike, bytes, bytearray, Image.Image)) or is_array(value)


def is_array(value: object) -> bool:
    """Whether a value is an array of NumPy, JAX or another library."""
    return hasattr(value, '__array__') and hasattr(value, 'shape') and hasattr(value, 'dtype')


def in_memory(value: Any, name: str, scale: float | None) -> Iterator[Given]:
    """Yields the images that a value in memory holds.

    Args:
        value: The bytes of an image file, a Pillow image or an array of one or many images.
        name: What messages call it.
        scale: The value of white, for arrays that are not uint8.

    Raises:
        UserError: It is none of these, or an array of another shape or type.
    """
    if isinstance(value, Image.Image):
        yield Given(name, value)
    elif isinstance(value, (bytes, bytearray)):
        yield Given(name, bytes(value))
    elif is_array(value):
        array = np.asarray(value)
        many = array.ndim == 4
        for number, one in enumerate(array if many else [array], start=1):
            its_name = f'{name}, number {number}' if many else name
            yield Given(its_name, _pixels(one, its_name, scale))
    else:
        raise UserError(
            f'{shown(value)} is not an image',
            where=name,
            fix='give a path, the bytes of a file, a Pillow image or an array',
        )


def to_rgb(
    given: Given, *, background: tuple[int, int, int], max_pixels: int
) -> UInt8[np.ndarray, 'h w 3']:
    """Decodes an image to upright RGB.

    Args:
        given: The image.
        background: RGB, 0..255, behind transparent pixels.
        max_pixels: Larger images are refused.

    Raises:
        UserError: It cannot be read or decoded.
    """
    source = given.source
    if isinstance(source, (str, bytes)):
        return decode.read_image(
            source, background=background, max_pixels=max_pixels, name=given.name
        )
    if isinstance(source, np.ndarray):
        if source.ndim == 3 and source.shape[-1] == 3:
            return source
        source = Image.fromarray(source[..., 0] if source.shape[2:] == (1,) else source)
    return decode.from_pillow(source, background=background, max_pixels=max_pixels, name=given.name)


def _pixels(array: np.ndarray, name: str, scale: float | None) -> np.ndarray:
    """Returns one image's array as uint8."""
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in _CHANNELS)
    if not fits or not array.size:
        first = array.ndim == 3 and array.shape[0] in _CHANNELS
        fix = 'move the channels to the last axis' if first else f'give {_SHAPES}'
        raise UserError(f'an array of shape {list(array.shape)}', where=name, fix=fix)
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in 'fiu' or scale is None:
        raise UserError(
            f'an array of {array.dtype}, whose range of values is not known',
            where=name,
            fix='give uint8 in 0..255, or say with scale= which value is white, such as scale=1.0',
        )
    if not (array.min() >= 0 and array.max() <= scale):  # NaN too
        raise UserError(
            f'values from {array.min():g} to {array.max():g}, outside of 0..{scale:g}',
            where=name,
            fix='undo its normalization, or give the value of white as scale=',
        )
    return np.rint(array.astype(np.float64) * (255 / scale)).astype(np.uint8)
