"""Fine-tuning: block 5 of VGG16 and a head, in tlflax against Keras and PyTorch.

    python scripts/bench_finetune.py [--images=N] [--epochs=N] [--accuracy-epochs=N] [--check]

All three train block 5 and the head of `configs/traffic.py` from the ImageNet weights, with random
flips, Adam at one rate and batches of 32, from the same images, on the CPU of the same machine. The
peers (`scripts/finetune_peers.py`) hold decoded images in memory and run the frozen blocks without
gradients in every epoch. tlflax is the training command with an empty cache: it computes the
features of both views of each image once, and writes a checkpoint after every epoch.

What is timed are whole processes of 1 + `--epochs` epochs, one after the other. The seconds of 10
and 30 epochs are COMPUTED from it: those of the process, and as many more of its epochs (the median
of all but the first) as are missing; an epoch's work is always the same. Start, compilation and the
extraction of features are thus counted once. A ratio is a peer's seconds by tlflax's.

Accuracies are those of the Test images after `--accuracy-epochs` epochs, for three seeds, in other
processes, in which the peers run the frozen blocks only once too (the result is the same).

`--check` trains 20 steps of SGD with the real widths on 64 random images of 64x64 pixels, from
features by the fast program of `tlflax/models/vgg/trained_cpu.py` and from images by direct
convolution, and prints the largest relative difference of a gradient and of a parameter. The last
line is JSON.
"""

import argparse
import dataclasses
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bench_training import MISLEADING, ROOT, Figures, Run, copy_part, time_process

from tlflax.data.inputs.demos import TRAFFIC_LIGHTS
from tlflax.models import pretrained
from tlflax.models.vgg.rows import VGG16
from tlflax.models.weights.catalogue import VGG16_IMAGENET
from tlflax.utils import cpu, trees
from tlflax.utils.assets import fetch

RULES = (('backbone/block5.*', 'tail'), ('backbone/.*', 'frozen'), ('head/.*', 'head'))
SIDES = ('tlflax', 'keras', 'torch')
LENGTHS = (10, 30)
SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Setting:
    """The inputs of all sides.

    Attributes:
        images: Holds Train/ and Test/.
        weights: The backbone's arrays, .npz.
        scratch: A folder for what the runs write.
        size: Height and width in pixels.
        rate: The learning rate.
    """

    images: Path
    weights: Path
    scratch: Path
    size: int
    rate: float


def prepare(options: argparse.Namespace, scratch: Path) -> Setting:
    """Fetches images and weights and puts them where all sides find them."""
    images, weights = options.data or fetch(TRAFFIC_LIGHTS), options.weights
    if weights is None:
        weights = scratch / 'weights.npz'
        arrays = trees.flatten(pretrained.load(fetch(VGG16_IMAGENET), VGG16).variables.params)
        np.savez(weights, **arrays)
    count = sum(path.is_file() for path in (images / 'Train').glob('*/*'))
    if options.images and options.images < count:
        images = copy_part(images, scratch / 'images', options.images / count)
    return Setting(images.resolve(), weights.resolve(), scratch, options.size, options.rate)


def run(setting: Setting, side: str, epochs: int, *, seed: int, cache: Path, once: bool) -> Run:
    """Trains; `once` lets the peers run the frozen blocks only once."""
    if side == 'tlflax':
        return run_tlflax(setting, epochs, seed, cache)
    command = [
        *(str(Path(__file__).with_name('finetune_peers.py')), side),
        *(str(setting.images), str(setting.weights), f'--epochs={epochs}', f'--seed={seed}'),
        *(f'--rate={setting.rate}', f'--image-size={setting.size}', *['--once'] * once),
    ]
    seconds, output = time_process(command)
    records = [json.loads(line) for line in output.splitlines() if line.startswith('{')]
    return Run(
        seconds,
        tuple(record['seconds'] for record in records),
        tuple(record['val_accuracy'] for record in records),
    )


def run_tlflax(setting: Setting, epochs: int, seed: int, cache: Path) -> Run:
    """Trains with the command line that a user types; checkpoints belong to an epoch's seconds."""
    workdir = Path(tempfile.mkdtemp(dir=setting.scratch, prefix='run-'))
    changes = {
        'data.train': setting.images / 'Train',
        'data.val': setting.images / 'Test',
        'data.image_size': (setting.size, setting.size),
        'weights.source': setting.weights,
        'weights.preprocess': 'caffe',
        'optim.labels': RULES,
        'optim.learning_rate': setting.rate,
        'train.epochs': epochs,
        'train.seed': seed,
        'early_stopping.monitor': '',
        'train.report': False,
    }
    command = ['-m', 'tlflax.train', f'--config={ROOT / "configs" / "traffic.py"}']
    command += [f'--config.{key}={value}' for key, value in changes.items()]
    records = workdir / 'metrics.jsonl'
    stamps = list(_stamps([*command, f'--workdir={workdir}'], records, cache))
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    # An epoch's line is written before its checkpoint, so the last checkpoint is not in it.
    between = [after - before for before, after in itertools.pairwise(stamps[:-1])]
    first = lines[0]['epoch_seconds']
    return Run(stamps[-1], (first, *between), tuple(line['val_accuracy'] for line in lines))


