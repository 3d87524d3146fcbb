"""The files of a workdir: what is damaged is named, and never taken for an answer."""

import errno
import json
import re
from pathlib import Path

import numpy as np
import pytest

from tlflax.config import default_config
from tlflax.config.parse import resolve
from tlflax.utils.errors import UserError
from tlflax.workdir import files, lock, provenance
from tlflax.workdir.files import Workdir


@pytest.fixture
def work(tmp_path):
    return Workdir(tmp_path / 'w')


def test_result_comes_back_and_has_a_digest(work):
    assert work.result() is None
    result = work.write_result({'best_epoch': 3, 'loss': 0.1 + 0.2, 'auroc': float('nan')})
    assert work.result() == result
    assert result['auroc'] is None


@pytest.mark.parametrize(
    ('before', 'after'),
    [('3', '4'), ('"best_epoch"', '"best_opoch"'), ('{', '['), ('}', ''), ('0.5', 'x')],
)
def test_damaged_result_is_an_error(work, before, after):
    work.write_result({'best_epoch': 3, 'loss': 0.5})
    path = work.path / 'result.json'
    path.write_text(path.read_text().replace(before, after, 1))
    with pytest.raises(UserError, match=r'result\.json: the file is damaged; delete it'):
        work.result()


def test_result_of_released_versions_has_no_digest(work):
    (work.path / 'result.json').write_text('{"best_epoch": 3}')
    assert work.result() == {'best_epoch': 3}


@pytest.mark.parametrize('text', ['', '[1]', 'null', '{"data": ', '\xff', '[' * 100_000])
def test_damaged_config_is_an_error(work, text):
    (work.path / 'config.json').write_bytes(text.encode('latin-1'))
    with pytest.raises(UserError, match=r'config\.json: the file is damaged'):
        work.check(resolve(default_config()))


def test_damaged_lines_of_metrics_are_left_out(work, caplog):
    lines = [
        b'{"epoch": 1, "step": 3}',
        b'{"epoch": 2, "st\xff": 6}',
        b'{"epoch": "3", "step": 9}',
        b'not JSON}',
        b'[1]',
        b'[' * 100_000,
        b'{"epoch": 4, "step": 12}',
    ]
    (work.path / 'metrics.jsonl').write_bytes(b'\n'.join(lines))
    work.rewind(4)
    kept = (work.path / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line)['epoch'] for line in kept] == [1, 4]
    assert len([line for line in caplog.messages if 'a line is damaged' in line]) == 5
    assert any('the lines of 2 epochs, the first of them 2, are lost' in m for m in caplog.messages)


def test_a_file_that_cannot_be_read_is_an_error(work):
    for name, read in (('metrics.jsonl', work.records), ('result.json', work.result)):
        (work.path / name).mkdir()
        with pytest.raises(UserError, match=f'{name}: cannot be read: Is a directory'):
            read()


def test_metrics_that_are_gone_stop_nothing(work, caplog):
    work.rewind(0)
    assert not caplog.messages
    work.rewind(3)
    assert any('the lines of 3 epochs, the first of them 1, are lost' in m for m in caplog.messages)
    assert work.records() == []


def test_damaged_provenance_begins_again(work, caplog):
    work.add_session({'seed': 0})
    work.add_session({'seed': 1})
    path = work.path / 'provenance.json'
    assert json.loads(path.read_text()) == {'sessions': [{'seed': 0}, {'seed': 1}]}
    path.write_text('[]')
    work.add_session({'seed': 2})
    assert json.loads(path.read_text()) == {'sessions': [{'seed': 2}]}
    assert any('is damaged' in line for line in caplog.messages)


@pytest.mark.parametrize(
    'write',
    [
        lambda work: work.claim({}),
        lambda work: work.append({'epoch': 1, 'step': 1}),
        lambda work: work.rewind(0),
        lambda work: work.write_result({}),
        lambda work: work.add_session({}),
        lambda work: work.begin_writing(),
    ],
)
def test_full_disk_is_a_sentence(work, monkeypatch, write):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr('tlflax.utils.files.replacing', full)
    monkeypatch.setattr('builtins.open', full)
    monkeypatch.setattr('pathlib.Path.touch', full)
    with pytest.raises(UserError, match=r'cannot be written \(No space left on device\)'):
        write(work)


def test_a_half_written_run_may_be_written_again_and_no_other(work):
    work.check_free()
    work.begin_writing()
    work.claim({'a': 1})
    work.checkpoints.mkdir()
    work.check_free()
    work.begin_writing()
    assert not work.checkpoints.exists()
    work.write_result({})
    with pytest.raises(UserError, match='in use'):
        work.check_free()


def test_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def unknown(*_):
        raise OSError(errno.ENOSYS, 'Function not implemented')

    monkeypatch.setattr(lock, 'lock', unknown)
    with lock.locked(tmp_path):
        pass
    assert any('cannot lock files' in line for line in caplog.messages)


def test_full_disk_is_no_file_system_without_locks(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(lock, 'lock', full)
    with pytest.raises(UserError, match='cannot be written'), lock.locked(tmp_path):
        pass


def test_git_state_outside_of_git_is_none(tmp_path, monkeypatch):
    assert provenance.git_state(tmp_path) is None
    monkeypatch.setenv('PATH', '')
    assert provenance.git_state(files.Path.cwd()) is None


def test_peak_memory_is_what_the_kernel_counts():
    before = provenance.peak_memory()['peak_memory_bytes']
    np.ones(40_000_000)  # 320 MB, for a moment
    after = provenance.peak_memory()['peak_memory_bytes']
    assert before <= after
    status = Path('/proc/self/status')
    if status.exists():  # Linux
        peak = int(re.search(r'VmHWM:\s*(\d+) kB', status.read_text())[1]) * 1024
        assert abs(after - peak) < 0.02 * peak
        assert after > 300e6
