"""Vectors of images: what the network computes, the same from the cache, a table or a file."""

import csv
import dataclasses
import os

import jax
import numpy as np
import pytest
from helpers import make_folders, picture, scan_folder, toy_config, untrained
from PIL import Image
from pyarrow import parquet

from tlflax.data.images.format import ImageFormat
from tlflax.data.pipeline import tf_data
from tlflax.inference import embedding_files, embeddings, splits
from tlflax.models.base.backbone import IMAGE
from tlflax.models.weights.preprocess import PREPROCESS
from tlflax.utils.errors import UserError

RUNS = {
    'frozen': {},
    'tapped': {'features__layers': ('block1:mean', 'block2:flatten')},
    'rounded': {'features__dtype': 'float16'},
    'tuned': {'optim__labels': (('backbone/block1/.*', 'frozen'), ('.*', 'up'))},
    'unfrozen': {'optim__labels': (('.*', 'all'),)},
}


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with images and a cache of its own."""
    root = tmp_path_factory.mktemp('embeddings')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TLFLAX_CACHE', str(root / 'cache'))
        make_folders(root / 'Train', 6, seed=1)
        make_folders(root / 'Test', 3, seed=2)
    return root


@pytest.fixture(autouse=True)
def _cache(place, monkeypatch):
    monkeypatch.setenv('TLFLAX_CACHE', str(place / 'cache'))


@pytest.fixture(scope='module')
def classifiers(place):
    """A classifier of each kind, none of which is trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TLFLAX_CACHE', str(place / 'cache'))
        return {run: untrained(toy_config(place, **changes)) for run, changes in RUNS.items()}


@pytest.fixture
def trained(classifiers):
    return classifiers['frozen']


def by_hand(trained, table):
    """Runs the whole backbone on the pipeline's pixels: the output of each layer that is read."""
    (batch,) = tf_data.eval_epoch(
        table, image_format=ImageFormat.of(trained.config.data), batch_size=len(table)
    )
    model = trained.classifier
    x = PREPROCESS[model.preprocess](batch['image'])
    layers = [tap.layer for tap in model.taps] or [model.layer]
    with jax.default_matmul_precision('highest'):
        found = [trained.module.backbone(x, start=IMAGE, stop=layer) for layer in layers]
    return [np.asarray(one, np.float64) for one in found]


@pytest.mark.parametrize('run', RUNS)
def test_vectors_are_what_the_head_reads(classifiers, run):
    trained = classifiers[run]
    table = splits.load_split(trained, 'train')
    maps = by_hand(trained, table)
    means = [one.mean((1, 2)) for one in maps]
    expected = np.hstack([means[0], maps[1].reshape(18, -1)]) if run == 'tapped' else means[0]
    full = expected if run == 'tapped' else maps[0].reshape(18, -1)
    scale = np.abs(full).max()
    tolerance = {'rounded': 1e-3}.get(run, 2e-6) * scale
    for whole, values in ((False, expected), (True, full)):
        found = embeddings.of_table(trained, table, full=whole)
        assert found.dtype == np.float32
        assert found.shape[1] == embeddings.dimension(trained, full=whole)
        np.testing.assert_allclose(found, values, atol=tolerance)
    assert expected.std(0).max() > 100 * tolerance  # images are told apart


@pytest.mark.parametrize('run', RUNS)
def test_a_loose_file_has_the_vector_of_the_table(classifiers, run, tmp_path):
    trained = classifiers[run]
    Image.fromarray(picture((50, 30))).save(tmp_path / 'new.png')
    table = splits.load_split(trained, 'validation')
    paths = [*table.paths, str(tmp_path / 'new.png'), '/nowhere']
    *found, error = embeddings.of_images(trained, paths)
    assert isinstance(error, UserError)
    assert [image.path for image, _ in found] == paths[:-1]
    expected = embeddings.of_table(trained, table)
    vectors = np.stack([vector for _, vector in found])
    np.testing.assert_allclose(vectors[:9], expected, atol=1e-6 * np.abs(expected).max())
    alone = [next(embeddings.of_images(trained, path))[1] for path in paths[7:10]]
    np.testing.assert_allclose(alone, vectors[7:], atol=1e-6 * np.abs(expected).max())


def test_features_are_kept_and_not_computed_again(place, trained):
    new = scan_folder(make_folders(place / 'new', 2, seed=9))
    before = embeddings.of_table(trained, new)
    again = dataclasses.replace(trained)
    again.sources._programs[:] = [lambda images: pytest.fail('computed')]
    np.testing.assert_array_equal(embeddings.of_table(again, new), before)
    assert embeddings.of_table(again, new.select(np.zeros(0, int))).shape == (0, 16)


# Splits


