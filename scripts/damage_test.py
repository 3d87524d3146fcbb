"""Damages files of a run and of its caches, one at a time, and compares what is then said.

    python scripts/damage_test.py --flips=500 [--seed=0] [--seconds=900] [--disk] [--record=FILE]

Every file of a finished workdir, of an interrupted one, of the feature store, of the scans and the
file of weights is truncated, emptied and deleted in turn; then bits are flipped in files drawn at
random. After each damage, `evaluate`, `predict` and `train` must give the answer they gave before,
or end with exit code 2 and one sentence; never another answer, a traceback or a hang. With --disk
(which mounts a small tmpfs, and so needs root), the disk is full or read-only at stages of a run,
which must end with a sentence and go on once there is room.

Prints one JSON line, `{"damages": n, "same": n, "sentence": n, ...}`; exit code 1 if anything else
happened.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from small_runs import (
    Job,
    command,
    difference,
    in_child,
    make_jobs,
    measure,
    outcome,
    report,
    run,
    without_times,
)

LIMIT = 120.0  # seconds of one command
WHOLE = ('truncate', 'empty', 'delete')


class Place(NamedTuple):
    """Files to damage, and what is run after it.

    Attributes:
        name: Of the folder below the folder that is copied.
        actions: What is run: 'evaluate', 'predict', 'train' in the workdir of that name, or 'new'
            for a training in a new workdir.
    """

    name: str
    actions: tuple[str, ...]


PLACES = (
    Place('finished', ('evaluate', 'predict', 'train')),
    Place('interrupted', ('train',)),
    Place('cache/features', ('new',)),
    Place('cache/scans', ('new',)),
    Place('weights', ('new', 'evaluate')),
)


class Bench:
    """A folder with a finished and an interrupted run, and the answers they give.

    Args:
        folder: Empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.whole = folder, folder / 'whole'
        self.log = folder / 'log'
        job = next(job for job in make_jobs(folder, weights=True) if job.mode == 'cached')
        self.job = measure(job, folder)
        self.whole.mkdir()
        shutil.copytree(folder / 'weights', self.whole / 'weights')
        shutil.copytree(folder / 'cache', self.whole / 'cache')
        shutil.copytree(folder / 'cached-first', self.whole / 'finished')
        self.reset()
        self._interrupt()
        self.answers = {action: self.act('finished', action)[1] for action in PLACES[0].actions}

    def reset(self) -> None:
        """Puts the undamaged files into the folder that the commands use."""
        for name in ('finished', 'interrupted', 'cache', 'weights'):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            if (self.whole / name).exists():
                shutil.copytree(self.whole / name, self.folder / name)

    def _interrupt(self) -> None:
        """Makes a run that was stopped after the first epoch that is not the best."""
        workdir = self.folder / 'interrupted'
        argv = [*self.job.arguments, f'--workdir={workdir}']

        def stop_later() -> None:
            from tlflax.train.loop import Fit

            save = Fit.save

            def saving(fit: Any, state: Any, position: Any, record: Any) -> None:
                save(fit, state, position, record)
                if position.epoch == 6:
                    os.kill(os.getpid(), signal.SIGTERM)

            setattr(Fit, 'save', saving)  # noqa: B010

        child = in_child(
            lambda: command(self.job.module, *argv, before=stop_later),
            self.log,
            {'TLFLAX_CACHE': str(self.folder / 'cache')},
        )
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == 130, self.log.read_text()
        shutil.copytree(workdir, self.whole / 'interrupted')

    def act(self, name: str, action: str) -> tuple[str, object]:
        """Runs a command; returns 'answer', 'sentence' or 'fault', and what it said."""
        workdir = self.folder / name
        if action == 'new':
            workdir = self.folder / 'new'
            shutil.rmtree(workdir, ignore_errors=True)
        module, arguments = f'tlflax.{action}', [f'--workdir={workdir}']
        if action in ('train', 'new'):
            module, arguments = self.job.module, [*self.job.arguments, f'--workdir={workdir}']
        elif action == 'predict':
            arguments += ['--format=json', str(self.folder / 'Test')]
        self.log.write_bytes(b'')
        code = self._timed(module, arguments)
        said = self.log.read_text(errors='replace')
        lines = said.strip().splitlines() or ['']
        if code == 2 and lines[-1].startswith('error: ') and 'Traceback' not in said:
            return 'sentence', lines[-1]
        if code or 'Traceback' in said:
            return 'fault', f'exit code {code}: {said[-1500:]}'
        if name == 'finished' and action == 'train':  # its result is told, nothing else is read
            return 'answer', without_times(json.loads((workdir / 'result.json').read_text()))
        if action in ('train', 'new'):
            return 'answer', outcome(self.job, workdir, self.folder)
        return 'answer', [line for line in lines if line.startswith('{')]

    def _timed(self, module: str, arguments: list[str]) -> int:
        child = in_child(
            lambda: command(module, *arguments),
            self.log,
            {'TLFLAX_CACHE': str(self.folder / 'cache')},
        )
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return -int(signal.SIGALRM)

    def expected(self, name: str, action: str) -> Any:
        """Returns the answer of an undamaged run."""
        if name == 'finished' or action in self.answers.keys() - {'train'}:
            return self.answers[action]
        return self.job.expected


