"""Draws: repeatable, row by row, the right distributions."""

import dataclasses
import time
import zlib

import numpy as np
import pytest
from helpers import run_new_python
from scipy import stats

from tlflax.config.schema import AugmentConfig
from tlflax.data.augment import ranges, sampling
from tlflax.utils.errors import UserError

EVERYTHING = AugmentConfig(
    horizontal_flip=True,
    vertical_flip=True,
    rotation_range=15.0,
    width_shift_range=0.1,
    height_shift_range=0.2,
    shear_range=5.0,
    zoom_range=0.3,
    brightness_range=(0.8, 1.5),
    channel_shift_range=20.0,
)
RANGES = {
    'rotation': (-15, 15),
    'width_shift': (-0.1, 0.1),
    'height_shift': (-0.2, 0.2),
    'shear': (-5, 5),
    'zoom_width': (0.7, 1.3),
    'zoom_height': (0.7, 1.3),
    'brightness': (0.8, 1.5),
    'channel_shift': (-20, 20),
}


def philox(key, counter):
    """One block of Philox4x64-10 (Salmon et al. 2011), in Python integers."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    mask = 2**64 - 1
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & mask, (p0 >> 64) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return [c0, c1, c2, c3]


def words(seed, epoch, purpose, n):
    """The stream as documented: NumPy counts blocks from 1."""
    blocks = range(1, n // 4 + 2)
    tag = zlib.crc32(purpose.encode())
    return [word for i in blocks for word in philox((seed, epoch), (i, 0, tag, 0))][:n]


def test_streams_are_philox():
    """Runs on other machines and with other versions of NumPy must repeat."""
    n = 9
    order = words(7, 3, 'permutation', n)
    assert sampling.permutation(7, 3, n).tolist() == sorted(range(n), key=order.__getitem__)
    draws = sampling.draw(EVERYTHING, 7, 3, n)
    for flip in sampling.FLIPS:
        assert draws[flip].tolist() == [word >= 2**63 for word in words(7, 3, flip, n)]
    for name, (low, high) in RANGES.items():
        unit = np.array([word >> 11 for word in words(7, 3, name, n)]) / 2.0**53
        np.testing.assert_array_equal(draws[name], np.float32(low + (high - low) * unit))
    chosen = [(word >> 11) * 6 >> 53 for word in words(7, 3, 'view', n)]
    assert sampling.choose(7, 3, n, 6).tolist() == chosen


@pytest.mark.parametrize('n', [0, 1, 2, 1000])
def test_permutation_holds_every_row_once(n):
    order = sampling.permutation(0, 0, n)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))


def test_permutations_are_uniform():
    """All 24 orders of 4 rows, over 4,800 epochs: chi-square."""
    orders = [tuple(sampling.permutation(1, epoch, 4).tolist()) for epoch in range(4800)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


LABELS = np.array([2, 0, 2, 2, 5, 2, 0, 2, 2, 2, 2, 0])  # 3 of class 0, 8 of class 2, 1 of class 5


def test_epochs_that_are_not_balanced_are_permutations():
    ours = sampling.epoch_order(3, 4, LABELS, balanced=False)
    assert (ours == sampling.permutation(3, 4, len(LABELS))).all()


@pytest.mark.parametrize('epoch', range(5))
def test_balanced_order_draws_classes_and_takes_their_rows_in_turn(epoch):
    """Written out place by place, from Philox's own words."""
    n = len(LABELS)
    waiting = {0: [], 2: [], 5: []}
    for row in sampling.permutation(7, epoch, n).tolist():
        waiting[LABELS[row]].append(row)
    expected = []
    for word in words(7, epoch, 'class', n):
        rows = waiting[(0, 2, 5)[(word >> 11) * 3 >> 53]]
        expected.append(rows[0])
        rows.append(rows.pop(0))
    ours = sampling.epoch_order(7, epoch, LABELS, balanced=True)
    assert ours.dtype == np.int64
    assert ours.tolist() == expected


def test_balanced_epochs_have_classes_and_rows_equally_often():
    orders = [sampling.epoch_order(1, epoch, LABELS, balanced=True) for epoch in range(2000)]
    drawn = np.bincount(LABELS[np.concatenate(orders)])
    assert stats.chisquare(drawn[[0, 2, 5]]).pvalue > 1e-3
    rows = np.bincount(np.concatenate(orders))
    assert len(rows) == len(LABELS)
    # Taking turns is more even than drawing, so no class's rows differ by more than chance.
    for label in (0, 2):
        counts = rows[label == LABELS]
        assert counts.max() - counts.min() < 6 * np.sqrt(counts.mean())
    assert len({tuple(order) for order in orders}) > 1990