def test_splits_are_those_of_the_run_and_a_change_is_said(place, trained, caplog):
    caplog.clear()
    for split, root in (('train', 'Train'), ('validation', 'Test')):
        table = splits.load_split(trained, split)
        assert table.digest == scan_folder(place / root).digest
    assert 'WARNING' not in caplog.text
    with pytest.raises(UserError, match='no test images'):
        splits.load_split(trained, 'test')
    data = dataclasses.replace(trained.config.data, train=str(place / 'Test'))
    moved = dataclasses.replace(trained, config=dataclasses.replace(trained.config, data=data))
    splits.load_split(moved, 'train')
    (line,) = [line.getMessage() for line in caplog.records if line.levelname == 'WARNING']
    assert line.startswith('WARNING: the train images in config.data.train=')
    assert line.endswith('are not those of the run any more')


def test_held_out_parts_are_those_of_the_run(place):
    config = toy_config(place, data__val='', data__val_fraction=0.3)
    config.data.test = str(place / 'Test')
    trained = untrained(config)
    for split, name in splits.NAMES.items():
        assert splits.load_split(trained, split).digest == trained.split_digests[name]
    assert len(splits.load_split(trained, 'train')) == 12


# Files


def read_back(path):
    """The columns of a file by the library that people read it with."""
    if path.suffix == '.npz':
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    if path.suffix == '.parquet':
        table = parquet.read_table(path)
        assert str(table.schema.field('features').type).startswith('fixed_size_list<')
        size = table.schema.field('features').type.list_size
        flat = table['features'].combine_chunks().flatten().to_numpy()
        columns = {name: np.array(table[name].to_pylist()) for name in ('path', 'label', 'digest')}
        return {**columns, 'features': flat.reshape(-1, size)}
    with path.open(newline='', encoding='utf-8') as file:
        header, *rows = csv.reader(file)
    assert header[3:] == [f'feature{n}' for n in range(len(header) - 3)]
    columns = np.array(rows)
    named = dict(zip(header[:3], columns.T, strict=False))
    return {**named, 'features': columns[:, 3:].astype(np.float32)}


@pytest.mark.parametrize('form', embedding_files.FORMATS)
@pytest.mark.parametrize('full', [False, True], ids=['mean', 'full'])
def test_files_hold_every_bit(trained, tmp_path, form, full, monkeypatch):
    monkeypatch.setattr(embedding_files, '_GROUP', 200)  # several row groups
    path = tmp_path / f'x.{form}'
    said = embedding_files.save(trained, str(path), form, 'train', full=full)
    assert said == f'{path} has {1024 if full else 16} features of each of 18 images'
    table, columns = splits.load_split(trained, 'train'), read_back(path)
    expected = embeddings.of_table(trained, table, full=full)
    assert columns['features'].dtype == np.float32
    np.testing.assert_array_equal(columns['features'], expected)
    assert columns['path'].tolist() == table.paths.tolist()
    assert columns['label'].tolist() == ['green'] * 6 + ['red'] * 6 + ['yellow'] * 6
    assert columns['digest'].tolist() == table.digests.tolist()
    assert os.listdir(tmp_path) == [path.name]


def test_other_images_of_other_classes(trained, tmp_path):
    for name in ('one', 'two'):
        (tmp_path / 'd' / name).mkdir(parents=True)
        Image.fromarray(picture((9, 9))).save(tmp_path / 'd' / name / 'ü.png')
    path = tmp_path / 'x.npz'
    embedding_files.save(trained, str(path), 'npz', 'train', str(tmp_path / 'd'))
    assert read_back(path)['label'].tolist() == ['one', 'two']
    with pytest.raises(UserError, match='--data'):
        embedding_files.save(trained, str(path), 'npz', 'train', str(tmp_path / 'none'))


def test_a_file_is_whole_or_not_there(trained, tmp_path, monkeypatch):
    path = tmp_path / 'x.parquet'
    real = embeddings.batches

    def broken(*args, **settings):
        yield next(real(*args, **settings))
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(embeddings, 'batches', broken)
    for form in embedding_files.FORMATS:
        with pytest.raises(UserError, match=r'x\.parquet: cannot be written: No space left'):
            embedding_files.save(trained, str(path), form, 'train')
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ('name', 'form', 'words'),
    [
        ('', 'npz', '--output: no file is named'),
        ('x', '', 'x: its name says no format of features; .*or give --format'),
        ('x.npy', '', "'npy' is not a format of features; did you mean 'npz'"),
        ('x.npz', 'json', "--format: 'json' is not a format of features"),
        ('none/x.npz', '', 'there is no folder'),
        ('.', 'csv', 'it is a folder'),
        (f'{"x" * 300}.npz', '', 'File name too long'),
    ],
)
def test_a_file_that_cannot_be_is_refused_first(tmp_path, name, form, words):
    with pytest.raises(UserError, match=words):
        embedding_files.choose_format(name and str(tmp_path / name), form)
    assert embedding_files.choose_format(str(tmp_path / 'x.dat'), 'csv') == 'csv'