def damage(path: Path, kind: str, rng: random.Random) -> str:
    """Damages a file; says how."""
    if kind == 'delete':
        path.unlink()
    elif kind in ('truncate', 'empty'):
        with open(path, 'r+b') as file:
            file.truncate(path.stat().st_size // 2 if kind == 'truncate' else 0)
    else:
        size = path.stat().st_size
        at = _written(path, rng) if size else 0
        if not size:
            return 'flip of nothing'
        with open(path, 'r+b') as file:
            file.seek(at)
            byte = file.read(1)[0] ^ 1 << rng.randrange(8)
            file.seek(at)
            file.write(bytes([byte]))
        return f'flip of a bit in byte {at}'
    return kind


def _written(path: Path, rng: random.Random) -> int:
    """Draws a byte of a file; of a sparse one, mostly from the beginning, which is written."""
    size, blocks = path.stat().st_size, path.stat().st_blocks * 512
    return rng.randrange(max(1, min(size, blocks))) if blocks < size else rng.randrange(size)


def damages(bench: Bench, flips: int, rng: random.Random) -> Iterator[tuple[Place, Path, str, str]]:
    """Yields (place, file, damage, action): every file in three ways, then flips."""
    files = {
        place: sorted(p for p in (bench.whole / place.name).rglob('*') if p.is_file())
        for place in PLACES
    }
    for place, paths in files.items():
        for path in paths:
            for kind in WHOLE:
                for action in place.actions:
                    yield place, path.relative_to(bench.whole), kind, action
    for _ in range(flips):
        place = rng.choice(PLACES)
        path = rng.choice(files[place])
        yield place, path.relative_to(bench.whole), 'flip', rng.choice(place.actions)


def check(bench: Bench, place: Place, path: Path, kind: str, action: str, how: str) -> str | None:
    """Runs a command on the damaged files; returns what is wrong, or None."""
    verdict, told = bench.act(place.name, action)
    if verdict == 'answer':
        expected = bench.expected(place.name, action)
        if path.name == 'metrics.jsonl' and isinstance(told, dict) and 'metrics' in told:
            told = {**told, 'metrics': expected['metrics']}  # a record of what was, decides nothing
        if told == expected:
            return None
        return f'{path}: {how}: {action} gave another answer: {difference(expected, told)}'
    return None if verdict == 'sentence' else f'{path}: {how}: {action}: {told}'


def disk(folder: Path, job: Job, tally: Counter) -> list[str]:
    """Runs on disks that are too small, or turn read-only, and goes on once they are not."""
    wrong, mount = [], folder / 'disk'
    mount.mkdir()
    log = folder / 'disk.log'
    cases = [(size, 'full') for size in (8, 64, 128, 256, 512, 768, 1024, 1536, 2048)]
    cases += [(20_000, f'read-only after {seconds} s') for seconds in (0.2, 0.6, 0.9, 1.2)]
    for kib, kind in cases:
        subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', f'size={kib}k', 'tmpfs', str(mount)], check=True
        )
        try:
            for part in ('workdir', 'cache'):
                workdir = (mount if part == 'workdir' else folder) / 'w'
                cache = (mount if part == 'cache' else folder) / 'disk-cache'
                arguments = [*job.arguments, f'--workdir={workdir}']
                log.write_bytes(b'')
                start = functools.partial(command, job.module, *arguments)
                child = in_child(start, log, {'TLFLAX_CACHE': str(cache)})
                if kind != 'full':
                    time.sleep(float(kind.split()[-2]))
                    _remount(mount, 'ro')
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                said = log.read_text(errors='replace')
                tally['disk'] += 1
                if code not in (0, 2) or 'Traceback' in said:
                    wrong.append(f'{part} of {kib} KiB, {kind}: exit code {code}: {said[-1500:]}')
                _remount(mount, 'rw,size=50m')
                again = run(job.module, *arguments, cache=cache, log=log)
                got = outcome(job, workdir, folder) if again == 0 else log.read_text()[-1500:]
                if got != job.expected:
                    wrong.append(f'{part} of {kib} KiB, {kind}: going on: {str(got)[:1500]}')
                for left in (workdir, cache):
                    shutil.rmtree(left, ignore_errors=True)
                _remount(mount, f'size={kib}k')
        finally:
            subprocess.run(['umount', str(mount)], check=True)
    return wrong