def _stamps(command: list[str], records: Path, cache: Path) -> Iterator[float]:
    """Runs Python; yields the seconds at which lines appear in a file, and those of the exit."""
    kept = {name: value for name, value in os.environ.items() if name not in MISLEADING}
    env = {**kept, 'JAX_PLATFORMS': 'cpu', 'TLFLAX_CACHE': str(cache)}
    began, seen = time.perf_counter(), 0
    log = records.parent.with_suffix('.log')
    with (
        log.open('w') as file,
        subprocess.Popen(
            [sys.executable, *command], env=env, cwd=ROOT, stdout=file, stderr=file
        ) as process,
    ):
        while True:
            ended = process.poll() is not None
            found = records.read_text().count('\n') if records.exists() else 0
            for _ in range(seen, found):
                yield time.perf_counter() - began
            seen = found
            if ended:
                break
            time.sleep(0.01)
        yield time.perf_counter() - began
        if process.returncode:
            sys.exit(f'tlflax failed\n{log.read_text()[-4000:]}')


def summarize(timed: dict[str, Run], accurate: dict[str, list[Run]]) -> Figures:
    """Returns ratios, accuracies and seconds of the sides that were run."""
    seconds = {
        side: {
            'process': run.seconds,
            'epochs': run.epochs,
            **{str(epochs): run.extrapolated(epochs) for epochs in LENGTHS},
        }
        for side, run in timed.items()
    }
    ours: dict[str, Any] = seconds.get('tlflax', {})
    ratio = {
        f'{side}_{epochs}': seconds[side][str(epochs)] / ours[str(epochs)]
        if ours and side in seconds
        else None
        for epochs in LENGTHS
        for side in SIDES[1:]
    }
    accuracy = {side: [run.accuracies[-1] for run in runs] for side, runs in accurate.items()}
    return {'ratio': ratio, 'accuracy': accuracy, 'seconds': seconds}


def show(figures: Figures) -> None:
    """Prints the table."""
    print(f'\n{"":8} {"epoch, s":>9} {"10 epochs":>10} {"30 epochs":>10} {"ratio":>13}  accuracy')
    for side, seconds in figures['seconds'].items():
        ratios = [figures['ratio'].get(f'{side}_{epochs}') for epochs in LENGTHS]
        shown = ' '.join(f'{ratio:6.2f}' if ratio else f'{"":6}' for ratio in ratios)
        accuracy = ', '.join(f'{value:.4f}' for value in figures['accuracy'].get(side, []))
        epoch = statistics.median(seconds['epochs'][1:])
        print(
            f'{side:8} {epoch:9.2f} {seconds["10"]:10.1f} {seconds["30"]:10.1f} {shown}  {accuracy}'
        )
    print('10 and 30 epochs are computed from the process and the median of its later epochs')


def measure(options: argparse.Namespace, scratch: Path) -> Figures:
    """Runs every side."""
    setting, sides = prepare(options, scratch), []
    for side in options.sides:
        if side == 'tlflax' or importlib.util.find_spec(side):
            sides.append(side)
        else:
            print(f'{side} is not installed and left out')
    cache = scratch / 'cache'
    timed: dict[str, Run] = {}
    for side in sides:
        timed[side] = run(setting, side, 1 + options.epochs, seed=0, cache=cache, once=False)
        later = statistics.median(timed[side].epochs[1:])
        print(f'{side}: {timed[side].seconds:.1f} s, an epoch {later:.2f} s', flush=True)
    accurate: dict[str, list[Run]] = {side: [] for side in sides if options.accuracy_epochs}
    for seed in SEEDS:
        for side, runs in accurate.items():
            epochs = options.accuracy_epochs
            runs.append(run(setting, side, epochs, seed=seed, cache=cache, once=True))
            print(f'{side}, seed {seed}: {runs[-1].accuracies[-1]:.4f}', flush=True)
    counts = {
        split.lower(): len(list((setting.images / split).glob('*/*')))
        for split in ('Train', 'Test')
    }
    return {
        **summarize(timed, accurate),
        'images': counts,
        'size': setting.size,
        'learning_rate': setting.rate,
        'measured_epochs': options.epochs,
        'accuracy_epochs': options.accuracy_epochs,
        'machine': cpu.described(),
    }


