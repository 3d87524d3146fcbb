"""Images a second from files to batches: tlflax's pipeline, Keras's, and a PyTorch DataLoader.

    python scripts/bench_input.py [--quick] [--data traffic photographs] [--repeats=N]

Every side reads JPEGs from class folders, resizes them to 224x224 bilinearly, flips half of them
and makes shuffled batches of 32, with as many workers as there are cores:

- tlflax: `tlflax.data.pipeline.tf_data.train_epoch` with the defaults of the configuration;
- keras: `image_dataset_from_directory`, then a `RandomFlip` layer by `map`;
- torch: `DataLoader` over Pillow's `resize` and `transpose`, its workers kept between epochs.

What is timed is an epoch, from asking for its first batch to the arrival of its last. The work is
not quite equal: tlflax and Pillow widen the filter when shrinking and decode with the accurate
transform, Keras does neither; `tlflax_no_antialias` tells what the filter costs. The images are the
real traffic lights (30x62 pixels in the median, enlarged) and generated photographs of 500x375
pixels (shrunk). Each side is a process that stays up, they take turns, and each has an epoch of
each data set that does not count. The stages are tlflax's, each alone, fed with what the stage
before it left in memory. The last line is JSON: `images_per_second` holds every round, `ratio` is
that of the medians on the data where tlflax does worse. Takes three minutes, `--quick` under one.

In the end tlflax runs alone on 1, 2, 4, ... cores, up to all that there are, and a table tells how
many images a second they feed, the CPU time of an image, and how many cores a backbone of 1,000,
2,000 or 5,000 images a second needs, if further cores add as much as these did.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tlflax.data.inputs.demos import TRAFFIC_LIGHTS
from tlflax.utils import cpu
from tlflax.utils.assets import fetch
from tlflax.utils.errors import EXIT_CODE, UserError

PHOTO = (375, 500)  # (height, width), the most common of ImageNet
PHOTOS, QUICK_PHOTOS = 512, 128
BACKBONES = 1000, 2000, 5000  # images a second
PEERS = {'keras': ('keras', 'tensorflow'), 'torch': ('torch',)}  # and what they need
ENVIRONMENT = {'KERAS_BACKEND': 'tensorflow', 'TF_CPP_MIN_LOG_LEVEL': '3'}

Rates = dict[str, list[float]]  # images a second in each round, by name


def write_photographs(folder: Path, count: int) -> Path:
    """Writes JPEGs in two class folders, about as large as a camera's."""
    rng = np.random.default_rng(0)
    for number in range(count):
        target = folder / ('a', 'b')[number % 2] / f'{number:05}.jpg'
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(rng)).save(target, quality=90)
    return folder


def photograph(rng: np.random.Generator) -> UInt8[np.ndarray, '375 500 3']:
    """Returns noise whose amplitude falls with frequency, as in natural images (Field 1987)."""
    height, width = PHOTO
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    spectrum = np.fft.rfft2(rng.normal(size=(3, height, width))) / np.maximum(frequency, 1 / width)
    gray, *colors = np.fft.irfft2(spectrum, s=PHOTO)
    # Colors differ less than brightness does.
    channels = np.stack([gray, gray + 0.3 * colors[0], gray + 0.3 * colors[1]], axis=-1)
    return np.clip(127 + 55 * channels / channels.std(), 0, 255).astype(np.uint8)


