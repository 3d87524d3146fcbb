"""Heat maps over pictures of images, as a classifier sees these."""

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageOps

from tlflax.config.schema import AugmentConfig
from tlflax.data.images.format import ImageFormat
from tlflax.report.page.pictures import Picture, picture

_ALPHA = 0.75  # of the hottest place; the coldest shows the picture alone
_FILTERS = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}
_INFERNO = np.array(  # ten colors at equal steps; its lightness is about linear (BSD, matplotlib)
    [[int(color[i : i + 2], 16) for i in (0, 2, 4)] for color in (
        '000004 1b0c41 4a0c6b 781c6d a52c60 cf4446 ed6925 fb9b06 f7d13d fcffa4'.split()
    )],
    np.float32,
)  # fmt: skip


def as_seen(
    pixels: UInt8[np.ndarray, 'h w 3'], image_format: ImageFormat, augment: AugmentConfig
) -> UInt8[np.ndarray, 'height width 3']:
    """Returns what of an image evaluation sees, resized by Pillow.

    Up to rounding these are the pixels of `tlflax.data.pipeline`, without TensorFlow; an image that
    is resized with `antialias=False` looks smoother here.

    Args:
        pixels: The whole image, upright.
        image_format: How images are resized.
        augment: The augmentation of training, whose corner crops leave the center to evaluation.
    """
    height, width = image_format.image_size
    size, how = (width, height), _FILTERS[image_format.interpolation]
    if augment.crops:
        size = round(width / augment.crop_fraction), round(height / augment.crop_fraction)
    image = Image.fromarray(pixels)
    match image_format.resize:
        case 'pad':
            image = ImageOps.pad(image, size, how)
        case 'crop':
            image = ImageOps.fit(image, size, how)
        case _:
            image = image.resize(size, how)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return np.asarray(image)[top : top + height, left : left + width]


def overlay(
    pixels: UInt8[np.ndarray, 'height width 3'], heat: Float32[np.ndarray, 'h w'], side: int
) -> Picture:
    """Returns a picture of an image under its heat map.

    Args:
        pixels: The image as the classifier sees it.
        heat: 0..1 for each cell of a grid over the whole image; see `tlflax.inference.heat_maps`.
        side: Pixels of the longer side of the picture.
    """
    return picture(blended(pixels, heat), side)


def blended(
    pixels: UInt8[np.ndarray, 'height width 3'], heat: Float32[np.ndarray, 'h w']
) -> UInt8[np.ndarray, 'height width 3']:
    """Returns an image under its heat map; see `overlay`."""
    cells = Image.fromarray(np.ascontiguousarray(heat, np.float32))
    over = np.asarray(cells.resize(pixels.shape[1::-1], Image.Resampling.BILINEAR))
    over = np.clip(over, 0, 1)
    shade = np.rint(over * np.float32(len(_SHADES) - 1)).astype(np.int16)
    mixed = (1 - np.float32(_ALPHA) * over)[..., None] * pixels + _SHADES[shade]
    return np.rint(mixed).astype(np.uint8)


def inferno(values: Float[np.ndarray, '*shape']) -> Float[np.ndarray, '*shape 3']:
    """Returns the color, RGB 0..255, of each value in 0..1: black, purple, orange, yellow."""
    places = np.linspace(0, 1, len(_INFERNO))
    return np.stack([np.interp(values, places, channel) for channel in _INFERNO.T], axis=-1)


# What each heat adds to a pixel: 256 steps between two colors are less than half a level.
_HEATS = np.linspace(0, 1, 256 * (len(_INFERNO) - 1) + 1)
_SHADES = (_ALPHA * _HEATS[:, None] * inferno(_HEATS)).astype(np.float32)
