"""The audit of every way in, and of what is taken out of one set; the picture of augmentation."""

import csv
import json
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
from helpers import run_module
from PIL import Image, ImageDraw

from tlflax.config.parse import resolve
from tlflax.data.audit import report, run


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder for each test."""
    monkeypatch.setenv('TLFLAX_CACHE', str(tmp_path / 'cache'))


def picture(seed, size=(36, 28)):
    """Smooth random colors, as different from seed to seed as photographs are."""
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 8, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def make(root, seed, count):
    """root/{a,b}/0.png ... of `count` images each."""
    for number, name in enumerate('ab'):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(seed + 100 * number + i).save(root / name / f'{i}.png')
    return root


@pytest.fixture
def photos(tmp_path):
    """photos/{train,val} with a leak, a conflict and a bad image."""
    train, val = make(tmp_path / 'photos/train', 0, 12), make(tmp_path / 'photos/val', 1000, 3)
    shutil.copy(train / 'a/0.png', val / 'a/copy.png')
    shutil.copy(train / 'a/1.png', train / 'b/copy.png')
    (train / 'b/bad.png').write_bytes((train / 'b/2.png').read_bytes()[:200])
    return tmp_path / 'photos'


def audit(**data):
    """Runs the audit in this process; returns its text and its figures."""
    data = {key: str(value) if isinstance(value, Path) else value for key, value in data.items()}
    found = run.run(resolve({'data': data}).data)
    return report.text(found.problems, found.summary), found.figures()


def manifest(photos, name='all.csv'):
    """Names every image of both splits."""
    place = photos / name
    rows = [
        {'path': str(path.relative_to(photos)), 'label': path.parent.name, 'split': split}
        for split in ('train', 'val')
        for path in sorted((photos / split).glob('*/*.png'))
    ]
    with open(place, 'w', newline='') as file:
        if name.endswith('.csv'):
            writer = csv.DictWriter(file, ('path', 'label', 'split'))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + '\n' for row in rows)
    return place


def in_memory(photos):
    """Puts the images into fsspec's store in memory."""
    store = fsspec.filesystem('memory')
    for path in photos.glob('*/*/*.png'):
        store.pipe(f'/audited/{path.relative_to(photos)}', path.read_bytes())
    return {split: f'memory://audited/{split}' for split in ('train', 'val')}


WAYS = {
    'folders': lambda photos: {split: photos / split for split in ('train', 'val')},
    'csv': lambda photos: {'train': manifest(photos)},
    'jsonl': lambda photos: {
        split: f'{manifest(photos, "all.jsonl")}#{split}' for split in ('train', 'val')
    },
    'pattern': lambda photos: {
        split: f'{photos}/{split}/{{class}}/*.png' for split in ('train', 'val')
    },
    'store': in_memory,
    'tfds': lambda photos: {split: f'tfds:{photos}/{split}' for split in ('train', 'val')},
}


@pytest.mark.parametrize('way', WAYS)
def test_every_way_in_is_audited(photos, way):
    text, found = audit(**WAYS[way](photos))
    assert found['error'] == {'leak': 1, 'conflict': 2, 'bad_image': 1}
    assert (found['warning'], found['files_read']) == ({}, 33)
    sizes = {split: part['classes'] for split, part in found['splits'].items()}
    assert sizes == {'train': {'a': 12, 'b': 13}, 'val': {'a': 4, 'b': 3}}
    assert 'b/bad.png is a truncated PNG' in text


FUNCTION = """
import numpy as np
import tensorflow as tf

def images(seed, count):
    return np.random.default_rng(seed).integers(0, 256, (count, 20, 20, 3), np.uint8)

def make(images):
    labels = np.arange(len(images)) % 2
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    dataset.class_names = ['a', 'b']
    return dataset

def train():
    return make(images(0, 24))

def val():
    return make(np.concatenate([images(1, 6), images(0, 24)[:1]]))
"""


def test_a_python_function_is_audited(tmp_path):
    (tmp_path / 'mine.py').write_text(FUNCTION)
    specs = {split: f'py:{tmp_path}/mine.py:{split}' for split in ('train', 'val')}
    _, found = audit(**specs)
    assert found['error'] == {'leak': 1}
    assert [part['images'] for part in found['splits'].values()] == [24, 7]


def test_every_line_of_a_manifest_that_is_not_fit_is_told(photos):
    place = manifest(photos)
    with open(place, 'a') as file:
        file.write('train/a/2.png,b,train\n,a,train\ntrain/a/3.png,a\nx.png,a,tset\n')
        file.write('gone.png,a,val\n')
    text, found = audit(train=place)
    assert found['error'] == {'leak': 1, 'conflict': 2, 'bad_image': 2, 'folder': 4}
    first = len(place.read_text().splitlines()) - 4
    for line, words in enumerate(
        [
            "'train/a/2.png' is named in line 6 too",
            'an empty path',
            '2 fields',
            "'tset' is not a split",
        ]
    ):
        assert f'all.csv, line {first + line}: {words}' in text
    assert 'val gone.png cannot be read' in text
    with open(place, 'a') as file:
        file.writelines(f',{n},train\n' for n in range(500))
    text, found = audit(train=place)
    assert found['error']['folder'] == 504
    assert f'454 more faults, up to {place}, line' in text


