"""TensorFlow Datasets written here, then read by name, and TFDS's folder layout."""

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from absl import logging
from helpers import run_new_python, scan_folder
from PIL import Image

from tlflax.data.images.format import ImageFormat
from tlflax.data.ingest import tfds_writer
from tlflax.data.ingest.tfds import license_of, materialize
from tlflax.data.ingest.tfds_writer import tfds
from tlflax.data.pipeline import tf_data
from tlflax.utils.errors import UserError

LABELS = ['green', 'red', 'yellow/amber', '.odd']
features = tfds.features
IMAGE = features.Image(shape=(4, 4, 3))
BLACK = np.zeros((4, 4, 3), np.uint8)
LABEL = features.ClassLabel(names=['a', 'b'])


def store(data_dir, name, examples, shards=1, **feature_dict):
    """Writes a data set with splits train (all examples) and test (the first three)."""
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version='1.0.0',
        features=features.FeaturesDict(feature_dict),
        split_datasets={
            'train': list(enumerate(examples)),
            'test': list(enumerate(examples[:3])),
        },
        data_dir=data_dir,
        disable_shuffling=shards == 1,
        download_config=tfds.download.DownloadConfig(num_shards=shards),
    )


def jpegs(where, count=8, offset=0):
    """Writes photographs and returns their paths."""
    where.mkdir(parents=True)
    rng = np.random.default_rng(offset)
    paths = [where / f'{i}.jpg' for i in range(count)]
    for i, path in enumerate(paths):
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        small.resize((20 + i, 30), Image.BICUBIC).save(path, quality=90)
    return paths


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """Where TFDS looks for data sets."""
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    return tmp_path / 'tfds'


@pytest.fixture
def lights(tmp_path, data_dir):
    """The data set `small_lights`, eight JPEGs in four classes; returns their paths."""
    paths = jpegs(tmp_path / 'originals')
    store(
        data_dir,
        'small_lights',
        [{'image': str(path), 'label': i % 4, 'file': path.name} for i, path in enumerate(paths)],
        image=features.Image(shape=(None, None, 3), encoding_format='jpeg'),
        label=features.ClassLabel(names=LABELS),
        file=features.Text(),
    )
    return paths


def files(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob('*') if path.is_file())


def test_a_named_split_becomes_class_folders_of_the_original_bytes(lights, tmp_path):
    root = materialize('tfds:small_lights/train', tmp_path / 'cache')
    assert root.is_relative_to(tmp_path / 'cache' / 'tfds' / 'small_lights' / '1.0.0')
    names = ['green', 'red', 'yellow%2Famber', '%2Eodd']
    assert files(root) == sorted(f'{names[i % 4]}/{i:08d}.jpg' for i in range(8))
    for i, original in enumerate(lights):
        assert (root / names[i % 4] / f'{i:08d}.jpg').read_bytes() == original.read_bytes()
    assert os.listdir(tmp_path / 'cache') == ['tfds']


def test_license(lights, data_dir):
    assert license_of('tfds:small_lights/train') == ''
    (info,) = (data_dir / 'small_lights').rglob('dataset_info.json')
    info.write_text(info.read_text().replace('{', '{"redistributionInfo": {"license": "MIT"},', 1))
    assert license_of('tfds:small_lights/train') == 'MIT'
    with pytest.raises(UserError, match='no such data set'):
        license_of('tfds:no_lights/train')


def test_from_there_on_it_is_a_folder(lights, tmp_path):
    table = scan_folder(materialize('tfds:small_lights/train', tmp_path / 'cache'))
    assert table.class_names == ('%2Eodd', 'green', 'red', 'yellow%2Famber')
    (batch,) = tf_data.eval_epoch(table, image_format=ImageFormat((30, 20)), batch_size=8)
    pixels = np.asarray(Image.open(lights[0]), int)  # 20 wide: needs no resizing
    (row,) = [i for i, path in enumerate(table.paths) if path.endswith('00000000.jpg')]
    np.testing.assert_array_equal(batch['image'][row], pixels)


@pytest.fixture
def said(caplog, monkeypatch):
    """A function that returns what has been logged."""
    monkeypatch.setattr(logging.get_absl_logger(), 'propagate', True)
    caplog.set_level('INFO')
    caplog.clear()
    return lambda: [record.message for record in caplog.records]


def test_written_once_said_once(lights, tmp_path, said):
    root = materialize('tfds:small_lights/train', tmp_path / 'cache')
    message = f'tfds:small_lights/train: writing 8 images (0 MB) to {root}'
    assert said() == [message]
    (root / 'green' / 'mark').touch()
    for spec in ('tfds:small_lights/train', 'tfds:small_lights:1.0.0/train'):
        assert materialize(spec, tmp_path / 'cache') == root
    assert (root / 'green' / 'mark').exists()
    assert said() == [message]


def test_splits_and_slices_have_folders_of_their_own(lights, tmp_path):
    roots = {
        split: materialize(f'tfds:small_lights/{split}', tmp_path / 'cache')
        for split in ('train', 'test', 'train[:50%]', 'train[50%:]', 'train+test')
    }
    assert len(set(roots.values())) == 5
    assert {split: len(files(root)) for split, root in roots.items()} == {
        'train': 8,
        'test': 3,
        'train[:50%]': 4,
        'train[50%:]': 4,
        'train+test': 11,
    }


