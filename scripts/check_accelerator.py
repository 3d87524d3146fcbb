"""Checks that training on this machine's accelerator repeats itself and agrees with the CPU.

    python scripts/check_accelerator.py [--quick] [--deterministic] [--keep=FOLDER]

Trains on JAX's default device, by `train_and_evaluate` on generated images and random weights (see
accelerator_run.py): a head on frozen VGG16, VGG16's last block with the head, and the last block of
a network with BatchNorm and residuals. Needs neither TensorFlow nor a network. Each training is
done four times, every time by a new process:

- twice: parameters, state of the optimizer, statistics and metrics have to be equal bit by bit,
- once interrupted by SIGTERM within the second epoch and continued: so have they,
- on the CPU: the losses of training and validation in every epoch have to agree within 1e-3,
  relative. Where the CPU is JAX's default device, there is nothing to compare (null).

tlflax sets none of XLA's flags, and this script measures what users get. For a GPU, XLA chooses
among programs by timing them, in every process, and some programs add in an order that changes.
Where runs differ for such a reason, `--deterministic` sets `--xla_gpu_deterministic_ops=true`: it
forbids both and may be slower; users can set it in XLA_FLAGS, too.

Says on stderr what is compared. The only line on stdout is one JSON object; exit code 1 if a check
failed. `--quick` takes small images and two epochs, leaves out VGG16, and compiles once for
all processes: it tries this script and proves less.
"""

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import accelerator_run

TOLERANCE = 1e-3  # of losses, relative, between the accelerator and the CPU
DETERMINISTIC = '--xla_gpu_deterministic_ops=true'
LOSSES = ('train_loss', 'val_loss')
RUN = Path(accelerator_run.__file__)

Report = dict[str, Any]  # what accelerator_run.py prints


def say(text: str) -> None:
    """Prints a line for people."""
    print(text, file=sys.stderr, flush=True)


def run(folder: Path, name: str, *flags: str, environment: Mapping[str, str]) -> Report:
    """Trains everything in a new process, and returns its report.

    Raises:
        SystemExit: The process failed.
    """
    began = time.perf_counter()
    command = [sys.executable, str(RUN), str(folder), name, *flags]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    if done.returncode:
        say(done.stderr)
        raise SystemExit(f'error: the training {name!r} failed with exit code {done.returncode}')
    report = json.loads(done.stdout.splitlines()[-1])
    where = f'{report["device"]} ({report["platform"]})'
    say(f'{name} {" ".join(flags)}: {where}, {time.perf_counter() - began:.0f} s')
    return report


def differences(expected: Any, got: Any, path: str = '') -> Iterator[str]:
    """Yields the path and both values of every leaf that differs in two JSON values."""
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in sorted(expected.keys() | got.keys()):
            yield from differences(expected.get(key), got.get(key), f'{path}/{key}')
    elif isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        for at, pair in enumerate(zip(expected, got, strict=True)):
            yield from differences(*pair, f'{path}/{at}')
    elif expected != got:
        yield f'{path}: {expected} and {got}'


def equal(what: str, expected: Report, got: Report) -> bool:
    """Compares two reports of the same trainings bit by bit, and says what differs."""
    found = list(differences(expected['problems'], got['problems']))
    for line in found[:6]:
        say(f'  {what} differ in {line}')
    say(f'{what}: {"bit-equal" if not found else f"{len(found)} values differ"}')
    return not found


def loss_difference(ours: Report, cpu: Report) -> float:
    """Returns the largest relative difference of a loss in any epoch of any training."""
    largest = 0.0
    for problem, outcome in cpu['problems'].items():
        pairs = zip(outcome['metrics'], ours['problems'][problem]['metrics'], strict=True)
        values = [abs(a[key] - b[key]) / abs(a[key]) for a, b in pairs for key in LOSSES]
        say(f'{problem}: losses differ from those of the CPU by at most {max(values):.1e}')
        # `max` would pass over NaN.
        largest = max(largest, *(value if math.isfinite(value) else math.inf for value in values))
    return largest


def check(folder: Path, flags: list[str], environment: Mapping[str, str]) -> Report:
    """Trains everything, and returns the outcome of every check."""
    accelerator_run.write_images(folder / 'images', quick='--quick' in flags)
    first = run(folder, 'first', *flags, environment=environment)
    again = run(folder, 'second', *flags, environment=environment)
    stopped = run(folder, 'third', '--interrupt', *flags, environment=environment)
    steps = {name: part.get('interrupted') for name, part in stopped['problems'].items()}
    say(f'interrupted after steps {steps}')
    resumed = run(folder, 'third', *flags, environment=environment)
    difference = None
    if first['platform'] != 'cpu':
        on_cpu = {**environment, 'JAX_PLATFORMS': 'cpu'}
        difference = loss_difference(first, run(folder, 'cpu', *flags, environment=on_cpu))
    found = {
        'device': first['device'],
        'platform': first['platform'],
        'versions': first['versions'],
        'xla_flags': environment.get('XLA_FLAGS', ''),
        'tensorflow_imported': first['tensorflow'],
        'interrupted_at': steps,
        'bit_equal_runs': equal('two runs', first, again),
        'bit_equal_resume': all(steps.values())
        and equal('an interrupted and a whole run', first, resumed),
        'loss_difference': difference,
    }
    agrees = difference is None or difference <= TOLERANCE
    return {**found, 'ok': found['bit_equal_runs'] and found['bit_equal_resume'] and agrees}


def main() -> None:
    """Prints one JSON object; exit code 1 if a check failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--quick', action='store_true', help='small images, to try the script')
    parser.add_argument('--deterministic', action='store_true', help=f'with {DETERMINISTIC}')
    parser.add_argument('--keep', type=Path, help='keep workdirs and features in this new folder')
    options = parser.parse_args()
    began = time.perf_counter()
    with contextlib.ExitStack() as opened:
        folder = options.keep or Path(opened.enter_context(tempfile.TemporaryDirectory()))
        xla = [os.environ.get('XLA_FLAGS', ''), DETERMINISTIC if options.deterministic else '']
        environment = {'XLA_FLAGS': ' '.join(filter(None, xla))}
        if options.quick:
            environment['JAX_COMPILATION_CACHE_DIR'] = str(folder / 'programs')
            environment['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
        found = check(folder, ['--quick'] * options.quick, environment)
    found['seconds'] = round(time.perf_counter() - began, 1)
    say('ok' if found['ok'] else 'a check failed')
    print(json.dumps(found))
    raise SystemExit(not found['ok'])


if __name__ == '__main__':
    main()
