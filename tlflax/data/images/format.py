"""The settings by which an image file becomes an array."""

import dataclasses
from typing import Self

import numpy as np
from jaxtyping import UInt8

from tlflax.config.schema import DataConfig
from tlflax.data.images.decode import MAX_PIXELS, read_image


@dataclasses.dataclass(frozen=True)
class ImageFormat:
    """How image files become uint8 RGB arrays of one size.

    Attributes:
        image_size: (height, width) in pixels.
        resize: 'stretch', 'pad' or 'crop'; see `tlflax.data.pipeline.resize.resize_image`.
        antialias: Whether the filter is widened when an image shrinks, as in Pillow.
        background: RGB, 0..255, behind transparent pixels.
        max_pixels: Images of more pixels are refused.
        interpolation: 'bilinear' or 'bicubic'.
    """

    image_size: tuple[int, int]
    resize: str = 'stretch'
    antialias: bool = True
    background: tuple[int, int, int] = (0, 0, 0)
    max_pixels: int = MAX_PIXELS
    interpolation: str = 'bilinear'

    @classmethod
    def of(cls, data: DataConfig, interpolation: str = 'bilinear') -> Self:
        """Returns the format that the section `data` of a configuration asks for.

        Args:
            data: The section.
            interpolation: What 'auto' stands for.
        """
        return cls(
            image_size=data.image_size,
            resize=data.resize,
            antialias=data.antialias,
            background=data.background,
            max_pixels=data.max_pixels,
            interpolation=interpolation if data.interpolation == 'auto' else data.interpolation,
        )

    def read(self, path: str) -> UInt8[np.ndarray, 'h w 3']:
        """Decodes a file to upright RGB, not resized.

        Raises:
            UserError: See `read_image`.
        """
        return read_image(path, background=self.background, max_pixels=self.max_pixels)
