"""What reproduce.py measures on one set of images: every method, each in a fresh workdir."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from image_sets import ImageSet

from tlflax.config import libraries
from tlflax.config.schema import Config
from tlflax.features import on_host
from tlflax.features.sources import require_on_device
from tlflax.probe import run as probe
from tlflax.probe import shots as few_shot
from tlflax.sweep import auto
from tlflax.train import setup, train_and_evaluate
from tlflax.utils.files import JsonObject
from tlflax.workdir.files import Workdir

RIGHT, WRONG = 'auto', 'rescale'
"""Values of `weights.preprocess`."""
RECIPE, PROBE, AUTO, KERAS, TORCH = 'recipe', 'probe', 'auto', 'Keras', 'PyTorch'
PEERS = {KERAS: 'keras', TORCH: 'torch'}


class Measured(NamedTuple):
    """A method on one set.

    Attributes:
        accuracies: Of the validation images in %, one for each seed.
        seconds: That it took from features in the cache, one for each seed.
    """

    accuracies: list[float]
    seconds: list[float]


class Effort(NamedTuple):
    """How much is measured.

    Attributes:
        seeds: Of what is trained by steps.
        shots: Numbers of training images of each class.
        draws: Random draws for each of them.
        preprocessing: Values of `weights.preprocess`, the right one last.
    """

    seeds: int
    shots: tuple[int, ...]
    draws: int
    preprocessing: tuple[str, ...]


FULL = Effort(3, (1, 2, 5, 10, 20), 20, (WRONG, RIGHT))
QUICK = Effort(1, (1, 2), 2, (RIGHT,))


def warm(images: ImageSet, preprocess: str) -> setup.Inputs:
    """Computes the features that the methods need, so that no method's time includes them.

    The automatic choice needs more, and is run once before it is measured.
    """
    recipe = images.configure('traffic', weights__preprocess=preprocess)
    inputs = setup.load(recipe)
    _read(recipe, inputs)
    return inputs


def _read(config: Config, inputs: setup.Inputs) -> None:
    run = setup.build(config, inputs)
    run.sources.train(run.splits.train)
    for name, table in run.splits.by_name.items():
        run.sources.eval(table, name)


def methods(images: ImageSet, effort: Effort, preprocess: str) -> dict[str, Measured]:
    """Measures recipe, probe and the automatic choice with one preprocessing."""
    changes = {'weights__preprocess': preprocess}
    if not images.quick:
        _once(lambda work: _auto(images, work, **changes))  # computes features
    return {
        RECIPE: by_steps(images, 'traffic', effort.seeds, **changes),
        PROBE: _once(lambda work: _probe(images.configure('traffic', **changes), work)),
        AUTO: _once(lambda work: _auto(images, work, **changes)),
    }


def step_trained(images: ImageSet, effort: Effort) -> dict[str, Measured]:
    """Measures the heads that `configs/images.py` trains by steps."""
    return {
        head: by_steps(images, 'images', effort.seeds, model__head=head) for head in images.heads
    }


def by_steps(images: ImageSet, recipe: str, seeds: int, **changes: Any) -> Measured:
    """Trains a head with each seed."""

    def train(work: Path, seed: int) -> float:
        raw = images.raw(recipe, train__seed=seed, **changes)
        return float(train_and_evaluate(raw, work)['val']['accuracy'])

    return _timed(train, seeds)


def _once(measure: Callable[[Path], float]) -> Measured:
    return _timed(lambda work, seed: measure(work), 1)


def _timed(measure: Callable[[Path, int], float], seeds: int) -> Measured:
    """Calls `measure` with a new folder and each seed."""
    found = Measured([], [])
    for seed in range(seeds):
        with tempfile.TemporaryDirectory(prefix='reproduce-') as folder:
            began = time.perf_counter()
            found.accuracies.append(100 * measure(Path(folder) / 'run', seed))
            found.seconds.append(time.perf_counter() - began)
    return found


def _probe(config: Config, work: Path) -> float:
    return float(probe.run(config, Workdir(work))['val']['accuracy'])


def _auto(images: ImageSet, work: Path, **changes: Any) -> float:
    raw = images.raw('images', model__head='auto', **changes)
    return float(auto.choose_and_evaluate(raw, work)[0]['val']['accuracy'])


def shots(images: ImageSet, effort: Effort, preprocess: str) -> list[JsonObject]:
    """Returns the accuracies from few images of each class, as `tlflax.probe --shots` does."""
    config = images.configure('traffic', weights__preprocess=preprocess)
    with tempfile.TemporaryDirectory(prefix='reproduce-') as folder:
        work = Workdir(Path(folder) / 'shots')
        return few_shot.run(config, work, effort.shots, effort.draws)['shots']


def peers(images: ImageSet, inputs: setup.Inputs, effort: Effort) -> dict[str, Measured]:
    """Measures Keras's and PyTorch's training of the recipe's head; those that are installed."""
    found = {}
    with tempfile.TemporaryDirectory(prefix='reproduce-') as folder:
        path = Path(folder) / 'features.npz'
        np.savez(path, **features(images.configure('traffic'), inputs))
        for name, module in PEERS.items():
            if importlib.util.find_spec(module) is None:
                logging.warning('WARNING: %s is not installed: left out', module)
                continue
            epochs = 2 if images.quick else 50
            rows = [_run_peer(module, path, seed, epochs) for seed in range(effort.seeds)]
            accuracies = [100 * row['accuracy'] for row in rows]
            found[name] = Measured(accuracies, [row['seconds'] for row in rows])
    return found


def features(config: Config, inputs: setup.Inputs) -> dict[str, Any]:
    """Returns what head_peers.py reads: both views of the training images, and the others."""
    run = setup.build(config, inputs)
    cached = require_on_device(run.sources.train(run.splits.train))
    every, plain = np.asarray(cached.on_device.features), cached.places[0]
    views = [every[np.where(place >= 0, place, plain)] for place in cached.places[:2]]
    val, val_label = on_host.read(run.sources.eval(run.splits.val, 'validation'))
    label = np.asarray(run.splits.train.labels)
    return {'views': np.stack(views), 'label': label, 'val': val, 'val_label': val_label}


def _run_peer(module: str, path: Path, seed: int, epochs: int) -> JsonObject:
    script = Path(__file__).with_name('head_peers.py')
    command = [str(script), module, str(path), f'--seed={seed}', f'--epochs={epochs}']
    return json.loads(_output(command).splitlines()[-1])


def _output(command: Sequence[str]) -> str:
    # tlflax sets these for itself; a user of Keras would not.
    kept = {key: v for key, v in os.environ.items() if key not in libraries.READING}
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True, text=True, check=False, env={**kept, 'KERAS_BACKEND': 'tensorflow'},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout
