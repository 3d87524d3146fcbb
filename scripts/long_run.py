"""Trains for many epochs from the cache and watches what the process holds.

    python scripts/long_run.py --epochs=1000 [--record=FILE]

A small run on generated images. Memory, file handles and threads of the process are read twenty
times; the least in the second half may not be above that in the first. There may be three
checkpoints at most, and every line of metrics.jsonl must be an epoch. Prints one JSON line; exit
code 1 if something grew.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from small_runs import command, in_child, make_images, report

CONFIG = """
from tlflax.config import default_config

def get_config():
    config = default_config()
    config.data.train, config.data.val = {train!r}, {val!r}
    config.data.image_size = (32, 32)
    config.weights.source = 'random'
    config.features.layer = 'block3_pool'
    config.model.head = 'flatten_linear'
    config.train.epochs = {epochs}
    config.train.batch_size, config.train.report = 8, False
    config.early_stopping.monitor = ''
    return config
"""
GROWTH = {'rss_mb': 16.0, 'handles': 4, 'threads': 4}  # at most


def holds(process: int) -> dict[str, float]:
    """Returns what a process holds, as Linux tells."""
    place = Path('/proc') / str(process)
    pages = int((place / 'statm').read_text().split()[1])
    return {
        'rss_mb': round(pages * os.sysconf('SC_PAGE_SIZE') / 2**20, 1),
        'handles': len(os.listdir(place / 'fd')),
        'threads': len(os.listdir(place / 'task')),
    }


def watch(child: int, workdir: Path, epochs: int) -> tuple[list[dict[str, float]], int]:
    """Reads what a run holds, twenty times; returns that, and the most checkpoints there were."""
    metrics, checkpoints = workdir / 'metrics.jsonl', workdir / 'checkpoints'
    found: list[dict[str, float]] = []
    most = 0
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        done = metrics.read_text().count('\n') if metrics.exists() else 0
        if checkpoints.is_dir():
            names = [name for name in os.listdir(checkpoints) if name.isdigit()]
            most = max(most, len(names))
        if done >= epochs * (len(found) + 1) // 21:
            found.append({'epoch': done, **holds(child)})
        time.sleep(0.02)
    return found, most


def main() -> int:
    """Runs and prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--epochs', type=int, default=1000)
    parser.add_argument('--record', help='file to which the line is added')
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix='tlflax-long-') as name:
        folder = Path(name)
        make_images(folder)
        train, val = str(folder / 'Train'), str(folder / 'Test')
        (folder / 'config.py').write_text(
            CONFIG.format(train=train, val=val, epochs=arguments.epochs)
        )
        argv = [f'--config={folder / "config.py"}', f'--workdir={folder / "w"}']
        child = in_child(
            lambda: command('tlflax.train', *argv),
            folder / 'log',
            {'TLFLAX_CACHE': str(folder / 'cache')},
        )
        found, most = watch(child, folder / 'w', arguments.epochs)
        lines = (folder / 'w' / 'metrics.jsonl').read_text().splitlines()
        epochs = [json.loads(line)['epoch'] for line in lines]
        if epochs != list(range(1, arguments.epochs + 1)):
            raise SystemExit(
                f'the epochs are not those of the run:\n{(folder / "log").read_text()}'
            )
    half = len(found) // 2  # what a save holds comes and goes, hence the least of each half
    first, second = (
        {key: min(one[key] for one in part) for key in GROWTH}
        for part in (found[half // 4 : half], found[half:])
    )
    grown = {key: round(second[key] - first[key], 1) for key in GROWTH}
    held = {key: max(one[key] for one in found[half:]) for key in GROWTH}
    line = {'epochs': arguments.epochs, 'most': held, 'grown': grown}
    report(
        {**line, 'most_checkpoints': most, 'seconds': round(time.monotonic() - began)},
        arguments.record,
    )
    return int(most > 3 or any(grown[key] > GROWTH[key] for key in GROWTH))


if __name__ == '__main__':
    sys.exit(main())