def test_balanced_order_of_many_classes_is_quick():
    labels = np.random.default_rng(0).integers(0, 10_000, 200_000)
    began = time.perf_counter()
    order = sampling.epoch_order(0, 0, labels, balanced=True)
    assert time.perf_counter() - began < 5
    counts = np.bincount(labels[order], minlength=10_000)
    assert counts.min() > 0
    assert abs(counts.mean() - 20) < 1e-9
    assert sampling.epoch_order(0, 0, labels[:0], balanced=True).shape == (0,)


def test_seeds_and_epochs_differ():
    first = sampling.permutation(0, 0, 100)
    assert (first == sampling.permutation(0, 0, 100)).all()
    assert (first != sampling.permutation(0, 1, 100)).any()
    assert (first != sampling.permutation(1, 0, 100)).any()
    # (seed, epoch) is a pair, not a sum.
    assert (sampling.permutation(0, 1, 100) != sampling.permutation(1, 0, 100)).any()
    sampling.permutation(2**63, 2**40, 3)


def test_a_row_depends_on_its_number_alone():
    short, long = (sampling.draw(EVERYTHING, 5, 2, n) for n in (10, 1000))
    for name, values in short.items():
        assert values.tolist() == long[name][:10].tolist(), name


def test_one_augmentation_does_not_move_another():
    full = sampling.draw(EVERYTHING, 5, 2, 50)
    for field, names in {
        'horizontal_flip': ['horizontal_flip'],
        'rotation_range': ['rotation'],
        'zoom_range': ['zoom_width', 'zoom_height'],
        'brightness_range': ['brightness'],
    }.items():
        alone = dataclasses.replace(
            AugmentConfig(horizontal_flip=False), **{field: getattr(EVERYTHING, field)}
        )
        draws = sampling.draw(alone, 5, 2, 50)
        assert list(draws) == names
        for name in names:
            assert draws[name].tolist() == full[name].tolist()


def test_streams_of_different_purposes_are_independent():
    draws = sampling.draw(EVERYTHING, 0, 0, 5000)
    columns = np.stack([values.astype(float) for values in draws.values()])
    correlation = np.corrcoef(columns) - np.eye(len(columns))
    assert abs(correlation).max() < 5 / np.sqrt(5000)


def test_values_are_uniform_in_their_ranges():
    draws = sampling.draw(EVERYTHING, 0, 0, 20000)
    for name, (low, high) in RANGES.items():
        values = draws.pop(name)
        assert values.dtype == np.float32
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3, name
    for flip in sampling.FLIPS:
        assert stats.binomtest(int(draws.pop(flip).sum()), 20000).pvalue > 1e-3
    assert not draws
    chosen = np.bincount(sampling.choose(0, 0, 20000, 8), minlength=8)
    assert len(chosen) == 8
    assert stats.chisquare(chosen).pvalue > 1e-3


def test_nothing_active_draws_nothing():
    off = AugmentConfig(horizontal_flip=False)
    assert sampling.draw(off, 0, 0, 5) == {}
    assert sampling.outcomes(off) == [{}]
    assert sampling.outcome_numbers({}, [{}], 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ('settings', 'count'),
    [
        ({}, 2),
        ({'vertical_flip': True}, 4),
        ({'horizontal_flip': False, 'right_angles': True}, 4),
        ({'right_angles': True}, 8),
        ({'right_angles': True, 'vertical_flip': True}, 8),  # a square has no more symmetries
        ({'horizontal_flip': False, 'right_angles': True, 'vertical_flip': True}, 8),
        ({'horizontal_flip': False, 'crops': 'five'}, 5),
        ({'horizontal_flip': False, 'crops': 'ten'}, 10),
        ({'crops': 'five', 'vertical_flip': True}, 20),
        ({'crops': 'ten', 'right_angles': True}, 40),
    ],
)
def test_outcomes_number_what_was_drawn(settings, count):
    augment = AugmentConfig(**settings)
    views = sampling.outcomes(augment)
    n = 50 * count
    draws = sampling.draw(augment, 3, 1, n)
    numbers = sampling.outcome_numbers(draws, views, n)
    assert len(views) == count
    assert stats.chisquare(np.bincount(numbers, minlength=count)).pvalue > 1e-3
    assert len({sampling.describe(view, augment) for view in views}) == count
    for row, number in enumerate(numbers):
        assert views[number] == {name: values[row] for name, values in draws.items()}
    for number, view in enumerate(views):
        repeated = sampling.repeat(view, 4)
        assert sampling.outcome_numbers(repeated, views, 4).tolist() == [number] * 4


