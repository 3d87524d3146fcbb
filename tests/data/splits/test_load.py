"""The splits of a run: folds, fractions, groups, and contradictions."""

import numpy as np
import pytest
from absl import logging
from PIL import Image

from tlflax.config.parse import resolve
from tlflax.data.audit.checks import brief
from tlflax.data.images.format import ImageFormat
from tlflax.data.splits.load import load_folds, load_splits, load_table, load_val, read_inputs
from tlflax.features import spaces
from tlflax.features.batches import Order
from tlflax.features.live_sources import ImageSource
from tlflax.train import components, setup
from tlflax.utils.errors import UserError


@pytest.fixture
def said(monkeypatch):
    """The warnings."""
    lines = []
    monkeypatch.setattr(logging, 'warning', lambda text, *args: lines.append(text % args))
    return lines


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """photos/{red,green}/s00_f0.png ... s09_f2.png: ten scenes of three frames in each class."""
    monkeypatch.setenv('TLFLAX_CACHE', str(tmp_path / 'cache'))
    return make(tmp_path / 'photos', seed=0)


def make(root, seed, scenes=10):
    rng = np.random.default_rng(seed)
    for name in ('red', 'green'):
        (root / name).mkdir(parents=True)
        for scene in range(scenes):
            for frame in range(3):
                pixels = rng.integers(0, 256, (5, 4, 3), np.uint8)
                Image.fromarray(pixels).save(root / name / f's{scene:02}_f{frame}.png')
    return root


def data(**keys):
    return resolve({'data': keys}).data


SCENE = r'(\w+/s\d+)_'  # in this data a scene has one class


@pytest.mark.parametrize('group', ['', SCENE])
def test_folds_cover_everything_but_the_test_split(photos, group):
    parts = []
    for fold in range(3):
        keys = {'folds': 3, 'fold': fold, 'test_fraction': 0.2, 'group': group}
        splits = load_splits(data(train=str(photos), **keys))
        sides = [set(table.paths) for table in (splits.train, splits.val, splits.test)]
        assert [len(side) for side in sides if side] == [len(side) for side in sides]
        assert sum(map(len, sides)) == len(set.union(*sides)) == 60
        if group:
            assert len(set().union(*map(scenes_of, sides))) == sum(len(scenes_of(s)) for s in sides)
        parts.append((sides[1], sides[2]))
    assert parts[0][1] == parts[1][1] == parts[2][1]
    assert len(parts[0][0] | parts[1][0] | parts[2][0] | parts[0][1]) == 60


@pytest.mark.parametrize('group', ['', SCENE])
def test_the_splits_of_a_cross_validation_are_those_of_each_fold(photos, group):
    keys = {'train': str(photos), 'folds': 3, 'group': group, 'test_fraction': 0.2}
    found = load_folds(data(fold='all', repeats=2, **keys))
    assert [len(splits) for splits in found] == [3, 3]
    for repeat, splits in enumerate(found):
        for fold, one in enumerate(splits):
            assert one.digest == load_splits(data(fold=fold, repeat=repeat, **keys)).digest
    assert found[0][0].digest != found[1][0].digest
    with pytest.raises(UserError, match=r'fold \d+ of 40 has no image'):
        load_folds(data(**{**keys, 'fold': 'all', 'folds': 40, 'group': SCENE}))


def scenes_of(paths):
    return {path.rsplit('_', 1)[0] for path in paths}


def test_scenes_stay_together_by_a_fraction(photos):
    splits = load_splits(data(train=str(photos), val_fraction=0.3, group=SCENE))
    assert len(splits.val) == 18
    assert not scenes_of(splits.train.paths) & scenes_of(splits.val.paths)
    assert list(splits.val.counts) == [9, 9]
    plain = load_splits(data(train=str(photos), val_fraction=0.3))
    assert scenes_of(plain.train.paths) & scenes_of(plain.val.paths)


