"""Small runs on generated images, in processes forked from one that has imported everything.

Shared by kill_test.py and damage_test.py, which must import it before JAX.
"""

import contextlib
import datetime
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# Read when JAX is imported: one compilation serves all runs.
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
from tlflax.data.pipeline import tf_data  # noqa: F401
from tlflax.models.backbones import find
from tlflax.utils import trees
from tlflax.workdir.checkpoints import Checkpoints

MODES = ('cached', 'extracting', 'live', 'sweeping')
TIMES = (
    'epoch_seconds', 'images_per_second', 'wall_seconds', 'peak_memory_bytes', 'seconds', 'sha256',
)  # fmt: skip

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
    config.model.head = 'flatten_linear'
    config.early_stopping.monitor = 'val_accuracy'
    config.train.epochs = {epochs}
    config.train.batch_size, config.train.report = 8, False
    config.optim.learning_rate = 3e-4
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


def make_jobs(folder: Path, *, weights: bool = False) -> list[Job]:
    """Writes images, configurations and the sweep, and returns what is to be run.

    Args:
        folder: Where they are written.
        weights: Write the backbone's weights to a file, weights/backbone.npz, too.
    """
    make_images(folder)
    source = str(folder / 'weights' / 'backbone.npz') if weights else 'random'
    if weights:
        (folder / 'weights').mkdir()
        os.waitpid(in_child(lambda: _save_weights(Path(source)), folder / 'log', {}), 0)
    (folder / 'sweep.py').write_text(SWEEP)
    jobs = []
    for mode in MODES:
        path = folder / f'{mode}.py'
        path.write_text(
            CONFIG.format(
                train=str(folder / 'Train'),
                val=str(folder / 'Test'),
                weights=source,
                cache='False' if mode == 'live' else 'auto',
                epochs=4 if mode == 'live' else 8,
            )
        )
        module = 'tlflax.sweep' if mode == 'sweeping' else 'tlflax.train'
        flags = [f'--sweep={folder / "sweep.py"}'] if mode == 'sweeping' else []
        jobs.append(Job(mode, module, [f'--config={path}', *flags]))
    return jobs


def _save_weights(path: Path) -> None:
    import jax

    backbone = find('vgg16')
    variables = jax.device_get(backbone.init(jax.random.key(0), 'block3_pool'))
    np.savez(path, **trees.flatten(variables.params))


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


def command(module: str, *arguments: str, before: Callable[[], object] = lambda: None) -> None:
    """Runs `python -m MODULE` in this process.

    Args:
        module: The module.
        *arguments: Its command line.
        before: Called first.
    """
    before()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name='__main__', alter_sys=True)


def run(module: str, *arguments: str, cache: Path, log: Path) -> int:
    """Runs `python -m MODULE` to its end in a forked process; returns the exit code."""
    child = in_child(lambda: command(module, *arguments), log, {'TLFLAX_CACHE': str(cache)})
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
        place.write_text(json.dumps(without_times(told)))

    child = in_child(read, log, {'TLFLAX_CACHE': str(folder / 'outcome-cache')})
    os.waitpid(child, 0)
    if not place.exists():
        return {'unreadable': log.read_text()[-2000:]}
    return json.loads(place.read_text())


def without_times(value: object) -> object:
    """Returns JSON values without those that no two runs share."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def difference(expected: object, got: object, path: str = '') -> str:
    """Describes the first difference of two outcomes."""
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in expected.keys() | got.keys():
            if expected.get(key) != got.get(key):
                return difference(expected.get(key), got.get(key), f'{path}.{key}')
    if isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        for at, pair in enumerate(zip(expected, got, strict=True)):
            if pair[0] != pair[1]:
                return difference(*pair, f'{path}[{at}]')
    return f'{path}: {str(expected)[:300]} became {str(got)[:300]}'


def measure(job: Job, folder: Path) -> Job:
    """Runs a job unkilled, twice where the first fills a cache."""
    for name in ('first', 'second'):
        began = time.monotonic()
        cache = folder / f'cache-{name}' if job.mode == 'extracting' else folder / 'cache'
        log, workdir = folder / f'{job.mode}.log', folder / f'{job.mode}-{name}'
        code = run(job.module, *job.arguments, f'--workdir={workdir}', cache=cache, log=log)
        if code:
            raise SystemExit(f'{job.mode} fails unkilled ({code}):\n{log.read_text()[-3000:]}')
        seconds = time.monotonic() - began
    outcomes = [outcome(job, folder / f'{job.mode}-{name}', folder) for name in ('first', 'second')]
    if outcomes[0] != outcomes[1] or 'unreadable' in str(outcomes[0]):
        raise SystemExit(f'{job.mode} differs unkilled: {difference(outcomes[0], outcomes[1])}')
    return job._replace(seconds=seconds, expected=outcomes[0])


def report(line: dict[str, object], record: str | None) -> None:
    """Prints figures as a JSON line, with the commit and the date, and adds it to a file."""
    commit = subprocess.run(
        ['git', 'rev-parse', '--short', 'HEAD'],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
    ).stdout.strip()  # fmt: skip
    text = json.dumps({**line, 'commit': commit, 'date': datetime.date.today().isoformat()})
    print(text)
    if record:
        with open(record, 'a') as file:
            file.write(text + '\n')
