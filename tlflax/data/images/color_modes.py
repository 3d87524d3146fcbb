"""Converts pixels of every color mode that image files have to RGB."""

import numpy as np
from PIL import Image, TiffImagePlugin

_NEW_SUBFILE_TYPE, _BITS_PER_SAMPLE, _PHOTOMETRIC = 254, 258, 262  # TIFF tags
# The factor of a gray PNG's samples of few bits; its transparent value is not multiplied.
_GRAY_SCALE = {'1': 255, 'L;2': 85, 'L;4': 17}


def check_tiff(image: TiffImagePlugin.TiffImageFile) -> None:
    """Refuses TIFFs that Pillow would read to wrong pixels.

    Raises:
        ValueError: Says what it is.
    """
    if int(image.tag_v2.get(_NEW_SUBFILE_TYPE, 0)) & 1:
        raise ValueError('its first page is a thumbnail, as in camera raw files')
    bits = tuple(image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
    if any(depth not in (1, 2, 4, 8, 16) for depth in bits):
        raise ValueError(f'samples of {max(bits)} bits')


def to_rgb(image: Image.Image, layout: str, background: tuple[int, int, int]) -> Image.Image:
    """Converts loaded pixels of any mode, with a background behind what is transparent.

    Args:
        image: A loaded image.
        layout: Pillow's name for how its samples were stored, known only before loading.
        background: RGB, 0..255.

    Raises:
        ValueError: More than one conversion would be right, or Pillow does not know it.
    """
    key = image.info.get('transparency')
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format == 'PPM'):
        values = np.asarray(image)
        if isinstance(image, TiffImagePlugin.TiffImageFile) and not image.tag_v2[_PHOTOMETRIC]:
            values = ~values  # white is zero, which Pillow undoes for 8 bits only
        gray = Image.fromarray((values >> 8).astype(np.uint8))
        return _over(gray, None if key is None else values != key, background)
    if image.mode in ('I', 'F'):
        raise ValueError(f'pixels of mode {image.mode} have no defined brightness')
    if image.mode in ('1', 'L') and isinstance(key, int):
        gray = image.convert('L')
        # At most 255: newer versions of Pillow multiply the value of a 1-bit image themselves.
        opaque = np.asarray(gray) != min(key * _GRAY_SCALE.get(layout, 1), 255)
        return _over(gray, opaque, background)
    if isinstance(key, tuple) and layout.endswith('16B'):
        raise ValueError('a transparent color of 16 bits a channel')
    if not image.has_transparency_data:
        return image.convert('RGB')
    canvas = Image.new('RGBA', image.size, (*background, 255))
    return Image.alpha_composite(canvas, image.convert('RGBA')).convert('RGB')


def _over(
    gray: Image.Image, opaque: np.ndarray | None, background: tuple[int, int, int]
) -> Image.Image:
    """Converts grayscale to RGB, with the background where a pixel is not opaque."""
    rgb = gray.convert('RGB')
    if opaque is None:
        return rgb
    canvas = Image.new('RGB', gray.size, background)
    return Image.composite(rgb, canvas, Image.fromarray(opaque))