def test_folds_are_audited_as_they_are_drawn_whatever_else_is_wrong(photos):
    """An empty class, a bad image and a broken split beside it hinder nothing."""
    train = photos / 'train'
    (train / 'hollow').mkdir()
    for i in range(12):
        picture(i, (18, 14)).save(train / f'a/small {i}.png')
    text, found = audit(train=train, folds=4, test=photos / 'tset')
    assert found['error'].keys() == {'conflict', 'folder', 'bad_image', 'near_leak'}
    assert found['error']['folder'] == 2
    assert 'config.data.train: 1 classes without a usable image' in text
    assert 'config.data.test: no such folder: ' in text
    sizes = [found['splits'][split]['images'] for split in ('train', 'val')]
    assert sum(sizes) == 37
    assert sizes[1] in range(6, 13)


@pytest.mark.parametrize(
    ('keys', 'words'),
    [
        ({'folds': 3, 'val_fraction': 0.2}, 'more than one way to say what the val split is'),
        ({'val_fraction': 0.5, 'test_fraction': 0.5}, 'leave nothing to train with'),
        ({'folds': 2, 'fold': 2}, 'fold 2 does not exist'),
        ({'val_fraction': 0.2, 'group': 'x(y'}, 'is not a valid regular expression'),
        ({'val_fraction': 0.2, 'group': 'train'}, 'finds a group in no path'),
    ],
)
def test_splits_that_cannot_be_made_are_a_problem_among_others(photos, keys, words):
    text, found = audit(train=photos / 'train', **keys)
    assert found['error'] == {'conflict': 2, 'bad_image': 1, 'folder': 1}
    assert words in text


@pytest.mark.parametrize('keys', [{}, {'val_fraction': 0.2}, {'folds': 3, 'group': 'x'}])
def test_sets_without_a_good_image(tmp_path, keys):
    (tmp_path / 'nothing').mkdir()
    text, found = audit(train=tmp_path / 'nothing', **keys)
    assert 'has no class folders' in text
    for name in 'ab':
        (tmp_path / 'bad' / name).mkdir(parents=True)
        (tmp_path / 'bad' / name / '1.jpg').touch()
    text, found = audit(train=tmp_path / 'bad', **keys)
    assert (found['error']['bad_image'], found['error']['empty_class']) == (2, 2)


def test_groups_in_two_splits(photos, tmp_path):
    keys = {'train': photos / 'train', 'val': photos / 'val', 'group': r'^\w/([12])\.'}
    _, found = audit(**keys)
    assert found['error'] == {'leak': 1, 'conflict': 2, 'bad_image': 1, 'scene': 2}
    place = tmp_path / 'report.json'
    found = run.run(resolve({'data': {k: str(v) for k, v in keys.items()}}).data)
    report.write(str(place), found.problems, found.summary)
    by_code = {problem['code']: problem for problem in json.loads(place.read_text())['problems']}
    assert by_code['scene']['what'].endswith("in the training split too: '1', '2'")
    item = by_code['scene']['items'][1]
    assert item['scene'] == '2'
    assert [(file['split'], file['path']) for file in item['files']] == [
        ('train', 'a/2.png'), ('val', 'a/2.png'),
    ]  # fmt: skip


def test_background_and_pixel_limit_hold_for_the_audit(photos):
    """Black on nothing has a shape only where the background is not black."""
    train = photos / 'train'
    for name, size in (('a/cut.png', (128, 96)), ('b/cut.png', (64, 48))):
        image = Image.new('RGBA', (128, 96))
        ImageDraw.Draw(image).polygon([(10, 80), (40, 8), (120, 60)], fill=(0, 0, 0, 255))
        image.resize(size, Image.Resampling.BOX).save(train / name)
    for _ in range(2):  # what is remembered holds for one background
        assert 'near_conflict' not in audit(train=train)[1]['warning']
        _, found = audit(train=train, background=(255, 255, 255))
        assert found['warning']['near_conflict'] == 2
    text, found = audit(train=train, max_pixels=128 * 96 - 1)
    assert found['error']['bad_image'] == 2
    assert 'a/cut.png has 128x96 pixels, more than the limit' in text


def test_the_command_takes_keys_without_a_config_file(photos):
    flags = [f'--train={photos}/train', '--config.data.val_fraction=0.25']
    done = run_module('data', *flags)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found['splits']['val']['images'] in range(4, 9)
    wrong = run_module('data', *flags, '--config.data.valfraction=0.25')
    assert wrong.returncode == 2
    assert '--config.data.valfraction: no such key; did you mean' in wrong.stderr


def test_the_picture_of_augmentation(photos, tmp_path):
    (photos / 'train/b/bad.png').unlink()
    place = tmp_path / 'augment.png'
    flags = [f'--show={place}', '--config.data.image_size=(32,32)']
    done = run_module('data', *flags, f'--train={photos}/train', '--config.augment.erasing=1.0')
    assert done.returncode == 0, done.stderr
    assert str(place) in done.stdout
    with Image.open(place) as image:
        assert image.format == 'PNG'
        assert image.width > 6 * 200
        pixels = np.asarray(image)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000
    missing = run_module('data', *flags)
    assert missing.returncode == 2
    assert 'no training images are named' in missing.stderr
