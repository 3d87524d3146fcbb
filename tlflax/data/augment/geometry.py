"""Affine maps and boxes of the geometric augmentations, from their draws; no TensorFlow."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Shaped


def affine_matrices(
    draws: Mapping[str, Shaped[np.ndarray, ' n']], image_size: tuple[int, int]
) -> Float64[np.ndarray, 'n 2 3']:
    """Returns the maps from output pixels to input pixels, in (row, column) order.

    The composition is Keras's: rotation @ shift @ shear @ zoom, about the center of the image.

    Args:
        draws: Any of `rotation`, `shear` (degrees), `width_shift`, `height_shift` (fractions),
            `zoom_width`, `zoom_height` (factors; above 1 shows more, smaller), each [n].
        image_size: (height, width).
    """
    height, width = image_size
    n = len(next(iter(draws.values())))

    def get(name: str, default: float) -> Float64[np.ndarray, ' n']:
        return np.asarray(draws.get(name, np.full(n, default)), np.float64)

    theta, phi = np.deg2rad(get('rotation', 0.0)), np.deg2rad(get('shear', 0.0))
    cos, sin = np.cos(theta), np.sin(theta)
    rotation = _matrix(n, {(0, 0): cos, (0, 1): sin, (1, 0): -sin, (1, 1): cos})
    rows, columns = get('height_shift', 0.0) * height, get('width_shift', 0.0) * width
    shift = _matrix(n, {(0, 2): rows, (1, 2): columns})
    shear = _matrix(n, {(0, 0): np.cos(phi), (1, 0): -np.sin(phi)})
    zoom = _matrix(n, {(0, 0): get('zoom_height', 1.0), (1, 1): get('zoom_width', 1.0)})
    row, column = np.full(n, height / 2 - 0.5), np.full(n, width / 2 - 0.5)
    to_center = _matrix(n, {(0, 2): row, (1, 2): column})
    from_center = _matrix(n, {(0, 2): -row, (1, 2): -column})
    return (to_center @ rotation @ shift @ shear @ zoom @ from_center)[:, :2]


def _matrix(
    n: int, entries: Mapping[tuple[int, int], Float64[np.ndarray, ' n']]
) -> Float64[np.ndarray, 'n 3 3']:
    """Returns identity matrices with some entries replaced."""
    matrix = np.tile(np.eye(3), (n, 1, 1))
    for (row, column), values in entries.items():
        matrix[:, row, column] = values
    return matrix


def erasing_boxes(
    erase: Bool[np.ndarray, ' n'],
    area: Float32[np.ndarray, 'n tries'],
    ratio: Float32[np.ndarray, 'n tries'],
    place: Float32[np.ndarray, 'n 2'],
    image_size: tuple[int, int],
) -> Int32[np.ndarray, 'n 4']:
    """Returns the boxes (top, left, height, width) to erase, as torchvision's RandomErasing.

    The first box that is smaller than the image is used; if none is, nothing is erased.

    Args:
        erase: Whether anything is erased; if not, the box is empty.
        area: Fractions of the image's area.
        ratio: Aspect ratios, height / width.
        place: Where the box is, 0..1 from top to bottom and from left to right.
        image_size: (height, width).
    """
    size = np.array(image_size)
    pixels = np.float64(area) * size.prod()
    sides = np.stack([np.sqrt(pixels * ratio), np.sqrt(pixels / ratio)], axis=-1).round()
    fits = np.all(sides < size, axis=-1)
    first = sides[np.arange(len(sides)), fits.argmax(1)]
    first = np.where((erase & np.any(fits, axis=1))[:, None], first, 0)
    # A place may have been rounded to 1.
    corner = np.minimum(np.floor(place * (size - first + 1)), size - first)
    return np.concatenate([corner, first], axis=1).astype(np.int32)
