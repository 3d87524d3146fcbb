"""The cost of splitting a training: several devices and processes against one, at the same work.

    python scripts/bench_scaling.py [--ways=linear,conv] [--rounds=1] [--images=384] [--size=224]
                                    [--quick]

The same training (the same batches of 64 of the same images, in the same order) runs on one device,
on eight virtual devices of one process, and in four processes over loopback, all on this machine's
cores, so that nothing can be gained: what is measured is what splitting and communication cost.
Four ways, on VGG16 with random weights and images of noise:

- linear, conv: a linear head, and that of the traffic recipe, on kept features,
- fine-tuning: the last block with the recipe's head, on kept features, of half of the images,
- live: the backbone on every batch, with the recipe's head, of a third of the images.

The time of a side is the median of its epochs, validation included, without the first, which
compiles. The losses of the first five epochs must agree to 1e-5, those of fine-tuning to 1e-3: Adam
divides the smallest gradients by their own size, and so rounding errors by theirs, which grow from
epoch to epoch.

Prints a line for each run and, as its last line, JSON: for each way the ratios of the time to that
of one device, and the seconds. Takes about seven minutes on two idle cores; `--quick` takes few
small images, where the fixed costs of a step are nearly all.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

SIDES = {'one': (1, 1), 'devices': (1, 8), 'processes': (4, 1)}  # processes, devices of each
COMPARED = 5  # epochs
BLOCK5 = "--config.optim.labels=(('backbone/block[1-4].*','frozen'),('.*','all'))"


class Way(NamedTuple):
    """A kind of training: its flags, epochs, part of the images, and tolerance of losses."""

    flags: tuple[str, ...]
    epochs: int
    part: float
    tolerance: float = 1e-5


WAYS = {
    'linear': Way(('--config.model.head=flatten_linear',), 20, 1),
    'conv': Way((), 20, 1),
    'fine-tuning': Way((BLOCK5,), 4, 1 / 2, 1e-3),
    'live': Way(('--config.features.cache=False',), 4, 1 / 3),
}


def make_images(root: Path, count: int, size: int) -> None:
    """Writes JPEGs of noise in two classes, and 32 for validation."""
    rng = np.random.default_rng(0)
    for split, n in (('Train', count), ('Val', 32)):
        for name in ('a', 'b'):
            (root / split / name).mkdir(parents=True)
            for i in range(n // 2):
                pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f'{i}.jpg')


def free_port() -> int:
    """Returns a port that is free now."""
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return int(found.getsockname()[1])


def train(
    side: str, way: Way, epochs: int, root: Path, workdir: Path, size: int
) -> list[dict[str, float]]:
    """Trains on one side; returns the records of the epochs."""
    count, devices = SIDES[side]
    flags = [
        '--config=configs/traffic.py', f'--workdir={workdir}',
        f'--config.data.train={root}/Train', f'--config.data.val={root}/Val',
        f'--config.data.image_size={size},{size}', '--config.data.audit=off',
        '--config.augment.horizontal_flip=False', '--config.weights.source=random',
        '--config.train.batch_size=64', f'--config.train.epochs={epochs}',
        '--config.train.report=False', '--config.early_stopping.monitor=',
        '--config.optim.learning_rate=1e-4', *way.flags,
    ]  # fmt: skip
    xla = f'--xla_force_host_platform_device_count={devices}'
    port, running = free_port(), []
    for number in range(count):
        place = [f'--coordinator=127.0.0.1:{port}', f'--num_processes={count}']
        here = [*place, f'--process_id={number}'] if count > 1 else []
        env = {
            **os.environ, 'TLFLAX_CACHE': str(root.parent / 'cache'),
            'XLA_FLAGS': xla, 'JAX_PLATFORMS': 'cpu',
        }  # fmt: skip
        command = [sys.executable, '-m', 'tlflax.train', *flags, *here]
        quiet = subprocess.DEVNULL if number else None
        running.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=quiet))
    codes = [one.wait() for one in running]
    if any(codes):
        raise SystemExit(f'the training on {side} failed')
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def measure(
    name: str, sides: list[str], folder: Path, options: argparse.Namespace
) -> dict[str, float]:
    """Returns the median seconds of an epoch on each side; checks that all learn the same."""
    way = WAYS[name]
    images = max(64, round(options.images * way.part))
    root = folder / str(images)
    if not root.exists():
        make_images(root, images, options.size)
    epochs = 2 if options.quick else way.epochs
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    losses: dict[str, list[float]] = {}
    for turn in range(options.rounds):
        for side in sides:
            workdir = folder / f'{name}-{side}-{turn}'
            records = train(side, way, epochs, root, workdir, options.size)
            seconds[side] += [record['epoch_seconds'] for record in records[1:]]
            losses[side] = [record['val_loss'] for record in records]
            print(f'{name} on {side}: {seconds[side][-1]:.3f} s', file=sys.stderr)
    for side in sides:
        np.testing.assert_allclose(
            losses[side][:COMPARED], losses[sides[0]][:COMPARED], rtol=way.tolerance
        )
    return {side: statistics.median(found) for side, found in seconds.items()}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--ways', default=','.join(WAYS), help='which, separated by commas')
    parser.add_argument('--sides', default=','.join(SIDES), help='the first is compared with')
    parser.add_argument('--rounds', type=int, default=1, help='of each side, in turn')
    parser.add_argument('--images', type=int, default=384, help='for training')
    parser.add_argument('--size', type=int, default=224, help='pixels across')
    parser.add_argument('--quick', action='store_true', help='the smallest figures, to try it')
    options = parser.parse_args()
    if options.quick:
        options.images, options.size = 64, 128
    ratios: dict[str, dict[str, float]] = {}
    seconds: dict[str, dict[str, float]] = {}
    sides = options.sides.split(',')
    with tempfile.TemporaryDirectory() as folder:
        for way in options.ways.split(','):
            found = measure(way, sides, Path(folder), options)
            ratios[way] = {side: round(found[side] / found[sides[0]], 3) for side in sides}
            seconds[way] = {side: round(value, 4) for side, value in found.items()}
            print(f'{way}: {ratios[way]}', file=sys.stderr)
    print(json.dumps({'ratios': ratios, 'seconds': seconds}))


if __name__ == '__main__':
    main()
