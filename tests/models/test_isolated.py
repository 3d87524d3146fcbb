"""Files that a library may hang or crash on are read in a process of its own, with limits."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from tlflax.models.weights import catalogue, file_formats, hdf5, isolated
from tlflax.utils.download import Url, compute_digest
from tlflax.utils.errors import UserError

ARRAYS = {
    'a//0': np.arange(6, dtype='>f4').reshape(2, 3),
    'a//1': np.float64(2.5),
    'b//0': np.zeros((0, 3), np.float16),
    'ü//0': np.arange(3, dtype=np.uint8),
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / 'a.h5'
    with h5py.File(path, 'w') as out:
        for name, array in ARRAYS.items():
            out[name.replace('//', '/vars/')] = array
        out.attrs['backend'] = 'jax'
    return path


def stand_in(monkeypatch, tmp_path, code):
    """Has the child run some code in place of the library."""
    folder = tmp_path / 'first'
    folder.mkdir()
    (folder / 'h5py.py').write_text(f'import os, signal, sys, time\n{code}\n')
    monkeypatch.setattr(sys, 'path', [str(folder), *sys.path])


def refused(path, match):
    with pytest.raises(UserError, match=f'cannot be read as Keras HDF5: {match}') as caught:
        file_formats.read(path)
    assert '\n' not in str(caught.value)


def test_a_child_gives_what_reading_here_gives(file):
    tensors, metadata = isolated.read(hdf5.read, file, 1 << 30)
    assert metadata == {'backend': 'jax'}
    assert list(tensors) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(tensors[name], array)
    here, _ = hdf5.read(file, 1 << 30)
    assert here.keys() == tensors.keys()


def test_reading_takes_well_under_a_second_of_work(file):
    before = os.times()
    file_formats.read(file)
    after = os.times()
    spent = sum(after[2:4]) - sum(before[2:4])  # of children, and not of others on the machine
    assert 0 < spent < 1.5


def test_the_reason_of_the_child_is_told(tmp_path):
    (tmp_path / 'a.h5').write_bytes(b'\x89HDF\r\n\x1a\n' + bytes(100))
    refused(tmp_path / 'a.h5', 'Unable to synchronously open file')


def test_a_crash_is_a_sentence(file, monkeypatch, tmp_path):
    stand_in(monkeypatch, tmp_path, 'os.kill(os.getpid(), signal.SIGSEGV)')
    refused(file, r'the process that read it ended \(SIGSEGV\)')


def test_what_never_ends_is_a_sentence(file, monkeypatch, tmp_path):
    stand_in(monkeypatch, tmp_path, 'time.sleep(600)')
    monkeypatch.setattr(isolated, '_SECONDS', 1.0)
    threads, began = threading.active_count(), time.monotonic()
    refused(file, 'it takes longer than 1 s')
    assert time.monotonic() - began < 30
    assert threading.active_count() == threads


def test_an_endless_loop_is_a_sentence(file, monkeypatch, tmp_path):
    stand_in(
        monkeypatch,
        tmp_path,
        'class File:\n'
        '    def __init__(self, *_):\n'
        '        import resource\n'
        '        most = resource.getrlimit(resource.RLIMIT_CPU)\n'
        '        resource.setrlimit(resource.RLIMIT_CPU, (1, most[1]))\n'
        '        while True: pass\n'
        'class HLObject: pass\n'
        'Group = Dataset = HLObject\n',
    )
    refused(file, r'the process that read it ended \(SIGXCPU\)')


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems do not limit memory so')
def test_too_much_memory_is_a_sentence(file, monkeypatch, tmp_path):
    stand_in(
        monkeypatch,
        tmp_path,
        'class File:\n'
        '    def __init__(self, *_): bytes(4 << 30)\n'
        'class HLObject: pass\n'
        'Group = Dataset = HLObject\n',
    )
    refused(file, 'it takes more memory than a file of its size should')


def test_a_child_that_says_nonsense_is_not_believed(file, monkeypatch, tmp_path):
    for said, match in (
        ('no json', 'the process that read it'),
        ('{"tensors": [["a", "<f4", [100000000000000]]], "metadata": {}}', 'it announces'),
        ('{"tensors": [["a", "<f4", [3]]], "metadata": {}}', 'the process that read it'),
    ):
        with monkeypatch.context() as patch:
            folder = tmp_path / str(len(said))
            folder.mkdir()
            stand_in(patch, folder, f'print({said!r}, flush=True)\nos._exit(0)')
            refused(file, match)


def test_no_file_but_the_one_is_written(file, monkeypatch, tmp_path):
    """A library that was taken over cannot fill the disk."""
    stand_in(
        monkeypatch,
        tmp_path,
        f'class File:\n'
        f'    def __init__(self, *_): open({str(tmp_path / "out")!r}, "w").write("a" * 10)\n'
        f'class HLObject: pass\n'
        f'Group = Dataset = HLObject\n',
    )
    refused(file, '')
    assert not Path(tmp_path / 'out').exists() or not (tmp_path / 'out').stat().st_size


def test_known_files_are_read_here(file, monkeypatch):
    def never(*_):
        raise AssertionError

    digest = compute_digest(file, 'md5')
    url = Url(url='', size=file.stat().st_size, target='', digest=digest)
    monkeypatch.setattr(catalogue, '_PUBLISHED', (url,))
    monkeypatch.setattr(isolated, 'read', never)
    assert list(file_formats.read(file).tensors) == list(ARRAYS)


def test_an_interrupt_ends_the_child(file, monkeypatch, tmp_path):
    stand_in(monkeypatch, tmp_path, 'time.sleep(600)')
    start, started = isolated._start, []
    monkeypatch.setattr(isolated, '_start', lambda *a: started.append(start(*a)) or started[0])
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        file_formats.read(file)
    assert started[0].returncode == -signal.SIGKILL


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'a.h5')
    with pytest.raises(UserError, match='cannot be opened: it is a pipe, not a file; give a we'):
        file_formats.read(tmp_path / 'a.h5')
