"""The launch files: valid by the schemas of those who run them, and calling what exists."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from tlflax.config import flags
from tlflax.train.__main__ import COMMAND

LAUNCH = ROOT / 'scripts' / 'launch'
SHELL = ['slurm.sh', 'tpu.sh']
COMPOSE = yaml.safe_load((LAUNCH / 'compose.yaml').read_text())
JOBSET = yaml.safe_load((LAUNCH / 'jobset.yaml').read_text())
FLAGS = {argument.name for argument in flags.described(COMMAND.arguments)}


def program(name: str) -> str:
    """Returns the path of a program that was installed with the tests."""
    return shutil.which(name, path=Path(sys.executable).parent) or name


def contains(whole: object, part: object) -> bool:
    """Returns whether `whole` is `part`, but for keys that it has in addition."""
    if isinstance(part, dict):
        assert isinstance(whole, dict)
        return all(key in whole and contains(whole[key], part[key]) for key in part)
    if isinstance(part, list):
        return len(whole) == len(part) and all(map(contains, whole, part))
    return whole == part


def arguments(words: list[str]) -> dict[str, str]:
    """Returns the flags of a training command, which must exist."""
    assert words[:3] == ['python', '-m', 'tlflax.train']
    found = dict(word.removeprefix('--').split('=', 1) for word in words[3:])
    assert set(found) <= FLAGS
    return found


# Form


@pytest.mark.parametrize('name', SHELL)
def test_shell(name: str) -> None:
    for check in (['bash', '-n'], [program('shellcheck')]):
        done = subprocess.run([*check, LAUNCH / name], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert os.access(LAUNCH / name, os.X_OK)


def compose_errors(path: Path) -> str:
    done = subprocess.run(
        [program('check-jsonschema'), '--builtin-schema=vendor.compose-spec', path],
        capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout + done.stderr if done.returncode else ''


def test_compose_file_is_valid(tmp_path: Path) -> None:
    assert not compose_errors(LAUNCH / 'compose.yaml')
    wrong = (LAUNCH / 'compose.yaml').read_text().replace('stop_grace_period', 'grace_period')
    (tmp_path / 'compose.yaml').write_text(wrong)
    assert 'grace_period' in compose_errors(tmp_path / 'compose.yaml')


def test_jobset_is_valid() -> None:
    from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

    # The models ignore what they do not know, and then do not give it back.
    known = JobsetV1alpha2JobSet.from_dict(JOBSET).to_dict()
    assert contains(known, JOBSET)
    wrong = yaml.safe_load((LAUNCH / 'jobset.yaml').read_text().replace('backoffLimit', 'backof'))
    assert not contains(JobsetV1alpha2JobSet.from_dict(wrong).to_dict(), wrong)


# Content


def test_the_processes_of_the_compose_file_are_one_run() -> None:
    services = COMPOSE['services']
    found = [arguments(service['command']) for service in services.values()]
    assert [one.pop('process_id') for one in found] == [str(i) for i in range(len(services))]
    assert all(one == found[0] for one in found)
    assert found[0]['num_processes'] == str(len(services))
    assert found[0]['coordinator'].split(':')[0] == next(iter(services))  # that of process 0
    assert (ROOT / found[0]['config']).exists()
    for service in services.values():
        build = service['build']
        assert (LAUNCH / build['context'] / build['dockerfile']).samefile(LAUNCH / 'Dockerfile')
        mounts = [volume.split(':') for volume in service['volumes']]
        assert {name for name, _ in mounts} <= set(COMPOSE['volumes'])
        inside = tuple(f'{path}/' for _, path in mounts)
        assert found[0]['workdir'].startswith(inside)
        assert service['environment']['TLFLAX_CACHE'].startswith(inside)


def test_the_pods_of_the_jobset_are_one_run() -> None:
    spec = JOBSET['spec']
    (replicated,) = spec['replicatedJobs']
    job = replicated['template']['spec']
    pod = job['template']['spec']
    (container,) = pod['containers']
    given = arguments(container['command'])
    assert given['num_processes'] == str(job['completions']) == str(job['parallelism'])
    assert (replicated['replicas'], job['completionMode']) == (1, 'Indexed')
    first = f'{JOBSET["metadata"]["name"]}-{replicated["name"]}-0-0'  # JobSet, job 0, pod 0
    host, port = given['coordinator'].split(':')
    assert host == f'{first}.{spec["network"]["subdomain"]}'
    assert [one['containerPort'] for one in container['ports']] == [int(port)]
    source = {one['name']: one.get('valueFrom') for one in container['env']}
    field = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert source[given['process_id'].strip('$()')] == {'fieldRef': {'fieldPath': field}}
    assert [one['name'] for one in container['volumeMounts']] == [v['name'] for v in pod['volumes']]
    assert (ROOT / given['config']).exists()


def test_the_jobset_repeats_what_an_interruption_ended_and_no_mistake() -> None:
    (replicated,) = JOBSET['spec']['replicatedJobs']
    job = replicated['template']['spec']
    (rule,) = job['podFailurePolicy']['rules']
    assert rule['action'] == 'FailJob'
    codes = rule['onExitCodes']
    assert (codes['operator'], codes['values']) == ('In', [1, 2])  # neither 130 nor 137
    assert codes['containerName'] == job['template']['spec']['containers'][0]['name']
    assert job['backoffLimit'] == 0
    assert job['template']['spec']['restartPolicy'] == 'Never'
    policy = JOBSET['spec']['failurePolicy']
    assert policy['maxRestarts'] > 0
    assert [(one['action'], one['onJobFailureReasons']) for one in policy['rules']] == [
        ('FailJobSet', ['PodFailurePolicy'])
    ]


# The shell files, with programs that note how they are called in the place of the cluster's


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with programs of clusters, which note their arguments in `calls`."""
    bin_folder = tmp_path / 'bin'
    bin_folder.mkdir()
    note = '#!/bin/bash\nprintf "%s\\0" "${0##*/}" "$@" >> "$CALLS"; printf "\\n" >> "$CALLS"\n'
    for name, rest in {'srun': 'eval "$SRUN"', 'scontrol': '', 'gcloud': ''}.items():
        (bin_folder / name).write_text(f'{note}{rest}\n')
        (bin_folder / name).chmod(0o755)
    return tmp_path


