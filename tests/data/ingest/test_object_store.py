"""Object stores: a stand-in for S3 on this machine, and one in memory that misbehaves."""

import io
import sys
import threading
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest
from absl import logging
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from tlflax.config.parse import resolve
from tlflax.data.ingest import object_store
from tlflax.data.splits.load import load_splits, load_table, load_train
from tlflax.utils.errors import UserError


def png(seed):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, 'PNG')
    return buffer.getvalue()


def put(bucket, objects):
    for key, data in objects.items():
        bucket.put_object(Key=key, Body=png(data) if isinstance(data, int) else data)


@pytest.fixture
def fetched(monkeypatch):
    """The log lines of mirroring, and what was downloaded."""
    lines = []
    monkeypatch.setattr(logging, 'info', lambda text, *args: lines.append(text % args))
    return lines


def files(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob('*')
        if path.is_file()
    }


def data(**keys):
    return resolve({'data': keys}).data


LIGHTS = {'t/red/1.png': 1, 't/red/deep/2.png': 2, 't/green/3.png': 3, 't/green/größe 1.jpg': 4}


def test_a_folder_in_s3_is_a_way_in(bucket):
    put(bucket, LIGHTS | {'t/readme.txt': b'x', 't/red/': b'', 't/.hidden/x.png': 9, 'u/x.png': 8})
    table = load_table('s3://photos/t/', data=data())
    assert table.class_names == ('green', 'red')
    assert list(table.counts) == [2, 2]
    names = {path.removeprefix(table.root + '/') for path in table.paths}
    assert names == {key.removeprefix('t/') for key in LIGHTS}
    splits = load_splits(data(train='s3://photos/t', val_fraction=0.5))
    assert [len(splits.train), len(splits.val)] == [2, 2]


def test_only_what_changed_is_fetched(bucket, fetched, tmp_path):
    put(bucket, LIGHTS)

    def mirrored():
        return object_store.fetch('s3://photos/t', tmp_path / 'cache')

    root = mirrored()
    assert fetched == ['s3://photos/t: 4 objects, 4 to fetch (0 MB), 0 gone']
    before = {path: path.stat().st_mtime_ns for path in Path(root).rglob('*.*')}
    put(bucket, {'t/red/1.png': 77, 't/blue/x/5.png': 5})
    bucket.Object('t/green/3.png').delete()
    assert mirrored() == root
    assert fetched[1].endswith('4 objects, 2 to fetch (0 MB), 1 gone')
    assert files(Path(root)) == {
        'red/1.png': png(77),
        'red/deep/2.png': png(2),
        'green/größe 1.jpg': png(4),
        'blue/x/5.png': png(5),
    }
    kept = Path(root, 'red/deep/2.png')
    assert kept.stat().st_mtime_ns == before[kept]
    bucket.objects.filter(Prefix='t/blue').delete()
    mirrored()
    assert not Path(root, 'blue').exists()
    kept.write_bytes(b'cut')  # by somebody else
    mirrored()
    assert fetched[3].endswith('3 objects, 1 to fetch (0 MB), 0 gone')
    assert kept.read_bytes() == png(2)
    mirrored()
    assert fetched[4].endswith('3 objects, 0 to fetch (0 MB), 0 gone')
    assert [path.name for path in (tmp_path / 'cache').iterdir()] == ['mirrors']


def test_patterns_in_a_store(bucket):
    put(bucket, {'p/x/cat_1.png': 1, 'p/y/cat_2.png': 2, 'p/y/dog_3.png': 3, 'p/dog_4.png': 4})
    table = load_table('s3://photos/p/*/{class}_*.png', data=data())
    assert table.class_names == ('cat', 'dog')
    assert list(table.counts) == [2, 1]


@pytest.mark.parametrize(
    ('url', 'words'),
    [
        ('s3://no-such-bucket/t', 'there is no such bucket or folder: s3://no-such-bucket/t'),
        ('s3://photos/nothing', 's3://photos/nothing holds no image, or does not exist'),
        ('s3://photos/texts', r'holds no image, or does not exist \(2 objects have other endings'),
        ('htp://photos/t', "htp:// is not known; did you mean 'http'"),
        ('zzzz://photos/t', 'zzzz:// is not known; give gs://, s3://'),
    ],
)
def test_what_is_not_there(bucket, url, words):
    put(bucket, LIGHTS | {'texts/a.txt': b'a', 'texts/b.csv': b'b'})
    with pytest.raises(UserError, match=words) as error:
        load_train(data(train=url))
    assert error.value.where == 'config.data.train'


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 's3fs', None)
    monkeypatch.delitem(sys.modules['fsspec.registry']._registry, 's3', raising=False)
    with pytest.raises(UserError, match=r"needs a package .*pip install 'tlflax\[cloud\]'"):
        object_store.fetch('s3://photos/t', tmp_path)
    monkeypatch.setitem(sys.modules, 'fsspec', None)
    with pytest.raises(UserError, match=r"needs the package fsspec; pip install 'tlflax\[cloud\]'"):
        object_store.fetch('s3://photos/t', tmp_path)


