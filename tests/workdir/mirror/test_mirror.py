"""Runs in a stand-in for S3: cut off at any moment, they go on on another machine."""

import json
import os
import re
import signal
import time
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from fork_server import server
from helpers import make_folders, outcome, run_code, run_module, toy_config

import tlflax
from tlflax.inference.watch import evaluate_each
from tlflax.report.__main__ import COMMAND as REPORT
from tlflax.report.__main__ import main as report
from tlflax.train import loop, train_and_evaluate
from tlflax.train.epoch import Runner
from tlflax.utils.errors import UserError
from tlflax.utils.storage.connect import connect
from tlflax.workdir.mirror import lease, places, write
from tlflax.workdir.mirror.read import fetched
from tlflax.workdir.mirror.scan import look
from tlflax.workdir.mirror.upload import Sent, Uploads
from tlflax.workdir.mirror.write import mirrored

URL = 's3://photos/runs/one'


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    make_folders(root / 'Train', 7, seed=1)
    make_folders(root / 'Test', 3, seed=2)
    return root


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    """Nothing is waited for as long as it takes between machines."""
    monkeypatch.setattr(lease, '_SETTLE', 0.05)
    monkeypatch.setattr(lease, '_LOOK', 0.05)
    monkeypatch.setattr(lease, 'SILENCE', 1.0)


def config_of(folders, **changes):
    return toy_config(
        folders,
        early_stopping__monitor='val_loss',
        early_stopping__patience=2,
        optim__learning_rate=1e-2,
        **{'train__epochs': 5, **changes},
    )


