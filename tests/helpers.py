"""Generated images and small configurations for tests of whole runs."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from fork_server import server
from PIL import Image

from tlflax.config import default_config
from tlflax.config.schema import DataConfig
from tlflax.data.images.scan import read_file
from tlflax.data.splits.load import load_table
from tlflax.data.table import ImageTable
from tlflax.utils.errors import located

TESTS = Path(__file__).parent
ROOT = TESTS.parent

TIMES = {'epoch_seconds', 'images_per_second', 'wall_seconds', 'peak_memory_bytes', 'sha256'}

COLORS = {'green': (40, 190, 60), 'red': (200, 40, 40), 'yellow': (210, 200, 50)}


def make_folders(root: Path, per_class: int, *, seed: int = 0, noise: float = 40.0) -> Path:
    """Writes noisy colored JPEGs into class folders, brighter on the left than on the right."""
    rng = np.random.default_rng(seed)
    shade = np.linspace(1.2, 0.6, 24)[None, :, None]
    for name, color in COLORS.items():
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = np.array(color) * shade + rng.normal(0, noise, (40, 24, 3))
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            image.save(root / name / f'{i:03}.jpg', quality=95)
    return root


def loose_table(paths, **settings) -> ImageTable:
    """A table of the files among `paths` that can be decoded, without classes."""
    files = [(path, read_file(path, listed=True, **settings)) for path in paths]
    good = [(path, file) for path, file in files if file.is_good]
    return ImageTable(
        root='',
        paths=np.array([path for path, _ in good], object),
        labels=np.zeros(len(good), np.int32),
        class_names=('',),
        digests=np.array([file.digest for _, file in good], object),
        plain_jpeg=np.array([file.plain_jpeg for _, file in good], bool),
    )


def picture(size, seed: int = 0) -> np.ndarray:
    """Smooth areas and noise, u8[h, w, 3] of `size` (height, width), no value at either end."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    smooth = np.asarray(small.resize(size[::-1], Image.BICUBIC), int)
    return np.clip(smooth + rng.integers(-40, 41, (*size, 3)), 3, 251).astype(np.uint8)


def small_config(root: Path, **changes):
    """A whole run in seconds: random weights, 32x32 images, features after three blocks."""
    config = default_config()
    config.data.train, config.data.val = str(root / 'Train'), str(root / 'Test')
    config.data.image_size = (32, 32)
    config.weights.source = 'random'
    config.features.layer = 'block3_pool'
    config.model.head = 'flatten_linear'
    config.train.epochs = 4
    config.train.batch_size = 8
    config.early_stopping.monitor = ''
    for key, value in changes.items():
        section, name = key.split('__')
        config[section][name] = value
    return config


def free_port() -> int:
    """Returns a port of this machine that is free now."""
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


def outcome(workdir: Path) -> list[dict]:
    """Returns the records and the result of a finished run, without what no two runs share."""
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    result = json.loads((workdir / 'result.json').read_text())
    return [
        {key: value for key, value in record.items() if key not in TIMES}
        for record in (*map(json.loads, lines), result)
    ]


def write_config(path: Path, root: Path) -> Path:
    """Writes a config file of a small network on `root`'s images, for commands; returns it."""
    path.write_text(
        'from tlflax.config import default_config\n'
        'def get_config():\n'
        '    config = default_config()\n'
        f'    config.data.train = {str(root / "Train")!r}\n'
        f'    config.data.val = {str(root / "Test")!r}\n'
        '    config.data.image_size, config.train.batch_size = (32, 32), 8\n'
        "    config.weights.source = 'random'\n"
        "    config.features.layer = 'block3_pool'\n"
        '    config.train.report = False\n'
        '    return config\n'
    )
    return path


def run_module(module: str, *arguments: str, timeout: float = 120, **environment: str):
    """Runs `python -m tlflax.<module>` with changes of the environment, in a forked process."""
    env = {**os.environ, **environment}
    return server().run('module', f'tlflax.{module}', *arguments, timeout=timeout, env=env)


