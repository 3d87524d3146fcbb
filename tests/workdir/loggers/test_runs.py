"""Whole runs as their loggers show them, read back by TensorFlow, W&B's store and MLflow."""

import json
import os
import shutil
import struct
import sys
import zlib

import numpy as np
import pytest
import tensorflow as tf
from helpers import TESTS, Stops, make_folders, run_code, small_config

from tlflax.train import loop, train_and_evaluate
from tlflax.train.loop import Fit
from tlflax.utils.errors import UserError
from tlflax.workdir.loggers.group import Loggers

ALL = ('tensorboard', 'wandb', 'mlflow')


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    make_folders(root / 'Train', 7, seed=1)
    make_folders(root / 'Test', 5, seed=2, noise=200)  # some are not recognized
    return root


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv('WANDB_MODE', 'offline')
    for name in ('WANDB_PROJECT', 'MLFLOW_TRACKING_URI', 'MLFLOW_EXPERIMENT_NAME'):
        monkeypatch.delenv(name, raising=False)


def config_of(folders, *loggers, **changes):
    return small_config(folders, train__loggers=loggers, **changes)


def records(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def tensorboard(workdir):
    """What TensorBoard shows: the values of each step by tag, without those that are void."""
    shown = {}
    for path in sorted((workdir / 'tensorboard').iterdir()):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            if event.session_log.status == tf.compat.v1.SessionLog.START:
                for tag in shown:
                    shown[tag] = [one for one in shown[tag] if one[0] < event.step]
            for value in event.summary.value:
                shown.setdefault(value.tag, []).append((event.step, value))
    return shown


def weights_and_biases(workdir):
    """The records of each process, in order, of W&B's files for a run that is not online."""
    from wandb.proto.wandb_internal_pb2 import Record

    paths = sorted((workdir / 'wandb').glob('offline-run-*/*.wandb'), key=os.path.getmtime)
    return [[Record.FromString(data) for data in log(path.read_bytes())] for path in paths]


def log(data):
    """The records of a file in LevelDB's log format, after a header of 7 bytes."""
    assert data[:4] == b':W&B'
    at, whole = 7, b''
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the end of a block
            at += 32768 - at % 32768
            continue
        crc, size, kind = struct.unpack('<IHB', data[at : at + 7])
        part = data[at + 7 : at + 7 + size]
        assert crc == zlib.crc32(part, zlib.crc32(bytes([kind])))
        whole = part if kind in (1, 2) else whole + part
        if kind in (1, 4):
            yield whole
        at += 7 + size


def history(processes):
    """W&B's rows: dicts of keys to values."""
    return [
        {
            item.key or '/'.join(item.nested_key): json.loads(item.value_json)
            for item in r.history.item
        }
        for process in processes
        for r in process
        if r.WhichOneof('record_type') == 'history'
    ]


def mlflow_run(workdir, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    client = MlflowClient((workdir / 'mlruns').as_uri())
    experiment = client.get_experiment_by_name('tlflax')
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def check_scalars(workdir, monkeypatch):
    """All loggers have every number of metrics.jsonl once."""
    lines = records(workdir)
    steps = [line['step'] for line in lines]
    names = lines[0].keys() - {'epoch', 'step'}
    shown = tensorboard(workdir)
    rows = [row for row in history(weights_and_biases(workdir)) if 'val_loss' in row]
    client, run = mlflow_run(workdir, monkeypatch)
    assert [row['_step'] for row in rows] == steps
    for name in names:
        expected = [line[name] for line in lines]
        assert [step for step, _ in shown[name]] == steps
        values = [value.simple_value for _, value in shown[name]]
        assert values == [float(np.float32(one)) for one in expected]
        assert [row[name] for row in rows] == expected
        metrics = client.get_metric_history(run.info.run_id, name)
        assert [(one.step, one.value) for one in metrics] == list(zip(steps, expected, strict=True))


@pytest.fixture(scope='module')
def finished(folders, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('runs') / 'all of them'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('WANDB_MODE', 'offline')
        patch.delenv('MLFLOW_TRACKING_URI', raising=False)
        result = train_and_evaluate(config_of(folders, *ALL), workdir)
    return workdir, result


def test_every_logger_has_every_number(finished, monkeypatch):
    check_scalars(finished[0], monkeypatch)


def test_tensorboard_has_pictures_and_texts(finished):
    workdir, _ = finished
    shown = tensorboard(workdir)
    for name in ('confusion matrix', 'mistakes', 'augmentation'):
        ((step, value),) = shown[name]
        pixels = tf.io.decode_png(value.image.encoded_image_string)
        assert (step, pixels.shape) == (12, (value.image.height, value.image.width, 3))
    text = tf.make_ndarray(shown['config'][0][1].tensor)[0].decode()
    assert '\n| train.epochs | `4` |' in text
    assert 'best_epoch' in tf.make_ndarray(shown['result'][0][1].tensor)[0].decode()


def test_weights_and_biases_has_config_summary_and_files(finished):
    workdir, result = finished
    (process,) = weights_and_biases(workdir)
    (run,) = [r.run for r in process if r.WhichOneof('record_type') == 'run']
    assert (run.project, run.display_name) == ('tlflax', 'all of them')
    ids = json.loads((workdir / 'loggers.json').read_text())
    assert run.run_id == ids['wandb']
    config = {item.key: item.value_json for item in run.config.update}
    assert config['train.epochs'] == '4'
    rows = history([process])
    assert rows[-1]['_step'] == 12
    assert {'confusion matrix', 'mistakes', 'augmentation'} <= {k.split('/')[0] for k in rows[-1]}
    summary = {item.key: item.value_json for r in process for item in r.summary.update}
    assert json.loads(summary['final_val_loss']) == result['val']['loss']
    (exit_code,) = [r.exit.exit_code for r in process if r.WhichOneof('record_type') == 'exit']
    assert exit_code == 0
    (saved,) = (workdir / 'wandb').glob('offline-run-*/files/result.json')
    assert json.loads(saved.read_text()) == result


def test_mlflow_has_config_summary_and_files(finished, monkeypatch, tmp_path):
    workdir, result = finished
    client, run = mlflow_run(workdir, monkeypatch)
    assert (run.info.run_name, run.info.status) == ('all of them', 'FINISHED')
    assert run.data.params['train.epochs'] == '4'
    assert run.data.params['optim.name'] == 'adam'
    assert run.data.metrics['final_val_loss'] == result['val']['loss']
    assert run.data.metrics['best_epoch'] == result['best_epoch']
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {'confusion_matrix.png', 'mistakes.png', 'augmentation.png', 'result.json'}
    path = client.download_artifacts(run.info.run_id, 'result.json', str(tmp_path))
    with open(path) as file:
        assert json.load(file) == result


def test_continued_run_is_one_run_without_doubled_steps(folders, tmp_path, monkeypatch, finished):
    """The first process ends when the third epoch is logged and not saved; it comes again."""
    save, calls = Fit.save, []

    def fails(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError('killed')
        return save(self, *arguments)

    config, workdir = config_of(folders, *ALL), tmp_path / 'w'
    with monkeypatch.context() as patch:
        patch.setattr(Fit, 'save', fails)
        with pytest.raises(RuntimeError):
            train_and_evaluate(config, workdir)
    assert [line['epoch'] for line in records(workdir)] == [1, 2, 3]
    assert mlflow_run(workdir, monkeypatch)[1].info.status == 'FAILED'
    train_and_evaluate(config, workdir)
    assert [line['epoch'] for line in records(workdir)] == [1, 2, 3, 4]
    assert mlflow_run(workdir, monkeypatch)[1].info.status == 'FINISHED'
    first, second = weights_and_biases(workdir)
    ids = {r.run.run_id for r in first + second if r.WhichOneof('record_type') == 'run'}
    assert ids == {json.loads((workdir / 'loggers.json').read_text())['wandb']}
    own = ('epoch_seconds', 'images_per_second')  # the first process shows its own speed
    for path in (workdir, finished[0]):
        lines = [{k: v for k, v in line.items() if k not in own} for line in records(path)]
        (path / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    assert records(workdir) == records(finished[0])
    check_scalars(workdir, monkeypatch)


def test_interrupted_run_is_shown_as_such(folders, tmp_path, monkeypatch):
    config = config_of(folders, 'wandb', 'mlflow')
    monkeypatch.setattr(
        loop.interrupts, 'deferred', lambda announce: Stops(iter([False, True] + [True] * 9))
    )
    with pytest.raises(loop.Interrupted):
        train_and_evaluate(config, tmp_path / 'w')
    assert mlflow_run(tmp_path / 'w', monkeypatch)[1].info.status == 'KILLED'
    (process,) = weights_and_biases(tmp_path / 'w')
    codes = [r.exit.exit_code for r in process if r.WhichOneof('record_type') == 'exit']
    assert codes == [130]


def test_logger_that_fails_is_left_out(folders, tmp_path, monkeypatch, caplog):
    """The store of MLflow goes away after the first epoch."""
    scalars = Loggers.scalars

    def gone(self, *arguments):
        scalars(self, *arguments)
        shutil.rmtree(tmp_path / 'w' / 'mlruns', ignore_errors=True)

    monkeypatch.setattr(Loggers, 'scalars', gone)
    train_and_evaluate(config_of(folders, 'mlflow', 'tensorboard'), tmp_path / 'w')
    (warning,) = [line for line in caplog.messages if 'MLflow' in line]
    assert warning.startswith('WARNING: MLflow: ')
    assert warning.endswith('; the run goes on without it')
    assert len(tensorboard(tmp_path / 'w')['val_loss']) == len(records(tmp_path / 'w')) == 4


def test_server_that_is_down_stops_nothing(folders, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv('MLFLOW_TRACKING_URI', 'http://127.0.0.1:9')
    monkeypatch.setenv('MLFLOW_HTTP_REQUEST_MAX_RETRIES', '0')
    train_and_evaluate(config_of(folders, 'mlflow'), tmp_path / 'w')
    (warning,) = [line for line in caplog.messages if 'MLflow' in line]
    assert warning.startswith('WARNING: MLflow: ')
    assert not (tmp_path / 'w' / 'loggers.json').exists()


def test_weights_and_biases_out_of_reach_stops_nothing(folders, tmp_path):
    code = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(TESTS)!r})
from helpers import small_config
from tlflax.train import train_and_evaluate
config = small_config(Path(sys.argv[1]), train__loggers=('wandb',), train__epochs=1)
assert train_and_evaluate(config, sys.argv[2])['epochs_run'] == 1
children = Path(f'/proc/self/task/{{os.getpid()}}/children')
assert not children.exists() or not children.read_text().split(), children.read_text()
"""
    done = run_code(
        code, str(folders), str(tmp_path / 'w'), WANDB_MODE='online', WANDB_API_KEY='0' * 40,
        WANDB_BASE_URL='http://127.0.0.1:9', WANDB_INIT_TIMEOUT='1', WANDB_ERROR_REPORTING='false',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count('WARNING: W&B: ') == 1
    assert not (tmp_path / 'w' / 'loggers.json').exists()


def test_environment_of_the_libraries_is_respected(folders, tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv('MLFLOW_TRACKING_URI', (tmp_path / 'store').as_uri())
    monkeypatch.setenv('MLFLOW_EXPERIMENT_NAME', 'lights')
    monkeypatch.setenv('WANDB_PROJECT', 'lamps')
    before = dict(os.environ), sys.excepthook, sys.exit
    train_and_evaluate(config_of(folders, 'wandb', 'mlflow', train__epochs=1), tmp_path / 'w')
    assert (dict(os.environ), sys.excepthook, sys.exit) == before
    assert not (tmp_path / 'w' / 'mlruns').exists()
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name('lights').experiment_id])
    assert run.info.run_name == 'w'
    (process,) = weights_and_biases(tmp_path / 'w')
    assert [r.run.project for r in process if r.WhichOneof('record_type') == 'run'] == ['lamps']


def test_nothing_is_written_where_no_logger_is_chosen(folders, tmp_path):
    train_and_evaluate(config_of(folders, train__epochs=1), tmp_path / 'w')
    names = {path.name for path in (tmp_path / 'w').iterdir()}
    assert names == {
        'checkpoints',
        'config.json',
        'metrics.jsonl',
        'provenance.json',
        'result.json',
    }


@pytest.mark.parametrize('name', ['wandb', 'mlflow'])
def test_missing_package_is_a_sentence_before_anything_is_read(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"is not installed; run `pip install 'tlflax\[{name}\]'`"):
        train_and_evaluate(config_of(tmp_path / 'none', name), tmp_path / 'w')


def test_user_that_weights_and_biases_does_not_know(tmp_path, monkeypatch):
    for name in ('WANDB_MODE', 'WANDB_API_KEY', 'WANDB_IDENTITY_TOKEN_FILE'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('NETRC', str(tmp_path / 'netrc'))
    monkeypatch.setenv('HOME', str(tmp_path))
    with pytest.raises(UserError, match='no API key; run `wandb login`, or set WANDB_MODE=offline'):
        train_and_evaluate(config_of(tmp_path / 'none', 'wandb'), tmp_path / 'w')


def test_unknown_logger_is_refused(folders, tmp_path):
    with pytest.raises(UserError, match=r"train\.loggers: 'wandbb' is not .* 'wandb'\?"):
        train_and_evaluate(config_of(folders, 'wandbb'), tmp_path / 'w')


def test_loggers_say_nothing_on_stdout_and_leave_nothing_behind(folders, tmp_path):
    code = f"""
import os, signal, sys, threading, time
from pathlib import Path
sys.path.insert(0, {str(TESTS)!r})
from helpers import small_config
from tlflax.train import train_and_evaluate
handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
config = small_config(Path(sys.argv[1]), train__loggers={ALL!r}, train__epochs=1)
train_and_evaluate(config, sys.argv[2])
assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
deadline = time.monotonic() + 5
while threading.active_count() > 1 and time.monotonic() < deadline:
    time.sleep(0.01)  # some have been told to end, and are about to
names = [thread.name for thread in threading.enumerate()]
assert names == ['MainThread'], names
children = Path(f'/proc/self/task/{{os.getpid()}}/children')
assert not children.exists() or not children.read_text().split(), children.read_text()
loaded = [name for name in ('torch', 'tensorboardX', 'matplotlib') if name in sys.modules]
assert not loaded, loaded
"""
    done = run_code(code, str(folders), str(tmp_path / 'w'), WANDB_MODE='offline')
    assert (done.returncode, done.stdout) == (0, ''), done.stderr
    assert 'wandb:' not in done.stderr
