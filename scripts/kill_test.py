"""Kills runs at any instant, goes on with the same command, and compares with an unkilled run.

    python scripts/kill_test.py --kills=100 [--seed=0] [--seconds=600] [--record=docs/kills.jsonl]

Small runs on generated images, in four modes: features from the cache, features that are extracted
first, the backbone on every batch, and a sweep. Each is killed up to four times by SIGKILL, SIGTERM
or SIGINT, at a random time or at the entry or exit of a function (`INSTANTS`). In the end the
parameters, the optimizer's state, the metrics, the result and the best epoch must be bit for bit
those of an unkilled run; after every kill, metrics.jsonl must be valid JSON and at most three
checkpoints may be there; SIGTERM and SIGINT must end with exit code 130 and a sentence.

Prints one JSON line, `{"kills": n, "survived": n, "by_mode": {...}, ...}`; exit code 1 if a kill
did harm. Most processes are forked from this one, which has imported everything; one in ten is a new
Python, so that imports are killed too.
"""

import argparse
import contextlib
import datetime
import functools
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == '__main__':  # before JAX is imported; one compilation serves all runs
    os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='tlflax-programs-')
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    os.environ['JAX_COMPILATION_CACHE_MAX_SIZE'] = str(2**30)  # under a limit, it is locked
    os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'

import numpy as np
import orbax.checkpoint  # noqa: F401  the forked processes need not import it
import tensorflow  # noqa: F401
from PIL import Image

import tlflax
import tlflax.sweep.run
import tlflax.train.run
from tlflax.data.pipeline import tf_data  # noqa: F401
from tlflax.features.cache.store import Store
from tlflax.sweep.journal import Journal
from tlflax.train.epoch import Runner
from tlflax.train.loop import Fit
from tlflax.workdir.checkpoints import Checkpoints
from tlflax.workdir.files import Workdir

MODES = ('cached', 'extracting', 'live', 'sweeping')
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
INSTANTS = (
    (Runner, 'train'), (Runner, 'evaluate'), (Fit, 'save'), (Checkpoints, 'wait'),
    (Checkpoints, 'resume'), (Checkpoints, 'drop_former'), (Workdir, 'append'),
    (Workdir, 'rewind'), (Workdir, 'claim'), (Workdir, 'write_result'), (Store, 'append'),
    (Journal, 'add'), (Journal, 'replace_best'), (os, 'rename'), (os, 'replace'),
    (tlflax.train.run, '_result'),
)  # fmt: skip
MOST_KILLS = 4  # of one run
TIMES = ('epoch_seconds', 'images_per_second', 'wall_seconds', 'sha256')

CONFIG = """
from tlflax.config import default_config

def get_config():
    config = default_config()
    config.data.train, config.data.val = {train!r}, {val!r}
    config.data.image_size = (32, 32)
    config.data.audit = 'off'
    config.weights.source = {weights!r}
    config.features.layer = 'block3_pool'
    config.features.cache = {cache!r}
    config.model.head = 'mlp'
    config.model.units = 8
    config.train.epochs = {epochs}
    config.train.batch_size = 8
    config.optim.learning_rate = 3e-3
    return config
"""
SWEEP = """
def get_sweep():
    return [{'optim.learning_rate': rate} for rate in (1e-4, 3e-3, 1e-3, 1e-2)]
"""


class Job(NamedTuple):
    """One mode: its command, and what an unkilled run gives.

    Attributes:
        mode: One of `MODES`.
        module: What `python -m` runs.
        arguments: Without the workdir.
        seconds: How long an unkilled run takes.
        expected: Its outcome.
    """

    mode: str
    module: str
    arguments: list[str]
    seconds: float = 0.0
    expected: object = None


class Death(NamedTuple):
    """How a process is to be killed: after some seconds, or at a call of a function."""

    number: signal.Signals
    after: float | None
    instant: tuple[Any, str] | None
    call: int
    leaving: bool

    def __str__(self) -> str:
        if self.instant is None:
            return f'{self.number.name} after {self.after:.3f} s'
        owner, name = self.instant
        where = 'leaving' if self.leaving else 'entering'
        return f'{self.number.name} {where} call {self.call} of {owner.__name__}.{name}'


def make_images(folder: Path) -> None:
    """Writes noisy images of three colors in class folders."""
    rng = np.random.default_rng(0)
    for split, count in (('Train', 10), ('Test', 5)):
        for at, name in enumerate(('blue', 'green', 'red')):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 200, (24, 24, 3))
                pixels[..., 2 - at] += 40
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(folder / split / name / f'{i}.png')