def _remount(mount: Path, options: str) -> None:
    for _ in range(50):  # busy while a file is open for writing
        done = subprocess.run(
            ['mount', '-o', f'remount,{options}', str(mount)], check=False, capture_output=True
        )
        if done.returncode == 0:
            return
        time.sleep(0.05)


def main() -> int:
    """Runs the damages and prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--flips', type=int, default=100, help='bits to flip')
    parser.add_argument('--whole', type=float, default=1.0, help='fraction of the other damages')
    parser.add_argument('--seconds', type=float, default=1e9, help='stop after so many')
    parser.add_argument('--seed', type=int, default=0, help='of the damages')
    parser.add_argument('--disk', action='store_true', help='full and read-only disks too')
    parser.add_argument('--record', help='file to which the line is added')
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    tally: Counter[str] = Counter()
    wrong: list[str] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix='tlflax-damage-') as name:
        bench = Bench(Path(name))
        for place, path, kind, action in damages(bench, arguments.flips, rng):
            if time.monotonic() > began + arguments.seconds:
                break
            if kind in WHOLE and rng.random() >= arguments.whole:
                continue
            bench.reset()
            how = damage(bench.folder / path, kind, rng)
            tally['damages'] += 1
            tally[kind] += 1
            if fault := check(bench, place, path, kind, action, how):
                wrong.append(fault)
                print(f'FAULT {fault}', file=sys.stderr, flush=True)
        if arguments.disk:
            for fault in disk(Path(name), bench.job, tally):
                wrong.append(fault)
                print(f'FAULT {fault}', file=sys.stderr, flush=True)
    kinds = {kind: tally[kind] for kind in (*WHOLE, 'flip')}
    line = {'damages': tally['damages'], 'faults': len(wrong), **kinds, 'disk': tally['disk']}
    seconds = round(time.monotonic() - began)
    report({**line, 'seed': arguments.seed, 'seconds': seconds}, arguments.record)
    return int(bool(wrong))


if __name__ == '__main__':
    sys.exit(main())