def start(place: Path, name: str, *words: str, **variables: str) -> subprocess.Popen[str]:
    path = f'{place / "bin"}{os.pathsep}{os.environ["PATH"]}'
    return subprocess.Popen(
        [LAUNCH / name, *words],
        env=os.environ | {'PATH': path, 'CALLS': str(place / 'calls'), **variables},
        cwd=place,
        stderr=subprocess.PIPE,
        text=True,
    )


def calls(place: Path) -> Iterator[list[str]]:
    for line in (place / 'calls').read_text().split('\0\n'):
        if line:
            yield line.split('\0')


SRUN = ['srun', '.venv/bin/python', '-m', 'tlflax.train', '--config=a b.py', '--workdir=c']


@pytest.mark.parametrize(
    ('code', 'restarts', 'is_put_back'),
    [
        (0, '', False), (1, '', False), (2, '', False),
        (130, '', True), (130, '99', True), (137, '', True), (137, '19', True), (137, '20', False),
    ],
)  # fmt: skip
def test_slurm_puts_what_was_interrupted_back_into_the_queue(
    place: Path, code: int, restarts: str, is_put_back: bool
) -> None:
    count = {'SLURM_RESTART_COUNT': restarts} if restarts else {}
    done = start(place, 'slurm.sh', *SRUN[-2:], SRUN=f'exit {code}', SLURM_JOB_ID='7', **count)
    assert done.wait(30) == code
    again = [['scontrol', 'requeue', '7']] if is_put_back else []
    assert list(calls(place)) == [SRUN, *again]


def test_slurm_does_not_put_back_what_was_cancelled(place: Path) -> None:
    slow = 'touch "$CALLS.ready"; sleep 1; exit 130'
    done = start(place, 'slurm.sh', *SRUN[-2:], SRUN=slow, SLURM_JOB_ID='7')
    until = time.monotonic() + 30
    while not (place / 'calls.ready').exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    done.send_signal(signal.SIGTERM)
    assert done.wait(30) == 130
    assert list(calls(place)) == [SRUN]


def test_slurm_signals_every_process_before_the_time_is_up() -> None:
    text = (LAUNCH / 'slurm.sh').read_text()
    options = re.findall(r'^#SBATCH --([\w-]+)(?:=(.*))?$', text, re.M)
    given = dict(options)
    assert given['signal'] == 'TERM@120'  # without `B:`, which would signal the script alone
    assert 'requeue' in given
    # JAX gives the task of number i the GPU of number i.
    assert given['ntasks-per-node'] == given['gpus-per-node']


def test_tpu_copies_installs_and_trains_on_every_machine(place: Path) -> None:
    for command in ('init --quiet', 'commit --quiet --allow-empty --message=x'):
        me = ['-c', 'user.name=x', '-c', 'user.email=x@example.com']
        subprocess.run(['git', *me, *command.split()], cwd=place, check=True)
    words = ['--config=a b.py', "--workdir=it's"]
    done = start(place, 'tpu.sh', *words, TPU_NAME='mine', TPU_ZONE='z', TMPDIR=str(place))
    assert done.wait(60) == 0
    copy, install, train = calls(place)
    tpu, rest = ['gcloud', 'compute', 'tpus', 'tpu-vm'], ['--zone=z', '--worker=all']
    assert copy[:5] == [*tpu, 'scp']
    assert copy[6:] == ['mine:tlflax.tar.gz', *rest]
    assert not Path(copy[5]).exists()  # the archive is deleted
    for call in (install, train):
        assert call[:-1] == [*tpu, 'ssh', 'mine', *rest]
    assert '.[tpu]' in install[-1]
    command = shlex.split(train[-1].removeprefix('--command='))
    assert command == [*'cd tlflax && exec .venv/bin/python -m tlflax.train'.split(), *words]


def test_tpu_without_a_name_says_so(place: Path) -> None:
    done = start(place, 'tpu.sh', TPU_NAME='', TPU_ZONE='z')
    assert done.wait(30) == 1
    assert done.stderr is not None
    assert 'set it to the name of the slice' in done.stderr.read()
