"""Color changes, against Pillow's ImageEnhance, colorsys and each formula written out."""

import colorsys

import numpy as np
import pytest
import tensorflow as tf
from helpers import picture
from PIL import Image, ImageEnhance

from tlflax.config.schema import AugmentConfig
from tlflax.data.augment import apply, color_ops, sampling

SIZE = (31, 40)
PILLOW = {
    'brightness': ImageEnhance.Brightness,
    'saturation': ImageEnhance.Color,
    'contrast': ImageEnhance.Contrast,
    'sharpness': ImageEnhance.Sharpness,
}


@pytest.mark.parametrize('factor', [0.0, 0.3, 1.0, 1.4, 1.99])
@pytest.mark.parametrize('name', PILLOW)
def test_enhancements_are_pillows(name, factor):
    """Within one level for its rounding down, and one for the poorer image's rounding."""
    image = picture(SIZE)
    enhance = getattr(color_ops, name)
    got = enhance(tf.constant(image, tf.float32), tf.constant(factor, tf.float32)).numpy()
    expected = np.asarray(PILLOW[name](Image.fromarray(image)).enhance(factor), int)
    assert abs(got - expected).max() <= 1 + abs(1 - factor)
    assert abs(got - expected).mean() < 0.6
    if factor == 1:
        assert abs(got - image).max() < 1e-4
    else:
        assert abs(got - image).max() > 10


@pytest.mark.parametrize('size', [(1, 5), (5, 2), (3, 3)])
def test_sharpness_leaves_the_border(size):
    image = picture(size)
    got = color_ops.sharpness(tf.constant(image, tf.float32), tf.constant(0.1, tf.float32)).numpy()
    expected = np.asarray(ImageEnhance.Sharpness(Image.fromarray(image)).enhance(0.1), int)
    assert abs(got - expected).max() <= 2


@pytest.mark.parametrize('turn', [-0.5, -0.13, 0.0, 0.25, 0.4])
def test_hue_is_colorsyss(turn):
    image = picture((9, 12))
    got = color_ops.hue(tf.constant(image, tf.float32), tf.constant(turn, tf.float32)).numpy()
    expected = np.zeros_like(got)
    for place in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[place] / 255)
        expected[place] = colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, value)
    np.testing.assert_allclose(got, 255 * expected, atol=2e-3)


def test_gray_images_have_no_hue():
    image = np.repeat(picture((6, 6))[..., :1], 3, axis=-1)
    got = color_ops.hue(tf.constant(image, tf.float32), tf.constant(0.3, tf.float32)).numpy()
    np.testing.assert_allclose(got, image, atol=1e-4)


def test_jitter_is_applied_in_its_written_order():
    """Brightness, contrast, saturation, hue; rounded once, after all of them."""
    image = picture(SIZE)
    factors = {'brightness': 1.3, 'contrast': 0.6, 'saturation': 1.5, 'hue': 0.1}
    expected = tf.constant(image, tf.float32)
    for name, factor in factors.items():
        expected = getattr(color_ops, name)(expected, tf.constant(factor, tf.float32))
    row = {f'jitter_{name}': tf.constant(np.float32(value)) for name, value in factors.items()}
    got = apply.apply(tf.constant(image, tf.float32), row, AugmentConfig())
    assert abs(got.numpy() - expected.numpy()).max() <= 0.501


def test_jitter_draws():
    settings = AugmentConfig(
        horizontal_flip=False, jitter_brightness=0.4, jitter_contrast=1.5, jitter_hue=0.1
    )
    draws = sampling.draw(settings, 0, 0, 5000)
    bounds = {'jitter_brightness': (0.6, 1.4), 'jitter_contrast': (0, 2.5)}
    bounds['jitter_hue'] = (-0.1, 0.1)
    assert set(draws) == set(bounds)
    for name, (low, high) in bounds.items():
        assert low <= draws[name].min() < low + 0.01
        assert high - 0.01 < draws[name].max() <= high
