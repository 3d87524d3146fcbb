"""Starting: the seconds of short commands, as whole processes.

    python scripts/bench_start.py [--quick] [--rounds=N]

Each in a process of its own, from its start to its exit, or until it is ready, in turn:

- libraries: `import jax, flax.nnx, optax, orbax.checkpoint`;
- import: `import tlflax.train.run`;
- help: `python -m tlflax.train --help`;
- mistake: `python -m tlflax.serve --workdir=nowhere`, which says so;
- train: the traffic recipe for one epoch in a new workdir, features and programs in the cache;
- train_without_report: the same with `train.report=False`;
- predict: one photograph that no split has, from the workdir of such a run;
- serve: the service of that workdir, until /health says that images are answered; the CPU seconds
  are those until it has stopped;
- sweep: two heads for one epoch, without a report.

A first round fills the cache, which takes minutes where it is empty, and does not count. The last
line is JSON: `seconds` are medians of the rounds by the clock, `range` the smallest and the
largest, and `cpu_seconds` medians of the time on all cores, which other work on the machine changes
less; `ratio` is import by libraries. Bytecode is written, as where a package is installed.
`--quick` takes seconds: one round, a few generated images of 32x32 and random weights.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

from tlflax.utils import cpu

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = 'import jax, flax.nnx, optax, orbax.checkpoint'
RECIPE = f'--config={ROOT / "configs" / "traffic.py"}'
SWEEP = "def get_sweep():\n    return [{'optim.learning_rate': rate} for rate in (1e-3, 1e-4)]\n"
CODES = {'mistake': 2}  # exit codes other than 0
READY = {'serve'}  # what does not end by itself
SIDE, PER_CLASS = 32, 4  # pixels and images of --quick
SMALL = (
    '--config.weights.source=random',
    f'--config.data.image_size=({SIDE}, {SIDE})',
    '--config.features.layer=block1_pool',
    '--config.model.head=gap_linear',
    '--config.train.batch_size=8',
)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--quick', action='store_true', help='one round of a small network')
    parser.add_argument('--rounds', type=int, default=5, metavar='N', help='rounds that count')
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch), 1 if given.quick else given.rounds, quick=given.quick)
    print(json.dumps(found | {'machine': cpu.described()}))


def measure(scratch: Path, rounds: int, *, quick: bool) -> dict[str, object]:
    """Runs the commands in turn and returns what the last line says."""
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONDONTWRITEBYTECODE'}
    settings: tuple[str, ...] = ()
    if quick:
        environment['TLFLAX_CACHE'] = str(scratch / 'cache')
        settings = (*SMALL, *write_images(scratch))
    photograph = write_photograph(scratch / 'photograph.png', 128 if quick else 480)
    commands = listed(scratch, photograph, settings)
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    busy: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        shutil.rmtree(scratch / 'runs', ignore_errors=True)
        for name, command in commands.items():
            code, ready = CODES.get(name, 0), name in READY
            wall, used = run(command, environment, code=code, ready=ready)
            print(f'round {number}  {name}: {wall:.2f} s, CPU {used:.2f} s', file=sys.stderr)
            if number:
                seconds[name].append(wall)
                busy[name].append(used)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        'rounds': rounds,
        'quick': quick,
        'seconds': medians,
        'range': {name: [min(values), max(values)] for name, values in seconds.items()},
        'cpu_seconds': {name: statistics.median(values) for name, values in busy.items()},
        'ratio': medians['import'] / medians['libraries'],
    }


def listed(scratch: Path, photograph: Path, settings: tuple[str, ...]) -> dict[str, list[str]]:
    """Returns the commands by name, in the order in which they run."""

    def train(name: str, *more: str, command: str = 'train') -> list[str]:
        workdir = f'--workdir={scratch / "runs" / name}'
        given = (RECIPE, workdir, '--config.train.epochs=1', *settings, *more)
        return ['-m', f'tlflax.{command}', *given]

    sweep = scratch / 'sweep.py'
    sweep.write_text(SWEEP)
    run = f'--workdir={scratch / "runs" / "train"}'
    return {
        'libraries': ['-c', LIBRARIES],
        'import': ['-c', 'import tlflax.train.run'],
        'help': ['-m', 'tlflax.train', '--help'],
        'mistake': ['-m', 'tlflax.serve', f'--workdir={scratch / "nowhere"}'],
        'train': train('train'),
        'train_without_report': train('without_report', '--noconfig.train.report'),
        'predict': ['-m', 'tlflax.predict', run, str(photograph)],
        'serve': ['-m', 'tlflax.serve', run, '--port=0'],
        'sweep': train('sweep', '--noconfig.train.report', f'--sweep={sweep}', command='sweep'),
    }


def run(
    command: list[str], environment: dict[str, str], *, code: int = 0, ready: bool = False
) -> tuple[float, float]:
    """Runs Python with these arguments; returns its seconds by the clock and on all cores.

    Args:
        command: The arguments.
        environment: Its environment variables.
        code: The exit code that is right.
        ready: It is a service, of which the clock is read when it is ready, and which is stopped.

    Raises:
        SystemExit: It fails.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if ready else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if ready:
        wait_until_ready(process)
        wall = time.perf_counter() - began
        process.terminate()
    _, status, usage = os.wait4(process.pid, 0)
    if not ready:
        wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != code:
        raise SystemExit(f'python {" ".join(command)} failed: {process.returncode}')
    return wall, usage.ru_utime + usage.ru_stime


def wait_until_ready(service: subprocess.Popen[bytes]) -> None:
    """Waits until a service answers that it is ready, or has ended."""
    assert service.stdout is not None
    url = service.stdout.readline().decode().split()[-1:]  # 'listening at http://...'
    while url:
        try:
            with urllib.request.urlopen(f'{url[0]}health', timeout=60):
                return
        except urllib.error.HTTPError:  # 503: not yet
            time.sleep(0.02)
        except OSError:
            return


def write_images(folder: Path) -> tuple[str, ...]:
    """Writes images of two classes, and returns the settings that name them."""
    rng = np.random.default_rng(0)
    for split in ('Train', 'Test'):
        for name, color in (('dark', 60), ('light', 190)):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(PER_CLASS):
                noise = rng.integers(-50, 51, (SIDE, SIDE, 3))
                Image.fromarray((color + noise).astype(np.uint8)).save(place / f'{number}.png')
    return f'--config.data.train={folder / "Train"}', f'--config.data.val={folder / "Test"}'


def write_photograph(path: Path, side: int) -> Path:
    """Writes a picture that looks like none of the images, so that its features are computed."""
    ramp = np.linspace(0, 255, side)
    pixels = np.stack(np.broadcast_arrays(ramp[:, None], ramp, ramp[::-1]), axis=-1)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


if __name__ == '__main__':
    main()
