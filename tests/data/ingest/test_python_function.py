"""Python functions that return datasets, written as class folders."""

import os

import numpy as np
import pytest
from absl import logging
from PIL import Image

from tlflax.config.parse import resolve
from tlflax.data.ingest import python_function
from tlflax.data.splits.load import load_splits, load_table, load_train
from tlflax.utils.errors import UserError

HEAD = """
import numpy as np
import tensorflow as tf

rng = np.random.default_rng(0)
IMAGES = [rng.integers(0, 256, (6 + i, 5, 3), np.uint8) for i in range(6)]

def pairs(images, labels, channels=3, kind=tf.int64):
    make = lambda: iter(zip(images, labels))
    spec = (tf.TensorSpec((None, None, channels), tf.uint8), tf.TensorSpec((), kind))
    return tf.data.Dataset.from_generator(make, output_signature=spec)
"""

IMAGES = [
    image
    for rng in [np.random.default_rng(0)]
    for image in [rng.integers(0, 256, (6 + i, 5, 3), np.uint8) for i in range(6)]
]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Materializes the function `make` of a file with this body."""
    monkeypatch.setenv('TLFLAX_CACHE', str(tmp_path / 'cache'))

    def materialize(body, name='make'):
        (tmp_path / 'mine.py').write_text(HEAD + body)
        spec = f'py:{tmp_path}/mine.py:{name}'
        return python_function.materialize(spec, tmp_path / 'cache')

    return materialize


def contents(root):
    """Class -> the images in its folder, by their bytes."""
    return {
        folder.name: {np.asarray(Image.open(path)).tobytes() for path in folder.iterdir()}
        for folder in root.iterdir()
    }


def images(*numbers):
    return {IMAGES[number].tobytes() for number in numbers}


def test_pairs_become_class_folders(made):
    root = made('def make(): return pairs(IMAGES, [0, 1, 0, 1, 10, 10])')
    assert contents(root) == {'0': images(0, 2), '1': images(1, 3), '10': images(4, 5)}
    (photo,) = [p for p in root.glob('0/*') if Image.open(p).size == (5, 6)]
    assert len(photo.stem) == 64
    assert photo.suffix == '.png'
    table = load_table(f'py:{root.parents[1]}/../mine.py:make', data=resolve({}).data)
    assert table.class_names == ('0', '1', '10')


@pytest.mark.parametrize(
    'body',
    [
        'def make(): return pairs(IMAGES[:3], ["a/b", ".c", "a/b"], kind=tf.string)',
        'def make():\n d = pairs(IMAGES[:3], [1, 0, 1])\n d.class_names = [".c", "a/b"]\n return d',
        'def make(): return pairs(IMAGES[:3], [1, 0, 1])\nmake.class_names = (".c", "a/b")',
        'def make(): return pairs(IMAGES[:3], ["a/b", ".c", "a/b"], kind=tf.string)'
        '.map(lambda image, label: {"image": image, "label": label, "more": 1})',
    ],
    ids=['strings', 'of the dataset', 'of the function', 'dicts'],
)
def test_names_of_classes(made, body):
    assert contents(made(body)) == {'a%2Fb': images(0, 2), '%2Ec': images(1)}


def test_grayscale(made):
    root = made('def make(): return pairs([i[..., :1] for i in IMAGES], [0] * 6, channels=1)')
    wanted = {image[..., 0].tobytes() for image in IMAGES}
    assert contents(root) == {'0': wanted}
    assert all(Image.open(path).mode == 'L' for path in root.glob('*/*'))


def test_what_is_there_is_kept_and_what_is_gone_goes(made, monkeypatch):
    lines = []
    monkeypatch.setattr(logging, 'info', lambda text, *args: lines.append(text % args))
    root = made('def make(): return pairs(IMAGES[:4], [0, 1, 1, 2])')
    before = {path: path.stat().st_ino for path in root.glob('*/*')}
    again = made('def make(): return pairs(IMAGES[4:0:-1] + IMAGES[1:2], [1, 2, 1, 0, 0])')
    assert again == root
    assert contents(root) == {'0': images(1), '1': images(2, 4), '2': images(3)}
    kept = [path for path in root.glob('*/*') if path in before]
    assert len(kept) == 2
    assert all(path.stat().st_ino == before[path] for path in kept)
    assert lines[0].endswith('(4 new, 0 gone, 0 twice)')
    assert lines[1].endswith('(2 new, 2 gone, 1 twice)')


def test_a_failure_keeps_what_was_there(made):
    root = made('def make(): return pairs(IMAGES[:4], [0, 1, 1, 2])')
    before = contents(root)
    body = """
