"""The cost of splitting a training: several devices and processes against one, at the same work.

    python scripts/bench_scaling.py [--epochs=6] [--rounds=3] [--images=384] [--quick]

The same training (the same batches of the same images, in the same order) runs on one device, on
eight virtual devices of one process, and in four processes over loopback, all on this machine's
cores, so that nothing can be gained: what is measured is what splitting and communication cost.
Three ways: a head on kept features, the last block fine-tuned on kept features, and the backbone on
every batch. Times are those of the epochs after the first, which compiles; the losses must agree
to 1e-5.

Prints a line for each way and round, and as its last line JSON: for each way the median ratios of
the time to that of one device.
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

import numpy as np
from PIL import Image

SIDES = {'one': (1, 1), 'devices': (1, 8), 'processes': (4, 1)}  # processes, devices of each
WAYS = {
    'head': (),
    'fine-tuning': (
        "--config.optim.labels=(('backbone/block[1-4].*','frozen'),('.*','all'))",
    ),
    'live': ('--config.features.cache=False',),
}  # fmt: skip


def make_images(root: Path, count: int, size: int) -> None:
    """Writes JPEGs of noise in two classes."""
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


def train(side: str, way: str, root: Path, workdir: Path, options: argparse.Namespace) -> list[str]:
    """Trains on one side; returns the lines of its metrics.jsonl."""
    count, devices = SIDES[side]
    flags = [
        '--config=configs/traffic.py', f'--workdir={workdir}',
        f'--config.data.train={root}/Train', f'--config.data.val={root}/Val',
        f'--config.data.image_size={options.size},{options.size}', '--config.data.audit=off',
        '--config.weights.source=random', '--config.model.head=flatten_linear',
        '--config.train.batch_size=32', f'--config.train.epochs={options.epochs}',
        '--config.train.report=False', '--config.early_stopping.monitor=',
        '--config.optim.learning_rate=1e-4', *WAYS[way],
    ]  # fmt: skip
    xla = f'--xla_force_host_platform_device_count={devices}'
    port, running = free_port(), []
    for number in range(count):
        place = [f'--coordinator=127.0.0.1:{port}', f'--num_processes={count}']
        here = [*place, f'--process_id={number}'] if count > 1 else []
        env = {**os.environ, 'TLFLAX_CACHE': str(root / 'cache'), 'XLA_FLAGS': xla}
        command = [sys.executable, '-m', 'tlflax.train', *flags, *here]
        quiet = subprocess.DEVNULL if number else None
        running.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=quiet))
    codes = [one.wait() for one in running]
    if any(codes):
        raise SystemExit(f'the training on {side} failed')
    return (workdir / 'metrics.jsonl').read_text().splitlines()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--epochs', type=int, default=6, help='the first is not measured')
    parser.add_argument('--rounds', type=int, default=3, help='of each side, in turn')
    parser.add_argument('--images', type=int, default=384, help='for training')
    parser.add_argument('--size', type=int, default=96, help='pixels across')
    parser.add_argument('--quick', action='store_true', help='the smallest figures, to try it')
    options = parser.parse_args()
    if options.quick:
        options.epochs, options.rounds, options.images, options.size = 2, 1, 64, 32
    ratios: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_images(root, options.images, options.size)
        for way in WAYS:
            seconds: dict[str, list[float]] = {side: [] for side in SIDES}
            losses: dict[str, list[float]] = {}
            for turn in range(options.rounds):
                for side in SIDES:
                    lines = train(side, way, root, root / f'{way}-{side}-{turn}', options)
                    records = [json.loads(line) for line in lines]
                    seconds[side].append(sum(one['epoch_seconds'] for one in records[1:]))
                    losses[side] = [one['val_loss'] for one in records]
                    print(f'{way} on {side}: {seconds[side][-1]:.2f} s', file=sys.stderr)
            for side in SIDES:
                np.testing.assert_allclose(losses[side], losses['one'], rtol=1e-5)
            median = {side: statistics.median(found) for side, found in seconds.items()}
            ratios[way] = {side: round(median[side] / median['one'], 3) for side in SIDES}
    print(json.dumps(ratios))


if __name__ == '__main__':
    main()