def run_code(code: str, *arguments: str, timeout: float = 120, **environment: str):
    """Runs `python -c <code>` with changes of the environment, in a forked process."""
    env = {**os.environ, **environment}
    return server().run('code', code, *arguments, timeout=timeout, env=env)


def run_on_devices(code: str, folder: Path) -> list[list[float]]:
    """Runs code on one and on four virtual devices; returns the numbers that each run prints.

    Args:
        code: Finds this folder and `folder` in its arguments, and prints the number of devices
            first.
        folder: The folder of the test.
    """
    outcomes = []
    for devices in (1, 4):
        flag = f'--xla_force_host_platform_device_count={devices}'
        done = run_code(code, str(TESTS), str(folder), XLA_FLAGS=flag)
        assert done.returncode == 0, done.stderr
        count, *values = map(float, done.stdout.split())
        assert count == devices
        outcomes.append(values)
    return outcomes


def run_script(path: Path, *arguments: object, timeout: float = 120, **environment: str):
    """Runs `python <path>` with changes of the environment, in a forked process."""
    env = {**os.environ, **environment}
    return server().run('script', str(path), *map(str, arguments), timeout=timeout, env=env)


def run_new_python(*command: str, stdin: str = '', timeout: float = 120, **environment: str):
    """Runs `python *command` with changes of the environment, in a Python that starts from nothing.

    For tests of imports and of what libraries read from the environment while they are imported.
    """
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True, text=True, check=False, input=stdin, timeout=timeout,
        env={**os.environ, **environment},
    )  # fmt: skip


class Stops:
    """Stands in for signal handlers: says when to stop by itself."""

    def __init__(self, answers):
        self._answers = answers

    def __enter__(self):
        return lambda: next(self._answers)

    def __exit__(self, *_):
        return None


def scan_folder(
    root: str | os.PathLike[str],
    *,
    key: str = 'config.data.train',
    class_names: Sequence[str] | None = None,
    **data: object,
) -> ImageTable:
    """Returns the table of a folder of class folders, as a configuration key loads it.

    Args:
        root: The folder that holds one folder for each class.
        key: The configuration key, for messages.
        class_names: See `load_table`.
        **data: Keys of the configuration's section `data`.
    """
    with located(key):
        return load_table(os.fspath(root), data=DataConfig(**data), class_names=class_names)


def same_leaves(a, b):
    """Whether two trees have one structure and the very same objects as leaves."""
    import jax

    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x is y for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def untrained(config, noise: float = 0.1):
    """Returns what a run starts with as a classifier, and random numbers for what is trained.

    Args:
        config: The configuration, a ConfigDict.
        noise: Deviation of what is added to every trained parameter.
    """
    import jax

    from tlflax.inference.trained import Trained
    from tlflax.train import setup
    from tlflax.utils.parallel.mesh import replicate

    inputs = setup.load(setup.configure(config))
    run = setup.build(setup.configure(config), inputs)
    rng = np.random.default_rng(0)

    def moved(leaf):
        return np.asarray(leaf + noise * rng.standard_normal(leaf.shape), np.float32)

    trainable, mesh = run.learner.trainable, run.runner.mesh
    trainable = trainable._replace(params=jax.tree.map(moved, trainable.params))
    return Trained(
        config=run.config,
        class_names=inputs.splits.train.class_names,
        step=0,
        weights_digest=run.sources.weights_digest,
        split_digests={name: table.digest for name, table in inputs.splits.by_name.items()},
        temperature=None,
        classifier=run.runner.classifier,
        trainable=replicate(trainable, mesh),
        frozen=run.runner.frozen,
        mesh=mesh,
    )


def toy_config(root: Path, **changes):
    """As `small_config`, with the toy backbone, which compiles in no time."""
    toy = f'py:{TESTS / "toy_backbone.py"}:toy'
    defaults = {'model__backbone': toy, 'features__layer': 'block2', 'train__epochs': 1}
    return small_config(root, **{**defaults, **changes})
