"""End to end: the traffic recipe in tlflax against the same recipe in Keras on TensorFlow.

    python scripts/bench_training.py [--quick] [--keras-epochs=N] [--repeats=N] [--cold-repeats=N]

Both train the recipe's head on frozen ImageNet VGG16 with random flips, for a fixed number of
epochs, from the same photographs and weights, on the CPU of the same machine. What is timed is a
whole process, from its start to its exit, without the report, which Keras does not write:

- cold_10, cold_30: `python -m tlflax.train --config=configs/traffic.py` for 10 and 30 epochs, with
  a cache that holds the downloads and nothing else;
- warm_10: the same 10 epochs in another workdir, with the cache that cold_10 left;
- Keras: `scripts/keras_recipe.py`, for `--keras-epochs` epochs, EXTRAPOLATED LINEARLY to 10 and 30:
  its process, and as many more of its epochs (median of all but the first) as are missing.

A ratio is Keras's seconds by tlflax's. Accuracies are those of the validation images after the last
epoch that was run, for tlflax also after as many epochs as Keras ran. Takes about a quarter of an
hour on two cores. `--quick` takes a minute: 64x64 images, a tenth of them, features of block4_pool
(the recipe's head needs 4x4); there start-up is nearly all the time, so its ratios say little about
the full run, and cold_30 is cold_10 and 20 more of its epochs. The last line is JSON.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tlflax.data.inputs.demos import TRAFFIC_LIGHTS
from tlflax.models import pretrained
from tlflax.models.vgg.rows import VGG16
from tlflax.models.weights.catalogue import VGG16_IMAGENET
from tlflax.utils import cpu, trees
from tlflax.utils.assets import fetch
from tlflax.utils.errors import EXIT_CODE, UserError

Figures = dict[str, Any]  # a JSON object

ROOT = Path(__file__).resolve().parent.parent
QUICK_PART, QUICK_SIZE, QUICK_LAYER = 0.1, 64, 'block4_pool'
KERAS_EPOCHS = 2
# What would warm one side up, or slow the other down, from outside.
MISLEADING = ('JAX_COMPILATION_CACHE_DIR', 'TF_ENABLE_ONEDNN_OPTS', 'TF_NUM_INTRAOP_THREADS')


@dataclasses.dataclass(frozen=True)
class Run:
    """One process: its seconds, and the seconds and validation accuracy of each epoch."""

    seconds: float
    epochs: tuple[float, ...]
    accuracies: tuple[float, ...]

    def extrapolated(self, epochs: int) -> float:
        """Returns the seconds of a process of `epochs` epochs; the first is not like the others."""
        return self.seconds + (epochs - len(self.epochs)) * statistics.median(self.epochs[1:])


@dataclasses.dataclass(frozen=True)
class Setting:
    """The inputs of both sides.

    Attributes:
        images: Holds Train/ and Test/.
        weights: The backbone's arrays, .npz, for Keras.
        scratch: A folder for what the runs write.
        quick: The small variant.
    """

    images: Path
    weights: Path
    scratch: Path
    quick: bool


def prepare(scratch: Path, quick: bool) -> Setting:
    """Fetches images and weights and puts them where both sides find them."""
    images = fetch(TRAFFIC_LIGHTS)
    arrays = trees.flatten(pretrained.load(fetch(VGG16_IMAGENET), VGG16).variables.params)
    np.savez(scratch / 'weights.npz', **arrays)
    if quick:
        images = copy_part(images, scratch / 'images', QUICK_PART)
    return Setting(images, scratch / 'weights.npz', scratch, quick)


def copy_part(source: Path, target: Path, part: float) -> Path:
    """Copies the first part of each class of each split, two images at least."""
    for folder in sorted(path for path in source.glob('*/*') if path.is_dir()):
        files = sorted(folder.iterdir())
        chosen = target / folder.relative_to(source)
        chosen.mkdir(parents=True)
        for file in files[: max(2, round(part * len(files)))]:
            shutil.copy(file, chosen)
    return target


def fresh_cache(setting: Setting) -> Path:
    """Makes a cache folder that holds the downloads only."""
    cache = Path(tempfile.mkdtemp(dir=setting.scratch, prefix='cache-'))
    for wanted in (VGG16_IMAGENET, TRAFFIC_LIGHTS):
        asset = fetch(wanted)
        (cache / asset.name).symlink_to(asset)
    return cache


def run_tlflax(setting: Setting, cache: Path, epochs: int) -> Run:
    """Trains with the command line that a user types, in a new workdir."""
    workdir = Path(tempfile.mkdtemp(dir=setting.scratch, prefix='run-'))
    command = [
        *('-m', 'tlflax.train', f'--config={ROOT / "configs" / "traffic.py"}'),
        *(f'--config.train.epochs={epochs}', '--config.early_stopping.monitor='),
        '--config.train.report=False',
        f'--workdir={workdir}',
    ]
    if setting.quick:
        command += [
            f'--config.data.train={setting.images / "Train"}',
            f'--config.data.val={setting.images / "Test"}',
            f'--config.data.image_size=({QUICK_SIZE},{QUICK_SIZE})',
            f'--config.features.layer={QUICK_LAYER}',
        ]
    seconds, _ = time_process(command, TLFLAX_CACHE=str(cache))
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return Run(
        seconds,
        tuple(record['epoch_seconds'] for record in records),
        tuple(record['val_accuracy'] for record in records),
    )


def run_keras(setting: Setting, epochs: int) -> Run:
    """Trains the Keras recipe."""
    script = Path(__file__).with_name('keras_recipe.py')
    command = [str(script), str(setting.images), str(setting.weights), f'--epochs={epochs}']
    if setting.quick:
        command += [f'--image-size={QUICK_SIZE}', f'--layer={QUICK_LAYER}']
    seconds, output = time_process(command, KERAS_BACKEND='tensorflow')
    records = [json.loads(line) for line in output.splitlines() if line.startswith('{')]
    return Run(
        seconds,
        tuple(record['seconds'] for record in records),
        tuple(record['val_accuracy'] for record in records),
    )


def time_process(arguments: list[str], **environment: str) -> tuple[float, str]:
    """Runs Python with these arguments, on the CPU; returns seconds to its exit and its output."""
    kept = {name: value for name, value in os.environ.items() if name not in MISLEADING}
    env = {**kept, 'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '3', **environment}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], env=env, cwd=ROOT, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f'{" ".join(arguments)} failed\n{done.stderr[-4000:]}')
    return seconds, done.stdout


def measure_tlflax(setting: Setting, cold: int, warm: int) -> dict[str, list[Run]]:
    """Returns the runs of each kind, `cold` or `warm` times each."""
    runs: dict[str, list[Run]] = {'cold_10': [], 'cold_30': [], 'warm_10': []}
    for _ in range(cold):
        cache = fresh_cache(setting)
        runs['cold_10'].append(_told('tlflax cold_10', run_tlflax(setting, cache, 10)))
        if not setting.quick:
            other = fresh_cache(setting)
            runs['cold_30'].append(_told('tlflax cold_30', run_tlflax(setting, other, 30)))
    for _ in range(warm):
        runs['warm_10'].append(_told('tlflax warm_10', run_tlflax(setting, cache, 10)))
    return runs


def summarize(tlflax: dict[str, list[Run]], keras: Run | None) -> Figures:
    """Returns every figure; those of Keras are None where it was not run."""
    seconds: dict[str, list[float]] = {
        kind: [run.seconds for run in runs] for kind, runs in tlflax.items()
    }
    if not seconds['cold_30']:
        seconds['cold_30'] = [run.extrapolated(30) for run in tlflax['cold_10']]
    last = tlflax['cold_10'][-1]
    ratio: dict[str, float | None] = dict.fromkeys(seconds)
    accuracy = {'tlflax': last.accuracies[-1], 'keras': None, 'tlflax_after_as_many': None}
    peer: Figures | None = None
    if keras:
        ran = len(keras.epochs)
        peer = {'process': keras.seconds, 'epochs': keras.epochs, 'extrapolated_from': ran}
        peer |= {str(epochs): keras.extrapolated(epochs) for epochs in (10, 30)}
        for kind in ratio:
            ratio[kind] = peer[kind.split('_')[1]] / statistics.median(seconds[kind])
        accuracy['keras'] = keras.accuracies[-1]
        accuracy['tlflax_after_as_many'] = last.accuracies[min(ran, len(last.accuracies)) - 1]
    return {
        'ratio': ratio,
        'accuracy': accuracy,
        'seconds': {'tlflax': seconds, 'keras': peer},
        'machine': cpu.described(),
    }


def show(figures: Figures) -> None:
    """Prints the table."""
    peer = figures['seconds']['keras']
    print(f'\n{"":8} {"tlflax, median s (min-max)":28} {"Keras, s":>9} {"ratio":>7}')
    for kind, ratio in figures['ratio'].items():
        times = figures['seconds']['tlflax'][kind]
        ours = f'{statistics.median(times):.1f} ({min(times):.1f}-{max(times):.1f})'
        theirs = f'{peer[kind.split("_")[1]]:9.1f} {ratio:7.1f}' if peer else f'{"-":>9} {"-":>7}'
        print(f'{kind:8} {ours:28} {theirs}')
    accuracy = figures['accuracy']
    print(f'validation accuracy: tlflax {accuracy["tlflax"]:.4f} after 10 epochs', end='')
    if peer:
        ran = peer['extrapolated_from']
        print(
            f', {accuracy["tlflax_after_as_many"]:.4f} after {min(ran, 10)};'
            f' Keras {accuracy["keras"]:.4f} after {ran}'
        )
        print(f"Keras's seconds are extrapolated linearly from a process of {ran} epochs", end='')
    print()


def main() -> int:
    """Runs the benchmark and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--quick', action='store_true', help='small images, a first answer')
    parser.add_argument(
        '--keras-epochs', type=int, default=KERAS_EPOCHS, help='epochs of Keras that are run'
    )
    parser.add_argument('--repeats', type=int, help='warm runs; default 3, with --quick 1')
    parser.add_argument('--cold-repeats', type=int, default=1, help='cold runs of each length')
    parser.add_argument('--folder', type=Path, help='where to write; default: a temporary folder')
    options = parser.parse_args()
    if options.keras_epochs < 2:
        parser.error('--keras-epochs: the first epoch is not like the others, so 2 or more')
    if options.cold_repeats < 1:
        parser.error('--cold-repeats: at least 1')
    print(cpu.described(), flush=True)
    try:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix='bench_training-') as scratch:
            setting = prepare(Path(scratch), options.quick)
            keras = None
            if all(importlib.util.find_spec(name) for name in ('keras', 'tensorflow')):
                keras = _told('Keras', run_keras(setting, options.keras_epochs))
            else:
                print('Keras is not installed and left out')
            warm = options.repeats or (1 if options.quick else 3)
            tlflax = measure_tlflax(setting, options.cold_repeats, warm)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return EXIT_CODE
    figures = {'quick': options.quick, **summarize(tlflax, keras)}
    show(figures)
    print(json.dumps(figures))
    return 0


def _told(name: str, run: Run) -> Run:
    first, *others = run.epochs
    print(
        f'{name}: {run.seconds:.1f} s for {len(run.epochs)} epochs: '
        f'the first {first:.2f} s, the others {statistics.median(others):.2f} s each',
        flush=True,
    )
    return run


if __name__ == '__main__':
    sys.exit(main())
