"""Kills one of several processes that train together, goes on, and compares with an unkilled run.

    python scripts/kill_processes.py [--kills=20] [--processes=2] [--seed=0] [--seconds=1200]

Small runs on generated images (see kill_test.py), each in several processes over loopback. At a
random moment one of them is killed by SIGKILL, or asked to stop by SIGTERM. The others must end
within 30 seconds, unless they had not met yet, for which they wait longer; after SIGTERM, all with
exit code 130 and a sentence. The same command then goes on, and parameters, optimizer state,
metrics and result must be bit for bit those of an unkilled run of as many processes.

Prints one JSON line, `{"kills": n, "survived": n, "before_meeting": n, "slowest_end": seconds,
...}`; exit code 1 if a kill did harm.
"""

import argparse
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from bench_scaling import free_port
from small_runs import Job, command, difference, in_child, make_jobs, outcome, report

LONGEST = 30.0  # seconds until all have ended
MODES = ('cached', 'extracting', 'live')
FIRST = ' images in '  # of what process 0 prints, once all have met


def start(job: Job, workdir: Path, folder: Path, count: int) -> list[int]:
    """Starts the processes of a run; returns their numbers."""
    port = free_port()

    def run(number: int) -> int:
        place = (f'--coordinator=127.0.0.1:{port}', f'--num_processes={count}')
        arguments = (*job.arguments, f'--workdir={workdir}', *place, f'--process_id={number}')
        environment = {'TLFLAX_CACHE': str(folder / f'cache{number}')}
        log = folder / f'log{number}'
        log.write_bytes(b'')
        return in_child(lambda: command(job.module, *arguments), log, environment)

    return [run(number) for number in range(count)]


def wait(children: list[int], longest: float) -> list[int | None]:
    """Returns the exit codes, or minus the signals; None for those that had to be killed."""
    codes: dict[int, int | None] = {}
    deadline = time.monotonic() + longest
    while len(codes) < len(children) and time.monotonic() < deadline:
        for child in children:
            if child not in codes and (done := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(done[1])
        time.sleep(0.01)
    for child in children:
        if child not in codes:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            codes[child] = None
    return [codes[child] for child in children]


def measure(job: Job, folder: Path, count: int) -> Job:
    """Runs a job unkilled."""
    folder.mkdir()
    began = time.monotonic()
    codes = wait(start(job, folder / 'w', folder, count), 600)
    if any(codes):
        raise SystemExit(f'{job.mode} fails unkilled: {codes}\n{(folder / "log0").read_text()}')
    seconds = time.monotonic() - began
    return job._replace(seconds=seconds, expected=outcome(job, folder / 'w', folder))


def trial(job: Job, folder: Path, rng: random.Random, count: int) -> tuple[float, list[str]]:
    """Kills a process of a run once, and lets it go on.

    Returns:
        The seconds until all had ended (NaN: they had not met, and waited on), and what was wrong.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    wrong = []
    number = rng.choice((signal.SIGKILL, signal.SIGTERM))
    victim, after = rng.randrange(count), rng.random() * job.seconds
    what = f'{number.name} to process {victim} of {job.mode} after {after:.2f} s'
    children = start(job, folder / 'w', folder, count)
    time.sleep(after)
    os.kill(children[victim], number)
    began = time.monotonic()
    codes = wait(children, LONGEST)
    seconds = time.monotonic() - began
    said = [(folder / f'log{n}').read_text(errors='replace') for n in range(count)]
    if None in codes and FIRST not in said[0]:
        seconds = math.nan
    elif None in codes:
        wrong.append(f'{what}: not all had ended after {LONGEST:.0f} s: {codes}')
    elif number == signal.SIGTERM and {*codes} not in ({0}, {130}):
        wrong.append(f'{what}: exit codes {codes}: {said}')
    codes = wait(start(job, folder / 'w', folder, count), 600)
    if any(codes):
        wrong.append(f'{what}: going on ended with {codes}: {(folder / "log0").read_text()[-900:]}')
    elif (got := outcome(job, folder / 'w', folder)) != job.expected:
        wrong.append(f'{what}: another outcome: {difference(job.expected, got)}')
    return seconds, wrong


def main() -> int:
    """Runs the trials and prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--kills', type=int, default=20, help='kills to do')
    parser.add_argument('--processes', type=int, default=2, help='of each run')
    parser.add_argument('--seconds', type=float, default=1e9, help='stop after so many')
    parser.add_argument('--seed', type=int, default=0, help='of the kills')
    parser.add_argument('--record', help='a file to which the JSON line is added')
    options = parser.parse_args()
    rng, began = random.Random(options.seed), time.monotonic()
    failures: list[str] = []
    done = survived = early = 0
    slowest = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs = [job for job in make_jobs(folder) if job.mode in MODES]
        jobs = [measure(job, folder / job.mode, options.processes) for job in jobs]
        while done < options.kills and time.monotonic() - began < options.seconds:
            job = jobs[done % len(jobs)]
            seconds, wrong = trial(job, folder / 'trial', rng, options.processes)
            done, survived = done + 1, survived + (not wrong)
            early += math.isnan(seconds)
            slowest = max(slowest, 0 if math.isnan(seconds) else seconds)
            failures += wrong
            print('\n'.join(wrong) or f'{done}: {job.mode} survived', file=sys.stderr)
    figures = {
        'kills': done, 'survived': survived, 'processes': options.processes,
        'before_meeting': early, 'slowest_end': round(slowest, 1), 'seed': options.seed,
    }  # fmt: skip
    report(figures, options.record)
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