class Odd(MemoryFileSystem):
    """A store in memory, of which a test decides how it fails."""

    protocol = 'odd'
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = ['']  # noqa: RUF012
    cachable = False
    behave = staticmethod(lambda path: None)
    tagged = True

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix('odd://'))

    def find(self, path, **options):
        Odd.behave('')
        found = super().find(path, **options)
        if not Odd.tagged:
            found = {
                path: {'name': path, 'size': None, 'type': 'file'} for path, info in found.items()
            }
        return found

    def get_file(self, rpath, lpath, **options):
        Odd.behave(rpath)
        super().get_file(rpath, lpath, **options)
        if Odd.behave(rpath) == 'cut':
            with open(lpath, 'r+b') as file:
                file.truncate(5)


@pytest.fixture
def odd(monkeypatch, tmp_path):
    fsspec.register_implementation('odd', Odd, clobber=True)
    monkeypatch.setattr(Odd, 'store', {})
    monkeypatch.setattr(Odd, 'pseudo_dirs', [''])
    monkeypatch.setattr(Odd, 'behave', staticmethod(lambda path: None))
    monkeypatch.setattr(Odd, 'tagged', True)
    store = Odd()
    for number in range(40):
        store.pipe_file(f'/t/{"ab"[number % 2]}/{number:02}.png', png(number))
    return lambda behave: monkeypatch.setattr(Odd, 'behave', staticmethod(behave))


def fail_with(error, when=lambda path: True):
    def behave(path):
        if when(path):
            raise error

    return behave


class NoCredentialsError(Exception):
    """As botocore's."""


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (PermissionError('Access Denied'), r'odd:///t may not be read \(PermissionError: Access D'),
        (NoCredentialsError('Unable to locate credentials'), r'may not be read .*AWS_PROFILE'),
        (
            ConnectionError('no route\nto host'),
            r'cannot be mirrored \(ConnectionError: no route\);',
        ),
    ],
)
@pytest.mark.parametrize('when', ['listing', 'fetching'])
def test_stores_that_refuse(odd, tmp_path, error, words, when):
    odd(fail_with(error, lambda path: (path == '') == (when == 'listing')))
    with pytest.raises(UserError, match=words):
        object_store.fetch('odd:///t', tmp_path / 'cache')
    assert not any('partial' in path.name for path in (tmp_path / 'cache').glob('*'))


def test_an_interrupted_mirror_goes_on_where_it_stopped(odd, tmp_path, fetched):
    odd(fail_with(ConnectionError('gone'), lambda path: path.endswith('39.png')))
    for cut in ('cannot be mirrored', 'came with 5 of'):
        with pytest.raises(UserError, match=cut):
            object_store.fetch('odd:///t', tmp_path / 'cache')
        odd(lambda path: 'cut' if path.endswith('39.png') else None)
    odd(lambda path: None)
    root = object_store.fetch('odd:///t', tmp_path / 'cache')
    assert '40 objects, 40 to fetch' in fetched[0]
    assert '40 objects, 1 to fetch' in fetched[-1]
    assert files(Path(root)) == {f'{"ab"[n % 2]}/{n:02}.png': png(n) for n in range(40)}


def test_objects_are_fetched_side_by_side(odd, tmp_path):
    both = threading.Barrier(8, timeout=10)
    met = []

    def wait(path):
        if path and len(met) < 8:
            met.append(path)
            both.wait()

    odd(wait)
    object_store.fetch('odd:///t', tmp_path / 'cache')
    assert len(met) >= 8


def test_a_store_that_tells_nothing_is_fetched_anew(odd, tmp_path, fetched, monkeypatch):
    monkeypatch.setattr(Odd, 'tagged', False)
    for _ in range(2):
        object_store.fetch('odd:///t', tmp_path / 'cache')
    assert all('40 to fetch' in line for line in fetched)


def test_a_torn_or_foreign_index_costs_time_only(odd, tmp_path, fetched):
    root = Path(object_store.fetch('odd:///t', tmp_path / 'cache'))
    index = root.parent / 'index.jsonl'
    lines = index.read_text().splitlines()
    index.write_text('\n'.join([*lines[:10], 'null', '{}', '[1]', *lines[10:20], lines[20][:9]]))
    object_store.fetch('odd:///t', tmp_path / 'cache')
    assert '40 objects, 20 to fetch' in fetched[-1]
    object_store.fetch('odd:///t', tmp_path / 'cache')
    assert '40 objects, 0 to fetch' in fetched[-1]


def test_names_that_no_folder_can_hold_are_left_out(tmp_path):
    names = ['t//x.png', 't/../y.png', 't/a/z\0.png', 't/a/', 't/a/ok.png', 't/a/__MACOSX/x.png']
    found = {name: {'size': 1, 'type': 'file'} for name in names}
    ignored = Counter()
    assert list(object_store._select(found, 't', ignored)) == ['a/ok.png']
    assert sum(ignored.values()) == 4


def test_a_cache_that_cannot_be_written(odd, tmp_path):
    (tmp_path / 'cache').write_text('a file')
    with pytest.raises(UserError, match='cannot be mirrored'):
        object_store.fetch('odd:///t', tmp_path / 'cache')
