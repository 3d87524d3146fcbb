"""Shows an image to the network without TensorFlow, whose import takes seconds.

For images to predict, of which there may be few. The pixels are those of
`tlflax.data.pipeline.one_image`: the same float32 operations in the same order, in NumPy and SciPy.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int, UInt8

from tlflax.data.augment import sampling
from tlflax.data.images.format import ImageFormat

Image = UInt8[np.ndarray, 'h w 3']
Resized = Float32[np.ndarray, 'height width 3']

_F32 = np.float32
_SMALLEST = 1000 * np.finfo(np.float32).tiny  # sum of weights that is not divided by


def serves(view: sampling.View, image_format: ImageFormat) -> bool:
    """Returns whether `show` can show a view."""
    return image_format.interpolation == 'bilinear' and {*view} <= {*sampling.FLIPS}


def show(
    image: Image, view: sampling.View, image_format: ImageFormat
) -> UInt8[np.ndarray, 'height width 3']:
    """Returns a view of an image, of any size, that `serves` accepts: uint8 [*image_size, 3]."""
    resized = _resized(image, image_format)
    seen = (resized + _F32(0.5)).astype(np.uint8)  # halves go up, as in `color_ops.to_uint8`
    for name, axis in zip(sampling.FLIPS, (1, 0), strict=True):
        if view.get(name):
            seen = np.flip(seen, axis)
    return np.ascontiguousarray(seen)


def _resized(image: Image, form: ImageFormat) -> Resized:
    """Resizes as `tlflax.data.pipeline.resize.resize_image`."""
    source, target = np.array(image.shape[:2]), np.array(form.image_size)
    ratio = target / source
    if form.resize == 'pad':
        inner = np.clip(np.rint(source * ratio.min()).astype(np.int64), 1, target)
        before = np.rint((target - inner) / 2).astype(np.int64)
        after = target - inner - before
        edges = [*zip(before.tolist(), after.tolist(), strict=True), (0, 0)]
        return np.pad(_scaled(image, inner, antialias=form.antialias), edges)
    if form.resize == 'crop':
        factor = ratio.max()
        offset = (target - source * factor) / 2
        return _resampled(
            image, target, np.array([factor, factor]), offset, antialias=form.antialias
        )
    return _scaled(image, target, antialias=form.antialias)


def _scaled(image: Image, size: Int[np.ndarray, '2'], *, antialias: bool) -> Resized:
    """Resizes to exactly `size`."""
    source = np.array(image.shape[:2])
    if not antialias or (size >= source).all():
        return _interpolated(image, size)
    return _resampled(image, size, size / source, np.zeros(2), antialias=antialias)


class _Neighbors(NamedTuple):
    """Of each output position: the two inputs around it, and how far it is from the first."""

    lower: Int[np.ndarray, ' n']
    upper: Int[np.ndarray, ' n']
    part: Float32[np.ndarray, ' n']

    @classmethod
    def of(cls, before: int, after: int) -> '_Neighbors':
        place = (np.arange(after, dtype=_F32) + _F32(0.5)) * (_F32(before) / _F32(after))
        place -= _F32(0.5)
        floor = np.floor(place)
        lower = np.maximum(floor.astype(np.int64), 0)
        upper = np.minimum(np.ceil(place).astype(np.int64), before - 1)
        return cls(lower, upper, place - floor)


def _interpolated(image: Image, size: Int[np.ndarray, '2']) -> Resized:
    """Interpolates between the four pixels around each position."""
    pixels = image.astype(_F32)
    if image.shape[:2] == tuple(size):
        return pixels
    down, across = (
        _Neighbors.of(before, after)
        for before, after in zip(image.shape[:2], size.tolist(), strict=True)
    )
    part = across.part[:, None]
    left, right = pixels[:, across.lower], pixels[:, across.upper]
    lines = left + (right - left) * part
    top, bottom = lines[down.lower], lines[down.upper]
    return top + (bottom - top) * down.part[:, None, None]


def _resampled(
    image: Image,
    size: Int[np.ndarray, '2'],
    scale: Float64[np.ndarray, '2'],
    offset: Float64[np.ndarray, '2'],
    *,
    antialias: bool,
) -> Resized:
    """Resamples rows, then columns: output position = scale * input position + offset."""
    height, width = size.tolist()
    rows = _filtered(
        image.reshape(len(image), -1).astype(_F32), height, scale[0], offset[0], antialias
    )
    columns = rows.reshape(height, -1, 3).transpose(1, 0, 2)
    result = _filtered(columns.reshape(len(columns), -1), width, scale[1], offset[1], antialias)
    return result.reshape(width, height, 3).transpose(1, 0, 2)


def _filtered(
    lines: Float32[np.ndarray, 'n m'], size: int, scale: float, offset: float, antialias: bool
) -> Float32[np.ndarray, 'size m']:
    """Resamples the first axis with a triangle, as TensorFlow's `ScaleAndTranslate`."""
    from scipy import sparse  # takes a tenth of a second

    count = len(lines)
    start, weights = _spans(count, size, scale, offset, antialias)
    span = weights.shape[1]
    at = np.minimum(start[:, None] + np.arange(span), count - 1)
    # The product adds the terms of a sum one after the other, in this order.
    ends = np.arange(0, size * span + 1, span)
    return sparse.csr_array((weights.ravel(), at.ravel(), ends), shape=(size, count)) @ lines


def _spans(
    count: int, size: int, scale: float, offset: float, antialias: bool
) -> tuple[Int[np.ndarray, ' size'], Float32[np.ndarray, 'size span']]:
    """Returns the first input of each output, and the weights of it and of those after it."""
    inverse = _F32(1.0 / float(_F32(scale)))
    shift = -inverse * _F32(offset)
    wide = max(inverse, _F32(1)) if antialias else _F32(1)
    narrow = _F32(1) / wide
    place = (np.arange(size, dtype=_F32) + _F32(0.5)) * inverse + shift
    first = np.clip(np.ceil(place - wide - _F32(0.5)).astype(np.int64), 0, count - 1)
    last = np.clip(np.floor(place + wide - _F32(0.5)).astype(np.int64), 0, count - 1)
    inside = (place >= 0) & (place <= count)
    span = int((last - first).max()) + 1
    source = first[:, None] + np.arange(span)
    away = np.abs((source.astype(_F32) + _F32(0.5) - place[:, None]) * narrow)
    weights = np.maximum(_F32(1) - away, _F32(0))
    weights[(source > last[:, None]) | ~inside[:, None]] = 0
    total = np.zeros(size, _F32)
    for column in weights.T:  # in this order, for these bits
        total += column
    large = np.abs(total) >= _SMALLEST
    weights *= np.where(large, _F32(1) / np.where(large, total, _F32(1)), _F32(0))[:, None]
    return np.where(inside, first, 0), weights
