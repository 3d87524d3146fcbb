"""A run that is stopped at any moment and started again ends as one that was not."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import make_folders, outcome, run_code, run_module, small_config

import tlflax
from tlflax.train import loop, train_and_evaluate
from tlflax.train import result as results
from tlflax.train import run as runs
from tlflax.train.epoch import Runner
from tlflax.utils.errors import UserError
from tlflax.workdir.checkpoints import Checkpoints
from tlflax.workdir.lock import locked


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    make_folders(root / 'Train', 7, seed=1)
    make_folders(root / 'Test', 3, seed=2)
    return root


def config_of(folders, **changes):
    """The best epoch is neither the first nor the last."""
    return small_config(
        folders,
        early_stopping__monitor='val_loss',
        early_stopping__patience=2,
        optim__learning_rate=1e-2,
        train__epochs=8,
        **changes,
    )


@pytest.fixture(scope='module')
def whole(folders, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('runs') / 'whole'
    train_and_evaluate(config_of(folders), workdir)
    return workdir


def assert_same(workdir, whole):
    assert outcome(workdir) == outcome(whole)
    for which in ('best', 'last'):
        ours, theirs = (tlflax.load(w, which) for w in (workdir, whole))
        assert ours.step == theirs.step
        params = (jax.device_get(one.trainable.params) for one in (ours, theirs))
        jax.tree.map(np.testing.assert_array_equal, *params)


def during(monkeypatch, owner, name, call, number):
    """Sends this process a signal within one call of a function."""
    function, calls = getattr(owner, name), []

    def signaled(*arguments, **named):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return function(*arguments, **named)

    monkeypatch.setattr(owner, name, signaled)


def test_signal_within_each_validation(folders, tmp_path, monkeypatch, whole):
    """The best epoch's checkpoint stays what it was; nothing is saved where no step was done."""
    best = outcome(whole)[-1]['best_epoch']
    epochs = len(outcome(whole)) - 1
    assert 1 < best < epochs
    for epoch in range(1, epochs + 1):
        workdir = tmp_path / str(epoch)
        with monkeypatch.context() as patch:
            number = (signal.SIGTERM, signal.SIGINT)[epoch % 2]
            during(patch, Runner, 'evaluate', epoch, number)
            with pytest.raises(loop.Interrupted):
                train_and_evaluate(config_of(folders), workdir)
        with Checkpoints(workdir / 'checkpoints', read_only=True) as saved:
            position = saved.meta(saved.find('last'))['position']
            assert position['epoch'] == epoch
            assert position['step_in_epoch'] == 0
            assert saved.meta(saved.find('best'))['record']['epoch'] == min(epoch, best)
        train_and_evaluate(config_of(folders), workdir)
        assert_same(workdir, whole)


@pytest.mark.parametrize('cached', ['auto', 'False'])
def test_an_epoch_that_takes_long_is_saved_meanwhile(folders, tmp_path, monkeypatch, cached):
    """A process that is killed goes on within the epoch, and ends as one that was not."""
    monkeypatch.setattr('tlflax.train.epoch.SCAN', 1)
    options = {'train__batch_size': 4, 'features__cache': cached}
    train_and_evaluate(config_of(folders, checkpoint__minutes=0.0, **options), tmp_path / 'whole')
    config, saved = config_of(folders, checkpoint__minutes=1e-6, **options), []
    save = Checkpoints.save

    def killed(checkpoints, step, **rest):
        save(checkpoints, step, **rest)
        saved.append((rest['meta']['position']['epoch'], rest['meta']['position']['step_in_epoch']))
        if saved[-1] == (1, 3):
            checkpoints.wait()
            raise MemoryError  # the next one that is lost

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, 'save', killed)
        with pytest.raises(MemoryError):
            train_and_evaluate(config, tmp_path / 'w')
    assert saved == [*((0, n) for n in range(1, 6)), (1, 0), (1, 1), (1, 2), (1, 3)]
    with Checkpoints(tmp_path / 'w/checkpoints', read_only=True) as checkpoints:
        assert checkpoints.find('last') == 9
        assert checkpoints.find('best') == 6
    train_and_evaluate(config, tmp_path / 'w')
    assert_same(tmp_path / 'w', tmp_path / 'whole')


def test_a_time_begins_again_and_a_step_is_always_done():
    due, never, slow = loop._Due(1e-9), loop._Due(0), loop._Due(60)
    assert [due(), due(), due()] == [False, True, True]
    due.restart()
    assert [due(), due()] == [False, True]
    assert not any([never(), never()])
    assert not any([slow(), slow()])
    slow._began -= 61
    assert slow()


