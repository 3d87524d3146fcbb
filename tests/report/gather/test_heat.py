"""Heat maps over pictures: colors, blending, and the pixels that the classifier sees."""

import base64
import io

import numpy as np
import pytest
from helpers import picture
from PIL import Image

from tlflax.config.schema import AugmentConfig
from tlflax.data.augment import sampling
from tlflax.data.images.format import ImageFormat
from tlflax.data.pipeline import one_image
from tlflax.report.gather import heat


@pytest.mark.parametrize('resize', ['stretch', 'pad', 'crop'])
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('crops', ['', 'five'])
@pytest.mark.parametrize('size', [(90, 61), (20, 31)], ids=str)
def test_pixels_are_those_of_the_pipeline(resize, interpolation, crops, size):
    image = picture(size)
    form = ImageFormat((40, 48), resize=resize, interpolation=interpolation)
    augment = AugmentConfig(crops=crops)
    expected = one_image.show(image, sampling.plain(augment), form, augment).astype(int)
    found = heat.as_seen(image, form, augment)
    assert np.abs(found - expected).max() <= 3  # Pillow rounds rows before columns


def lightness(rgb):
    """CIE L* of sRGB colors."""
    linear = np.where(rgb <= 10.31475, rgb / 255 / 12.92, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > 216 / 24389, 116 * np.cbrt(y) - 16, y * 24389 / 27)


def test_lightness_grows_evenly():
    shades = lightness(heat.inferno(np.linspace(0, 1, 101)))
    assert shades[0] < 2
    assert shades[-1] > 95
    steps = np.diff(shades)
    assert steps.min() > 0.4
    assert steps.max() < 1.6


def test_cold_places_stay_and_hot_ones_have_the_color():
    pixels = picture((60, 80))
    blended = heat.blended(pixels, np.array([[0, 0, 0], [0, 0, 1]], np.float32))
    np.testing.assert_array_equal(blended[:10, :20], pixels[:10, :20])
    corner = 0.25 * pixels[-1, -1] + 0.75 * heat.inferno(np.array(1.0))
    np.testing.assert_allclose(blended[-1, -1], corner, atol=0.51)
    # Between the centers of two cells the heat grows linearly.
    flat = heat.blended(np.zeros((1, 400, 3), np.uint8), np.array([[0, 1]], np.float32))
    middle = 0.75 * 0.5 * heat.inferno(np.array(0.5))
    np.testing.assert_allclose(flat[0, 199:201].mean(0), middle, atol=1)


def test_overlay_is_a_picture_of_that_side():
    made = heat.overlay(picture((60, 80)), np.full((4, 4), 0.5, np.float32), 40)
    assert (made.width, made.height) == (40, 30)
    with Image.open(io.BytesIO(base64.b64decode(made.source.partition(',')[2]))) as image:
        assert image.size == (40, 30)
