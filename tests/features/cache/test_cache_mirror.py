"""Features in a stand-in for S3: two machines with caches of their own compute nothing twice."""

import hashlib
import json
import re

import numpy as np
import pytest
from helpers import make_folders, toy_config

from tlflax.features.cache import mirror
from tlflax.features.cache.keys import row_keys
from tlflax.features.cache.store import Store
from tlflax.train import train_and_evaluate
from tlflax.utils.errors import UserError

URL = 's3://photos/features'


@pytest.fixture(autouse=True)
def _mirrored(bucket, monkeypatch):
    monkeypatch.setenv(mirror.VARIABLE, URL)


def keys_of(numbers):
    return row_keys([hashlib.sha256(bytes([n])).hexdigest() for n in numbers], 'view')


def values_of(numbers, shape=(5,)):
    return np.stack([np.random.default_rng(n).normal(size=shape) for n in numbers])


def machine(path, dtype='float16', shape=(5,)):
    return Store(path / 'features', {'of': 'a test'}, shape, dtype, segment_bytes=400)


def names(bucket):
    return sorted(item.key for item in bucket.objects.all())


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float32'])
def test_rows_are_the_same_on_another_machine(bucket, tmp_path, dtype):
    with machine(tmp_path / 'a', dtype) as one, machine(tmp_path / 'b', dtype) as other:
        one.append(keys_of(range(100)), values_of(range(100)))
        mirror.send(one, keys_of(range(100)))
        mirror.fetch(other, keys_of(range(20, 130)), 1e9)
        rows = other.lookup(keys_of(range(130)))
        assert list(np.flatnonzero(rows >= 0)) == list(range(20, 100)), 'what is needed, no more'
        expected = one.read(one.lookup(keys_of(range(20, 100))))
        assert other.read(rows[20:100]).tobytes() == expected.tobytes()


def test_nothing_is_sent_or_fetched_twice(bucket, tmp_path, said):
    with machine(tmp_path / 'a') as one, machine(tmp_path / 'b') as other:
        one.append(keys_of(range(10)), values_of(range(10)))
        mirror.send(one, keys_of([*range(10), *range(10)]))
        before = names(bucket)
        assert len(before) == 2
        mirror.send(one, keys_of(range(10)))
        assert names(bucket) == before
        other.append(keys_of(range(5, 20)), values_of(range(5, 20)))
        mirror.send(other, keys_of(range(20)))
        assert [line for line in said if 'sending' in line][-1].endswith(
            'sending 10 features (0 MB)'
        )
        mirror.fetch(one, keys_of(range(20)), 1e9)
        assert len(one) == 20
        count = len(said)
        mirror.fetch(one, keys_of(range(20)), 1e9)
        assert len(said) == count


def test_large_sets_are_sent_in_parts_and_read_in_part(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, 'PART_BYTES', 100)
    monkeypatch.setattr(mirror, '_GAP', 30)
    with machine(tmp_path / 'a') as one, machine(tmp_path / 'b') as other:
        one.append(keys_of(range(95)), values_of(range(95)))
        mirror.send(one, keys_of(range(95)))
        assert len(names(bucket)) == 20
        wanted = [0, 1, 2, 7, 30, 31, 39, 61, 94]
        mirror.fetch(other, keys_of(wanted), 1e9)
        assert len(other) == len(wanted)
        found = other.read(other.lookup(keys_of(wanted)))
        np.testing.assert_array_equal(found, one.read(one.lookup(keys_of(wanted))))


def test_what_is_damaged_or_half_there_is_not_used(bucket, tmp_path, said):
    with machine(tmp_path / 'a') as one, machine(tmp_path / 'b') as other:
        one.append(keys_of(range(10)), values_of(range(10)))
        mirror.send(one, keys_of(range(10)))
        rows = next(name for name in names(bucket) if name.endswith('.rows'))
        content = bytearray(bucket.Object(rows).get()['Body'].read())
        content[34] ^= 1
        bucket.put_object(Key=rows, Body=bytes(content))
        mirror.fetch(other, keys_of(range(10)), 1e9)
        assert len(other) == 9
        assert other.lookup(keys_of(range(10)))[np.argsort(keys_of(range(10))[:, 0])[3]] == -1
        assert any('1 features are damaged' in line for line in said)
        bucket.put_object(Key=rows, Body=bytes(content[:-1]))
        with machine(tmp_path / 'c') as third:
            mirror.fetch(third, keys_of(range(10)), 1e9)
            assert len(third) == 0
        bucket.Object(rows).delete()
        mirror.send(one, keys_of(range(10)))  # an object without rows is written again
        with machine(tmp_path / 'd') as fourth:
            mirror.fetch(fourth, keys_of(range(10)), 1e9)
            assert len(fourth) == 10


def test_the_limit_holds(bucket, tmp_path):
    with machine(tmp_path / 'a') as one, machine(tmp_path / 'b') as other:
        one.append(keys_of(range(10)), values_of(range(10)))
        mirror.send(one, keys_of(range(10)))
        with pytest.raises(UserError, match='the limit is'):
            mirror.fetch(other, keys_of(range(10)), 10)


@pytest.mark.parametrize(
    ('url', 'words'),
    [
        ('s3://no-such-bucket/f', 'there is no such bucket or folder'),
        ('/tmp/folder', 'TLFLAX_CACHE_MIRROR: .* is no URL'),
        ('htp://photos/t', "htp:// is not known; did you mean 'http'"),
    ],
)
def test_a_mirror_that_is_none(bucket, tmp_path, monkeypatch, url, words):
    monkeypatch.setenv(mirror.VARIABLE, url)
    with machine(tmp_path) as store, pytest.raises(UserError, match=words) as error:
        mirror.fetch(store, keys_of([1]), 1e9)
    assert error.value.where == mirror.VARIABLE


def test_a_mirror_that_cannot_be_reached_is_a_warning(bucket, tmp_path, monkeypatch, said):
    def failing(store, top):
        raise ConnectionError('no route to host')

    monkeypatch.setattr('tlflax.utils.storage.download.listed', failing)
    with machine(tmp_path) as store:
        mirror.fetch(store, keys_of([1]), 1e9)
        mirror.send(store, keys_of([1]))
    assert [line.partition('; ')[2] for line in said] == [
        'features that it may have are computed here',
        'new features are on this machine only',
    ]
    assert all('(ConnectionError: no route to host)' in line for line in said)


def test_nothing_is_computed_twice(bucket, tmp_path, monkeypatch, caplog):
    """Two machines, each with an empty cache of its own, and the same numbers."""
    make_folders(tmp_path / 'd' / 'Train', 7, seed=1)
    make_folders(tmp_path / 'd' / 'Test', 3, seed=2)
    caplog.set_level('INFO')
    computed, losses = [], []
    for name in 'ab':
        monkeypatch.setenv('TLFLAX_CACHE', str(tmp_path / name))
        train_and_evaluate(toy_config(tmp_path / 'd'), tmp_path / f'run_{name}')
        counts = re.findall(r'computing features of (\d+) of', caplog.text)
        computed.append(sum(map(int, counts)))
        caplog.clear()
        lines = (tmp_path / f'run_{name}' / 'metrics.jsonl').read_text().splitlines()
        losses.append(
            [(json.loads(line)['train_loss'], json.loads(line)['val_loss']) for line in lines]
        )
    assert computed[0] >= 30
    assert computed[1] == 0
    assert losses[0] == losses[1]