def test_signal_in_a_training_of_chosen_length(folders, tmp_path, monkeypatch, caplog):
    """Steps of patience and what 0 stands for are the same before and after."""

    def config():
        return config_of(
            folders,
            early_stopping__patience_steps=9,
            early_stopping__min_steps=18,
            optim__schedule='cosine',
            train__batch_size=0,
        )

    caplog.set_level('INFO')
    result = train_and_evaluate(config(), tmp_path / 'whole')
    assert result['stopped_early']
    assert result['epochs_run'] >= 6  # of 3 steps
    assert '21 training images: batches of 8, 3 steps an epoch' in caplog.text
    for epoch in (2, 5):
        workdir = tmp_path / str(epoch)
        with monkeypatch.context() as patch:
            during(patch, Runner, 'evaluate', epoch, signal.SIGTERM)
            with pytest.raises(loop.Interrupted):
                train_and_evaluate(config(), workdir)
        train_and_evaluate(config(), workdir)
        assert_same(workdir, tmp_path / 'whole')
    asked = json.loads((tmp_path / 'whole' / 'config.json').read_text())
    assert asked['train']['batch_size'] == 0
    assert tlflax.load(tmp_path / 'whole').config.train.batch_size == 8
    assert tlflax.load(tmp_path / 'whole').evaluate()['loss'] == result['val']['loss']


@pytest.mark.parametrize(
    ('owner', 'name'),
    [
        (results, 'evaluate_split'),
        (Checkpoints, 'drop_former'),
        (Checkpoints, 'steps'),
        (runs.Workdir, 'write_result'),
        (runs.Workdir, 'claim'),
        (runs.setup, 'load'),
    ],
)
def test_interrupted_outside_the_loop(folders, tmp_path, monkeypatch, whole, owner, name):
    with monkeypatch.context() as patch:
        during(patch, owner, name, 1, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(config_of(folders), tmp_path / 'w')
    train_and_evaluate(config_of(folders), tmp_path / 'w')
    assert_same(tmp_path / 'w', whole)


@pytest.mark.parametrize('module', ['jax', 'tensorflow'])
def test_signal_in_start_up_is_a_sentence(folders, tmp_path, module):
    config = tmp_path / 'config.json'
    config.write_text(json.dumps({'data': {'train': str(folders / 'Train'), 'val_fraction': 0.3}}))
    process = subprocess.Popen(
        [sys.executable, '-X', 'importtime', '-m', 'tlflax.train', f'--config={config}',
         f'--workdir={tmp_path / "w"}', '--config.features.cache=False',
         '--config.weights.source=random', '--config.data.image_size=(32, 32)',
         '--config.train.batch_size=8', '--config.model.head=gap_linear'],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    said, sent = [], False
    for line in process.stderr:
        said.append(line)
        name = line.rpartition('|')[2].strip()
        # Lines come as imports end: the first part of a package tells that it has begun.
        if not sent and (name == module or name.startswith(f'{module}.')):
            process.send_signal(signal.SIGTERM)
            sent = True
    code = process.wait(timeout=60)
    told = [line for line in said if not line.startswith('import time:')]
    assert sent, told
    assert code == 130, told
    assert told[-1].startswith('interrupted: ')
    assert 'Traceback' not in ''.join(told)


def test_second_training_in_a_workdir_is_refused(folders, tmp_path):
    (tmp_path / 'w').mkdir()
    with (
        locked(tmp_path / 'w'),
        pytest.raises(
            UserError, match=rf'another training runs .*process {os.getpid()} on .*, since 20'
        ),
    ):
        train_and_evaluate(config_of(folders), tmp_path / 'w')
    assert list((tmp_path / 'w').iterdir()) == []


def test_lock_of_a_killed_process_holds_nobody_up(tmp_path):
    code = (
        'import os, signal, sys\n'
        'from pathlib import Path\n'
        'from tlflax.workdir.lock import locked\n'
        'with locked(Path(sys.argv[1])):\n'
        '    os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    assert run_code(code, str(tmp_path)).returncode == -signal.SIGKILL
    assert (tmp_path / '.lock').exists()
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / '.lock').read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_run_can_be_repeated_from_its_own_config(whole, tmp_path):
    for name in ('once', 'twice'):
        source = whole if name == 'once' else tmp_path / 'once'
        done = run_module(
            'train', f'--config={source / "config.json"}', f'--workdir={tmp_path / name}'
        )
        assert done.returncode == 0, done.stderr
        assert outcome(tmp_path / name) == outcome(whole)


def test_provenance_says_what_repeats_the_run(whole, folders):
    (session,) = json.loads((whole / 'provenance.json').read_text())['sessions']
    result = json.loads((whole / 'result.json').read_text())
    assert session['digests']['data'] == result['data_digest']
    assert session['digests']['weights'] == result['weights_digest']
    assert session['seed'] == 0
    assert session['versions'] == result['versions']
    assert session['versions']['jax'] == jax.__version__
    assert session['devices'] == ['cpu cpu']
    assert session['folder'] == os.getcwd()
    commit = subprocess.run(
        ['git', 'rev-parse', 'HEAD'], capture_output=True, text=True, check=False
    ).stdout.strip()
    assert (session['git'] or {'commit': ''})['commit'] == commit
