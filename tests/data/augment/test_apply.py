"""Augmentations, pixel by pixel against Keras's ImageDataGenerator and SciPy."""

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf
from helpers import picture

from tlflax.config.schema import AugmentConfig
from tlflax.data.augment import apply, sampling

ImageDataGenerator = tf.keras.preprocessing.image.ImageDataGenerator
pytestmark = pytest.mark.filterwarnings('ignore:Please import `affine_transform`')

SQUARE = (48, 48)
OBLONG = (31, 52)
FILL_MODES = ('nearest', 'constant', 'reflect', 'wrap')
GEOMETRY = {
    'rotation': 23.0,
    'width_shift': 0.15,
    'height_shift': -0.3,
    'shear': 12.0,
    'zoom_width': 0.8,
    'zoom_height': 1.3,
}


def ours(image, draws, fill_mode='nearest', cval=0.0):
    """One image u8[h, w, 3] through `apply`, for draws of plain numbers."""
    rows = {name: np.array([value]) for name, value in draws.items()}
    rows = {
        name: values.astype(np.float32) if values.dtype == float else values
        for name, values in rows.items()
    }
    settings = AugmentConfig(fill_mode=fill_mode, cval=cval)
    parameters = apply.parameters(rows, image.shape[:2], settings)
    result = apply.apply(
        tf.constant(image, tf.float32),
        {name: tf.constant(values[0]) for name, values in parameters.items()},
        settings,
    )
    assert result.dtype == tf.uint8
    return result.numpy().astype(int)


def kerass(image, draws, fill_mode='nearest', cval=0.0):
    """The same by Keras, whose x is the column; float32, not rounded."""
    height, width = image.shape[:2]
    names = {
        'rotation': ('theta', 1),
        'width_shift': ('tx', width),
        'height_shift': ('ty', height),
        'shear': ('shear', 1),
        'zoom_width': ('zx', 1),
        'zoom_height': ('zy', 1),
        'channel_shift': ('channel_shift_intensity', 1),
        'brightness': ('brightness', 1),
        'horizontal_flip': ('flip_horizontal', 1),
        'vertical_flip': ('flip_vertical', 1),
    }
    generator = ImageDataGenerator(fill_mode=fill_mode, cval=cval)
    return generator.apply_transform(
        image.astype('float32'),
        # Ours are float32, as drawn.
        {names[name][0]: np.float32(value) * names[name][1] for name, value in draws.items()},
    )


@pytest.mark.parametrize('fill_mode', FILL_MODES)
@pytest.mark.parametrize('name', [*GEOMETRY, 'all'])
def test_geometry_is_kerass(name, fill_mode):
    """Square images: within rounding (half a level) and 0.01 for float32 against float64."""
    draws = GEOMETRY if name == 'all' else {name: GEOMETRY[name]}
    image = picture(SQUARE)
    expected = kerass(image, draws, fill_mode, cval=77.0)
    assert abs(expected - image).max() > 20  # it did something
    assert abs(ours(image, draws, fill_mode, cval=77.0) - expected).max() <= 0.51


@pytest.mark.parametrize('fill_mode', FILL_MODES)
def test_random_draws_are_kerass(fill_mode):
    """Many combinations, far outside the image too."""
    config = AugmentConfig(
        vertical_flip=True,
        rotation_range=180.0,
        width_shift_range=0.9,
        height_shift_range=0.9,
        shear_range=40.0,
        zoom_range=0.6,
        channel_shift_range=40.0,
    )
    draws = sampling.draw(config, 0, 0, 8)
    for row in range(8):
        image = picture(SQUARE, seed=row)
        one = {name: values[row] for name, values in draws.items()}
        expected = kerass(image, one, fill_mode, cval=9.0)
        assert abs(ours(image, one, fill_mode, cval=9.0) - expected).max() <= 0.51


