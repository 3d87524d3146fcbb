"""Training heads from the feature cache: against PyTorch from memory, and many heads against one.

    python scripts/bench_head.py [--quick] [--repeats=N] [--epochs=N] [--solo=N]

The features are synthetic, [7,7,512] like block5_pool of 224x224 images; head and batch are the
recipe's: convolutions of 32 and 64, 32 examples, Adam. Nothing here needs weights or photographs.

1. An epoch of one head, tlflax (float16 features on the device) and PyTorch (float32 features in
   memory, in both of its layouts), taking turns; the ratio is to the faster layout. Before that,
   all train from the same parameters in the same order without dropout, and the losses of the
   first steps have to agree. Left out without PyTorch.
2. `python -m tlflax.sweep` with 32 settings (8 learning rates, 4 seeds) against 32 times
   `python -m tlflax.train`: whole processes, from start to exit, that find all features in the
   cache; every head trains for all of the epochs. Only a few of the solo runs are made, spread over
   the settings and around the sweep; 32 of them are 32 TIMES THEIR MEDIAN. The solo runs' results
   have to be the sweep's. The seconds inside the epochs (the median one, times their number) are
   also given: the rest is start-up, compilation and checkpoints, which a sweep pays once.

A ratio above 1 means that tlflax, or the sweep, is faster. `--quick` takes fewer examples, epochs
and runs. The last line is JSON.
"""

import argparse
import functools
import importlib.util
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from tlflax.config.schema import Config
from tlflax.features.views import training_views, view_keys
from tlflax.models import heads
from tlflax.models.base.modules import Variables
from tlflax.models.classifier import Classifier
from tlflax.models.vgg import network as vgg
from tlflax.models.vgg.rows import VGG16
from tlflax.train import setup, steps
from tlflax.train.losses import Loss
from tlflax.train.optim import build
from tlflax.utils import cpu, trees
from tlflax.utils.labels import label_tree

SHAPE, CLASSES, BATCH = (7, 7, 512), 3, 32
RATES = (1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3)
SEEDS = (0, 1, 2, 3)
REST = 0.2  # seconds in which the other side's threads stop spinning
TOLERANCE = 1e-3  # between losses, relative
CHECKED = 20  # steps whose losses have to agree with PyTorch's: rounding grows from step to step
Figures = dict[str, Any]  # a JSON object
Epoch = Callable[[], np.ndarray]
"""Trains for an epoch and returns the loss of each step."""


def synthetic(label: np.ndarray, seed: int) -> np.ndarray:
    """Returns features as a ReLU leaves them, f16[n,7,7,512], different by class.

    For a fifth of the examples the class is another one, so that the loss stays away from zero.
    """
    rng = np.random.default_rng(seed)
    tell = np.random.default_rng(99).normal(0, 0.3, (CLASSES, *SHAPE)).astype(np.float32)
    shown = np.where(rng.random(len(label)) < 0.2, rng.integers(0, CLASSES, len(label)), label)
    noise = rng.standard_normal((len(label), *SHAPE), np.float32) - 0.5
    return np.maximum(noise + tell[shown], 0).astype(np.float16)


def first_variables(dropout: float) -> Variables:
    """Returns the head both sides start from."""
    return heads.init('conv', SHAPE, CLASSES, jax.random.key(0), units=64, dropout=dropout)


def tlflax_epoch(
    features: np.ndarray, label: np.ndarray, order: np.ndarray, dropout: float
) -> Epoch:
    """Returns tlflax's epoch: `steps.train_scan` over on-device features."""
    head = heads.static('conv', SHAPE, CLASSES, units=64, dropout=dropout)
    classifier = Classifier(VGG16, 'caffe', VGG16.layer, VGG16.layer, 'float32', head)
    variables = Variables({'head': first_variables(dropout).params}, {})
    labels = label_tree(variables.params, (('head/.*', 'head'),))
    tx = build.build(labels, name='adam', learning_rates={'head': 1e-3})
    on_device = steps.OnDevice(jnp.asarray(features), jnp.asarray(label))
    state = steps.init_state(variables, tx)

    def epoch() -> np.ndarray:
        nonlocal state
        state, sums = steps.train_scan(
            state,
            Variables({}, {}),
            on_device,
            jnp.asarray(order),
            0,
            Loss(),
            classifier=classifier,
            tx=tx,
        )
        return np.asarray(sums.loss) / np.asarray(sums.examples)

    return epoch


