"""Damages inputs of every loader, for as long as you like, and says which were not refused well.

    python scripts/fuzz.py [--mutations=N] [--seconds=S] [--seed=N] [--only=TEXT] [--keep=DIR]

A loader takes an input or refuses it with a `UserError` of one sentence, within `SECONDS` and with
`MEMORY_MIB` of memory. The loaders and their valid inputs are those of the tests, which import them
from tests/fuzz_targets.py too: this script runs in a clone, as the libraries that write the inputs
are those of the tests. A worker process parses; this one watches it, ends it where it takes too
long or too much, and starts another for the next input. Each input follows from seed, loader and
number, so a fault is made again by its name. Inputs that show a fault are kept in `--keep`. The
last line is JSON: mutations, mutations by loader, how many were taken as valid, faults.
"""

import argparse
import collections
import itertools
import json
import os
import random
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).resolve().parents[1] / 'tests'
SECONDS, MEMORY_MIB = 5.0, 1024
START_SECONDS = 120.0  # of a worker, which imports every library
_POLL = 0.02


class Job(NamedTuple):
    """One input: a loader and a number."""

    name: str
    number: int


def targets(only: str = '') -> list[Any]:
    """Returns the loaders whose names hold a text."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    import fuzz_targets

    return [target for target in fuzz_targets.TARGETS if only in target.name]


def jobs(only: str, mutations: int) -> Iterator[Job]:
    """Yields inputs of all loaders in turn, more of the fast ones."""
    counts: collections.Counter[str] = collections.Counter()
    turn = [target.name for target in targets(only) for _ in range(target.share)]
    for name in itertools.islice(itertools.cycle(turn), mutations):
        yield Job(name, counts[name])
        counts[name] += 1


def damaged(seed: int, job: Job, seeds: list[bytes]) -> bytes:
    """Returns an input."""
    import fuzz_targets

    rng = random.Random(f'{seed} {job.name} {job.number}')
    return fuzz_targets.damaged(fuzz_targets.BY_NAME[job.name], seeds, rng)


# The worker


def work(seed: int, folder: Path) -> None:
    """Parses the inputs that are named on stdin, a line each; answers each with a line of JSON."""
    import fuzz_targets

    answers = os.fdopen(os.dup(1), 'w', buffering=1)
    with open(os.devnull, 'w') as nowhere:  # libraries write what they like
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    seeds: dict[str, list[bytes]] = {}
    for target in fuzz_targets.TARGETS:  # everything is imported and compiled before it is measured
        seeds[target.name] = target.seeds()
        for one in seeds[target.name]:
            fuzz_targets.check(target, one, folder)
    print('null', file=answers)
    for line in sys.stdin:
        job = Job(*json.loads(line))
        data = damaged(seed, job, seeds[job.name])
        before, taken, fault = _peak_mib(), False, ''
        try:
            taken = fuzz_targets.check(fuzz_targets.BY_NAME[job.name], data, folder)
        except fuzz_targets.Fault as error:
            fault = str(error)[:500]
        if _peak_mib() - before > MEMORY_MIB:
            fault = fault or f'took {_peak_mib() - before:,.0f} MiB'
        print(json.dumps([taken, fault]), file=answers)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# The watchdog


class Worker:
    """A process that parses inputs under a watch.

    Args:
        seed: Of all inputs.
        folder: Where it may write.
    """

    def __init__(self, seed: int, folder: Path) -> None:
        command = [sys.executable, __file__, f'--seed={seed}', f'--work-in={folder}']
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        problem = self._answer(START_SECONDS, most_mib=1 << 20)
        if isinstance(problem, str):
            raise SystemExit(f'the worker does not start: {problem}')
        self._idle = self._resident_mib()

    def parse(self, job: Job) -> tuple[bool, str, bool]:
        """Returns whether an input was taken, the fault if any, and whether the worker lives."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job).encode() + b'\n')
        self._process.stdin.flush()
        answer = self._answer(SECONDS, self._idle + MEMORY_MIB)
        if isinstance(answer, str):
            return False, answer, False
        return answer[0], answer[1], True

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def _answer(self, seconds: float, most_mib: float) -> Any:
        """Returns what the worker answers; a text says why it was ended."""
        assert self._process.stdout is not None
        until = time.monotonic() + seconds
        while not select.select([self._process.stdout], [], [], _POLL)[0]:
            if time.monotonic() > until:
                self.end()
                return f'takes more than {seconds:g} s'
            if self._resident_mib() > most_mib:
                self.end()
                return f'takes more than {MEMORY_MIB} MiB'
        line = self._process.stdout.readline()
        if not line:
            self.end()
            return f'ends the process (exit code {self._process.returncode})'
        return json.loads(line)

    def _resident_mib(self) -> float:
        try:
            pages = int(Path(f'/proc/{self._process.pid}/statm').read_text().split()[1])
        except (OSError, IndexError):  # it has ended, or there is no /proc
            return 0.0
        return pages * resource.getpagesize() / 2**20


def fuzz(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs the inputs one after another and returns the report."""
    counts: collections.Counter[str] = collections.Counter()
    taken: collections.Counter[str] = collections.Counter()
    faults: list[dict[str, Any]] = []
    seeds = {target.name: target.seeds() for target in targets(arguments.only)}
    worker = Worker(arguments.seed, folder)
    until = time.monotonic() + arguments.seconds
    for job in jobs(arguments.only, arguments.mutations):
        if time.monotonic() > until:
            break
        ok, fault, alive = worker.parse(job)
        counts[job.name] += 1
        taken[job.name] += ok
        if fault:
            path = keep(arguments.keep, job, damaged(arguments.seed, job, seeds[job.name]))
            faults.append({**job._asdict(), 'fault': fault, 'file': path})
            print(f'{job.name} {job.number}: {fault}', file=sys.stderr, flush=True)
        if not alive:
            worker = Worker(arguments.seed, folder)
    worker.end()
    return {
        'mutations': counts.total(),
        'by_loader': dict(counts),
        'taken': dict(taken),
        'faults': faults,
    }


def keep(folder: str, job: Job, data: bytes) -> str:
    """Writes an input that shows a fault and returns its path; '' if none are kept."""
    if not folder:
        return ''
    path = Path(folder) / f'{job.name.replace(" ", "_")}-{job.number}'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def main() -> int:
    """Fuzzes; exits with 1 if there is a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--mutations', type=int, default=10**9, help='how many at most')
    parser.add_argument('--seconds', type=float, default=60, help='how long at most')
    parser.add_argument('--seed', type=int, default=0, help='other inputs for each seed')
    parser.add_argument('--only', default='', help='loaders whose names hold this text')
    parser.add_argument('--keep', default='', help='folder for the inputs that show a fault')
    parser.add_argument('--work-in', default='', help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not targets(arguments.only):
        parser.error(f'no loader is called {arguments.only!r}')
    if arguments.work_in:
        work(arguments.seed, Path(arguments.work_in))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        report = fuzz(arguments, Path(folder))
    print(json.dumps(report))
    return 1 if report['faults'] else 0


if __name__ == '__main__':
    sys.exit(main())
