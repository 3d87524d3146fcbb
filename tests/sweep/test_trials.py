"""How images are shown: resizing, size and mirror images, judged on the training images."""

import numpy as np
import pytest
from helpers import small_config
from PIL import Image

import tlflax
from tlflax.data.splits.load import load_table
from tlflax.sweep import auto, trials
from tlflax.train import setup
from tlflax.utils.errors import UserError


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def folders(root, make, per_class, classes=('a', 'b', 'c')):
    """Class folders of images that `make(rng, class number)` returns, u8[h, w, 3]."""
    rng = np.random.default_rng(0)
    for split, count in (('Train', per_class), ('Test', 4)):
        for number, name in enumerate(classes):
            for i in range(count):
                write(root / split / name / f'{i}.png', make(rng, number))
    return root


def of_one_shape_each(rng, number):
    """Noise whose aspect ratio is the class: squeezed to a square, all are alike."""
    height, width = ((48, 24), (36, 36), (24, 48))[number]
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def with_a_bright_side(rng, number):
    """The class is the side that is bright: mirror images are wrong."""
    shade = np.linspace(0.3, 1.0, 32)[:: 1 if number else -1, None]
    return (shade * rng.integers(100, 256, (32, 32, 3))).astype(np.uint8)


def config_of(root, **changes):
    return small_config(root, model__head='auto', features__layer='auto', **changes)


def judge(config, *, mirrored=False):
    resolved = auto._without_training(setup.configure(config))
    return trials.judge(resolved, setup.load(resolved), mirrored=mirrored)


def test_the_way_to_resize_that_keeps_the_class_is_taken(tmp_path):
    root = folders(tmp_path, of_one_shape_each, 20)
    judged = judge(config_of(root, data__resize='auto'))
    assert judged.config.data.resize == 'pad'
    assert [(one.key, one.value) for one in judged.trials] == [
        ('data.resize', way) for way in ('stretch', 'pad', 'crop')
    ]
    by_way = {one.value: one for one in judged.trials}
    assert by_way['pad'].accuracy > 0.9 > by_way['stretch'].accuracy
    assert [one.chosen for one in judged.trials] == [False, True, False]


def test_images_of_the_aspect_ratio_of_the_input_are_not_compared(tmp_path):
    root = folders(tmp_path, with_a_bright_side, 8, classes=('a', 'b'))
    judged = judge(config_of(root, data__resize='auto'))
    assert judged.config.data.resize == 'stretch'
    assert not judged.trials


def test_mirror_images_are_left_out_where_they_harm(tmp_path):
    root = folders(tmp_path, with_a_bright_side, 12, classes=('a', 'b'))
    judged = judge(config_of(root), mirrored=True)
    assert not judged.mirrored
    off, on = judged.trials
    assert (off.value, on.value, off.key) == ('off', 'on', 'mirror images')
    assert off.loss < on.loss
    assert off.chosen
    assert not on.chosen


def test_sizes_are_compared_where_asked(tmp_path):
    root = folders(tmp_path, with_a_bright_side, 8, classes=('a', 'b'))
    judged = judge(config_of(root, data__image_sizes=(32, 48)))
    assert [(one.key, one.value) for one in judged.trials] == [
        ('data.image_size', '32'),
        ('data.image_size', '48'),
    ]
    side = int(next(one.value for one in judged.trials if one.chosen))
    assert judged.config.data.image_size == (side, side)


@pytest.mark.usefixtures('cheap_choice')
def test_the_checkpoint_has_what_was_chosen_and_the_workdir_what_was_asked(tmp_path):
    root = folders(tmp_path, of_one_shape_each, 12)
    config = config_of(root, data__resize='auto')
    result, report = auto.choose_and_evaluate(config, tmp_path / 'w')
    restored = tlflax.load(tmp_path / 'w')
    assert restored.evaluate()['accuracy'] == result['val']['accuracy']
    assert [one['value'] for one in report['trials'] if one['chosen']] == ['pad', 'off']
    assert auto.choose_and_evaluate(config, tmp_path / 'w') == (result, report)
    with pytest.raises(UserError, match='another config'):
        auto.choose_and_evaluate(config_of(root, data__resize='pad'), tmp_path / 'w')


def test_other_heads_stretch(tmp_path):
    config = small_config(tmp_path, data__resize='auto')
    assert setup.configure(config).data.resize == 'stretch'


def test_a_sample_has_every_class_in_proportion(tmp_path):
    root = folders(tmp_path, with_a_bright_side, 30, classes=('a', 'b'))
    table = load_table(str(root / 'Train'), data=setup.configure(small_config(root)).data)
    table = table.select(np.flatnonzero((table.labels == 0) | (np.arange(60) < 40)))
    part = trials.sample(table, 20)
    assert part.counts.tolist() == [15, 5]
    assert set(part.digests) < set(table.digests)
    assert trials.sample(table, 40) is table


def test_too_many_classes_are_not_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, '_IMAGES', 2)
    root = folders(tmp_path, of_one_shape_each, 3)
    judged = judge(config_of(root, data__resize='auto'), mirrored=True)
    assert judged.config.data.resize == 'stretch'
    assert (judged.mirrored, judged.trials) == (False, [])