def torch_epoch(
    features: np.ndarray, label: np.ndarray, order: np.ndarray, layout: str, dropout: float
) -> Epoch:
    """Returns PyTorch's epoch: the same head, batches and Adam, from float32 in memory."""
    import torch

    nn = torch.nn
    network = nn.Sequential(
        *(nn.Conv2d(512, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, CLASSES)),
    )
    params = jax.device_get(first_variables(dropout))
    names = {'0': 'conv1', '3': 'conv2', '7': 'hidden', '10': 'logits'}
    state = {}
    for number, name in names.items():
        kernel = torch.tensor(np.asarray(params[name]['kernel']))
        state[f'{number}.weight'] = kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        state[f'{number}.bias'] = torch.tensor(np.asarray(params[name]['bias']))
    network.load_state_dict(state)
    memory = {'channels_last': torch.channels_last, 'contiguous': torch.contiguous_format}[layout]
    network.to(memory_format=memory)  # type: ignore[call-overload]
    x = torch.from_numpy(features.astype(np.float32)).permute(0, 3, 1, 2)
    x, y = x.contiguous(memory_format=memory), torch.from_numpy(label.astype(np.int64))
    batches = [torch.from_numpy(rows[rows >= 0]) for rows in order]
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    loss_of = nn.CrossEntropyLoss()

    def epoch() -> np.ndarray:
        losses = []
        for rows in batches:
            optimizer.zero_grad()
            loss = loss_of(network(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return np.array([float(loss) for loss in losses])

    return epoch


def measure_epochs(n: int, repeats: int) -> dict[str, list[float]]:
    """Returns the seconds of each side's epochs, after checking that all learn the same."""
    rng = np.random.default_rng(1)
    label = rng.integers(0, CLASSES, n).astype(np.int32)
    features = synthetic(label, seed=0)
    order = np.append(rng.permutation(n), [-1] * (-n % BATCH)).reshape(-1, BATCH)
    sides: dict[str, Callable[[float], Epoch]] = {
        'tlflax': lambda dropout: tlflax_epoch(features, label, order, dropout)
    }
    if importlib.util.find_spec('torch'):
        for layout in ('contiguous', 'channels_last'):
            sides[f'torch {layout}'] = functools.partial(
                torch_epoch, features, label, order, layout
            )
    else:
        print('PyTorch is not installed: left out')
    losses = {name: make(0.0)() for name, make in sides.items()}
    for name, found in losses.items():
        agree = np.testing.assert_allclose
        agree(found[:CHECKED], losses['tlflax'][:CHECKED], rtol=TOLERANCE, err_msg=name)
    epochs = {name: make(0.5) for name, make in sides.items()}
    for epoch in epochs.values():
        epoch()
    seconds: dict[str, list[float]] = {name: [] for name in epochs}
    for _ in range(repeats):
        for name, epoch in epochs.items():
            time.sleep(REST)
            began = time.perf_counter()
            epoch()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def write_problem(folder: Path, n: int, epochs: int) -> list[dict[str, float]]:
    """Writes images, weights, features in the cache and configurations; returns the settings.

    The images are specks that only have a digest each: their features are in the cache.
    """
    os.environ['TLFLAX_CACHE'] = str(folder / 'cache')
    rng = np.random.default_rng(2)
    for split, count in (('Train', n), ('Test', n // 4)):
        for i in range(count):
            path = folder / split / f'class{i % CLASSES}' / f'{i:05}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    np.savez(folder / 'vgg16.npz', **trees.flatten(jax.device_get(vgg.init(jax.random.key(0)))))
    changes = {
        'data.train': str(folder / 'Train'),
        'data.val': str(folder / 'Test'),
        'weights.source': str(folder / 'vgg16.npz'),
        'weights.preprocess': 'caffe',
        'model.head': 'conv',
        'early_stopping.monitor': '',
        'train.epochs': epochs,
        'train.batch_size': BATCH,
        'train.report': False,
    }
    lines = [f'    config.{key} = {value!r}\n' for key, value in changes.items()]
    (folder / 'config.py').write_text(
        'from tlflax.config import default_config\n\n\n'
        f'def get_config():\n    config = default_config()\n{"".join(lines)}    return config\n'
    )
    settings: list[dict[str, float]] = [
        {'optim.learning_rate': rate, 'train.seed': seed} for rate in RATES for seed in SEEDS
    ]
    (folder / 'sweep.py').write_text(f'def get_sweep():\n    return {settings!r}\n')
    fill_cache(setup.configure(runpy.run_path(str(folder / 'config.py'))['get_config']()))
    return settings


def fill_cache(config: Config) -> None:
    """Puts synthetic features where the program looks for those of the images."""
    prepared = setup.build(config, setup.load(config))
    store = prepared.sources.open_store()
    for seed, table in enumerate((prepared.splits.train, prepared.splits.val)):
        views = training_views(config.augment, seed=0, n=len(table), samples=1)
        for name in views.names:
            store.append(view_keys(table.digests, name), synthetic(table.labels, seed))
    store.flush()


def run_module(module: str, folder: Path, name: str, *arguments: str) -> tuple[float, Path]:
    """Runs a command in a workdir of its own; returns the seconds it took, and the workdir.

    Raises:
        RuntimeError: It failed, or found no features in the cache.
    """
    workdir = folder / 'runs' / name
    command = [sys.executable, '-m', f'tlflax.{module}', f'--config={folder / "config.py"}']
    command += [f'--workdir={workdir}', *arguments]
    time.sleep(REST)
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode or 'computing features' in done.stderr:
        raise RuntimeError(done.stderr)
    return seconds, workdir


def measure_sweep(n: int, epochs: int, solo: int) -> Figures:
    """Returns the seconds of a sweep and of some of its settings alone, and those in epochs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = write_problem(folder, n, epochs)
        chosen = [i * len(settings) // solo for i in range(solo)]
        found: Figures = {'settings': len(settings), 'solo': [], 'solo_epochs': []}

        def run_solo(number: int) -> list[Figures]:
            flags = [f'--config.{key}={value}' for key, value in settings[number].items()]
            seconds, workdir = run_module('train', folder, f'solo{number}', *flags)
            lines = (workdir / 'metrics.jsonl').read_text().splitlines()
            records = [json.loads(line) for line in lines]
            found['solo'].append(seconds)
            found['solo_epochs'].append(in_epochs(records))
            return records

        half = solo // 2
        alone = {number: run_solo(number) for number in chosen[:half]}
        found['sweep'], workdir = run_module(
            'sweep', folder, 'sweep', f'--sweep={folder / "sweep.py"}'
        )
        alone |= {number: run_solo(number) for number in chosen[half:]}
        ranking = json.loads((workdir / 'sweep.json').read_text())
    together = {row['number'] - 1: row['records'] for row in ranking}
    found['sweep_epochs'] = in_epochs(ranking[0]['records'])
    one, other = (
        np.array([[record['train_loss'] for record in records[number]] for number in chosen])
        for records in (together, alone)
    )
    np.testing.assert_allclose(one, other, rtol=TOLERANCE)
    found['largest_difference'] = float(np.abs(one - other).max())
    return found


def in_epochs(records: Sequence[Figures]) -> float:
    """Returns the seconds of a run's epochs, all like the median one: the first one compiles."""
    return len(records) * statistics.median(record['epoch_seconds'] for record in records)


def print_epochs(n: int, seconds: dict[str, list[float]]) -> float | None:
    """Prints a table; returns the ratio to PyTorch's faster layout, None without PyTorch."""
    print(f'{"one head":22} {"images/s":>9} {"range":>15} {"ratio":>6}')
    ours = statistics.median(seconds['tlflax'])
    ratios = {}
    for name, times in seconds.items():
        ratios[name] = statistics.median(times) / ours
        rate = f'{n / max(times):.0f} to {n / min(times):.0f}'
        print(f'{name:22} {n / statistics.median(times):9.0f} {rate:>15} {ratios[name]:6.2f}')
    return min((ratio for name, ratio in ratios.items() if name != 'tlflax'), default=None)


def print_sweep(found: Figures) -> dict[str, float]:
    """Prints a table; returns the ratios of whole processes and of epochs alone."""
    print(f'{"32 heads, seconds":22} {"process":>9} {"in epochs":>15}')
    ratios = {}
    for part in ('', '_epochs'):
        solo = found['settings'] * statistics.median(found[f'solo{part}'])
        ratios[part] = solo / found[f'sweep{part}']
    count = found['settings']
    solo, inside = (count * statistics.median(found[key]) for key in ('solo', 'solo_epochs'))
    scaled = f'{count} solo ({len(found["solo"])} run)'
    print(f'{scaled:22} {solo:9.1f} {inside:15.1f}')
    print(f'{"one sweep":22} {found["sweep"]:9.1f} {found["sweep_epochs"]:15.1f}')
    print(f'{"ratio":22} {ratios[""]:9.2f} {ratios["_epochs"]:15.2f}')
    shown = ', '.join(f'{seconds:.1f}' for seconds in found['solo'])
    print(f'solo runs took {shown} s; losses differ by at most {found["largest_difference"]:.1e}')
    return ratios


def main() -> None:
    """Runs both parts and prints their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='a first answer in under a minute')
    parser.add_argument('--repeats', type=int, help='epochs of each side')
    parser.add_argument('--epochs', type=int, help='of the sweep and the solo runs')
    parser.add_argument('--solo', type=int, help='how many solo runs are made')
    flags = parser.parse_args()
    n = 300 if flags.quick else 1187
    print(f'{cpu.described()}, jax {jax.__version__}, {n} examples')
    seconds = measure_epochs(n, flags.repeats or (3 if flags.quick else 15))
    torch_ratio = print_epochs(n, seconds)
    found = measure_sweep(n, flags.epochs or (3 if flags.quick else 10),
                          flags.solo or (2 if flags.quick else 4))  # fmt: skip
    ratios = print_sweep(found)
    figures = {
        'machine': cpu.described(),
        'ratio': {'torch': torch_ratio, 'sweep': ratios[''], 'sweep_epochs': ratios['_epochs']},
        'images_per_second': {
            name: [n / second for second in times] for name, times in seconds.items()
        },
        'sweep_seconds': found,
    }
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