@pytest.mark.parametrize('fill_mode', FILL_MODES)
@pytest.mark.parametrize('size', [OBLONG, OBLONG[::-1], (1, 7), (7, 1)])
def test_oblong_images_are_warped_about_their_center(size, fill_mode):
    """Keras exchanges the axes after centring; SciPy with the written-out map is the reference."""
    height, width = size
    theta, phi = np.deg2rad(GEOMETRY['rotation']), np.deg2rad(GEOMETRY['shear'])
    # In (x, y) about the center, as Keras writes its matrices.
    rotation = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    shift = np.array([GEOMETRY['width_shift'] * width, GEOMETRY['height_shift'] * height])
    shear = np.array([[1, -np.sin(phi)], [0, np.cos(phi)]])
    zoom = np.diag([GEOMETRY['zoom_width'], GEOMETRY['zoom_height']])
    center = np.array([width - 1, height - 1]) / 2

    def source(position):
        x, y = rotation @ (shear @ zoom @ (position[1::-1] - center) + shift) + center
        return y, x, position[2]

    image = picture(size)
    expected = scipy.ndimage.geometric_transform(
        image.astype(np.float64),
        lambda position: source(np.array(position)),
        order=1,
        mode=fill_mode,
        cval=5.0,
    )
    assert abs(ours(image, GEOMETRY, fill_mode, cval=5.0) - expected).max() <= 0.51


def test_shifts_do_what_their_names_say():
    image = picture((20, 30))
    assert (ours(image, {'width_shift': 0.1})[:, :27] == image[:, 3:]).all()
    assert (ours(image, {'height_shift': 0.1})[:18] == image[2:]).all()


def test_nothing_to_do_changes_nothing():
    image = picture(OBLONG)
    assert (ours(image, {}) == image).all()
    neutral = {name: float(name.startswith('zoom')) for name in GEOMETRY}
    for fill_mode in FILL_MODES:
        assert (ours(image, neutral, fill_mode) == image).all()


@pytest.mark.parametrize('horizontal', [False, True])
@pytest.mark.parametrize('vertical', [False, True])
def test_flips_are_exact(horizontal, vertical):
    image = picture(OBLONG)
    draws = {'horizontal_flip': horizontal, 'vertical_flip': vertical}
    assert (ours(image, draws) == kerass(image, draws)).all()
    expected = image[:: -1 if vertical else 1, :: -1 if horizontal else 1]
    assert (ours(image, draws) == expected).all()


@pytest.mark.parametrize('turns', range(4))
def test_right_angles_are_exact(turns):
    image = picture(SQUARE)
    assert (ours(image, {'quarter_turns': turns}) == np.rot90(image, turns)).all()
    # Keras turns by any angle, resampling: at right angles it hits the pixels.
    kerass_turn = kerass(image, {'rotation': 90.0 * turns})
    assert abs(np.rot90(image, turns) - kerass_turn).max() < 0.01


@pytest.mark.parametrize('shift', [-60.0, -7.3, 12.6, 80.0])
def test_channel_shift_is_kerass(shift):
    """Clipped to the image's own darkest and brightest value."""
    image = picture(OBLONG)
    got = ours(image, {'channel_shift': shift})
    assert abs(got - kerass(image, {'channel_shift': shift})).max() <= 0.5
    assert got.min() >= image.min()
    assert got.max() <= image.max()


@pytest.mark.parametrize('factor', [0.0, 0.3, 0.999, 1.0, 1.7])
def test_brightness_is_kerass(factor):
    """Keras truncates where we round: up to one level, and exactly what the formula says."""
    image = picture(OBLONG)
    got = ours(image, {'brightness': factor})
    assert abs(got - kerass(image, {'brightness': factor})).max() <= 1
    assert abs(got - np.minimum(image * np.float64(np.float32(factor)), 255)).max() <= 0.5


def test_everything_at_once_is_kerass():
    """In Keras's order; it truncates twice before the end, with brightness above 1 hence 3."""
    draws = GEOMETRY | {
        'channel_shift': 14.2,
        'horizontal_flip': True,
        'vertical_flip': True,
        'brightness': 1.4,
    }
    image = picture(SQUARE)
    assert abs(ours(image, draws) - kerass(image, draws)).max() <= 3


def test_each_row_has_its_own_matrix():
    config = AugmentConfig(rotation_range=30.0, zoom_range=0.2)
    draws = sampling.draw(config, 0, 0, 5)
    all_rows = apply.parameters(draws, OBLONG)
    assert set(all_rows) == {'horizontal_flip', 'matrix'}
    for row in range(5):
        one = apply.parameters(
            {name: values[row : row + 1] for name, values in draws.items()}, OBLONG
        )
        np.testing.assert_array_equal(one['matrix'][0], all_rows['matrix'][row])