def test_a_manifests_column_does_the_same_as_a_pattern(photos):
    lines = ['path,label,group']
    lines += [
        f'{name}/s{s:02}_f{f}.png,{name},{name}/s{s:02}'
        for name in ('red', 'green')
        for s in range(10)
        for f in range(3)
    ]
    (photos / 'm.csv').write_text('\n'.join(lines))
    keys = {'val_fraction': 0.3}
    by_column = load_splits(data(train=str(photos / 'm.csv'), **keys))
    by_pattern = load_splits(data(train=str(photos), group=SCENE, **keys))
    assert by_column.digest == by_pattern.digest
    with pytest.raises(UserError, match="the manifest has a column 'group' too"):
        load_splits(data(train=str(photos / 'm.csv'), group='x', **keys))


@pytest.mark.parametrize(
    ('group', 'words'),
    [
        (
            'scene',
            "'scene' finds a group in no path, such as 'green/s00_f0.png'",
        ),
        ('(s', r"'(s' is not a valid regular expression (missing ), unterminated subpattern"),
        ('s', "all 60 images are of one group, 's'"),
        (r'(x)?s\d', 'finds a group in no path'),
    ],
)
def test_patterns_of_groups_that_cannot_be_meant(photos, group, words):
    keys = {'train': str(photos), 'val_fraction': 0.3, 'group': group}
    with pytest.raises(UserError) as error:
        load_splits(data(**keys))
    assert words in str(error.value)


def test_images_without_a_group_are_a_warning(photos, said):
    load_splits(data(train=str(photos), val_fraction=0.3, group=r's0[0-8]'))
    assert '6 of 60 images name no group, and each counts as one:' in said[0]


def test_groups_in_two_named_splits_are_a_warning(photos, tmp_path, said):
    val = make(tmp_path / 'val', seed=1, scenes=2)
    brief(load_splits(data(train=str(photos), val=str(val))).by_name, strict=False)
    assert said == []
    splits = load_splits(data(train=str(photos), val=str(val), group=r'(s\d+)_'))
    brief(splits.by_name, strict=False)
    assert said == [
        "WARNING: 2 groups of the val split are in the training split too: 's00', 's01' (first: "
        "train green/s00_f0.png ~ val green/s00_f0.png (group 's00')); keep each in one split"
    ]


@pytest.mark.parametrize(
    ('keys', 'message'),
    [
        ({}, 'config.data.val: no validation images are named'),
        ({'train': ''}, 'config.data.train: no training images are named'),
        (
            {'val': 'x', 'val_fraction': 0.2},
            'config.data.val and config.data.val_fraction: more than one way',
        ),
        ({'folds': 3, 'val': 'x'}, 'config.data.val and config.data.folds: more than one way'),
        (
            {'folds': 3, 'val_fraction': 0.1},
            'config.data.val_fraction and config.data.folds: more than one way',
        ),
        (
            {'test': 'x', 'test_fraction': 0.1, 'val': 'x'},
            'config.data.test and config.data.test_fraction: more than one way',
        ),
        ({'folds': 1}, 'config.data.folds: one fold leaves nothing'),
        ({'folds': 3, 'fold': 3}, 'config.data.fold: fold 3 does not exist; give 0 to 2'),
        ({'fold': 2, 'val': 'x'}, 'config.data.fold: fold 2 does not exist; set config.data.folds'),
        ({'fold': 'all', 'val': 'x'}, 'config.data.fold: fold all does not exist; set config.data'),
        ({'folds': 3, 'fold': 'all'}, 'config.data.fold: it stands for a run for each fold'),
        ({'folds': 3, 'repeats': 2}, 'config.data.repeats: only a cross-validation is repeated'),
        ({'repeat': 1, 'val': 'x'}, 'config.data.repeat: it chooses a division for one fold'),
        (
            {'folds': 3, 'fold': 'all', 'repeat': 1},
            'config.data.repeat: it chooses a division for one fold',
        ),
        ({'val_fraction': 0.5, 'test_fraction': 0.5}, 'leave nothing to train with'),
    ],
)
def test_contradictions_are_said_before_anything_is_read(photos, monkeypatch, keys, message):
    monkeypatch.setattr(
        'tlflax.data.images.scan.read_file', lambda *a, **k: pytest.fail('was read')
    )
    with pytest.raises(UserError) as error:
        load_splits(data(**{'train': str(photos), **keys}))
    assert message in str(error.value)


