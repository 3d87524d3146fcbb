"""The feature store where the file system has no locks: `flock` fails in every process."""

import contextlib
import errno
import fcntl
import hashlib
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tlflax.features.cache import quota, segments
from tlflax.features.cache.keys import row_keys
from tlflax.features.cache.store import Store
from tlflax.utils.errors import UserError

SPACE = {'weights': 'abc', 'layer': 'block5_pool'}
SHAPE = (2, 3, 4)
SEGMENT = 48 * 40  # bytes of 40 rows
SPAWN = multiprocessing.get_context('spawn')


def refuse(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, 'flock', refuse)


def keys_of(start: int, stop: int) -> np.ndarray:
    digests = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(start, stop)]
    return row_keys(digests, '')


def truth(keys: np.ndarray) -> np.ndarray:
    """What stands under a key: values that follow from it alone, so that a mix-up is seen."""
    words = keys[:, :1] * np.arange(1, 25, dtype=np.uint64) + keys[:, 1:]
    return (words >> np.uint64(54)).astype(np.float32).reshape(-1, *SHAPE)  # 0..1023: exact


def open_store(root: Path) -> Store:
    return Store(root, SPACE, SHAPE, 'float16', segment_bytes=SEGMENT)


def filled(root: Path, keys: np.ndarray) -> None:
    with open_store(root) as store:
        store.append(keys, truth(keys))


def assert_serves_truth(store: Store, keys: np.ndarray) -> int:
    """Every row that is served must be right; returns how many are."""
    rows = store.lookup(keys)
    found = rows >= 0
    np.testing.assert_array_equal(store.read(rows[found]), truth(keys[found]))
    return int(found.sum())


def records(folder: Path) -> np.ndarray:
    """The keys and checksums in a segment."""
    found = np.load(folder / 'keys.npy')
    return found[found.any(axis=1)]


@contextlib.contextmanager
def in_child(log: Path) -> Iterator[list[str]]:
    """In a child: fails every `flock`, writes stderr to a file, notes which segments it creates."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    fcntl.flock = refuse
    created, create = [], segments.create

    def noted(space: Path, layout: object) -> segments.Segment:
        segment = create(space, layout)
        created.append(segment.folder.name)
        return segment

    segments.create = noted
    yield created


def write_some(root: Path, log: Path, start: int, stop: int, ready: object, out: object) -> None:
    """A child: writes images in batches of 7, each when it finds it missing."""
    written = []
    with in_child(log) as created, open_store(root) as store:
        ready.wait()
        for i in range(start, stop, 7):
            store.refresh()
            keys = keys_of(i, min(i + 7, stop))
            missing = keys[store.lookup(keys) < 0]
            store.append(missing, truth(missing))
            written.append(missing)
    out.put((created, np.concatenate(written)))


def read_all(root: Path, log: Path, stop: int, out: object) -> None:
    """A child: reads everything back."""
    with in_child(log) as created, open_store(root) as store:
        out.put((created, assert_serves_truth(store, keys_of(0, stop))))


def test_two_processes_write_at_the_same_time_and_a_third_reads(
    tmp_path: Path, without_locks: None
) -> None:
    root, logs = tmp_path / 'features', [tmp_path / f'{i}.txt' for i in range(3)]
    ready, out = SPAWN.Barrier(3), SPAWN.Queue()
    children = [
        SPAWN.Process(target=write_some, args=(root, log, *span, ready, out))
        for log, span in zip(logs, [(0, 300), (150, 450)], strict=False)
    ]
    for child in children:
        child.start()
    served = []
    with open_store(root) as store:  # reads while they write
        ready.wait(60)
        while any(child.is_alive() for child in children) and out.qsize() < 2:
            store.refresh()
            served.append(assert_serves_truth(store, keys_of(0, 450)))
    writers = [out.get(timeout=60) for _ in children]
    assert served == sorted(served)
    assert sum(len(created) for created, _ in writers) == len(list(root.glob('*/*/')))
    for created, written in writers:  # each wrote its own segments, and nobody wrote over them
        stored = [records(folder)[:, :2] for name in created for folder in root.glob(f'*/{name}')]
        np.testing.assert_array_equal(np.concatenate(stored), written)
    children.append(SPAWN.Process(target=read_all, args=(root, logs[2], 450, out)))
    children[-1].start()
    assert out.get(timeout=60) == ([], 450)
    for child, log in zip(children, logs, strict=True):
        child.join()
        assert child.exitcode == 0, log.read_text()
        (line,) = log.read_text().splitlines()  # one warning in each process
        assert f'WARNING: {root}: the file system cannot lock files (No locks available)' in line


def test_a_segment_that_another_process_left_is_read_and_not_continued(
    tmp_path: Path, without_locks: None
) -> None:
    keys = keys_of(0, 9)
    filled(tmp_path, keys[:3])
    (left,) = tmp_path.glob('*/*/')
    before = {path: path.read_bytes() for path in left.iterdir()}
    filled(tmp_path, keys[3:])
    assert {path: path.read_bytes() for path in left.iterdir()} == before
    assert len(list(tmp_path.glob('*/*/'))) == 2
    with open_store(tmp_path) as store:
        assert assert_serves_truth(store, keys) == 9


def test_a_damaged_row_is_computed_again(tmp_path: Path, without_locks: None) -> None:
    keys = keys_of(0, 9)
    filled(tmp_path, keys)
    (path,) = tmp_path.glob('*/*/rows.npy')
    damaged = bytearray(path.read_bytes())
    damaged[128 + 48 * 2] ^= 16
    path.write_bytes(damaged)
    with open_store(tmp_path) as store:
        missing = store.lookup(keys) < 0
        np.testing.assert_array_equal(missing, np.arange(9) == 2)
        store.append(keys[missing], truth(keys[missing]))
    with open_store(tmp_path) as store:
        assert assert_serves_truth(store, keys) == 9


def test_nothing_is_removed(tmp_path: Path, without_locks: None) -> None:
    filled(tmp_path, keys_of(0, 100))
    before = sorted(tmp_path.rglob('*'))
    why = 'never evicted, because the file system has no locks'
    with pytest.raises(UserError, match=rf'max_gb: .* GB are {why}, and the limit is'):
        quota.reserve(tmp_path, 1000, max_bytes=1000)
    with pytest.raises(UserError, match=rf'free on the disk beside .* GB that are {why}; free'):
        quota.reserve(tmp_path, 2**60, max_bytes=1e30)
    assert quota.reserve(tmp_path, 0, max_bytes=1) == 0
    for name in ('', os.listdir(tmp_path)[0]):
        with pytest.raises(UserError, match='are not removed, because the file system has no lock'):
            quota.clear(tmp_path, name)
    assert sorted(tmp_path.rglob('*')) == before
    (space,) = quota.info(tmp_path)
    assert (space.rows, space.in_use) == (100, None)
    assert 'in use' not in quota.format_info(tmp_path)
    quota.reserve(tmp_path, 1000, max_bytes=1e9)


def test_another_failure_to_lock_is_not_taken_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    filled(tmp_path, keys_of(0, 3))
    monkeypatch.setattr(fcntl, 'flock', fail)
    with open_store(tmp_path) as store, pytest.raises(UserError, match=r'opened \(Input/output'):
        store.lookup(keys_of(0, 3))
