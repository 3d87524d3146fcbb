"""Random resized crops and random erasing: torchvision's algorithms, written out."""

import math

import numpy as np
import pytest
import tensorflow as tf
from helpers import picture
from scipy import stats

from tlflax.config.schema import AugmentConfig
from tlflax.data.augment import apply, geometry, sampling
from tlflax.data.pipeline import crops

SIZES = [(375, 500), (500, 375), (40, 40), (10, 400), (300, 7), (1, 1)]


def torchvision_box(height, width, area, ratio, place, bounds):
    """`RandomResizedCrop.get_params` with the numbers it draws given."""
    for part, aspect in zip(area, ratio, strict=True):
        target = height * width * float(part)
        w = round(math.sqrt(target * float(aspect)))
        h = round(math.sqrt(target / float(aspect)))
        if 0 < w <= width and 0 < h <= height:
            return (
                math.floor(float(place[0]) * (height - h + 1)),
                math.floor(float(place[1]) * (width - w + 1)),
                h, w,
            )  # fmt: skip
    if width / height < min(bounds):
        w, h = width, round(width / min(bounds))
    elif width / height > max(bounds):
        w, h = round(height * max(bounds)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_random_boxes_are_torchvisions(size):
    settings = AugmentConfig(random_resized_crop=True, random_crop_scale=(0.3, 1.0))
    draws = sampling.draw(settings, 0, 0, 60)
    found = set()
    for row in range(60):
        area, ratio, place = (draws[f'crop_{name}'][row] for name in ('area', 'ratio', 'place'))
        bounds = settings.random_crop_ratio
        numbers = map(tf.constant, (area, ratio, place))
        box = crops.random_box(tf.constant(size), *numbers, bounds=bounds).numpy()
        assert tuple(box) == torchvision_box(*size, area, ratio, place, bounds)
        top, left, height, width = box
        assert 0 <= top <= top + height <= size[0]
        assert 0 <= left <= left + width <= size[1]
        assert height > 0
        assert width > 0
        found.add(tuple(box))
    assert len(found) > 30 or min(size) < 40


def test_random_boxes_are_uniform_in_area_and_log_ratio():
    draws = sampling.draw(AugmentConfig(random_resized_crop=True), 0, 0, 2000)
    assert stats.kstest(draws['crop_area'].ravel(), stats.uniform(0.08, 0.92).cdf).pvalue > 1e-3
    log = np.log(draws['crop_ratio'].ravel())
    low, high = np.log(3 / 4), np.log(4 / 3)
    assert stats.kstest(log, stats.uniform(low, high - low).cdf).pvalue > 1e-3


def torchvision_erase(size, area, ratio, place):
    """`RandomErasing.get_params` with the numbers it draws given; None: nothing is erased."""
    height, width = size
    for part, aspect in zip(area, ratio, strict=True):
        h = round(math.sqrt(height * width * float(part) * float(aspect)))
        w = round(math.sqrt(height * width * float(part) / float(aspect)))
        if h < height and w < width:
            return (
                math.floor(float(place[0]) * (height - h + 1)),
                math.floor(float(place[1]) * (width - w + 1)),
                h, w,
            )  # fmt: skip
    return None


@pytest.mark.parametrize('size', [(224, 224), (30, 64), (3, 200)])
def test_erased_boxes_are_torchvisions(size):
    settings = AugmentConfig(erasing=0.5, erasing_scale=(0.1, 0.6))
    draws = sampling.draw(settings, 0, 0, 200)
    assert 70 < draws['erase'].sum() < 130
    boxes = apply.parameters(draws, size, settings)['erase_box']
    for row, box in enumerate(boxes):
        numbers = (draws[f'erase_{name}'][row] for name in ('area', 'ratio', 'place'))
        expected = torchvision_erase(size, *numbers) if draws['erase'][row] else None
        if expected is None:
            assert box[2] * box[3] == 0
        else:
            assert tuple(box) == expected


def test_a_place_rounded_to_one_stays_inside():
    one = np.ones((1, 2), np.float32)
    box = geometry.erasing_boxes(np.array([True]), one[:, :1] / 4, one[:, :1], one, (8, 8))
    assert box.tolist() == [[4, 4, 4, 4]]
    numbers = map(tf.constant, (one[0, :1] / 4, one[0, :1], one[0]))
    box = crops.random_box(tf.constant((8, 8)), *numbers, bounds=(1.0, 1.0))
    assert box.numpy().tolist() == [4, 4, 4, 4]


@pytest.mark.parametrize('fill', ['noise', 'mean', 'black'])
def test_a_box_is_painted_over_and_nothing_else(fill):
    image = tf.constant(picture((20, 30)))
    box, seed = tf.constant([3, 5, 10, 20]), tf.constant([1, 2])
    got = apply.erase(image, box, seed, fill).numpy()
    outside = np.ones((20, 30), bool)
    outside[3:13, 5:25] = False
    assert (got[outside] == image.numpy()[outside]).all()
    patch = got[3:13, 5:25]
    if fill == 'noise':
        assert stats.kstest(patch.ravel() / 256 + 1 / 512, 'uniform').pvalue > 1e-3
        assert (patch == apply.erase(image, box, seed, fill).numpy()[3:13, 5:25]).all()
        other = apply.erase(image, box, tf.constant([1, 3]), fill).numpy()[3:13, 5:25]
        assert (patch != other).mean() > 0.9
    else:
        assert (patch == ((124, 116, 104) if fill == 'mean' else (0, 0, 0))).all()
    nothing = apply.erase(image, tf.constant([0, 0, 0, 7]), seed, fill)
    assert (nothing.numpy() == image.numpy()).all()