def test_what_was_read_can_be_had_without_its_being_fit(photos, tmp_path):
    other = make(tmp_path / 'other', seed=1, scenes=1)
    (other / 'red').rename(other / 'Red')
    found = read_inputs(data(train=str(photos), val=str(other)), strict=False)
    assert list(found) == ['train', 'val']
    assert set(found['val'].listing.names) == {'Red', 'green'}
    assert len(found['train'].files) == 60
    with pytest.raises(UserError, match='classes that training does not have'):
        read_inputs(data(train=str(photos), val=str(other)))


def test_pixel_limit_makes_bad_images(photos):
    big = photos / 'red' / 'big.png'
    Image.new('RGB', (100, 90)).save(big)
    keys = {'train': str(photos), 'val_fraction': 0.3}
    assert len(load_splits(data(**keys)).train) == 61 - 18
    for _ in range(2):  # what is remembered holds for one limit
        words = 'red/big.png has 100x90 pixels, more than the limit of 8,999'
        with pytest.raises(UserError, match=words):
            load_splits(data(max_pixels=8999, **keys))
        assert len(load_table(str(photos), data=data(max_pixels=9000))) == 61
    kept = load_splits(data(max_pixels=8999, on_bad_image='skip', **keys))
    assert len(kept.train) + len(kept.val) == 60


def test_validation_alone_is_the_same_as_with_the_others(photos, tmp_path):
    for keys in ({'folds': 4, 'fold': 1}, {'val_fraction': 0.2}, {'val': str(photos)}):
        wanted = data(train=str(photos), **keys)
        assert load_val(wanted, ('green', 'red')).digest == load_splits(wanted).val.digest


def test_patterns_are_a_way_in(photos, tmp_path):
    flat = tmp_path / 'flat'
    flat.mkdir()
    for path in photos.glob('*/*.png'):
        (flat / f'{path.parent.name}_{path.name}').write_bytes(path.read_bytes())
    splits = load_splits(data(train=f'{flat}/{{class}}_s*.png', val_fraction=0.3))
    assert splits.digest == load_splits(data(train=str(photos), val_fraction=0.3)).digest


def test_the_background_is_behind_transparent_pixels_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv('TLFLAX_CACHE', str(tmp_path / 'cache'))
    for name in 'ab':
        (tmp_path / 'icons' / name).mkdir(parents=True)
        Image.new('RGBA', (8, 8), (255, 0, 0, 0)).save(tmp_path / f'icons/{name}/1.png')
        palette = Image.new('P', (8, 8), 3)
        palette.save(tmp_path / f'icons/{name}/2.gif', transparency=3)
        Image.new('LA', (8, 8), (200, 0)).save(tmp_path / f'icons/{name}/3.webp', lossless=True)
    for color in ((0, 0, 0), (10, 200, 90)):
        keys = {'train': str(tmp_path / 'icons'), 'background': color, 'image_size': (4, 4)}
        config = resolve({'data': keys})
        table = load_table(config.data.train, data=config.data)
        form = ImageFormat.of(config.data)
        images = ImageSource(table, form, config.augment, Order(batch_size=32, seed=0))
        for batch in [*images.eval_batches(), *images.train_batches(0, 0)]:
            assert batch['mask'].sum() == 6
            assert (batch['image'][batch['mask']] == color).all()
        model = components.build_classifier(setup.configure({}), {}, 3, 'caffe')
        space = spaces.describe_space(form, model, weights_digest='')
        assert space.get('background') == (list(color) if any(color) else None)
