"""A few images are shown without TensorFlow: the same pixels, and the same predictions."""

import itertools

import numpy as np
import pytest

from tlflax.config.schema import AugmentConfig
from tlflax.data.augment import sampling
from tlflax.data.images.format import ImageFormat
from tlflax.data.pipeline import one_image, without_tensorflow

SHAPES = (
    *((36, 23), (375, 500), (500, 375), (64, 48), (1, 1), (3, 700), (64, 300), (100, 48), (90, 7)),
    *np.random.default_rng(0).integers(1, 300, (12, 2)).tolist(),
)
VIEWS = [
    dict(zip(sampling.FLIPS, flips, strict=True))
    for flips in itertools.product((False, True), repeat=2)
]


@pytest.mark.parametrize('antialias', [True, False])
@pytest.mark.parametrize('mode', ['stretch', 'pad', 'crop'])
def test_the_pixels_are_those_of_the_pipeline(mode, antialias):
    """To the bit, whether an image grows, shrinks or does both."""
    rng, form = np.random.default_rng(1), ImageFormat((64, 48), mode, antialias)
    for number, shape in enumerate(SHAPES):
        image = rng.integers(0, 256, (*shape, 3), np.uint8)
        view = VIEWS[number % len(VIEWS)]
        assert without_tensorflow.serves(view, form)
        expected = one_image.show(image, view, form, AugmentConfig())
        np.testing.assert_array_equal(without_tensorflow.show(image, view, form), expected)


def test_a_wide_image_of_one_color_keeps_it():
    image = np.full((40, 999, 3), 255, np.uint8)
    assert (without_tensorflow.show(image, {}, ImageFormat((64, 48))) == 255).all()


def test_other_views_and_filters_are_left_to_tensorflow():
    form = ImageFormat((64, 48))
    assert without_tensorflow.serves({}, form)
    assert not without_tensorflow.serves({'crop': 4}, form)
    assert not without_tensorflow.serves({'quarter_turns': 1}, form)
    assert not without_tensorflow.serves({}, ImageFormat((64, 48), interpolation='bicubic'))


def test_a_padded_image_has_black_around_it():
    image = np.arange(48, dtype=np.uint8).reshape(8, 2, 3)
    shown = without_tensorflow.show(image, {}, ImageFormat((8, 8), 'pad'))
    np.testing.assert_array_equal(shown[:, 3:5], image)
    assert (shown[:, :3] == 0).all()
    assert (shown[:, 5:] == 0).all()
