"""The trainings of check_accelerator.py, in one process: `train_and_evaluate` on generated images.

    python scripts/accelerator_run.py FOLDER NAME [--quick] [--interrupt]

Reads FOLDER/images, which `write_images` writes. Features, workdirs and outcomes of a run are in
FOLDER/NAME, so that one with the same name goes on with what was interrupted. Images are decoded by
Pillow and their features put into the feature store here, because what does both in a training
command is TensorFlow's pipeline; all that follows is the code that trains every run.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

SCAN = 4  # steps of one program, so that an interruption can fall into an epoch
CLASSES = ('blue', 'green', 'red')
TIMES = ('epoch_seconds', 'images_per_second', 'peak_memory_bytes', 'peak_device_memory_bytes')

PROBLEMS: dict[str, tuple[str, str, str]] = {
    'vgg16 head': ('vgg16', '', 'gap_linear'),
    'vgg16 last block': ('vgg16', 'block5', 'gap_linear'),
    'BatchNorm last block': (
        f'py:{Path(__file__).parent / "accelerator_backbone.py"}:normalized',
        'block4',
        'mlp',
    ),
}
"""The backbone, the block of it that is trained with the head ('': none), and the head."""
LONG = ('vgg16 head', 'vgg16 last block')  # left out by --quick


def write_images(folder: Path, *, quick: bool) -> None:
    """Writes noisy images of three colors in class folders, of the size that the network takes."""
    rng, size = np.random.default_rng(0), _size(quick)
    # Each split is computed in one batch of an accelerator, padded to 256: one program.
    for split, count in (('Train', 16 if quick else 64), ('Test', 8 if quick else 44)):
        for at, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 200, (size, size, 3))
                pixels[..., 2 - at] += 25
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(folder / split / name / f'{i:03}.png')


def _size(quick: bool) -> int:
    return 32 if quick else 128


def configuration(problem: str, images: Path, *, quick: bool) -> ConfigDict:
    """Returns the configuration of a problem."""
    from tlflax.config import default_config

    backbone, block, head = PROBLEMS[problem]
    config = default_config()
    config.data.train, config.data.val = str(images / 'Train'), str(images / 'Test')
    config.data.image_size, config.data.audit = (_size(quick), _size(quick)), 'off'
    config.augment.horizontal_flip = False
    config.weights.source = 'random'
    config.features.dtype = 'float32'
    config.model.backbone, config.model.head = backbone, head
    if block:
        config.optim.labels = (
            (f'backbone/{block}.*', 'tail'), ('backbone/.*', 'frozen'), ('head/.*', 'head'),
        )  # fmt: skip
        config.optim.learning_rates = (('tail', 1e-4),)
        config.optim.statistics = 'updated'
    config.optim.learning_rate = 1e-3
    config.early_stopping.monitor = ''
    config.train.epochs, config.train.batch_size = (2 if quick else 3), (8 if quick else 16)
    config.train.report, config.train.loggers = False, ()
    return config


def fill_store(config: ConfigDict) -> None:
    """Computes the features of all images that the store lacks, by the program of every run."""
    from tlflax.data.augment import sampling
    from tlflax.features.programs import in_batches
    from tlflax.features.views import view_keys
    from tlflax.train import setup

    resolved = setup.configure(config)
    run = setup.build(resolved, setup.load(resolved))
    view = sampling.describe(sampling.plain(resolved.augment), resolved.augment)
    for table in run.splits.by_name.values():
        keys = view_keys(table.digests, view)
        with run.sources.open_store() as store:
            missing = np.flatnonzero(store.lookup(keys) < 0)
            if not len(missing):
                continue
            run.sources.reserve(store, len(missing))
            paths = [os.path.join(table.root, table.paths[row]) for row in missing]
            images = np.stack([run.sources.image_format.read(path) for path in paths])
            features = in_batches(images, run.sources.program(len(images)))
            store.append(keys[missing], features)
            store.flush()


@contextlib.contextmanager
def signal_after(calls: int) -> Iterator[None]:
    """Sends this process SIGTERM after so many programs of training steps; 0: never."""
    from tlflax.train import epoch, steps

    done, original = 0, steps.train_scan

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal done
        found = original(*arguments, **options)
        done += 1
        if done == calls:
            signal.raise_signal(signal.SIGTERM)
        return found

    with (
        mock.patch.object(epoch, 'SCAN', SCAN),
        mock.patch.object(steps, 'train_scan', counted),
    ):
        yield


def train(config: ConfigDict, workdir: Path, *, interrupt: bool) -> int:
    """Trains in a workdir; returns the step of the interruption, 0 if there was none."""
    from tlflax.train import train_and_evaluate
    from tlflax.train.loop import Interrupted

    steps_per_epoch = -(-len(list(Path(config.data.train).glob('*/*'))) // config.train.batch_size)
    whole = -(-steps_per_epoch // SCAN)
    with signal_after(whole + 1 if interrupt else 0):
        try:
            train_and_evaluate(config, workdir)
        except Interrupted as end:
            return end.step
    return 0


def outcome(workdir: Path) -> dict[str, Any]:
    """Returns what two runs must have in common: every number that they learned and measured."""
    from tlflax.workdir.checkpoints import Checkpoints

    found: dict[str, Any] = {}
    with Checkpoints(workdir / 'checkpoints', read_only=True) as saved:
        for which in ('best', 'last'):
            meta = saved.meta(saved.find(which))
            found[which] = {'digests': meta['digests'], 'position': meta['position']}
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    found['metrics'] = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
    return found


def main(announce: Callable[..., None] = print) -> None:
    """Trains every problem, and prints as the last line one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path)
    parser.add_argument('name')
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--interrupt', action='store_true', help='in the second epoch')
    options = parser.parse_args()
    own = options.folder / options.name
    os.environ['TLFLAX_CACHE'] = str(own / 'cache')

    import jax

    from tlflax.workdir import provenance

    problems: dict[str, Any] = {}
    for problem in PROBLEMS:
        if options.quick and problem in LONG:
            continue
        config = configuration(problem, options.folder / 'images', quick=options.quick)
        fill_store(config)
        workdir = own / problem.replace(' ', '_')
        step = train(config, workdir, interrupt=options.interrupt)
        problems[problem] = {'interrupted': step} if step else outcome(workdir)
    device = jax.devices()[0]
    told = {
        'device': device.device_kind,
        'platform': device.platform,
        'versions': provenance.versions(),
        'tensorflow': 'tensorflow' in sys.modules,
        'problems': problems,
    }
    announce(json.dumps(told))


if __name__ == '__main__':
    main()
