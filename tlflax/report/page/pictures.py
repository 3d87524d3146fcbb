"""Small pictures for pages: WebP in `data:` addresses, so that a page needs no other file."""

import base64
import dataclasses
import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tlflax.config.schema import DataConfig
from tlflax.data.images import decode
from tlflax.utils import cpu
from tlflax.utils.errors import UserError

_QUALITY = 70


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture that is part of a page.

    Attributes:
        source: A `data:` address.
        width: Pixels.
        height: Pixels.
    """

    source: str
    width: int
    height: int


def picture(pixels: UInt8[np.ndarray, 'h w 3'], side: int) -> Picture:
    """Returns a picture of RGB pixels whose longer side has at most `side` pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BOX, reducing_gap=None)
    stream = io.BytesIO()
    image.save(stream, 'WEBP', quality=_QUALITY, method=2)
    encoded = base64.b64encode(stream.getvalue()).decode()
    return Picture(f'data:image/webp;base64,{encoded}', *image.size)


class Thumbnails:
    """Pictures of image files, made once each, until a budget of bytes is spent.

    Args:
        side: Pixels of the longer side.
        budget: Bytes of all pictures.
        background: RGB, 0..255, behind transparent pixels.
        max_pixels: Larger images are not read.
    """

    def __init__(
        self,
        *,
        side: int = 96,
        budget: int = 8_000_000,
        background: tuple[int, int, int] = (255, 255, 255),
        max_pixels: int = 100_000_000,
    ) -> None:
        self._side, self._left = side, budget
        self._background, self._max_pixels = background, max_pixels
        self._made: dict[str, Picture | None] = {}

    @classmethod
    def as_read(cls, data: DataConfig, **settings: int) -> Self:
        """Returns one that reads files as a configuration says; see the class for `settings`."""
        return cls(background=data.background, max_pixels=data.max_pixels, **settings)

    def of(self, path: str) -> Picture | None:
        """Returns the picture of a file, upright; None if it cannot be read or nothing is left."""
        if path not in self._made:
            self._take(path, self._make(path))
        return self._made[path]

    def prepare(self, paths: Iterable[str]) -> None:
        """Makes the pictures of many files, on all cores; the budget goes to the first of them."""
        new = list(dict.fromkeys(path for path in paths if path not in self._made))
        with ThreadPoolExecutor(cpu.cores()) as pool:
            for path, made in zip(new, pool.map(self._make, new), strict=True):
                self._take(path, made)

    def _take(self, path: str, made: Picture | None) -> None:
        if made is not None:
            self._left -= len(made.source)
        self._made[path] = made if self._left >= 0 else None

    def _make(self, path: str) -> Picture | None:
        if self._left <= 0:
            return None
        try:
            pixels = decode.read_image(
                path,
                background=self._background,
                max_pixels=self._max_pixels,
                side=self._side,
            )
        except UserError:
            return None
        return picture(pixels, self._side)