def test_continuous_augmentations_have_no_list_of_outcomes():
    for field in dataclasses.fields(AugmentConfig):
        if field.name.endswith('_range'):
            value = getattr(EVERYTHING, field.name)
            assert sampling.outcomes(AugmentConfig(**{field.name: value})) is None, field.name


def test_names_hold_what_decides_the_pixels():
    augment = AugmentConfig(crops='five', crop_fraction=0.8, right_angles=True)
    view = {'horizontal_flip': True, 'quarter_turns': 3, 'crop': 1}
    assert sampling.describe(view, augment) == 'horizontal_flip quarter_turns=3 crop=top_right/0.8'
    assert sampling.describe(sampling.plain(augment), augment) == 'crop=centre/0.8'
    neither = AugmentConfig()
    assert sampling.describe(sampling.plain(neither), neither) == ''
    assert sampling.plain(augment) in sampling.outcomes(
        AugmentConfig(horizontal_flip=False, crops='five')
    )


@pytest.mark.parametrize(
    'settings',
    [
        {'random_resized_crop': True},
        {'jitter_contrast': 0.2},
        {'jitter_hue': 0.1},
        {'policy': 'randaugment'},
        {'erasing': 0.5},
    ],
    ids=str,
)
def test_what_is_too_many_to_list(settings):
    augment = AugmentConfig(**settings)
    assert sampling.outcomes(augment) is None
    short, long = (sampling.draw(augment, 5, 2, n) for n in (10, 1000))
    for name, values in short.items():
        np.testing.assert_array_equal(values, long[name][:10], err_msg=name)
    assert set(short) > {'horizontal_flip'}


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'crops': 'five', 'random_resized_crop': True}, 'fixed crops and random crops'),
        ({'right_angles': True}, '32x48 pixels cannot be turned'),
        ({'random_crop_scale': (0.5, 1.5)}, r'random_crop_scale: \(0.5, 1.5\) is not a range'),
        ({'random_crop_ratio': (0.0, 1.0)}, r'random_crop_ratio: .* 0 < low <= high, such as'),
        ({'erasing_scale': ()}, r'erasing_scale: .* 0 < low <= high <= 1, such as \(0.8, 1.0\)$'),
        ({'erasing_ratio': (2.0, 1.0)}, 'erasing_ratio'),
    ],
    ids=str,
)
def test_settings_that_cannot_be(settings, message):
    ranges.check(AugmentConfig(), (32, 48))
    with pytest.raises(UserError, match=message):
        ranges.check(AugmentConfig(**settings), (32, 48))


@pytest.mark.parametrize('value', [(0.8,), (1.2, 0.8), (-0.5, 1.0), (1.0, 1.1, 1.2)])
def test_bad_brightness_range(value):
    with pytest.raises(UserError, match=r'config\.augment\.brightness_range: .*not a range; give'):
        sampling.outcomes(AugmentConfig(brightness_range=value))


def test_batch_rows():
    order = np.array([5, 4, 3, 2, 1, 0, 6])
    whole = sampling.batch_rows(order, 4)
    assert whole.tolist() == [[5, 4, 3, 2], [1, 0, 6, -1]]
    assert sampling.batch_rows(order, 4, start_step=1).tolist() == whole[1:].tolist()
    shards = [sampling.batch_rows(order, 4, process_index=p, process_count=2) for p in (0, 1)]
    assert np.concatenate(shards, axis=1).tolist() == whole.tolist()
    assert sampling.batch_rows(order[:0], 4).shape == (0, 4)
    with pytest.raises(UserError, match='cannot be shared equally by 3 processes'):
        sampling.batch_rows(order, 4, process_count=3)


def test_runs_without_tensorflow():
    code = (
        'import sys; sys.modules["tensorflow"] = None; import tlflax.data.augment.sampling as s;'
        'print(s.permutation(0, 0, 3).shape)'
    )
    done = run_new_python('-c', code)
    assert done.stdout == '(3,)\n'