def check(options: argparse.Namespace, scratch: Path) -> Figures:
    """Trains from features and from images and returns the largest differences.

    A value near zero may be on the other side of zero in one of both; ReLU then passes another
    gradient. So the median over the steps is given too.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from tlflax.models import classifier, heads
    from tlflax.models.base.modules import Variables
    from tlflax.train import steps
    from tlflax.train.losses import Loss
    from tlflax.train.optim.build import build
    from tlflax.train.optim.learner import partition_variables
    from tlflax.utils.labels import label_tree, partition

    with np.load(prepare(options, scratch).weights) as arrays:
        backbone = trees.unflatten({path: jnp.asarray(array) for path, array in arrays.items()})
    head = heads.init('gap_linear', (2, 2, 512), 3, jax.random.key(0), units=1, dropout=0.0)
    params = {'backbone': backbone, 'head': head.params}
    labels = label_tree(params, RULES)
    trainable, frozen = partition_variables(Variables(params, {}), labels)
    model = classifier.create(
        VGG16, trainable.params, image_size=(64, 64), num_classes=3, head='gap_linear', units=1,
        dropout=0.0, preprocess='caffe', layer='block5_pool',
    )  # fmt: skip
    plain = dataclasses.replace(VGG16, trained=None)
    kinds = (model, dataclasses.replace(model, cut='image', backbone=plain))
    rates = dict.fromkeys(('tail', 'head'), 1e-3)
    tx = build(partition(labels, labels)[0], name='sgd', learning_rates=rates)
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.integers(0, 256, (64, 4, 4, 3), np.uint8).repeat(16, 1).repeat(16, 2))
    below = {'label': jnp.asarray(rng.integers(0, 3, 64, np.int32)), 'mask': jnp.ones(64, bool)}
    batches = (
        below | {'features': model.features(frozen.branch('backbone'), image)},
        below | {'image': image},
    )
    states, differences = [steps.init_state(trainable, tx)] * 2, []
    for _ in range(20):
        grads = []
        for i, (kind, batch) in enumerate(zip(kinds, batches, strict=True)):
            old = states[i]
            grad, _ = steps.gradient_step(old, frozen, batch, 0, Loss(), classifier=kind)
            updates, moments = tx.update(grad, old.opt_state, old.params)
            params = optax.apply_updates(old.params, updates)
            states[i] = old._replace(step=old.step + 1, params=params, opt_state=moments)
            grads.append(grad)
        differences.append(_difference(*grads))
    first, last = trainable.params, [state.params for state in states]
    return {
        'gradient_largest': max(differences),
        'gradient_median': statistics.median(differences),
        'parameters': _difference(*last),
        'learned': _difference(last[0], first),
    }


def _difference(got: trees.Tree, want: trees.Tree) -> float:
    """Returns the norm of all differences by the norm of all values, in float64."""
    pairs = [
        [np.asarray(leaf, np.float64).ravel() for leaf in trees.flatten(tree).values()]
        for tree in (got, want)
    ]
    one, other = map(np.concatenate, pairs)
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def main() -> None:
    """Runs the benchmark or the check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data', type=Path, help='a folder with Train/ and Test/; default: demo')
    parser.add_argument('--weights', type=Path, help='.npz; default: the ImageNet weights')
    parser.add_argument('--images', type=int, default=0, help='about so many in Train/; 0: all')
    parser.add_argument('--size', type=int, default=224, help='height and width, 128 at least')
    parser.add_argument('--rate', type=float, default=1e-4, help='learning rate')
    parser.add_argument('--epochs', type=int, default=3, help='measured after the first')
    parser.add_argument('--accuracy-epochs', type=int, default=10, help='0: no accuracies')
    parser.add_argument('--sides', nargs='+', choices=SIDES, default=list(SIDES))
    parser.add_argument('--check', action='store_true', help='compare gradients instead')
    options = parser.parse_args()
    if options.epochs < 1:
        parser.error('--epochs: the first epoch is not like the others, so at least 1 more')
    print(cpu.described(), flush=True)
    with tempfile.TemporaryDirectory(prefix='bench_finetune-') as scratch:
        if options.check:
            figures = check(options, Path(scratch))
        else:
            figures = measure(options, Path(scratch))
            show(figures)
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
