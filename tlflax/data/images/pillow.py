"""Opens image files with Pillow, without changing settings of the whole process.

`PIL.Image.open` compares sizes with a global limit, and Pillow warns of odd metadata through the
global filters of `warnings`. Files are decoded in several threads, beside code of others. So the
plugins are called directly with a limit of their own, and a filter ignores warnings in the threads
that decode, only while they do.
"""

import contextlib
import io
import re
import struct
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from typing import cast

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from tlflax.data.images import png
from tlflax.data.images.sniff import READABLE

_PREFIX_BYTES = 16  # what a plugin sees when it decides whether it takes a file


class TooLarge(Exception):
    """An image has more pixels than allowed; holds its width and height."""


class _Thread(threading.local):
    """The largest image that this thread may decode, in pixels; None outside of `decoding`.

    `warnings` calls its method in place of that of a regular expression.
    """

    max_pixels: int | None = None

    def match(self, text: str, /) -> bool:
        """Returns whether this thread is decoding."""
        return self.max_pixels is not None


_thread = _Thread()


def _check_size(size: tuple[int, int], **options: bool) -> None:
    """Stands in for Pillow's check of sizes."""
    limit = _thread.max_pixels
    if limit is not None and size[0] * size[1] > limit:
        raise TooLarge(*size)


def _with_our_limit(method: object) -> types.FunctionType:
    """Copies a method of a plugin that calls Pillow's check of sizes; the copy calls ours."""
    original = cast(types.FunctionType, method)
    image = types.SimpleNamespace(**vars(Image))
    image._decompression_bomb_check = _check_size
    names = {**original.__globals__, 'Image': image}
    copy = types.FunctionType(
        original.__code__, names, original.__name__, original.__defaults__, original.__closure__
    )
    copy.__kwdefaults__ = original.__kwdefaults__
    return copy


class _Gif(GifImagePlugin.GifImageFile):
    _seek = _with_our_limit(GifImagePlugin.GifImageFile._seek)


class _WebP(WebPImagePlugin.WebPImageFile):
    _open = _with_our_limit(WebPImagePlugin.WebPImageFile._open)


class _Tiff(TiffImagePlugin.TiffImageFile):
    load_prepare = _with_our_limit(TiffImagePlugin.TiffImageFile.load_prepare)


def _png(file: io.BytesIO, name: str) -> ImageFile.ImageFile:
    return PngImagePlugin.PngImageFile(io.BytesIO(png.without_metadata(file.read())), name)


_Factory = Callable[[io.BytesIO, str], ImageFile.ImageFile]
_FACTORIES: dict[str, _Factory] = {
    'JPEG': JpegImagePlugin.jpeg_factory,  # and MPO
    'PNG': _png,
    'GIF': _Gif,
    'BMP': BmpImagePlugin.BmpImageFile,
    'WEBP': _WebP,
    'TIFF': _Tiff,
    'PPM': PpmImagePlugin.PpmImageFile,
}


def open_image(data: bytes) -> ImageFile.ImageFile:
    """Parses the header of an image file, inside of `decoding`; no pixel is decoded.

    Does what `PIL.Image.open` does, apart from its limit.

    Raises:
        TooLarge: The image has more pixels than `decoding` allows.
        UnidentifiedImageError: No format takes the file.
        Exception: Of many types, from a format that takes the file and then fails.
    """
    why: Exception | None = None
    for name in READABLE:
        try:
            accept = Image.OPEN[name][1]
            accepted = accept is None or accept(data[:_PREFIX_BYTES])
            # A string is a message: this Pillow was built without the format.
            if accepted and not isinstance(accepted, str):
                image = _FACTORIES[name](io.BytesIO(data), '')
                _check_size(image.size)
                return image
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            why = error
    raise UnidentifiedImageError('cannot identify image file') from why


_FILTER = ('ignore', _thread, UserWarning, re.compile(r'PIL\.'), 0)
_lock = threading.Lock()
_decoding: list[int] = []  # identities of the threads inside of `decoding`


@contextlib.contextmanager
def decoding(max_pixels: int) -> Iterator[None]:
    """Sets the largest image that this thread decodes, and ignores Pillow's warnings meanwhile.

    The warnings concern odd metadata of files that decode well; a file that fails raises anyway.
    """
    with _lock:
        if not _decoding:
            cast(list[object], warnings.filters).insert(0, _FILTER)
        _decoding.append(threading.get_ident())
    _thread.max_pixels = max_pixels
    try:
        yield
    finally:
        _thread.max_pixels = None
        with _lock:
            _decoding.remove(threading.get_ident())
            # Where `catch_warnings` put back older filters meanwhile, ours is gone already.
            if not _decoding and _FILTER in warnings.filters:
                cast(list[object], warnings.filters).remove(_FILTER)
