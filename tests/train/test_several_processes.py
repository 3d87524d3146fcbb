"""Trainings of several processes over loopback, against that of one."""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import TESTS, free_port, make_folders, run_code

RUN = '\nfrom tlflax.{}.__main__ import COMMAND\nCOMMAND.run()\n'
STREAMED = 'from tlflax.features import sources\nsources.on_device_limit = lambda: 0\n'
SIGNAL = """
import os, signal
from tlflax.train.epoch import Runner
calls, train = 0, Runner.train
def struck(*arguments, **named):
    global calls
    calls += 1
    if calls == 3:
        os.kill(os.getpid(), signal.{})
    return train(*arguments, **named)
Runner.train = struck
"""


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    make_folders(root / 'Train', 14, seed=1)
    make_folders(root / 'Test', 5, seed=2)
    return root


@pytest.fixture(scope='module')
def config(images):
    path = images / 'config.py'
    path.write_text(
        'import sys\n'
        f'sys.path.insert(0, {str(TESTS)!r})\n'
        'from pathlib import Path\n'
        'from helpers import toy_config\n'
        'def get_config():\n'
        f'    config = toy_config(Path({str(images)!r}))\n'
        '    config.train.epochs, config.train.batch_size, config.train.report = 5, 8, False\n'
        "    config.model.head, config.optim.learning_rate = 'gap_linear', 0.01\n"
        '    return config\n'
    )
    return path