def test_size_of_a_slice(lights, data_dir):
    def size(split):
        spec = f'tfds:small_lights/{split}'
        return tfds_writer.find_split(
            spec, tfds.builder('small_lights', data_dir=data_dir), split
        ).size()

    count, megabytes = size('train')
    assert count == 8
    stored = sum(path.stat().st_size for path in lights) / 1e6
    assert stored < megabytes < 1.1 * stored
    assert size('train[:50%]') == (4, pytest.approx(megabytes / 2))


def test_many_shards_come_in_the_same_order_each_time(data_dir, tmp_path):
    """As TFDS prepares data sets unless told otherwise: shuffled, over several files."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 3), np.uint8)
    examples = [{'image': image, 'label': i % 2} for i, image in enumerate(pixels)]
    store(data_dir, 'many', examples, shards=3, image=IMAGE, label=LABEL)
    assert len(list(data_dir.rglob('*-train.tfrecord-*'))) == 3
    roots = [materialize('tfds:many/train', tmp_path / f'cache{i}') for i in range(3)]
    contents = [{name: (root / name).read_bytes() for name in files(root)} for root in roots]
    assert contents[0] == contents[1] == contents[2]
    decoded = [np.asarray(Image.open(roots[0] / name)) for name in contents[0]]
    assert {image.tobytes() for image in decoded} == {image.tobytes() for image in pixels}


def test_a_data_set_prepared_anew_is_written_anew(lights, data_dir, tmp_path):
    old = materialize('tfds:small_lights/train', tmp_path / 'cache')
    shutil.rmtree(data_dir / 'small_lights')
    paths = jpegs(tmp_path / 'others', offset=1)
    store(
        data_dir,
        'small_lights',
        [{'image': str(path), 'label': 0} for path in paths],
        image=features.Image(shape=(None, None, 3), encoding_format='jpeg'),
        label=features.ClassLabel(names=LABELS),
    )
    new = materialize('tfds:small_lights/train', tmp_path / 'cache')
    assert new != old
    assert (new / 'green/00000003.jpg').read_bytes() == paths[3].read_bytes()


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('kind', ['image', 'array'])
def test_pixels_survive(data_dir, tmp_path, kind, channels):
    """Images that TFDS stores as PNG, and arrays, which it does not encode."""
    shape = (6, 5, channels)
    feature = (
        features.Image(shape=shape)
        if kind == 'image'
        else features.Tensor(shape=shape, dtype=np.uint8)
    )
    pixels = np.random.default_rng(0).integers(0, 256, (6, *shape), np.uint8)
    # Other names than the usual, and no other features that would suit.
    store(
        data_dir,
        f'raw_{kind}_{channels}',
        [{'photo': image, 'kind': i % 2} for i, image in enumerate(pixels)],
        photo=feature,
        kind=features.ClassLabel(num_classes=2),
    )
    root = materialize(f'tfds:raw_{kind}_{channels}/train', tmp_path / 'cache')
    for i, image in enumerate(pixels):
        stored = np.asarray(Image.open(root / str(i % 2) / f'{i:08d}.png'))
        np.testing.assert_array_equal(stored.reshape(shape), image)


def test_a_folder_in_the_tfds_layout_is_not_copied(tmp_path):
    for split in ('train', 'val'):
        for name in ('cat', 'dog'):
            (tmp_path / 'pets' / split / name).mkdir(parents=True)
            Image.new('RGB', (4, 4)).save(tmp_path / 'pets' / split / name / 'x.png')
    spec = f'tfds:{tmp_path}/pets/train'
    assert materialize(spec, tmp_path / 'cache') == tmp_path / 'pets' / 'train'
    assert not (tmp_path / 'cache').exists()
    assert (
        os.listdir(tmp_path / 'pets') == ['train', 'val'] or len(os.listdir(tmp_path / 'pets')) == 2
    )
    with pytest.raises(UserError, match=r"pets: no split 'trian' .*did you mean 'train'"):
        materialize(f'tfds:{tmp_path}/pets/trian', tmp_path / 'cache')
    with pytest.raises(UserError, match='petz: there is no such folder'):
        materialize(f'tfds:{tmp_path}/petz/train', tmp_path / 'cache')


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        ('tfds:small_lights', 'tfds:small_lights: does not name a split; give tfds:NAME/SPLIT'),
        ('tfds:small_lights/', 'does not name a split'),
        ('tfds:small_lihgts/train', r"no such data set; did you mean 'small_lights'\?"),
        ('tfds:cifar11/train', r'did you mean .cifar10'),
        ('tfds:qqqqqqq/train', 'no such data set; see https'),
        ('tfds:small_lights/trian', r"no split 'trian'; did you mean 'train'\?"),
        ('tfds:small_lights/train[:x%]', 'no split'),
        ('tfds:small_lights:7.0.0/train', "'small_lights' has no such configuration or version"),
        ('tfds:cifar10/no_such_config/train', 'no_such_config'),
    ],
)
def test_what_does_not_exist(lights, tmp_path, spec, message):
    with pytest.raises(UserError, match=message):
        materialize(spec, tmp_path / 'cache')
    assert not (tmp_path / 'cache').exists()


@pytest.mark.parametrize(
    ('feature_dict', 'example', 'message'),
    [
        ({'image': IMAGE}, {'image': BLACK}, 'no class label is among its features: image;'),
        ({'label': LABEL}, {'label': 0}, 'no image is among its features: label;'),
        (
            {'left': IMAGE, 'right': IMAGE, 'label': LABEL},
            {'left': BLACK, 'right': BLACK, 'label': 0},
            'more than one feature may be its image: left, right;',
        ),
        (
            {'image': features.Image(shape=(4, 4, 1), dtype=np.float32), 'label': LABEL},
            {'image': np.zeros((4, 4, 1), np.float32), 'label': 0},
            'no image',
        ),
    ],
)
def test_no_image_classification(data_dir, tmp_path, feature_dict, example, message):
    store(data_dir, 'unfit', [example] * 3, **feature_dict)
    with pytest.raises(UserError, match=f'tfds:unfit/train: {message}.*choose'):
        materialize('tfds:unfit/train', tmp_path / 'cache')


def test_an_error_leaves_nothing_half_written(data_dir, tmp_path):
    examples = [{'image': BLACK, 'label': label} for label in (0, 1, 0, -1)]
    store(data_dir, 'partly_labeled', examples, image=IMAGE, label=LABEL)
    with pytest.raises(UserError, match='example 3 has no label'):
        materialize('tfds:partly_labeled/train', tmp_path / 'cache')
    assert files(tmp_path / 'cache') == []
    assert len(files(materialize('tfds:partly_labeled/test', tmp_path / 'cache'))) == 3


def test_damaged_records_are_named(lights, data_dir, tmp_path):
    (record,) = data_dir.rglob('*-train.tfrecord-*')
    data = bytearray(record.read_bytes())
    data[len(data) // 2] ^= 1
    record.write_bytes(data)
    with pytest.raises(UserError, match=r'small_lights/1\.0\.0: TFDS cannot read what it prepared'):
        materialize('tfds:small_lights/train', tmp_path / 'cache')
    assert files(tmp_path / 'cache') == []


def test_a_cache_that_cannot_be_written(lights, tmp_path):
    (tmp_path / 'cache').write_text('a file')
    with pytest.raises(UserError, match='cannot be written'):
        materialize('tfds:small_lights/train', tmp_path / 'cache')


class UnpreparablePhotos(tfds.core.GeneratorBasedBuilder):
    """A data set of the catalogue whose own code fails."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        return tfds.core.DatasetInfo(builder=self)

    def _split_generators(self, dl_manager):
        raise ConnectionError('the server is gone\nand more')

    def _generate_examples(self):
        return iter(())


