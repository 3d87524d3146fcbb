"""Kills runs at any instant, goes on with the same command, and compares with an unkilled run.

    python scripts/kill_test.py --kills=100 [--seed=0] [--seconds=600] [--record=docs/kills.jsonl]

Small runs on generated images, in four modes: features from the cache, features that are extracted
first, the backbone on every batch, and a sweep. Each is killed up to four times by SIGKILL, SIGTERM
or SIGINT, at a random time or at the entry or exit of a function (`INSTANTS`). In the end the
parameters, the optimizer's state, the metrics, the result and the best epoch must be bit for bit
those of an unkilled run; after every kill, metrics.jsonl must be valid JSON and at most three
checkpoints may be there; SIGTERM and SIGINT must end with exit code 130 and a sentence.

Prints one JSON line, `{"kills": n, "survived": n, "by_mode": {...}, ...}`; exit code 1 if a kill
did harm. Most processes are forked from this one, which has imported everything; one in ten is a
new Python, so that imports are killed too.
"""

import argparse
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from small_runs import (
    MODES,
    Job,
    command,
    difference,
    in_child,
    make_jobs,
    measure,
    outcome,
    report,
)

import tlflax.train.result
from tlflax.features.cache.store import Store
from tlflax.sweep.journal import Journal
from tlflax.train.epoch import Runner
from tlflax.train.loop import Fit
from tlflax.workdir.checkpoints import Checkpoints
from tlflax.workdir.files import Workdir

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
INSTANTS = (
    (Runner, 'train'), (Runner, 'evaluate'), (Fit, 'save'), (Checkpoints, 'wait'),
    (Checkpoints, 'state'), (Checkpoints, 'drop_former'), (Workdir, 'append'),
    (Workdir, 'rewind'), (Workdir, 'claim'), (Workdir, 'write_result'), (Store, 'append'),
    (Journal, 'add'), (Journal, 'replace_best'), (os, 'rename'), (os, 'replace'),
    (tlflax.train.result, 'evaluate'),
)  # fmt: skip
MOST_KILLS = 4  # of one run


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


def _arm(death: Death | None) -> None:
    """Lets this process kill itself at an instant."""
    if death is None or death.instant is None:
        return
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
        arguments = [*job.arguments, f'--workdir={workdir}']
        child = in_child(
            lambda: command(job.module, *arguments, before=lambda: _arm(death)), log, environment
        )
    if death is not None and death.after is not None:
        end = time.monotonic() + death.after
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(child, death.number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


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
    if (got := outcome(job, workdir, folder)) != job.expected:
        wrong.append(f'another outcome: {difference(job.expected, got)}')
    tally[job.mode, 'kills'] += len(deaths)
    tally[job.mode, 'survived'] += 0 if wrong else len(deaths)
    for death in deaths:
        tally[death.number.name] += 1
    if wrong:
        failures.append({'mode': job.mode, 'deaths': [str(d) for d in deaths], 'wrong': wrong})
        print(json.dumps(failures[-1], indent=1), file=sys.stderr)


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
    rng = random.Random(seed)
    tally: Counter[Any] = Counter()
    failures: list[dict[str, object]] = []
    modes, began = arguments.modes.split(','), time.monotonic()
    with tempfile.TemporaryDirectory(prefix='tlflax-kills-') as name:
        folder = Path(name)
        jobs = [measure(job, folder) for job in make_jobs(folder) if job.mode in modes]
        done = 0
        while done < arguments.kills and time.monotonic() < began + arguments.seconds:
            trial(rng.choice(jobs), folder / 'trial', rng, tally, failures)
            done = sum(tally[mode, 'kills'] for mode in modes)
    line = {
        'kills': done,
        'survived': sum(tally[mode, 'survived'] for mode in modes),
        'by_mode': {m: {k: tally[m, k] for k in ('kills', 'survived')} for m in modes},
        'by_signal': {number.name: tally[number.name] for number in SIGNALS},
        'seed': seed,
        'seconds': round(time.monotonic() - began),
    }
    report(line, arguments.record)
    return int(bool(failures))


if __name__ == '__main__':
    sys.exit(main())
