"""Exported files: size, speed and what fewer bits cost, of each format and precision.

    python scripts/bench_export.py WORKDIR [--formats=onnx,tflite,...] [--images=N] [--repeats=N]
        [--output=DIR] [--table=FILE]

Exports the classifier of a finished run to `--output`, or to a temporary folder; files that are
there already are read. Each is run by its own runtime, with the threads that this chooses, on
`--images` validation images for accuracy and the largest difference of a probability from the
classifier's, and `--repeats` times on one image and on 32; the files take turns, and times are
medians. safetensors, which is no program, and web, which is ONNX, are left out. Prints a table in
Markdown; `--table` also writes its rows as JSON. The last line is JSON.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tlflax.export import model, verify
from tlflax.export.model import Options
from tlflax.export.run import FORMATS, export
from tlflax.export.verify import Program, Sample
from tlflax.inference.restore import load
from tlflax.utils import cpu
from tlflax.utils.files import atomic_write, size_of

Row = dict[str, Any]
PROGRAMS = tuple(name for name in FORMATS if name not in ('safetensors', 'web'))
MANY = 32


def main() -> None:
    arguments = _arguments()
    trained = load(arguments.workdir)
    sample = verify.sample(trained, Options())
    few = slice(arguments.images)
    sample = sample._replace(
        pixels=sample.pixels[few],
        labels=sample.labels[few],
        probabilities=sample.probabilities[few],
    )
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(arguments.output or scratch)
        rows, programs = [], []
        for name in arguments.formats.split(','):
            for precision in FORMATS[name].precisions:
                path = root / f'classifier-{precision}{FORMATS[name].ending}'
                options = Options(precision=precision)
                if not path.exists():
                    export(arguments.workdir, name, path, options)
                programs.append(FORMATS[name].program(model.exported(trained, options), path))
                rows.append({'format': name, 'precision': precision, 'bytes': size_of(path)})
        for row, program in zip(rows, programs, strict=True):
            row |= _agreement(program, sample)
        for count in (1, MANY):
            for row, times in zip(rows, _times(programs, sample, count, arguments), strict=True):
                row[f'latency_ms_{count}'] = 1e3 * statistics.median(times)
        for row in rows:
            row |= {'machine': machine()}
    print(table(rows))
    if arguments.table:
        atomic_write(Path(arguments.table), json.dumps(rows, indent=2) + '\n')
    print(json.dumps({'images': len(sample.pixels), 'rows': rows}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('workdir')
    parser.add_argument('--formats', default=','.join(PROGRAMS))
    parser.add_argument('--images', type=int, default=verify.MOST_IMAGES)
    parser.add_argument('--repeats', type=int, default=9)
    parser.add_argument('--output', help='a folder for the files, which are kept')
    parser.add_argument('--table', help='a JSON file, such as WORKDIR/exports.json')
    found = parser.parse_args()
    if unknown := set(found.formats.split(',')) - set(PROGRAMS):
        parser.error(f'--formats: {", ".join(sorted(unknown))}: choose from {", ".join(PROGRAMS)}')
    return found


def _agreement(program: Program, sample: Sample) -> Row:
    """Returns the accuracy of a file, and how far it is from the classifier."""
    starts = range(0, len(sample.pixels), MANY)
    found = np.concatenate([program(sample.pixels[start : start + MANY]) for start in starts])
    return {
        'accuracy': float((found.argmax(1) == sample.labels).mean()),
        'max_difference': float(np.abs(found - sample.probabilities).max()),
    }


def _times(
    programs: list[Program], sample: Sample, count: int, arguments: argparse.Namespace
) -> list[list[float]]:
    """Returns the seconds of each program for `count` images; the programs take turns."""
    images = np.resize(sample.pixels, (count, *sample.pixels.shape[1:]))
    times: list[list[float]] = [[] for _ in programs]
    for turn in range(-1, arguments.repeats):
        for program, own in zip(programs, times, strict=True):
            start = time.perf_counter()
            program(images)
            if turn >= 0:  # the first one compiles
                own.append(time.perf_counter() - start)
    return times


def machine() -> str:
    """Describes the processor, and which instructions for 8 bits it has."""
    features = cpu.features().split()
    kinds = [kind for kind in ('avx512_vnni', 'avx_vnni', 'avx2') if kind in features]
    return f'{cpu.described()} ({kinds[0]})' if kinds else cpu.described()


def table(rows: list[Row]) -> str:
    """Returns rows in Markdown."""
    lines = [
        '| format | precision | MB | one image, ms | 32 images, ms | images/s | accuracy '
        '| largest difference |',
        '| --- ' * 8 + '|',
    ]
    for row in rows:
        many = row[f'latency_ms_{MANY}']
        lines.append(
            f'| {row["format"]} | {row["precision"]} | {row["bytes"] / 1e6:.1f} '
            f'| {row["latency_ms_1"]:.0f} | {many:.0f} | {1e3 * MANY / many:.1f} '
            f'| {row["accuracy"]:.2%} | {row["max_difference"]:.2g} |'
        )
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
