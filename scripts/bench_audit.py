"""How the audit scales: first and second audit of 10^5 generated images, and 10^6 cached ones.

    python scripts/bench_audit.py [--quick] [--files=N] [--folder=DIR]

Generates small, different JPEGs in train and val folders of up to 100 classes; a few are in both,
either byte for byte or encoded again, and the audit has to find exactly these. `python -m
tlflax.data` then runs twice, as a user runs it: the first audit reads everything, the second only
asks the file system what changed. Peak memory is that of the whole process, including libraries
(`idle`: the memory for a few dozen images). The part whose memory grows is measured alone, for a
million synthetic images: save and load the cache, gather it in tables, and search the perceptual
hashes for duplicates. CPU seconds are given too, as they do not depend on what else the machine
does. The last line is JSON with every figure. Takes some minutes; `--quick` takes 3,000 files, 10^5
synthetic images and less than one minute.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tlflax.data.audit import checks, duplicates, shortcuts
from tlflax.data.images import perceptual_hash, scan_cache
from tlflax.data.images.files import Entry, ScannedFile
from tlflax.data.inputs.listing import Listing, Scan
from tlflax.data.table import table_of
from tlflax.utils import cpu

Figures = dict[str, Any]  # a JSON object

COPIES = 20
SIZE, GRID = (64, 48), (12, 9)


def picture(rng: np.random.Generator) -> Image.Image:
    """Returns an image of smooth random colors; two differ as much as photographs do."""
    pixels = rng.integers(0, 256, (GRID[1], GRID[0], 3), np.uint8)
    return Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC)


def write(folder: Path, files: int) -> None:
    """Writes `files` images, a tenth of them for validation, and copies of some training images."""
    rng, classes = np.random.default_rng(0), max(2, min(100, files // 200))
    for split in ('train', 'val'):
        for name in range(classes):
            (folder / split / f'class {name:03}').mkdir(parents=True)
    for number in range(files - 2 * COPIES):
        split = 'train' if number % 10 else 'val'
        place = folder / split / f'class {number // 10 % classes:03}' / f'{number:06}.jpg'
        image = picture(rng)
        image.save(place, quality=85)
        if number % 10 == 1 and number < 20 * COPIES:  # every other one is encoded again
            copy = folder / 'val' / place.parent.name / f'copy {number}.jpg'
            if number // 10 % 2:
                image.resize((SIZE[0] // 2, SIZE[1] // 2)).save(copy, quality=75)
            else:
                shutil.copy(place, copy)


def run(folder: Path) -> Figures:
    """Audits the folders in a process of its own; returns its last line, seconds and memory."""
    code = (
        'import resource, runpy, sys\n'
        'try:\n    runpy.run_module("tlflax.data", run_name="__main__", alter_sys=True)\n'
        'finally:\n    used = resource.getrusage(resource.RUSAGE_SELF)\n'
        '    print(used.ru_maxrss, used.ru_utime + used.ru_stime)'
    )
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, '-c', code, f'--train={folder}/train', f'--val={folder}/val'],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, 'TLFLAX_CACHE': str(folder / 'cache')},
    )
    seconds = time.perf_counter() - began
    *_, found, used = done.stdout.splitlines()
    peak, cpu = used.split()
    return {
        'seconds': seconds,
        'cpu_seconds': float(cpu),
        'peak_mib': _mib(int(peak)),
        'rc': done.returncode,
        'found': json.loads(found),
    }


def real(folder: Path, files: int) -> Figures:
    """Generates and audits files twice; checks what is found."""
    write(folder / 'idle', 12 + 2 * COPIES)
    write(folder / 'many', files)
    idle, first, second = run(folder / 'idle'), run(folder / 'many'), run(folder / 'many')
    for audited in (first, second):
        copies = audited['found']['warning'] | audited['found']['error']
        if (audited['rc'], copies) != (1, {'leak': COPIES, 'near_leak': COPIES}):
            raise AssertionError(f'the audit found {copies}')
    if (first['found']['files_read'], second['found']['files_read']) != (files, 0):
        raise AssertionError('files were read again')
    return {
        'files': files,
        'first_seconds': first['seconds'],
        'first_cpu_seconds': first['cpu_seconds'],
        'files_per_second': files / first['found']['seconds'],
        'second_seconds': second['seconds'],
        'second_cpu_seconds': second['cpu_seconds'],
        'idle_cpu_seconds': idle['cpu_seconds'],
        'peak_mib': max(first['peak_mib'], second['peak_mib']),
        'idle_mib': idle['peak_mib'],
    }


def synthetic(files: int) -> list[ScannedFile]:
    """Returns the scans of synthetic images, whose digests and perceptual hashes all differ."""
    hashes = np.random.default_rng(0).integers(0, 256, (files, perceptual_hash.BYTES), np.uint8)
    return [
        ScannedFile(
            kind='JPEG',
            digest=hashlib.sha256(b'%d' % n).hexdigest(),
            format='JPEG',
            mode='RGB',
            width=500,
            height=375,
            orientation=1,
            plain_jpeg=True,
            perceptual_hash=hashes[n].tobytes(),
        )
        for n in range(files)
    ]


def remembered(folder: Path, files: int) -> dict[str, float]:
    """Saves, loads and audits synthetic images; returns the seconds of each and peak memory."""
    before = _mib(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    entries = [Entry(f'class {n % 1000:04}/image {n:07}.jpg', n, n, n) for n in range(files)]
    found = synthetic(files)
    place, seconds = folder / 'scan.npz', {}

    def timed(name: str, action: Callable[[], Any]) -> Any:
        began, cpu = time.perf_counter(), time.process_time()
        result = action()
        seconds[f'{name}_seconds'] = time.perf_counter() - began
        seconds[f'{name}_cpu_seconds'] = time.process_time() - cpu
        return result

    timed('save', lambda: scan_cache.save(place, entries, found))
    told = hash(tuple(found))
    found.clear()  # a second copy would count as memory
    found += timed('load', lambda: scan_cache.load(place, entries))
    if hash(tuple(found)) != told:
        raise AssertionError('the findings that were loaded are not those that were saved')
    names = [entry.path.split('/')[0] for entry in entries]
    class_names, tenth, left_out = tuple(sorted(set(names))), files // 10, Counter[str]()
    scans = {
        split: Scan(
            Listing(f'/{split}', f'/{split}', entries[part], names[part], left_out),
            *(found[part], left_out, 0),
        )
        for split, part in (('val', slice(tenth)), ('train', slice(tenth, None)))
    }
    images = timed(
        'gather',
        lambda: duplicates.of_tables({s: table_of(scan, class_names) for s, scan in scans.items()}),
    )
    timed('exact', lambda: duplicates.exact(images))
    timed('alike', lambda: duplicates.alike(images))
    told = timed('shortcuts', lambda: shortcuts.measure(scans['train']))
    timed('audit', lambda: checks.audit(scans, images, [], told))
    peak = _mib(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return {'files': files, **seconds, 'peak_mib': peak, 'before_mib': before}


def _mib(peak: int) -> float:
    return peak / (2**20 if sys.platform == 'darwin' else 2**10)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='3,000 files')
    parser.add_argument('--files', type=int, help='how many to generate; default 100,000')
    parser.add_argument('--folder', type=Path, help='where to write; default: a temporary folder')
    options = parser.parse_args()
    files = options.files or (3_000 if options.quick else 100_000)
    print(cpu.described(), flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix='bench_audit-') as scratch:
        found = real(Path(scratch), files)
        for key, value in found.items():
            print(f'{key:18} {value:12,.1f}', flush=True)
        scale = remembered(Path(scratch), 10**5 if options.quick else 10**6)
        for key, value in scale.items():
            print(f'remembered {key:15} {value:12,.1f}')
    print(
        json.dumps(
            {'quick': options.quick, 'machine': cpu.described(), 'real': found, 'remembered': scale}
        )
    )


if __name__ == '__main__':
    main()