@pytest.fixture(scope='module')
def whole(folders, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('runs') / 'whole'
    train_and_evaluate(config_of(folders), workdir)
    return workdir


def assert_same(workdir, whole):
    """Compares what two runs say, and their checkpoints bit for bit."""
    assert outcome(fetched(workdir)) == outcome(whole)
    for which in ('best', 'last'):
        ours, theirs = (tlflax.load(w, which) for w in (workdir, whole))
        assert ours.step == theirs.step
        params = (jax.device_get(one.trainable.params) for one in (ours, theirs))
        jax.tree.map(np.testing.assert_array_equal, *params)


def another_machine(monkeypatch, path):
    monkeypatch.setenv('TLFLAX_CACHE', str(path))


def objects(bucket):
    return {item.key: item.get()['Body'].read() for item in bucket.objects.all()}


def train(folders, url=URL, **changes):
    return train_and_evaluate(config_of(folders, **changes), url)


def test_a_run_is_uploaded_whole_and_used_elsewhere(bucket, folders, whole, monkeypatch, tmp_path):
    train(folders)
    names = {key.removeprefix('runs/one/') for key in objects(bucket)} - {places.LEASE}
    here, there = look(whole), {name for name in names if not places.step_of(name)}
    assert {name for name in there if 'tensorboard' not in name} == {
        name for name in here.files if 'tensorboard' not in name
    }
    assert {places.step_of(name) for name in names} - {''} == set(here.steps)
    run = places.Place(URL).run
    found = objects(bucket)
    assert all(found[f'runs/one/{name}'] == (run / name).read_bytes() for name in names)
    another_machine(monkeypatch, tmp_path / 'b')
    assert_same(URL, whole)
    copy = places.Place(URL).read
    assert not list(copy.rglob('opt_state')), 'only training needs it'
    watched = evaluate_each(URL, lambda one: {'step': one.step}, pause=0.1)
    assert [f'checkpoints/{one["step"]}/' for one in watched] == list(here.steps)
    result = json.loads((whole / 'result.json').read_text())
    assert tlflax.load(URL).evaluate()['loss'] == result['val']['loss']
    assert train(folders) == json.loads((places.Place(URL).run / 'result.json').read_text())


class Recorded:
    """A store of which every state is kept that a reader might ever see."""

    def __init__(self, store, states):
        self._store, self._states = store, states

    def __getattr__(self, name):
        method = getattr(self._store, name)
        if name not in ('pipe_file', 'put_file', 'rm_file'):
            return method

        def call(*arguments):
            method(*arguments)
            path = arguments[1 if name == 'put_file' else 0]
            change = None if name == 'rm_file' else self._store.cat_file(path)
            self._states.append((path, change))

        return call


def states_of(changes):
    state = {}
    for path, content in changes:
        state = {**state, path: content}
        yield {key: value for key, value in state.items() if value is not None}


def test_cut_off_after_any_object(bucket, folders, whole, monkeypatch, tmp_path):
    """Each state of the bucket leads to the end of an undisturbed run, from an empty cache."""
    changes = []

    def recorded(url):
        store, top = connect(url)
        return Recorded(store, changes), top

    with monkeypatch.context() as patch:
        patch.setattr(write, 'connect', recorded)
        patch.setattr('tlflax.workdir.mirror.upload._THREADS', 1)
        patch.setattr('tlflax.workdir.mirror.follow.PAUSE', 0.01)
        finish = loop._finish_epoch

        def slowly(*arguments):
            """Lets the thread follow each epoch."""
            after, fit = finish(*arguments), arguments[0]
            fit.checkpoints.wait()
            marker = f'/{fit.checkpoints.find("last")}/{places.MARKER}'
            while not any(path.endswith(marker) for path, _ in changes):
                time.sleep(0.01)
            return after

        patch.setattr(loop, '_finish_epoch', slowly)
        train(folders)
    states = list(states_of(changes))
    steps = [sorted(p for p in state if p.endswith(places.MARKER)) for state in states]
    distinct = [n for n in range(len(steps)) if n + 1 == len(steps) or steps[n] != steps[n + 1]]
    assert len(distinct) >= 6, 'steps came and went one after another'
    partial = [n for n, state in enumerate(states) if places.incomplete(state)]
    assert partial, 'some states have half a step'
    warned = []
    monkeypatch.setattr('absl.logging.warning', lambda text, *args: warned.append(str(text)))
    chosen = {*partial[:: max(1, len(partial) // 4)], *distinct[::2], len(states) - 1}
    for number in sorted(chosen):
        bucket.objects.delete()
        for path, content in states[number].items():
            bucket.put_object(Key=path.removeprefix('photos/'), Body=content)
        bucket.Object(f'runs/one/{places.LEASE}').delete()  # else it is waited for
        another_machine(monkeypatch, tmp_path / f'machine{number}')
        train(folders)
        another_machine(monkeypatch, tmp_path / f'reader{number}')
        assert_same(URL, whole)
        left = objects(bucket)
        assert not places.incomplete(left)
    trouble = ('damaged', 'lost', 'missing', 'cannot be read', 'now holds')
    assert not [line for line in warned if any(word in line for word in trouble)]


KILLED = """
import sys, time
from tlflax.workdir.mirror import lease
from tlflax.train import loop
lease.SILENCE, lease._SETTLE = 2.0, 0.1
finish = loop._finish_epoch
def slowly(*arguments):
    time.sleep(1.0)
    return finish(*arguments)
if sys.argv.pop(1) == 'slow':
    loop._finish_epoch = slowly
from tlflax.train.__main__ import COMMAND
COMMAND.run()
"""


def command(folders, path):
    path.write_text(json.dumps(config_of(folders, train__report=False).to_dict()))
    return f'--config={path}', f'--workdir={URL}'


def test_killed_and_continued_on_another_machine(bucket, folders, whole, tmp_path):
    arguments = command(folders, tmp_path / 'config.json')
    env = {**os.environ, 'TLFLAX_CACHE': str(tmp_path / 'a')}
    process = server().start('code', KILLED, 'slow', *arguments, env=env)
    deadline = time.monotonic() + 120
    while not any(key.endswith(places.MARKER) for key in objects(bucket)):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert not any(key.endswith('result.json') for key in objects(bucket))
    done = run_code(KILLED, 'fast', *arguments, TLFLAX_CACHE=str(tmp_path / 'b'))
    assert done.returncode == 0, done.stderr
    assert 'it does not; this process goes on in its place' in done.stderr
    assert re.search(r'resuming after epoch [1-4],', done.stderr)
    assert_same(URL, whole)


def stop_in_validation(patch, number):
    """Sends this process a signal in the validation of an epoch, counted from 1."""
    evaluate, calls = Runner.evaluate, []

    def stopping(*arguments, **named):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **named)

    patch.setattr(Runner, 'evaluate', stopping)


def test_an_interruption_is_uploaded_before_the_command_ends(
    bucket, folders, whole, monkeypatch, tmp_path
):
    with monkeypatch.context() as patch:
        stop_in_validation(patch, 2)
        patch.setattr('tlflax.workdir.mirror.follow.PAUSE', 30)  # nothing before the end
        with pytest.raises(loop.Interrupted) as end:
            train(folders)
    found = objects(bucket)
    assert f'runs/one/checkpoints/{end.value.step}/{places.MARKER}' in found
    assert json.loads(found[f'runs/one/{places.LEASE}'])['released']
    another_machine(monkeypatch, tmp_path / 'b')
    train(folders)
    assert_same(URL, whole)


def test_machines_take_turns(bucket, folders, whole, monkeypatch, tmp_path):
    """The copy that is older gives way, whichever machine has it."""
    for name in 'abab':
        another_machine(monkeypatch, tmp_path / name)
        with monkeypatch.context() as patch:
            stop_in_validation(patch, 1)
            with pytest.raises(loop.Interrupted):
                train(folders)
    another_machine(monkeypatch, tmp_path / 'a')
    train(folders)
    assert_same(URL, whole)


def test_two_trainings_at_once(bucket, folders, monkeypatch, tmp_path):
    monkeypatch.setattr(lease, 'BEAT', 0.1)
    with mirrored(URL):
        with pytest.raises(UserError, match=r'another training runs in this workdir \(process \d+'):
            train(folders)  # on this machine
        another_machine(monkeypatch, tmp_path / 'b')
        with pytest.raises(
            UserError, match=r'another training runs in this workdir \(process'
        ) as e:
            train(folders)
        assert e.value.where == URL
    train(folders)


def test_whoever_lost_the_lease_stops_and_leaves_the_bucket_alone(bucket, monkeypatch, tmp_path):
    monkeypatch.setattr(lease, 'BEAT', 0.1)
    asked = []
    monkeypatch.setattr('tlflax.utils.interrupts.again', lambda: asked.append(1))
    other = json.dumps({'session': 'x', 'host': 'h', 'process': 7, 'since': 'now'})

    def training():
        with mirrored(URL) as folder:
            bucket.put_object(Key=f'runs/one/{places.LEASE}', Body=other.encode())
            deadline = time.monotonic() + 10
            while not asked and time.monotonic() < deadline:
                time.sleep(0.05)
            Path(folder, 'metrics.jsonl').write_text('{}\n')

    with pytest.raises(UserError, match=r'took over this workdir \(process 7 on h, since now\)'):
        training()
    assert asked == [1]
    assert objects(bucket) == {f'runs/one/{places.LEASE}': other.encode()}


def test_a_silent_holder_is_replaced_and_a_released_one_at_once(bucket, said):
    url = 's3://photos/x'
    now = lease._now().isoformat()
    silent = {'session': 'x', 'host': 'h', 'process': 7, 'since': 'then', 'renewed': now}
    for left, waits in (
        (silent, True),
        ({**silent, 'released': True}, False),
        ({**silent, 'renewed': '2001-01-01 00:00:00+00:00'}, False),
        ({}, False),
    ):
        said.clear()
        bucket.put_object(Key=f'x/{places.LEASE}', Body=json.dumps(left).encode())
        with mirrored(url):
            pass
        assert any('in use (process 7 on h, since then)' in line for line in said) == waits
        taken = json.loads(bucket.Object(f'x/{places.LEASE}').get()['Body'].read())
        assert taken['released']
        assert taken['session'] != 'x'


class Away:
    """A store that cannot be reached for a while."""

    def __init__(self, store):
        self._store, self.away = store, False

    def __getattr__(self, name):
        if self.away:
            raise ConnectionError('no route to host')
        return getattr(self._store, name)


@pytest.fixture
def away(bucket, monkeypatch):
    stores = []

    def connected(url):
        store, top = connect(url)
        stores.append(Away(store))
        return stores[-1], top

    monkeypatch.setattr(write, 'connect', connected)
    monkeypatch.setattr('tlflax.workdir.mirror.follow._FIRST_WAIT', 0.01)
    monkeypatch.setattr('tlflax.workdir.mirror.follow.PAUSE', 0.05)
    return stores


def test_training_goes_on_without_the_store(bucket, folders, whole, away, said):
    with mirrored(URL) as folder:
        away[0].away = True
        train_and_evaluate(config_of(folders), folder)
        deadline = time.monotonic() + 10
        while not any('uploads are tried again' in line for line in said):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        away[0].away = False
    assert sum('uploads are tried again' in line for line in said) == 1
    assert any('uploads work again' in line for line in said)
    assert_same(URL, whole)


def test_what_could_not_be_uploaded_is_here_and_uploaded_later(
    bucket, folders, whole, away, monkeypatch, tmp_path
):
    def cut_off():
        with mirrored(URL) as folder:
            away[0].away = True
            train_and_evaluate(config_of(folders), folder)

    with pytest.raises(UserError, match='not everything is there; nothing is lost') as error:
        cut_off()
    assert str(places.Place(URL).run) in error.value.fix
    assert not any(key.endswith('result.json') for key in objects(bucket))
    began = time.monotonic()
    train(folders)  # the run is finished here, and known to be the newest
    assert time.monotonic() - began < 20
    another_machine(monkeypatch, tmp_path / 'b')
    assert_same(URL, whole)


def test_a_report_is_added_to_the_bucket(bucket, folders, monkeypatch, tmp_path, capsys):
    train(folders)
    another_machine(monkeypatch, tmp_path / 'b')
    report(REPORT.parse([f'--workdir={URL}']))
    page = objects(bucket)['runs/one/report.html']
    assert page == Path(capsys.readouterr().out.strip()).read_bytes()
    assert b'<html' in page
    report(REPORT.parse([f'--workdir={URL}']))


def test_a_step_that_vanishes_while_it_is_uploaded(bucket, tmp_path):
    """Orbax deletes old steps file by file while the thread runs."""
    step = tmp_path / 'w/checkpoints/3'
    step.mkdir(parents=True)
    for name in ('a', 'b', places.MARKER):
        (step / name).write_text(name)
    store, top = connect('s3://photos/w')

    class Deleting:
        def __getattr__(self, name):
            return getattr(store, name)

        def put_file(self, lpath, rpath):
            store.put_file(lpath, rpath)
            (step / 'a').unlink(missing_ok=True)

    sent = Sent(tmp_path / 'sent.json')
    assert not Uploads(Deleting(), top, tmp_path / 'w', sent, lambda: True).round()
    assert objects(bucket) == {}

    class Cut(Deleting):
        def put_file(self, lpath, rpath):
            if lpath.endswith(places.MARKER):
                raise ConnectionError
            store.put_file(lpath, rpath)

    with pytest.raises(ConnectionError):
        Uploads(Cut(), top, tmp_path / 'w', sent, lambda: True).round()
    assert objects(bucket).keys() == {'w/checkpoints/3/b'}
    sent = Sent.load(tmp_path / 'sent.json')  # as another process
    (step / places.MARKER).unlink()
    assert Uploads(store, top, tmp_path / 'w', sent, lambda: True).round()
    assert objects(bucket) == {}


@pytest.mark.parametrize(
    ('url', 'words'),
    [
        ('s3://no-such-bucket/t', 'there is no such bucket or folder: s3://no-such-bucket/t'),
        ('htp://photos/t', "htp:// is not known; did you mean 'http'"),
    ],
)
def test_where_nothing_can_be_written(bucket, url, words):
    with pytest.raises(UserError, match=words), mirrored(url):
        pass


def test_where_nothing_can_be_read(bucket):
    with pytest.raises(UserError, match='s3://photos/none: there is no run; fix the URL'):
        tlflax.load('s3://photos/none')


def test_a_folder_is_what_it_was(tmp_path):
    with mirrored('runs/here') as folder:
        assert folder == 'runs/here'
    assert fetched('runs/here') == Path('runs/here')


def test_commands_take_urls(bucket, folders, tmp_path):
    arguments = command(folders, tmp_path / 'config.json')
    done = run_module('train', *arguments, TLFLAX_CACHE=str(tmp_path / 'a'))
    assert done.returncode == 0, done.stderr
    evaluated = run_module('evaluate', f'--workdir={URL}', TLFLAX_CACHE=str(tmp_path / 'b'))
    assert evaluated.returncode == 0, evaluated.stderr
    result = json.loads(objects(bucket)['runs/one/result.json'])
    assert json.loads(evaluated.stdout.splitlines()[-1])['loss'] == result['val']['loss']
    assert fsspec.filesystem('s3').exists('photos/runs/one/config.json')
