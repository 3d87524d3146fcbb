"""A warp is the formula below to the last bit, whatever it is compiled to."""

import numpy as np
import pytest
import tensorflow as tf

from tlflax.data.augment.warp import warp

CVAL = 7.0


def written_out(image, matrix, fill_mode):
    """Positions in float64, values in float32, every operation rounded by itself."""
    height, width, _ = image.shape
    rows, columns = np.arange(height, dtype=float)[:, None], np.arange(width, dtype=float)[None]
    sides, positions = [], []
    for number, size in enumerate((height, width)):
        one, other, shift = matrix[number]
        at = (one * rows + other * columns) + shift
        positions.append((at, size))
        if fill_mode == 'reflect':
            at = np.mod(at + 0.5, 2 * size)
            at = np.minimum(at, 2 * size - at) - 0.5
        elif fill_mode == 'wrap' and size > 1:
            at = np.where((at < 0) | (at > size - 1), np.mod(at, size - 1), at)
        at = np.clip(at, 0, size - 1)
        low = at.astype(int)
        weight = (at - low).astype(np.float32)[..., None]
        sides.append((low, np.minimum(low + 1, size - 1), weight))
    (top, bottom, down), (left, right, across) = sides
    above, below = (
        image[row, left] + (image[row, right] - image[row, left]) * across for row in (top, bottom)
    )
    result = above + (below - above) * down
    if fill_mode == 'constant':
        outside = np.any([(at < 0) | (at > size - 1) for at, size in positions], axis=0)
        result[outside] = CVAL
    return result


@pytest.mark.parametrize('fill_mode', ['nearest', 'constant', 'reflect', 'wrap'])
@pytest.mark.parametrize('size', [(224, 224), (31, 52), (1, 7), (7, 1)])
def test_every_bit_is_that_of_the_formula(size, fill_mode):
    """Values between the levels, as after a resize; turned, sheared, zoomed and far outside."""
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 255, (*size, 3)).astype(np.float32)
    for angle, far in [(0.2, 0.1), (-0.1, 0.1), (2.5, 3.0)]:
        linear = np.array([[np.cos(angle), np.sin(angle)], [-0.9 * np.sin(angle), 1.1]])
        matrix = np.column_stack([linear, far * rng.normal(size=2) * size])
        found = warp(tf.constant(image), tf.constant(matrix), fill_mode=fill_mode, cval=CVAL)
        np.testing.assert_array_equal(found, written_out(image, matrix, fill_mode))