def together(count, config, workdir, *flags, before='', of=None, own_caches=False, command='train'):
    """Runs the training command in several processes; returns what each did.

    Args:
        count: Number of processes.
        config: The config file.
        workdir: The workdir.
        flags: Others of the command.
        before: Code that runs before the command.
        of: The process for which that is; None: all.
        own_caches: Give each process its own feature cache.
        command: 'train' or 'sweep'.
    """
    port = free_port()

    def run(number):
        place = (f'--coordinator=127.0.0.1:{port}', f'--num_processes={count}')
        here = (*place, f'--process_id={number}') if count > 1 else ()
        cache = workdir.parent / (f'cache{number}' if own_caches else 'cache')
        code = (before if of in (None, number) else '') + RUN.format(command)
        return run_code(
            code, f'--config={config}', f'--workdir={workdir}', *here, *flags,
            TLFLAX_CACHE=str(cache),
        )  # fmt: skip

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def records(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def losses(workdir):
    """Returns the losses of all epochs, and those of the result."""
    found = [one[key] for one in records(workdir) for key in ('train_loss', 'val_loss')]
    result = json.loads((workdir / 'result.json').read_text())
    return np.array([*found, result['val']['loss']])


def timeless(workdir):
    times = ('epoch_seconds', 'images_per_second')
    return [{k: v for k, v in one.items() if k not in times} for one in records(workdir)]


def all_done(runs):
    for number, run in enumerate(runs):
        assert run.returncode == 0, (number, run.stderr[-3000:])
    for run in runs[1:]:
        assert run.stdout == ''


WAYS = {
    'cached': ((), ''),
    'live': (('--config.features.cache=False',), ''),
    'augmented': (('--config.augment.rotation_range=20',), ''),
    'streamed': ((), STREAMED),
    'fine-tuned': (
        (
            "--config.optim.labels=(('backbone/block[12]/.*','frozen'),('.*','all'))",
            '--config.features.layer=block3',
            '--config.optim.statistics=updated',
        ),
        '',
    ),
}


@pytest.fixture(scope='module')
def alone(config, tmp_path_factory):
    """Returns a function that returns the losses of a way of training in one process."""
    found = {}

    def of(way):
        if way not in found:
            flags, before = WAYS[way]
            workdir = tmp_path_factory.mktemp('alone') / 'run'
            all_done(together(1, config, workdir, *flags, before=before))
            found[way] = workdir
        return found[way]

    return of


@pytest.mark.parametrize('way', WAYS)
def test_two_processes_with_their_own_caches_learn_what_one_does(way, config, tmp_path, alone):
    flags, before = WAYS[way]
    all_done(together(2, config, tmp_path / 'run', *flags, before=before, own_caches=True))
    np.testing.assert_allclose(losses(tmp_path / 'run'), losses(alone(way)), rtol=1e-5)


def test_four_processes_and_eight_devices(config, tmp_path, alone):
    before = "import os; os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=2'\n"
    runs = together(4, config, tmp_path / 'run', before=before)
    all_done(runs)
    np.testing.assert_allclose(losses(tmp_path / 'run'), losses(alone('cached')), rtol=1e-5)
    computed = [line for line in runs[0].stderr.splitlines() if 'computing features' in line]
    assert 'features of 20 of 80 views' in computed[0]  # a fourth each, nothing twice


@pytest.fixture(scope='module')
def undisturbed(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
    all_done(together(2, config, workdir))
    return workdir


@pytest.mark.parametrize('of', [0, 1])
def test_a_signal_to_one_stops_all_at_one_step(of, config, tmp_path, undisturbed):
    workdir = tmp_path / 'run'
    runs = together(2, config, workdir, before=SIGNAL.format('SIGTERM'), of=of)
    assert [run.returncode for run in runs] == [130, 130], runs[0].stderr
    for run in runs:
        assert run.stderr.splitlines()[-1].startswith('interrupted: saved at step ')
    assert len(records(workdir)) < 5
    all_done(together(2, config, workdir))
    assert timeless(workdir) == timeless(undisturbed)


def test_a_restart_with_another_number_of_processes(config, tmp_path, undisturbed):
    workdir = tmp_path / 'run'
    runs = together(2, config, workdir, before=SIGNAL.format('SIGTERM'))
    assert [run.returncode for run in runs] == [130, 130]
    copy = shutil.copytree(tmp_path, tmp_path.parent / f'{tmp_path.name}-copy') / 'run'
    all_done(together(1, config, workdir))
    np.testing.assert_allclose(losses(workdir), losses(undisturbed), rtol=1e-5)
    all_done(together(4, config, copy))
    np.testing.assert_allclose(losses(copy), losses(undisturbed), rtol=1e-5)


def test_a_killed_process_ends_the_others(config, tmp_path, undisturbed):
    workdir, began = tmp_path / 'run', time.monotonic()
    runs = together(2, config, workdir, before=SIGNAL.format('SIGKILL'), of=1)
    assert time.monotonic() - began < 60
    assert runs[0].returncode == 130
    assert 'process 1 of 2 has ended or cannot be reached' in runs[0].stderr
    assert 'Traceback' not in runs[0].stderr
    all_done(together(2, config, workdir))
    assert timeless(workdir) == timeless(undisturbed)


def test_a_killed_primary_process_ends_the_others(config, tmp_path, undisturbed):
    workdir = tmp_path / 'run'
    runs = together(2, config, workdir, before=SIGNAL.format('SIGKILL'), of=0)
    assert runs[1].returncode != 0
    all_done(together(2, config, workdir))
    assert timeless(workdir) == timeless(undisturbed)


def test_an_error_in_one_process_ends_all_with_its_sentence(config, tmp_path):
    failing = (
        'from tlflax.features import extract\n'
        'from tlflax.utils.errors import UserError\n'
        'def fails(*_, **__): raise UserError("the disk is full", where="/disk", fix="buy one")\n'
        'extract._append = fails\n'
    )
    runs = together(3, config, tmp_path / 'run', '--config.train.batch_size=6',
                    before=failing, of=2)  # fmt: skip
    assert [run.returncode for run in runs] == [2, 2, 2]
    assert runs[2].stderr.splitlines()[-1] == 'error: /disk: the disk is full; buy one'
    for run in runs[:2]:
        last = run.stderr.splitlines()[-1]
        assert last == 'error: process 2 of 3: /disk: the disk is full; buy one'


def test_processes_at_different_work_are_refused(config, tmp_path):
    before = "import sys; sys.argv.append('--config.train.seed=7')\n"
    runs = together(2, config, tmp_path / 'run', before=before, of=1)
    assert [run.returncode for run in runs] == [2, 2]
    assert 'config.train.seed is 7 in process 1, and 0 in process 0; give all' in runs[0].stderr


def test_a_batch_that_cannot_be_shared_is_refused(config, tmp_path):
    runs = together(3, config, tmp_path / 'run')
    assert [run.returncode for run in runs] == [2, 2, 2]
    said = 'config.train.batch_size: 8 images cannot be shared equally by 3 processes; give a mul'
    assert said in runs[0].stderr


SWEEP = """
from tlflax.sweep import grid
def get_sweep():
    return grid(**{'optim.learning_rate': [1e-2, 1e-3, 1e-4], 'train.label_smoothing': [0.0, 0.1]})
"""


def test_a_sweep(config, tmp_path):
    (tmp_path / 'settings.py').write_text(SWEEP)
    found = []
    for count in (1, 2):
        workdir = tmp_path / f'sweep{count}'
        flags = (f'--sweep={tmp_path / "settings.py"}', '--config.train.epochs=3')
        all_done(together(count, config, workdir, *flags, command='sweep'))
        ranking = json.loads((workdir / 'sweep.json').read_text())
        assert len(ranking) == 6
        by_number = sorted(ranking, key=lambda row: row['number'])
        found.append([r['val_loss'] for row in by_number for r in row['records']])
        assert len(losses(workdir / 'best')) == 7
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_what_takes_one_process_says_so(config, tmp_path):
    runs = together(2, config, tmp_path / 'run', '--config.model.head=auto')
    assert [run.returncode for run in runs] == [2, 2]
    assert 'and the automatic choice of a head takes one; start one process' in runs[0].stderr


KILLED_WHILE_COMPUTING = """
import os, signal
from tlflax.features.cache.store import Store
Store.append = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_part_of_a_lost_process_is_computed_by_all(config, tmp_path):
    workdir = tmp_path / 'run'
    together(2, config, workdir, before=KILLED_WHILE_COMPUTING, of=1, own_caches=True)
    runs = together(2, config, workdir, own_caches=True)
    all_done(runs)
    computed = [line for line in runs[0].stderr.splitlines() if 'computing features' in line]
    assert 'training: computing features of 20 of 80 views' in computed[0]  # of the 40 missing
    assert 'validation: computing features of 8 of 15 views' in computed[1]


def _may_make_hosts():
    done = subprocess.run(['ip', 'netns', 'add', 'tlflax-try'], capture_output=True, check=False)
    subprocess.run(['ip', 'netns', 'del', 'tlflax-try'], capture_output=True, check=False)
    return done.returncode == 0


@pytest.fixture
def hosts():
    """Two network namespaces that reach each other and nothing else."""
    if shutil.which('ip') is None or not _may_make_hosts():
        pytest.skip('network namespaces cannot be made here')
    a, b = (f'tlflax-{os.getpid()}-{name}' for name in 'ab')
    link = f'tl{os.getpid()}'
    setup = [
        f'ip netns add {a}', f'ip netns add {b}',
        f'ip link add {link}a netns {a} type veth peer name {link}b netns {b}',
        f'ip -n {a} addr add 10.77.0.1/24 dev {link}a', f'ip -n {a} link set {link}a up',
        f'ip -n {b} addr add 10.77.0.2/24 dev {link}b', f'ip -n {b} link set {link}b up',
        f'ip -n {a} link set lo up', f'ip -n {b} link set lo up',
    ]  # fmt: skip
    try:
        for command in setup:
            subprocess.run(command.split(), check=True, capture_output=True)
        yield a, b
    finally:
        for name in (a, b):
            subprocess.run(['ip', 'netns', 'del', name], check=False, capture_output=True)


def test_two_hosts_that_share_no_files(config, tmp_path, alone, hosts):
    started = []
    for number, host in enumerate(hosts):
        arguments = [
            f'--config={config}', f'--workdir={tmp_path}/{number}/run', f'--process_id={number}',
            '--coordinator=10.77.0.1:5123', '--num_processes=2',
        ]  # fmt: skip
        command = ['ip', 'netns', 'exec', host, sys.executable, '-m', 'tlflax.train', *arguments]
        environment = {**os.environ, 'TLFLAX_CACHE': f'{tmp_path}/{number}/cache'}
        started.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    for one in started:
        said = one.communicate(timeout=200)
        assert one.returncode == 0, said
    np.testing.assert_allclose(losses(tmp_path / '0/run'), losses(alone('cached')), rtol=1e-5)
    assert os.listdir(tmp_path / '1') == ['cache']