def make_jobs(folder: Path) -> list[Job]:
    """Writes images, configurations and the sweep, and returns what is to be run."""
    make_images(folder)
    (folder / 'sweep.py').write_text(SWEEP)
    jobs = []
    for mode in MODES:
        path = folder / f'{mode}.py'
        path.write_text(
            CONFIG.format(
                train=str(folder / 'Train'),
                val=str(folder / 'Test'),
                weights='random',
                cache='False' if mode == 'live' else 'auto',
                epochs=4 if mode == 'live' else 8,
            )
        )
        module = 'tlflax.sweep' if mode == 'sweeping' else 'tlflax.train'
        flags = [f'--sweep={folder / "sweep.py"}'] if mode == 'sweeping' else []
        jobs.append(Job(mode, module, [f'--config={path}', *flags]))
    return jobs


def in_child(action: Callable[[], object], log: Path, environment: dict[str, str]) -> int:
    """Forks a process that does something with its output in a file; returns its number."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        with open(log, 'ab') as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ.update(environment)
        action()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def command(job: Job, workdir: Path, death: Death | None) -> None:
    """Runs a job in this process, which kills itself at an instant."""
    if death is not None and death.instant is not None:
        _arm(death)
    sys.argv = [job.module, *job.arguments, f'--workdir={workdir}']
    runpy.run_module(job.module, run_name='__main__', alter_sys=True)


def _arm(death: Death) -> None:
    assert death.instant is not None
    owner, name = death.instant
    function, calls = getattr(owner, name), 0

    @functools.wraps(function)
    def dying(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == death.call and not death.leaving:
            os.kill(os.getpid(), death.number)
        outcome = function(*arguments, **named)
        if calls == death.call and death.leaving:
            os.kill(os.getpid(), death.number)
        return outcome

    setattr(owner, name, dying)


def run(job: Job, workdir: Path, cache: Path, log: Path, death: Death | None, fresh: bool) -> int:
    """Runs a job until it ends or is killed; returns the exit code, or minus the signal."""
    environment = {'TLFLAX_CACHE': str(cache)}
    if fresh:
        with open(log, 'ab') as file:
            argv = [sys.executable, '-m', job.module, *job.arguments, f'--workdir={workdir}']
            child = subprocess.Popen(
                argv, stdout=file, stderr=file, env={**os.environ, **environment}
            ).pid
    else:
        child = in_child(lambda: command(job, workdir, death), log, environment)
    if death is not None and death.after is not None:
        end = time.monotonic() + death.after
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(child, death.number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(job: Job, workdir: Path, folder: Path) -> object:
    """Returns all that must not differ: read by a process of its own."""
    place, log = folder / 'outcome.json', folder / 'outcome.log'
    place.unlink(missing_ok=True)

    def read() -> None:
        part = workdir / 'best' if job.mode == 'sweeping' else workdir
        with Checkpoints(part / 'checkpoints', read_only=True) as saved:
            metas = {which: saved.meta(saved.find(which)) for which in ('best', 'last')}
        for which in metas:  # compares the arrays with the digests
            tlflax.load(part, which)
        told = {
            'digests': {which: [meta['digests'], meta['rank']] for which, meta in metas.items()},
            'positions': {which: meta['position'] for which, meta in metas.items()},
            'result': json.loads((part / 'result.json').read_text()),
            'metrics': list(map(json.loads, (part / 'metrics.jsonl').read_text().splitlines())),
        }
        if job.mode == 'sweeping':
            told['ranking'] = json.loads((workdir / 'sweep.json').read_text())
        place.write_text(json.dumps(_without_times(told)))

    child = in_child(read, log, {'TLFLAX_CACHE': str(folder / 'outcome-cache')})
    os.waitpid(child, 0)
    if not place.exists():
        return {'unreadable': log.read_text()[-2000:]}
    return json.loads(place.read_text())


def _without_times(value: object) -> object:
    if isinstance(value, dict):
        skipped = (*TIMES, 'seconds')
        return {k: _without_times(v) for k, v in value.items() if k not in skipped}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def faults(job: Job, workdir: Path, death: Death, code: int, said: str) -> list[str]:
    """Returns what is wrong with how a killed process left things."""
    found = []
    if death.number != signal.SIGKILL and code not in (0, 130):
        found.append(f'exit code {code}')
    if code == 130 and not said.strip().splitlines()[-1].startswith('interrupted: '):
        found.append('no sentence')
    if 'Traceback' in said:
        found.append('traceback')
    for metrics in workdir.rglob('metrics.jsonl'):
        for line in metrics.read_text().splitlines():
            try:
                json.loads(line)
            except ValueError:
                found.append(f'not JSON: {line[:80]}')
    for folder in workdir.rglob('checkpoints'):
        if len([path for path in folder.iterdir() if path.name.isdigit()]) > 3:
            found.append('more than three checkpoints')
    return found


def choose(job: Job, rng: random.Random, fresh: bool) -> Death:
    """Returns when and how a process is killed."""
    number = rng.choice(SIGNALS)
    if fresh or rng.random() < 0.5:
        start = 0.3 if fresh else 0.0
        return Death(number, start + rng.random() * (job.seconds + 8 * fresh), None, 0, False)
    return Death(number, None, rng.choice(INSTANTS), rng.randint(1, 12), rng.random() < 0.5)


def trial(job: Job, folder: Path, rng: random.Random, tally: Counter, failures: list) -> None:
    """Kills a run up to `MOST_KILLS` times, lets it end, and compares."""
    workdir, log = folder / 'w', folder / 'log'
    cache = folder / 'cache' if job.mode == 'extracting' else folder.parent / 'cache'
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    deaths, wrong, ended = [], [], False
    for _ in range(rng.randint(1, MOST_KILLS)):
        fresh = rng.random() < 0.1
        death = choose(job, rng, fresh)
        log.write_bytes(b'')
        code = run(job, workdir, cache, log, death, fresh)
        if code == 0:
            ended = True
            break
        if code in (-signal.SIGTERM, -signal.SIGINT) and fresh and not log.read_bytes():
            continue  # Python itself was starting
        deaths.append(death)
        found = faults(job, workdir, death, code, log.read_text(errors='replace'))
        wrong += [f'{death}: {fault}' for fault in found]
    if not ended:
        log.write_bytes(b'')
        code = run(job, workdir, cache, log, None, False)
        if code:
            wrong.append(f'going on ended with {code}: {log.read_text(errors="replace")[-500:]}')
    if not wrong and (got := outcome(job, workdir, folder)) != job.expected:
        wrong.append(f'another outcome: {_difference(job.expected, got)}')
    tally[job.mode, 'kills'] += len(deaths)
    tally[job.mode, 'survived'] += 0 if wrong else len(deaths)
    for death in deaths:
        tally[death.number.name] += 1
    if wrong:
        failures.append({'mode': job.mode, 'deaths': [str(d) for d in deaths], 'wrong': wrong})
        print(json.dumps(failures[-1], indent=1), file=sys.stderr)


def _difference(expected: object, got: object, path: str = '') -> str:
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in expected.keys() | got.keys():
            if expected.get(key) != got.get(key):
                return _difference(expected.get(key), got.get(key), f'{path}.{key}')
    if isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        for at, pair in enumerate(zip(expected, got, strict=True)):
            if pair[0] != pair[1]:
                return _difference(*pair, f'{path}[{at}]')
    return f'{path}: {str(expected)[:300]} became {str(got)[:300]}'


def measure(job: Job, folder: Path) -> Job:
    """Runs a job unkilled, twice where the first fills a cache."""
    for name in ('first', 'second'):
        began = time.monotonic()
        cache = folder / f'cache-{name}' if job.mode == 'extracting' else folder / 'cache'
        log = folder / f'{job.mode}.log'
        code = run(job, folder / f'{job.mode}-{name}', cache, log, None, False)
        if code:
            raise SystemExit(f'{job.mode} fails unkilled ({code}):\n{log.read_text()[-3000:]}')
        seconds = time.monotonic() - began
    outcomes = [outcome(job, folder / f'{job.mode}-{name}', folder) for name in ('first', 'second')]
    if outcomes[0] != outcomes[1] or 'unreadable' in str(outcomes[0]):
        raise SystemExit(f'{job.mode} differs unkilled: {_difference(*outcomes)}')
    return job._replace(seconds=seconds, expected=outcomes[0])


def main() -> int:
    """Runs the trials and prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--kills', type=int, default=100, help='kills to do')
    parser.add_argument('--seconds', type=float, default=1e9, help='stop after so many')
    parser.add_argument('--seed', type=int, default=None, help='of the kills; by default the time')
    parser.add_argument('--modes', default=','.join(MODES), help='some of them')
    parser.add_argument('--record', help='file to which the line is added')
    arguments = parser.parse_args()
    seed = time.time_ns() % 2**32 if arguments.seed is None else arguments.seed
    rng, tally, failures = random.Random(seed), Counter(), []
    modes, began = arguments.modes.split(','), time.monotonic()
    with tempfile.TemporaryDirectory(prefix='tlflax-kills-') as name:
        folder = Path(name)
        jobs = [measure(job, folder) for job in make_jobs(folder) if job.mode in modes]
        done = 0
        while done < arguments.kills and time.monotonic() < began + arguments.seconds:
            trial(rng.choice(jobs), folder / 'trial', rng, tally, failures)
            done = sum(tally[mode, 'kills'] for mode in modes)
    commit = subprocess.run(
        ['git', 'rev-parse', '--short', 'HEAD'],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
    ).stdout.strip()  # fmt: skip
    line = {
        'kills': done,
        'survived': sum(tally[mode, 'survived'] for mode in modes),
        'by_mode': {m: {k: tally[m, k] for k in ('kills', 'survived')} for m in modes},
        'by_signal': {number.name: tally[number.name] for number in SIGNALS},
        'seed': seed,
        'commit': commit,
        'date': datetime.date.today().isoformat(),
        'seconds': round(time.monotonic() - began),
    }
    print(json.dumps(line))
    if arguments.record:
        with open(arguments.record, 'a') as file:
            file.write(json.dumps(line) + '\n')
    return int(bool(failures))


if __name__ == '__main__':
    sys.exit(main())