@contextlib.contextmanager
def worker(side: str, cores: int | None = None) -> Iterator[Callable[[Path], dict[str, float]]]:
    """Starts a side in a process of its own and yields what makes it run an epoch of a folder.

    Args:
        side: See bench_input_worker.py.
        cores: How many cores the process may use; None: those of this one.
    """
    script = str(Path(__file__).with_name('bench_input_worker.py'))
    with (
        tempfile.TemporaryFile('w+') as log,
        subprocess.Popen(
            [sys.executable, script, side, *([str(cores)] if cores else [])],
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def run(folder: Path) -> dict[str, float]:
            print(folder, file=requests, flush=True)
            line = answers.readline()
            if not line:
                log.seek(0)
                sys.exit(f'{side} failed\n{log.read()[-4000:]}')
            return json.loads(line)

        yield run
        requests.close()  # so that it ends


def measure(folders: dict[str, Path], sides: list[str], repeats: int) -> dict[str, Rates]:
    """Returns what each side reached with each data set; they take turns."""
    rates: dict[str, Rates] = {data: {} for data in folders}
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(worker(side)) for side in sides]
        for counts in [False] + [True] * repeats:
            for data, folder in folders.items():
                for run in runs:
                    for name, rate in run(folder).items() if counts else ():
                        rates[data].setdefault(name, []).append(rate)
    return rates


def core_counts(cores: int) -> list[int]:
    """Returns 1, 2, 4, ... and `cores`; only that where a process cannot be held to fewer."""
    if not hasattr(os, 'sched_setaffinity'):
        return [cores]
    return [*(2**power for power in range(cores.bit_length()) if 2**power < cores), cores]


def by_cores(folder: Path, cores: int, repeats: int) -> dict[int, dict[str, float]]:
    """Returns the medians of tlflax's pipelines on each number of cores, one after another."""
    found: dict[int, dict[str, float]] = {}
    for count in core_counts(cores):
        with worker('cores', None if count == cores else count) as run:
            rounds = [run(folder) for _ in range(repeats)]
        found[count] = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    return found


def cores_needed(found: dict[int, dict[str, float]]) -> dict[str, dict[int, int]]:
    """Returns how many cores feed each of `BACKBONES`, by pipeline."""
    most = max(found)
    each = {name: rate / most for name, rate in found[most].items() if not name.endswith(' ms')}
    return {
        name: {wanted: math.ceil(wanted / rate) for wanted in BACKBONES}
        for name, rate in each.items()
    }


def show_cores(data: str, found: dict[int, dict[str, float]]) -> None:
    """Prints what each number of cores feeds, and how many are needed."""
    needed = cores_needed(found)
    print(f'\n{data}: tlflax on some cores')
    for name, wanted in needed.items():
        for count, values in found.items():
            rate, spent = values[name], values[f'{name}, CPU ms']
            print(f'{name:20} {count:4} cores {rate:7.0f} images/s {spent:6.2f} ms of CPU an image')
        told = ', '.join(f'{count} for {rate:,}' for rate, count in wanted.items())
        print(f'{name:20} cores that a backbone needs: {told} images/s')


def ratios(rates: dict[str, Rates]) -> dict[str, Any]:
    """Returns tlflax's median by each peer's: 'ratio_by_data', and the lowest as 'ratio'.

    Args:
        rates: By data set; a peer that was left out has none.
    """
    by_data: dict[str, dict[str, float | None]] = {}
    for data, found in rates.items():
        ours = statistics.median(found['tlflax'])
        by_data[data] = {
            peer: ours / statistics.median(found[peer]) if peer in found else None for peer in PEERS
        }
    lowest: dict[str, float | None] = {}
    for peer in PEERS:
        values = [ratio for found in by_data.values() if (ratio := found[peer]) is not None]
        lowest[peer] = min(values, default=None)
    return {'ratio': lowest, 'ratio_by_data': by_data}


def show(data: str, rates: Rates) -> None:
    """Prints a table of medians; peers and stages have tlflax's rate by theirs."""
    ours = statistics.median(rates['tlflax'])
    print(f'\n{data:26} {"images/s":>9} {"min":>8} {"max":>8}   tlflax is')
    for name, values in rates.items():
        median = statistics.median(values)
        ratio = f'{ours / median:8.2f} x' if name in PEERS else ''
        print(f'{name:26} {median:9.0f} {min(values):8.0f} {max(values):8.0f}{ratio}')


def installed() -> list[str]:
    """Returns the sides that can run here and says which cannot."""
    sides = ['tlflax']
    for peer, needed in PEERS.items():
        if all(importlib.util.find_spec(name) for name in needed):
            sides.append(peer)
        else:
            print(f'{peer} is not installed and left out')
    return sides


def main() -> int:
    """Runs the benchmark and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--quick', action='store_true', help='fewer images and rounds')
    names = ('traffic', 'photographs')
    parser.add_argument('--data', nargs='+', choices=names, default=names, help='which images')
    parser.add_argument('--photographs', type=int, help='how many to generate')
    parser.add_argument('--repeats', type=int, help='rounds; default 7, with --quick 3')
    options = parser.parse_args()
    count = options.photographs or (QUICK_PHOTOS if options.quick else PHOTOS)
    cores = cpu.cores()
    print(cpu.described(), flush=True)
    with tempfile.TemporaryDirectory(prefix='bench_input-') as scratch:
        folders: dict[str, Path] = {}
        try:
            if 'traffic' in options.data:
                part = 'Test' if options.quick else 'Train'
                folders['traffic'] = fetch(TRAFFIC_LIGHTS) / part
        except UserError as error:
            print(f'error: {error}; --data photographs does without', file=sys.stderr)
            return EXIT_CODE
        if 'photographs' in options.data:
            folders['photographs'] = write_photographs(Path(scratch) / 'photographs', count)
        repeats = options.repeats or (3 if options.quick else 7)
        rates = measure(folders, [*installed(), 'stages'], repeats)
        shrunk = list(folders)[-1]  # the photographs, unless they are left out
        some = by_cores(folders[shrunk], cores, repeats)
    for data, found in rates.items():
        show(data, found)
    show_cores(shrunk, some)
    figures = {
        'quick': options.quick,
        'machine': cpu.described(),
        **ratios(rates),
        'by_cores': some,
    }
    figures |= {'cores_needed': cores_needed(some), 'images_per_second': rates}
    print(json.dumps(figures))
    return 0


if __name__ == '__main__':
    sys.exit(main())
