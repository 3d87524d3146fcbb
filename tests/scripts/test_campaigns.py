"""The campaigns of kills, damage and long runs, in their shortest form, and what they notice."""

import json
import signal
import sys

import pytest
from helpers import ROOT, run_script

SCRIPTS = ROOT / 'scripts'


def figures(name, *arguments):
    done = run_script(SCRIPTS / f'{name}.py', *arguments, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_kills_of_a_sweep(tmp_path):
    record = tmp_path / 'kills.jsonl'
    line = figures('kill_test', '--kills=2', '--seed=3', '--modes=sweeping', f'--record={record}')
    assert line['kills'] >= 2
    assert line['survived'] == line['kills'] == sum(line['by_signal'].values())
    assert set(line['by_mode']) == {'sweeping'}
    assert json.loads(record.read_text()) == line


def test_damages_of_every_place():
    line = figures('damage_test', '--flips=2', '--whole=0.005', '--seed=1')
    assert line['faults'] == 0
    assert line['flip'] == 2
    assert line['damages'] > 2


def test_long_run_is_flat():
    line = figures('long_run', '--epochs=80')
    assert line['most_checkpoints'] == 3
    assert line['most']['threads'] > 1


@pytest.fixture
def kill_test(monkeypatch):
    """The script as a module; nothing of it is run."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    for name in ('JAX_COMPILATION_CACHE_DIR', 'TF_CPP_MIN_LOG_LEVEL',
                 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS',
                 'JAX_COMPILATION_CACHE_MAX_SIZE'):  # fmt: skip
        monkeypatch.setenv(name, '')  # importing it sets them
    import kill_test

    yield kill_test
    for name in ('kill_test', 'small_runs'):
        sys.modules.pop(name, None)


def test_a_kill_that_does_harm_is_noticed(kill_test, tmp_path):
    death = kill_test.Death(signal.SIGTERM, 0.1, None, 0, False)
    folder = tmp_path / 'checkpoints'
    for step in (1, 2, 3):
        (folder / str(step)).mkdir(parents=True)
    (tmp_path / 'metrics.jsonl').write_text('{"epoch": 1}\n')
    told = 'epoch 1\ninterrupted: run the same command to continue\n'
    faults = kill_test.faults
    assert faults(None, tmp_path, death, 130, told) == []
    assert faults(None, tmp_path, death, -15, told) == ['exit code -15']
    assert faults(None, tmp_path, death, 130, 'epoch 1\n') == ['no sentence']
    assert 'traceback' in faults(None, tmp_path, death, 130, f'Traceback\n{told}')
    (folder / '4').mkdir()
    (tmp_path / 'metrics.jsonl').write_text('{"epoch": 1}\n{"epo')
    assert faults(None, tmp_path, death, 130, told) == [
        'not JSON: {"epo', 'more than three checkpoints'
    ]  # fmt: skip


def test_a_difference_is_named(kill_test):
    difference = kill_test.difference
    assert difference({'a': [1, {'b': 2}]}, {'a': [1, {'b': 3}]}) == '.a[1].b: 2 became 3'
    assert difference({'a': 1}, {}) == '.a: 1 became None'
