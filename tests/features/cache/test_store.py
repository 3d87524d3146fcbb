"""The feature store: content addresses, processes side by side, kills, bit flips, limits."""

import fcntl
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import ROOT, TESTS

from tlflax.features.cache import quota, segments
from tlflax.features.cache.keys import row_keys
from tlflax.features.cache.rows import Layout
from tlflax.features.cache.store import DamagedRows, Store
from tlflax.utils.errors import UserError

SPACE = {'weights': 'abc', 'layer': 'block5_pool', 'image_size': [32, 48]}
SHAPE = (2, 3, 4)
SPAWN = multiprocessing.get_context('spawn')
DTYPES = {'float16': np.float16, 'bfloat16': ml_dtypes.bfloat16, 'float32': np.float32}


def digests(start: int, stop: int) -> list[str]:
    return [hashlib.sha256(str(i).encode()).hexdigest() for i in range(start, stop)]


def truth(keys: np.ndarray, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """What stands under a key: values that follow from it alone, so that a mix-up is seen."""
    size = int(np.prod(shape))
    words = keys[:, :1] * np.arange(1, size + 1, dtype=np.uint64) + keys[:, 1:]
    return (words >> np.uint64(54)).astype(np.float32).reshape(-1, *shape)  # 0..1023: exact


def open_store(root: Path, **options: object) -> Store:
    return Store(root, SPACE, SHAPE, 'float16', **options)


def filled(root: Path, keys: np.ndarray, **options: object) -> None:
    with open_store(root, **options) as store:
        store.append(keys, truth(keys))


def assert_serves_truth(store: Store, keys: np.ndarray) -> np.ndarray:
    """Every row that is served must be right; returns which keys are served."""
    rows = store.lookup(keys)
    found = rows >= 0
    np.testing.assert_array_equal(store.read(rows[found]), truth(keys[found]))
    return found


def segment_folder(store: Store) -> Path:
    (folder,) = (path for path in store.folder.iterdir() if path.is_dir())
    return folder


# What is stored


@pytest.mark.parametrize('dtype', DTYPES)
def test_rows_come_back_in_the_order_asked_in_the_store_type(tmp_path: Path, dtype: str) -> None:
    keys = row_keys(digests(0, 50), '')
    values = np.random.default_rng(0).normal(size=(50, *SHAPE)).astype(np.float32)
    with Store(tmp_path, SPACE, SHAPE, dtype) as store:
        store.append(keys, values)
    with Store(tmp_path, SPACE, SHAPE, dtype) as store:
        picks = np.array([7, 3, 3, 49, 0, 7])
        read = store.read(store.lookup(keys)[picks])
        assert read.dtype == store.dtype == DTYPES[dtype]
        np.testing.assert_array_equal(read, values[picks].astype(DTYPES[dtype]))
        out = np.empty_like(read)
        assert store.read(store.lookup(keys[picks]), out) is out
        np.testing.assert_array_equal(out, read)
        with pytest.raises(ValueError, match='contiguous'):
            store.read(store.lookup(keys[picks]), np.repeat(out, 2, axis=0)[::2])


def test_long_rows_over_many_segments(tmp_path: Path) -> None:
    shape, keys = (5000,), row_keys(digests(0, 40), '')
    with Store(tmp_path, SPACE, shape, 'float32', segment_bytes=150_000) as store:
        rows = store.append(keys, truth(keys, shape))
        assert len(list(store.folder.glob('*/rows.npy'))) == 6  # 7 rows of 20 kB in each
        np.testing.assert_array_equal(store.lookup(keys), rows)
        order = np.random.default_rng(0).permutation(40)
        np.testing.assert_array_equal(store.read(rows[order]), truth(keys[order], shape))


def test_numpy_alone_can_read_a_segment(tmp_path: Path) -> None:
    keys = row_keys(digests(0, 9), '')
    filled(tmp_path, keys)
    (folder,) = tmp_path.glob('*/*/')
    rows = np.load(folder / 'rows.npy', mmap_mode='r')
    np.testing.assert_array_equal(rows[:9], truth(keys))
    np.testing.assert_array_equal(np.load(folder / 'keys.npy', mmap_mode='r')[:9, :2], keys)
    described = json.loads((folder.parent / 'space.json').read_text())
    assert described['space'] == SPACE


def test_adding_images_computes_only_them_and_renaming_none(tmp_path: Path) -> None:
    images = digests(0, 1000)
    filled(tmp_path, row_keys(images, ''))
    random.Random(0).shuffle(images)  # other names, so another order
    keys = row_keys(images + digests(1000, 1010), '')
    with open_store(tmp_path) as store:
        np.testing.assert_array_equal(np.flatnonzero(store.lookup(keys) < 0), range(1000, 1010))


@pytest.mark.parametrize(
    'other',
    [
        lambda root: Store(root, SPACE | {'layer': 'fc1'}, SHAPE, 'float16'),
        lambda root: Store(root, SPACE | {'more': 1}, SHAPE, 'float16'),
        lambda root: Store(root, SPACE, (4, 3, 2), 'float16'),
        lambda root: Store(root, SPACE, SHAPE, 'bfloat16'),
    ],
)
def test_spaces_are_apart(tmp_path: Path, other: Callable[[Path], Store]) -> None:
    keys = row_keys(digests(0, 5), '')
    filled(tmp_path, keys)
    with other(tmp_path) as store:
        assert (store.lookup(keys) == -1).all()


def test_keys_differ_by_image_and_view() -> None:
    images = digests(0, 100)
    keys = np.concatenate([row_keys(images, view) for view in ('', 'flip', 'crop 1')])
    assert len(np.unique(keys, axis=0)) == 300
    np.testing.assert_array_equal(row_keys(np.array(images, object), ''), keys[:100])


def test_lookup_agrees_with_a_dictionary(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    known = rng.integers(0, 40, (300, 2), dtype=np.uint64)  # many share their first word
    known = np.unique(known, axis=0)
    known = known[np.unique(known[:, 0], return_index=True)[1]]
    asked = rng.integers(0, 40, (2000, 2), dtype=np.uint64)
    with Store(tmp_path, SPACE, (1,), 'float32') as store:
        rows = store.append(known, np.zeros((len(known), 1)))
        reference = dict(zip(map(tuple, known.tolist()), rows.tolist(), strict=True))
        expected = [reference.get(tuple(key), -1) for key in asked.tolist()]
        assert max(expected) >= 0
        assert -1 in expected
        np.testing.assert_array_equal(store.lookup(asked), expected)


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    values = truth(keys := row_keys(digests(0, 2), ''))
    values[1, 0, 0, 0] = 70_000
    with open_store(tmp_path) as store, pytest.raises(UserError, match=r'7e\+04.*bfloat16'):
        store.append(keys, values)
    values[1, 0, 0, 0] = np.inf  # what the network itself computed is not the store's affair
    with open_store(tmp_path) as store:
        assert np.isinf(store.read(store.append(keys, values))).sum() == 1


def test_rows_that_were_not_found_cannot_be_read(tmp_path: Path) -> None:
    keys = row_keys(digests(0, 5), '')
    with open_store(tmp_path) as store:
        store.append(keys[:3], truth(keys[:3]))
        with pytest.raises(IndexError):
            store.read(store.lookup(keys))


# Processes side by side


def write_some(root: Path, start: int, stop: int, ready: object) -> None:
    """A child: writes images in batches of 7, each when it finds it missing."""
    with open_store(root, segment_bytes=48 * 60) as store:
        ready.wait()
        for i in range(start, stop, 7):
            store.refresh()
            keys = row_keys(digests(i, min(i + 7, stop)), '')
            missing = keys[store.lookup(keys) < 0]
            store.append(missing, truth(missing))


def test_two_processes_write_at_the_same_time_while_a_third_reads(tmp_path: Path) -> None:
    ready = SPAWN.Barrier(3)
    spans = [(0, 600), (300, 900)]
    children = [SPAWN.Process(target=write_some, args=(tmp_path, *s, ready)) for s in spans]
    for child in children:
        child.start()
    keys = row_keys(digests(0, 900), '')
    served = []
    with open_store(tmp_path, segment_bytes=48 * 60) as store:
        ready.wait()
        while any(child.is_alive() for child in children):
            store.refresh()
            served.append(int(assert_serves_truth(store, keys).sum()))
        for child in children:
            child.join()
            assert child.exitcode == 0
        store.refresh()
        assert assert_serves_truth(store, keys).all()
        assert served == sorted(served)
        assert len(store) < 600 + 600  # the second to come to an image mostly found it there


def kill_writers(root: Path, rounds: int) -> None:
    """A child: forks writers and kills them at random instants, then looks at what is left.

    It forks by itself because the process that runs the tests has threads.
    """
    rng = random.Random(0)
    shape, images = (40_000,), 400  # 160 kB a row: a write takes long enough to be hit
    keys = row_keys(digests(0, images), '')

    def write() -> None:
        with Store(root, SPACE, shape, 'float32', segment_bytes=160_000 * 50) as store:
            missing = keys[store.lookup(keys, verify=False) < 0]
            for start in range(0, len(missing), 4):
                batch = missing[start : start + 4]
                store.append(batch, truth(batch, shape))

    before, killed = 0, 0
    for _ in range(rounds):
        if (child := os.fork()) == 0:
            write()
            os._exit(0)
        time.sleep(rng.uniform(0, 0.04))
        os.kill(child, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        with Store(root, SPACE, shape, 'float32', segment_bytes=160_000 * 50) as store:
            rows = store.lookup(keys)
            found = rows >= 0
            read = store.read(rows[found])
            assert (read == truth(keys[found], shape)).all(), 'a wrong row was served'
            assert found.sum() >= before, 'what was stored was lost'
            before = int(found.sum())
        if found.all():
            break
    assert killed >= 5, 'the writers were too fast to be killed'
    write()
    with Store(root, SPACE, shape, 'float32', segment_bytes=160_000 * 50) as store:
        assert (store.lookup(keys) >= 0).all()
        assert len(store) <= images + 4 * killed, 'it did not resume where it was'


def test_killed_at_any_instant(tmp_path: Path) -> None:
    child = SPAWN.Process(target=kill_writers, args=(tmp_path, 60))
    child.start()
    child.join()
    assert child.exitcode == 0


def hold(root: Path, keys: np.ndarray, ready: object) -> None:
    """A child: uses what it finds until it is killed."""
    with open_store(root) as store:
        assert (store.lookup(keys) >= 0).all()
        ready.set()
        time.sleep(60)


def test_what_a_live_process_uses_is_neither_evicted_nor_cleared(tmp_path: Path) -> None:
    keys = row_keys(digests(0, 20), '')
    filled(tmp_path, keys)
    ready = SPAWN.Event()
    child = SPAWN.Process(target=hold, args=(tmp_path, keys, ready))
    child.start()
    assert ready.wait(30)
    try:
        (space,) = quota.info(tmp_path)
        assert space.in_use
        with pytest.raises(UserError, match='in use by this or other runs'):
            quota.reserve(tmp_path, 1000, max_bytes=1000)
        assert quota.clear(tmp_path) == (0, space.bytes)
        with open_store(tmp_path) as store:
            assert assert_serves_truth(store, keys).all()
    finally:
        child.kill()
        child.join()
    assert quota.clear(tmp_path) == (space.bytes, 0)
    with open_store(tmp_path) as store:
        assert (store.lookup(keys) == -1).all()
    assert not list(tmp_path.iterdir())


def test_segments_removed_meanwhile_are_missing_not_wrong(tmp_path: Path) -> None:
    keys = row_keys(digests(0, 20), '')
    filled(tmp_path, keys)
    with open_store(tmp_path) as store:
        quota.clear(tmp_path)  # it has looked at nothing yet, so nothing is in use
        assert (store.lookup(keys) == -1).all()
        rows = store.append(keys, truth(keys))
        shutil.rmtree(tmp_path)  # by hand, in spite of the locks: what is mapped lives on
        store.refresh()
        np.testing.assert_array_equal(store.read(rows), truth(keys))


def test_a_segment_written_on_by_another_is_continued_behind_its_end(tmp_path: Path) -> None:
    keys = row_keys(digests(0, 9), '')
    filled(tmp_path, keys[:3])
    with open_store(tmp_path) as store:
        mine = segments.Segment(segment_folder(store), store._layout)
        mine.scan()
        store.append(keys[3:6], truth(keys[3:6]))
        assert not mine.adopt(), 'there is a writer already'
    assert mine.adopt()
    mine.append(keys[6:], truth(keys[6:]).astype('f2').view('u1').reshape(3, -1))
    mine.close()
    with open_store(tmp_path) as store:
        assert assert_serves_truth(store, keys).all()


@pytest.mark.parametrize('written', [b'\xff', None])
def test_a_segment_of_another_kernel_is_read_and_not_continued(
    tmp_path: Path, written: bytes | None
) -> None:
    """Where locks hold within one machine only, the other one may be writing it."""
    keys = row_keys(digests(0, 9), '')
    filled(tmp_path, keys[:3])
    with open_store(tmp_path) as store:
        left = segment_folder(store)
        (left / 'kernel').unlink()
        if written:
            (left / 'kernel').write_bytes(written)
        before = {path: path.read_bytes() for path in left.iterdir()}
        store.append(keys[3:], truth(keys[3:]))
        assert {path: path.read_bytes() for path in left.iterdir()} == before
        assert len(list(store.folder.glob('*/rows.npy'))) == 2
    with open_store(tmp_path) as store:
        assert assert_serves_truth(store, keys).all()


def test_claiming_what_another_removes_at_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, row_keys(digests(0, 3), ''))
    (folder,) = tmp_path.glob('*/*/')
    flock = fcntl.flock

    def late(descriptor: int, kind: int) -> None:
        shutil.rmtree(folder)  # after it was opened and before it is locked
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, 'flock', late)
    assert segments.claim(folder) is None


# Damage


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A store of 6 short rows in a segment of 8, and their keys."""
    keys = row_keys(digests(0, 6), '')
    with Store(tmp_path, SPACE, (3,), 'float16', segment_bytes=48) as store:
        store.append(keys, truth(keys, (3,)))
    return tmp_path, keys


def after_damage(root: Path, keys: np.ndarray) -> np.ndarray:
    """Returns which keys are still found; those must be right."""
    with Store(root, SPACE, (3,), 'float16', segment_bytes=48) as store:
        rows = store.lookup(keys)
        found = rows >= 0
        assert (store.read(rows[found]) == truth(keys[found], (3,))).all()
    return found


@pytest.mark.parametrize(
    ('name', 'start', 'stop', 'lost'),
    [
        ('rows.npy', 0, 128, 'none'),  # NumPy's header
        ('rows.npy', 128, 128 + 6 * 6, 'one'),  # rows
        ('rows.npy', 128 + 6 * 6, 128 + 8 * 6, 'none'),  # not yet written
        ('keys.npy', 0, 128, 'none'),
        ('keys.npy', 128, 128 + 6 * 24, 'one'),  # keys and checksums
        ('keys.npy', 128 + 6 * 24, 128 + 8 * 24, 'none'),
    ],
)
def test_every_flipped_bit_costs_at_most_its_row(
    small: tuple[Path, np.ndarray], name: str, start: int, stop: int, lost: str
) -> None:
    root, keys = small
    (path,) = root.glob(f'*/*/{name}')
    whole = path.read_bytes()
    per_row = 6 if name == 'rows.npy' else 24
    for bit in range(start * 8, stop * 8, 3):  # two or three bits of every byte
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        expected = np.ones(6, bool)
        if lost == 'one':
            expected[(bit // 8 - 128) // per_row] = False
        np.testing.assert_array_equal(after_damage(root, keys), expected, f'bit {bit}')


@pytest.mark.parametrize('word', [0, 1])
def test_a_damaged_key_hides_no_row_that_is_written_again(
    small: tuple[Path, np.ndarray], word: int
) -> None:
    """The row that is written again shares the first word of its key with the damaged one."""
    root, keys = small
    (path,) = root.glob('*/*/keys.npy')
    header = len(Layout((3,), 'float16', 8).keys_header)
    data = bytearray(path.read_bytes())
    for row in range(len(keys)):
        data[header + row * 24 + word * 8 + 7] ^= 1 << row % 8
    path.write_bytes(data)
    for _ in range(2):  # in this process and in the next
        with Store(root, SPACE, (3,), 'float16', segment_bytes=48) as store:
            if (missing := store.lookup(keys) < 0).any():
                assert missing.all()
                store.append(keys, truth(keys, (3,)))
            rows = store.lookup(keys)
            assert (rows >= 0).all()
            np.testing.assert_array_equal(store.read(rows), truth(keys, (3,)).astype(store.dtype))


def test_damaged_rows_are_computed_again_and_then_served(small: tuple[Path, np.ndarray]) -> None:
    root, keys = small
    (path,) = root.glob('*/*/rows.npy')
    damaged = bytearray(path.read_bytes())
    damaged[128 + 6 * 2] ^= 16
    path.write_bytes(damaged)
    with Store(root, SPACE, (3,), 'float16', segment_bytes=48) as store:
        missing = store.lookup(keys) < 0
        np.testing.assert_array_equal(missing, np.arange(6) == 2)
        store.append(keys[missing], truth(keys[missing], (3,)))
        assert (store.lookup(keys) >= 0).all()
    assert after_damage(root, keys).all()
    assert quota.info(root)[0].rows == 7


def test_unverified_rows_are_checked_when_read(small: tuple[Path, np.ndarray]) -> None:
    root, keys = small
    (path,) = root.glob('*/*/rows.npy')
    with Store(root, SPACE, (3,), 'float16', segment_bytes=48) as store:
        rows = store.lookup(keys, verify=False)
        with open(path, 'r+b') as file:
            file.seek(128 + 6 * 4)
            file.write(b'\xff')
        store.read(rows[:3])
        with pytest.raises(DamagedRows) as caught:
            store.read(rows)
        np.testing.assert_array_equal(caught.value.rows, rows[[4]])
        np.testing.assert_array_equal(store.lookup(keys, verify=False) < 0, np.arange(6) == 4)


@pytest.mark.parametrize('name', ['rows.npy', 'keys.npy'])
@pytest.mark.parametrize('keep', [0.0, 0.3, 0.7, 0.999])
def test_truncated_files_are_missing_rows(
    small: tuple[Path, np.ndarray], name: str, keep: float
) -> None:
    root, keys = small
    (path,) = root.glob(f'**/{name}')
    os.truncate(path, int(path.stat().st_size * keep))
    after_damage(root, keys)
    with Store(root, SPACE, (3,), 'float16', segment_bytes=48) as store:
        missing = keys[store.lookup(keys) < 0]
        store.append(missing, truth(missing, (3,)))
    assert after_damage(root, keys).all()


def test_a_damaged_description_costs_nothing_and_is_written_again(
    small: tuple[Path, np.ndarray],
) -> None:
    root, keys = small
    (path,) = root.glob('*/space.json')
    os.truncate(path, 30)
    (space,) = quota.info(root)
    assert (space.description, space.rows) == ({}, 0)
    assert space.name in quota.format_info(root)
    assert after_damage(root, keys).all()
    with Store(root, SPACE, (3,), 'float16', segment_bytes=48) as store:
        store.append(more := row_keys(digests(6, 7), ''), truth(more, (3,)))
    (space,) = quota.info(root)
    assert (space.description['space'], space.rows) == (SPACE, 7)


@pytest.mark.parametrize(('name', 'stride', 'size'), [('rows.npy', 6, 6), ('keys.npy', 24, 16)])
def test_a_row_or_key_in_the_place_of_another_is_noticed(
    small: tuple[Path, np.ndarray], name: str, stride: int, size: int
) -> None:
    root, keys = small
    (path,) = root.glob(f'*/*/{name}')
    data = bytearray(path.read_bytes())
    one, two = slice(128, 128 + size), slice(128 + stride, 128 + stride + size)
    data[one], data[two] = data[two], data[one]
    path.write_bytes(data)
    np.testing.assert_array_equal(after_damage(root, keys), np.arange(6) > 1)


# Limits


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob('*') if path.is_file())


@pytest.mark.parametrize('dtype', DTYPES)
def test_prediction_is_what_the_disk_then_holds(tmp_path: Path, dtype: str) -> None:
    keys = row_keys(digests(0, 200), '')
    with Store(tmp_path, SPACE, (5000,), dtype) as store:
        store.append(keys, truth(keys, (5000,)))
    predicted = quota.predict_bytes(200, (5000,), dtype)
    assert predicted == pytest.approx(disk_bytes(tmp_path), rel=0.02)
    assert quota.info(tmp_path)[0].bytes == pytest.approx(predicted, rel=0.02)


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    keys = row_keys(digests(0, 100), '')
    now = time.time()
    stores = {}
    for age, name in enumerate('abc'):
        with Store(tmp_path, {'name': name}, (5000,), 'float16') as store:
            store.append(keys, truth(keys, (5000,)))
        stores[name] = store.folder
        os.utime(segment_folder(store) / 'keys.npy', (now - 100 * (3 - age),) * 2)
    with Store(tmp_path, {'name': 'a'}, (5000,), 'float16') as store:  # the oldest is used again
        store.lookup(keys[:1])
    size = disk_bytes(tmp_path) // 3
    assert quota.reserve(tmp_path, size // 2, max_bytes=3 * size) == pytest.approx(size, rel=0.05)
    assert [space.name for space in quota.info(tmp_path) if space.rows] == [
        stores['a'].name,
        stores['c'].name,
    ]
    with Store(tmp_path, {'name': 'a'}, (5000,), 'float16') as store:
        assert (store.lookup(keys) >= 0).all()
        with pytest.raises(UserError, match=r'max_gb: 0\.002 GB .*0\.001\d* GB are in use'):
            quota.reserve(tmp_path, 200 * (10_000 + 24), max_bytes=2 * size)
        assert len(quota.info(tmp_path)) == 3
        assert {space.rows for space in quota.info(tmp_path)} == {0, 100}, 'nothing evicted'
        quota.reserve(tmp_path, 0, max_bytes=size // 2)  # over the limit, but nothing new: no error


def test_disk_space_is_asked_for_before_starting(tmp_path: Path) -> None:
    need = quota.predict_bytes(10**12, SHAPE, 'float16')
    with pytest.raises(UserError) as caught:
        quota.reserve(tmp_path, need, max_bytes=1e18)
    assert 'free on the disk' in str(caught.value)
    assert 'TLFLAX_CACHE' in str(caught.value)


def test_clear_one_space_and_info_as_text(tmp_path: Path) -> None:
    keys = row_keys(digests(0, 10), '')
    filled(tmp_path, keys)
    with Store(tmp_path, SPACE | {'layer': 'fc1'}, SHAPE, 'float16') as store:
        store.append(keys, truth(keys))
        text = quota.format_info(tmp_path)
    assert '2 spaces' in text
    assert f'{store.folder.name}  10 rows' in text
    assert 'layer: "fc1"' in text
    assert text.count('in use') == 1
    quota.clear(tmp_path, store.folder.name)
    assert [space.description['space'] for space in quota.info(tmp_path)] == [SPACE]
    with pytest.raises(UserError, match='no features'):
        quota.clear(tmp_path, store.folder.name)
    assert quota.info(tmp_path / 'nowhere') == []


def test_what_was_half_made_long_ago_is_swept(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.append(keys := row_keys(digests(0, 2), ''), truth(keys))
        old, new = store.folder / '.partial-old', store.folder / '.partial-new'
        old.mkdir(), new.mkdir()
        os.utime(old, (0, 0))
        quota.reserve(tmp_path, 1, max_bytes=1e9)
    assert not old.exists()
    assert new.exists()


# Disks that refuse: run in a mount namespace of their own


def in_namespace(mount: str, body: str, folder: Path) -> str:
    """Runs Python with a file system mounted on `folder`; skips where that is not allowed."""
    inside = ['unshare', *([] if os.geteuid() == 0 else ['--map-root-user']), '--mount']
    try:
        subprocess.run([*inside, 'sh', '-c', mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip('mounting is not allowed here')
    code = textwrap.dedent(body)
    command = f'{mount} && exec "$0" "$@"'
    process = subprocess.run(
        [*inside, 'sh', '-c', command, sys.executable, '-c', code, str(folder)],
        cwd=Path(__file__).parent,
        env=os.environ | {'PYTHONPATH': f'{ROOT}{os.pathsep}{TESTS}'},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_full_disk_keeps_what_was_stored_and_says_so(tmp_path: Path) -> None:
    body = """
        import sys, shutil
        import test_store as t
        from tlflax.utils.errors import UserError
        root = t.Path(sys.argv[1])
        keys = t.row_keys(t.digests(0, 100), '')
        open_store = lambda: t.Store(root, t.SPACE, (25_000,), 'float16')
        stored = 0
        try:
            with open_store() as store:
                for start in range(0, 100, 10):
                    batch = keys[start : start + 10]
                    store.append(batch, t.truth(batch, (25_000,)))
                    stored += 10
        except UserError as error:
            print(error)
        assert 0 < stored < 100
        with open_store() as store:
            rows = store.lookup(keys)
            assert (rows >= 0).sum() == stored, (rows, stored)
            assert (store.read(rows[:stored]) == t.truth(keys[:stored], (25_000,))).all()
            try:
                t.quota.reserve(root, 100 * 50_024, max_bytes=1e9)
            except UserError as error:
                print(error)
        (root / 'ballast').unlink()
        with open_store() as store:
            rest = keys[store.lookup(keys) < 0]
            store.append(rest, t.truth(rest, (25_000,)))
            assert (store.read(store.lookup(keys)) == t.truth(keys, (25_000,))).all()
    """
    mount = (
        f'mount -t tmpfs -o size=8m none {tmp_path} '
        f'&& head -c 5000000 /dev/zero > {tmp_path}/ballast'
    )
    while_writing, before_starting = in_namespace(mount, body, tmp_path).splitlines()
    assert 'No space left on device' in while_writing
    assert 'those stored before are kept' in while_writing
    assert 'free on the disk' in before_starting


def test_read_only_store_serves_and_refuses(tmp_path: Path) -> None:
    filled(tmp_path, row_keys(digests(0, 10), ''))
    body = """
        import sys
        import test_store as t
        from tlflax.utils.errors import UserError
        keys = t.row_keys(t.digests(0, 11), '')
        with t.open_store(t.Path(sys.argv[1])) as store:
            assert t.assert_serves_truth(store, keys).sum() == 10
            for action in (
                lambda: t.quota.reserve(store.root, 1, max_bytes=1e9),
                lambda: store.append(keys[10:], t.truth(keys[10:])),
            ):
                try:
                    action()
                except UserError as error:
                    print(error)
    """
    mount = f'mount --bind {tmp_path} {tmp_path} && mount -o remount,ro,bind {tmp_path}'
    reserve, append = in_namespace(mount, body, tmp_path).splitlines()
    assert 'read-only' in reserve
    assert 'Read-only' in append


@pytest.mark.parametrize('what', ['folders', 'files'])
def test_features_that_must_not_be_read_are_a_sentence(tmp_path, monkeypatch, what):
    filled(tmp_path, row_keys(digests(0, 4), ''))

    def refuse(*_):
        raise PermissionError(13, os.strerror(13))

    if what == 'folders':
        monkeypatch.setattr(os, 'listdir', refuse)
    else:
        monkeypatch.setattr(segments.Segment, 'scan', refuse)
    actions = [lambda: open_store(tmp_path), lambda: quota.format_info(tmp_path)]
    for action in actions + [lambda: quota.clear(tmp_path)] * (what == 'folders'):
        with pytest.raises(UserError, match=r'features cannot be read \(Permission'):
            action()
