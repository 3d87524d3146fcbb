"""RandAugment and TrivialAugment: every operation against Pillow's, and how they are drawn."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import picture
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from tlflax.config.schema import AugmentConfig
from tlflax.data.augment import apply, policies, policy_ops, sampling

SIZE = (37, 50)
CONSTANT = {'fill_mode': 'constant', 'cval': 0.0}


def ours(image, name, value, **fill):
    """One operation on an image u8[h, w, 3]."""
    op, value = np.array([policies.OPS.index(name)]), np.array([value], np.float32)
    result = policy_ops.apply(
        tf.constant(image),
        tf.constant(policy_ops.branches(op)),
        tf.constant(value),
        tf.constant(policies.matrices(op, value, image.shape[:2])),
        **{**CONSTANT, **fill},
    )
    assert result.dtype == tf.uint8
    return result.numpy().astype(int)


def affine(image, matrix):
    return image.transform(image.size, Image.AFFINE, matrix, Image.BILINEAR)


PILLOW = {
    'identity': lambda image, v: image,
    'shear_x': lambda image, v: affine(image, (1, v, 0, 0, 1, 0)),
    'shear_y': lambda image, v: affine(image, (1, 0, 0, v, 1, 0)),
    'translate_x': lambda image, v: affine(image, (1, 0, v, 0, 1, 0)),
    'translate_y': lambda image, v: affine(image, (1, 0, 0, 0, 1, v)),
    'rotate': lambda image, v: image.rotate(v, Image.BILINEAR),
    'brightness': lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    'color': lambda image, v: ImageEnhance.Color(image).enhance(v),
    'contrast': lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    'sharpness': lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
    'posterize': lambda image, v: ImageOps.posterize(image, int(v)),
    'solarize': lambda image, v: ImageOps.solarize(image, v),
    'autocontrast': lambda image, v: ImageOps.autocontrast(image),
    'equalize': lambda image, v: ImageOps.equalize(image),
}
EXACT = ('identity', 'posterize', 'solarize', 'equalize')


@pytest.mark.parametrize('policy', ['randaugment', 'trivialaugment'])
@pytest.mark.parametrize('name', policies.OPS)
def test_operations_are_pillows(policy, name):
    """At several strengths and both signs; those on whole numbers to the bit."""
    assert set(PILLOW) == set(policies.OPS)
    op = np.array([policies.OPS.index(name)])
    for level in (0, 9, -9, 23, -30, 30):
        image = picture(SIZE, seed=abs(level))
        value = float(policies.values(policy, op, np.array([level]), SIZE)[0])
        got = ours(image, name, value)
        expected = np.asarray(PILLOW[name](Image.fromarray(image), value), int)
        if name in policies.GEOMETRIC:
            # Where a pixel is partly outside, Pillow repeats the border and we leave it black.
            agree = abs(got - expected).max(-1) <= 1
            inside = ours(np.full_like(image, 255), name, value).min(-1) == 255
            assert agree[inside].all()
            assert inside.sum() > 150
        else:
            assert abs(got - expected).max() <= (0 if name in EXACT else 2)


def test_pictures_without_contrast_stay_as_they_are():
    for gray in (0, 90, 255):
        image = np.full((5, 6, 3), gray, np.uint8)
        image[..., 1] = 7
        for name in ('autocontrast', 'equalize'):
            assert (ours(image, name, 0.0) == image).all()


def test_the_fill_mode_says_what_stands_outside():
    image = picture(SIZE)
    moved = ours(image, 'translate_x', 10.0, fill_mode='nearest')
    assert (moved[:, :-10] == image[:, 10:]).all()
    assert (moved[:, -10:] == image[:, -1:]).all()


def test_strengths_are_those_of_the_papers():
    """torchvision's tables at the ends of their ranges, for an image of 224x320."""
    ops = np.arange(len(policies.OPS))
    wide = dict.fromkeys(policies.ENHANCING, 1.99) | {'shear_x': 0.99, 'shear_y': 0.99}
    wide |= {'translate_x': 32, 'translate_y': 32, 'rotate': 135, 'posterize': 2, 'solarize': 0}
    mild = dict.fromkeys(policies.ENHANCING, 1.9) | {'shear_x': 0.3, 'shear_y': 0.3}
    mild |= {'translate_x': 145, 'translate_y': 101, 'rotate': 30, 'posterize': 4, 'solarize': 0}
    strongest = {'randaugment': mild, 'trivialaugment': wide}
    for policy, expected in strongest.items():
        got = policies.values(policy, ops, np.full(len(ops), 30), (224, 320))
        for name, value in zip(policies.OPS, got, strict=True):
            assert value == pytest.approx(expected.get(name, 0.0)), (policy, name)
        weakest = policies.values(policy, ops, np.zeros(len(ops), int), (224, 320))
        none = dict.fromkeys(policies.ENHANCING, 1.0) | {'posterize': 8, 'solarize': 255}
        assert weakest.tolist() == [none.get(name, 0.0) for name in policies.OPS]
        other = policies.values(policy, ops, np.full(len(ops), -30), (224, 320))
        for name, plus, minus in zip(policies.OPS, got, other, strict=True):
            signed = {**dict.fromkeys(policies.GEOMETRIC, -plus)}
            signed |= dict.fromkeys(policies.ENHANCING, 2 - plus)
            assert minus == pytest.approx(signed.get(name, plus)), (policy, name)


def test_draws_are_uniform():
    trivial = sampling.draw(AugmentConfig(policy='trivialaugment'), 0, 0, 20000)
    assert trivial['policy_op'].shape == trivial['policy_level'].shape == (20000, 1)
    for counts in (
        np.bincount(trivial['policy_op'][:, 0], minlength=14),
        np.bincount(abs(trivial['policy_level'][:, 0]), minlength=31),
    ):
        assert stats.chisquare(counts).pvalue > 1e-3
    rand = AugmentConfig(policy='randaugment', randaugment_ops=3, randaugment_magnitude=7)
    drawn = sampling.draw(rand, 0, 0, 20000)
    assert drawn['policy_op'].shape == (20000, 3)
    assert set(np.unique(drawn['policy_level'])) == {-7, 7}
    pairs = np.bincount(drawn['policy_op'][:, 0] * 14 + drawn['policy_op'][:, 1], minlength=196)
    assert stats.chisquare(pairs).pvalue > 1e-3
    assert sampling.outcomes(rand) is None


def test_operations_follow_one_another():
    settings = AugmentConfig(policy='randaugment', horizontal_flip=False)
    image = picture(SIZE)
    op = np.array([[policies.OPS.index('solarize'), policies.OPS.index('translate_y')]])
    draws = {'policy_op': op, 'policy_level': np.array([[9, 9]])}
    row = {k: tf.constant(v[0]) for k, v in apply.parameters(draws, SIZE, settings).items()}
    got = apply.apply(tf.constant(image, tf.float32), row, settings).numpy()
    first, second = policies.values('randaugment', op[0], np.array([9, 9]), SIZE)
    expected = ours(image, 'solarize', first).astype(np.uint8)
    expected = ours(expected, 'translate_y', second, fill_mode='nearest')
    np.testing.assert_array_equal(got, expected)