LIMIT = tf.constant(2, tf.int64)

def check(image, label):
    with tf.control_dependencies([tf.debugging.assert_less(label, LIMIT, 'too much')]):
        return tf.identity(image), label

def make(): return pairs(IMAGES[:4], [0, 1, 1, 2]).map(check)
"""
    with pytest.raises(UserError, match=r'fails with InvalidArgumentError: .*too much'):
        made(body)
    with pytest.raises(UserError, match=r'TypeError: .*unexpected'):
        made(body.replace('LIMIT, ', 'LIMIT, wrong='))
    assert contents(root) == before
    assert os.listdir(root.parents[1]) == ['python']  # no part of a file is left


@pytest.mark.parametrize(
    ('body', 'words'),
    [
        ('def mke(): pass', r"mine\.py has no function 'make'; did you mean 'mke'\?"),
        ('make = 3', "has no function 'make'"),
        ('1 / 0', r'fails with ZeroDivisionError: division by zero \(.*mine\.py, line 12\)'),
        ('def make(:', r'fails with SyntaxError: '),
        ('def make(x): pass', r"fails with TypeError: make\(\) missing 1"),
        ('def make():\n  return 1 / 0', r'mine\.py, line 13\)'),
        ('def make(): return [1]', 'returns a list, not a tf.data.Dataset'),
        ('def make(): return pairs(IMAGES, range(6)).repeat()', 'never ends'),
        ('def make(): return pairs(IMAGES, [0, 1, 2, 3, 4, -1])\nmake.class_names = "abcde"',
         r'element 5 of py:.*: the label is array\(-1\)'),
        ('def make(): return pairs(IMAGES, [0, 1, 2, 3, 4, 5])\nmake.class_names = "abcde"',
         'element 5 .*below the number of class names'),
        ('def make(): return pairs(IMAGES[:1] * 4, [0] * 4).batch(2)',
         r'element 0 .*: the image is uint8\[2, 6, 5, 3\].*one image at a time'),
        ('def make(): return pairs(IMAGES, range(6)).map(lambda i, l: (tf.cast(i, tf.float32), l))',
         r'the image is float32\[6, 5, 3\]'),
        ('def make(): return pairs([i[:0] for i in IMAGES], range(6))', 'the image is empty'),
        ('def make(): return tf.data.Dataset.range(3)', 'element 0 .* is not an image with its'),
        ('def make(): return pairs(IMAGES, [""] * 6, kind=tf.string)', "the label is array"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said(made, body, words):
    with pytest.raises(UserError, match=words):
        made(body)


@pytest.mark.parametrize('spec', ['py:', 'py:x', 'py::f', 'py:nowhere.py:f', 'py:no_such_module:f'])
def test_specifications_that_name_nothing(spec):
    with pytest.raises(UserError) as error:
        load_train(resolve({'data': {'train': spec}}).data)
    assert error.value.where == 'config.data.train'


def test_modules_are_found_by_name(tmp_path, monkeypatch):
    (tmp_path / 'a_module_of_mine.py').write_text(
        HEAD + 'def make(): return pairs(IMAGES, [0] * 6)'
    )
    monkeypatch.syspath_prepend(tmp_path)
    root = python_function.materialize('py:a_module_of_mine:make', tmp_path / 'cache')
    assert contents(root) == {'0': images(0, 1, 2, 3, 4, 5)}


def test_a_cache_that_cannot_be_written(tmp_path, made):
    (tmp_path / 'cache').write_text('a file')
    with pytest.raises(UserError, match='cannot be written'):
        made('def make(): return pairs(IMAGES, [0] * 6)')


def test_splits_of_a_function_are_those_of_its_folders(made, tmp_path):
    root = made('def make(): return pairs(IMAGES, [0, 0, 0, 1, 1, 1])')
    spec = f'py:{tmp_path}/mine.py:make'
    both = [
        load_splits(resolve({'data': {'train': train, 'val_fraction': 0.3}}).data)
        for train in (spec, str(root))
    ]
    assert both[0].digest == both[1].digest