class UnreachablePhotos(UnpreparablePhotos):
    """One whose server does not answer: nothing listens on this port."""

    url_infos: ClassVar = {'http://127.0.0.1:9/x.zip': SimpleNamespace(size=123_000_000)}


@pytest.mark.parametrize(
    ('name', 'reason', 'amount'),
    [
        ('unpreparable_photos', 'the server is gone', 'a download of unknown size'),
        ('unreachable_photos', '<urlopen error .*refused>', '123 MB'),
    ],
)
def test_a_download_that_fails(data_dir, tmp_path, said, name, reason, amount):
    message = rf'{name}/train: TFDS could not prepare it \({reason}\); prepare'
    with pytest.raises(UserError, match=message):
        materialize(f'tfds:{name}/train', tmp_path / 'cache')
    folder = data_dir / name / '1.0.0'
    assert said() == [f'tfds:{name}/train: fetching {amount}, to be prepared in {folder}']


def test_the_process_is_left_as_it_was(lights, tmp_path):
    tqdm_utils, progress = tfds.core.utils.tqdm_utils, []
    as_dataset = tfds.core.DatasetBuilder.as_dataset

    def spy(*args, **options):
        progress.append(tqdm_utils._active)
        return as_dataset(*args, **options)

    before = tqdm_utils._active, list(logging.get_absl_logger().filters), sys.stdout
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds.core.DatasetBuilder, 'as_dataset', spy)
        materialize('tfds:small_lights/train', tmp_path / 'cache')
    assert progress == [sys.stderr.isatty()]
    after = tqdm_utils._active, list(logging.get_absl_logger().filters), sys.stdout
    assert after == before
    assert before[0]


def test_nothing_is_printed(lights, data_dir, tmp_path):
    """In a process of its own, where TensorFlow's notices are held back as in commands."""
    code = (
        'from tlflax.config import tensorflow_notices; tensorflow_notices.hold_back();'
        'from tlflax.data.ingest.tfds import license_of, materialize; from pathlib import Path;'
        f'materialize("tfds:small_lights/train", Path({str(tmp_path / "cache")!r}));'
    )
    done = run_new_python('-c', code)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
    assert len(files(Path(tmp_path / 'cache'))) == 8
