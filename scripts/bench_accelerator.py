"""Every built-in backbone on an accelerator: tlflax, a compiled PyTorch network, and the peak.

    python scripts/bench_accelerator.py [--quick] [--backbones=vgg16,vgg19] [--batches=256]
                                        [--images=1024] [--size=224] [--rounds=3] [--minutes=5]

Random weights of the right shapes and noise as images; nothing here needs TensorFlow or a network.
Four kinds of work are timed, each over all of `--images` images:

    extract from host   uint8 images in host memory to features in host memory: transfers,
                        preprocessing, all layers and the way back, with the next batch under way
                        before the last one is fetched
    extract on device   the same with images that are on the device, and features that stay there
    train head          Adam's steps of a head from features on the device, as `train_scan` takes
    train last block    the same of the last block with the head, from features of the block below

PyTorch has the same networks in channels_last and bfloat16, compiled by `torch.compile`, with
pinned memory and transfers that do not block; in training its weights are float32 under autocast,
and its steps are dispatched one by one, as a program of PyTorch does. It is left out where it is
not installed or finds no accelerator of its own (`--peer-on-cpu` lets it run on the CPU,
uncompiled, to try the script). Before that, outputs have to agree with float32.

Most of the time is that of compilers. What has not begun after `--minutes`, does not fit into the
device's memory, or PyTorch cannot compile, is left out, and the script says so. JAX takes memory as
it needs it, because PyTorch has the same device; XLA_PYTHON_CLIENT_PREALLOCATE changes that.

Prints, for every backbone, work, side, compute type and batch size, the median images a second over
the rounds, their range and the part of the peak: the operations that XLA counts in features or in a
training step, by the best rate of square matrix products of the same type on the same device in the
same run. For features it counts direct convolution without products with the zeros around an image,
29.7 GFLOP an image for VGG16. Then follows a table for docs/performance.md with each best rate.

The last line is JSON: `ratio` is tlflax's best bfloat16 rate by PyTorch's best (above 1, tlflax is
faster) in VGG16's features from host memory, `ratios` the same of all work, `rows` all rows, and
`sides` those of VGG16's features from host memory, by side and batch.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import accelerator_peer as torch_side
import accelerator_sides as sides
import jax
import jax.numpy as jnp
import numpy as np
from accelerator_sides import Images, Repeat
from jax import lax

from tlflax.models import classifier
from tlflax.models.backbones import BACKBONES
from tlflax.models.base.backbone import Backbone

Figures = dict[str, Any]  # a JSON object

HOST = 'extract from host'
DEVICE = 'extract on device'
HEAD = 'train head'
TAIL = 'train last block'
PEER = 'torch'
PASSES = {HEAD: 16}  # over the images in a round; one of a head takes too little time
TOLERANCE = {'float32': 1e-4, 'tensorfloat32': 5e-3, 'bfloat16': 5e-2}  # relative to float32


def measure_peak(dtype: str, width: int) -> float:
    """Returns the best rate of square matrix products of a compute type, in operations a second."""
    kind, precision = classifier.COMPUTE[dtype]
    matrix = jnp.full((width, width), 1e-3, kind)

    @jax.jit
    def products(x: jax.Array) -> jax.Array:
        return lax.fori_loop(0, 8, lambda _, y: jnp.matmul(y, x, precision=precision), x)

    jax.block_until_ready(products(matrix))
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(products(matrix))
        seconds.append(time.perf_counter() - began)
    return 8 * 2 * width**3 / min(seconds)


def rates(repeat: Repeat, images: int, rounds: int) -> list[float]:
    """Returns images a second in every round; a first one compiles and does not count."""
    found = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        repeat()
        found.append(images / (time.perf_counter() - began))
    return found[1:]


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Returns the norm of the difference divided by that of `want`."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def batched(images: Images, batch: int) -> list[Images]:
    """Returns the whole batches of images."""
    return [images[start : start + batch] for start in range(0, len(images) - batch + 1, batch)]


def from_host(side: sides.Ours | torch_side.Peer, batches: list[Images]) -> Repeat:
    """Returns what extracts features from host memory to host memory."""

    def repeat() -> None:
        for _ in side.extract(batches):
            pass

    return repeat


def works(
    side: sides.Ours | torch_side.Peer, ours: sides.Ours, pixels: Images, batch: int
) -> Iterator[tuple[str, Repeat, float]]:
    """Yields the name of each kind of work, what does it, and its operations an image.

    Args:
        side: Whose work it is.
        ours: tlflax's side in the same compute type, which counts operations.
        pixels: The images.
        batch: Images a batch or step.
    """
    batches, rows = batched(pixels, batch), len(pixels)
    yield HOST, from_host(side, batches), ours.operations()
    yield DEVICE, side.extract_on_device(batches), ours.operations()
    cuts = {HEAD: ours.backbone.layer, TAIL: sides.last_block(ours.backbone)}
    for name, cut in cuts.items():
        repeat, operations = ours.train(cut, rows, batch, PASSES.get(name, 1))
        if isinstance(side, torch_side.Peer):
            shape = ours.backbone.feature_shape((ours.size, ours.size), cut)
            repeat = side.train(shape, rows, batch, PASSES.get(name, 1), tail=name == TAIL)
        yield name, repeat, operations


def measure(backbone: Backbone, options: argparse.Namespace, peaks: Figures) -> list[Figures]:
    """Returns a row for each work, side, compute type and batch size of a backbone."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (options.images, options.size, options.size, 3), np.uint8)
    variables = jax.device_get(backbone.init(jax.random.key(0), backbone.layer))
    ours = {
        dtype: sides.Ours(backbone, variables, options.size, dtype) for dtype in classifier.COMPUTE
    }
    sides_by_name: dict[tuple[str, str], sides.Ours | torch_side.Peer] = {
        ('tlflax', dtype): side for dtype, side in ours.items()
    }
    if peer := torch_side.peer(backbone, variables.params, on_cpu=options.peer_on_cpu):
        sides_by_name[PEER, 'bfloat16'] = peer
    want = next(ours['float32'].extract([pixels[:2]]))
    rows: list[Figures] = []
    for (name, dtype), side in reversed(sides_by_name.items()):  # the ratio's two sides first
        about = {'backbone': backbone.name, 'side': name, 'dtype': dtype}
        if time.monotonic() > options.deadline:
            print(f'{backbone.name} {name} {dtype}: left out, {options.minutes:g} minutes are over')
            continue
        try:
            for row in measure_side(side, ours[dtype], pixels, want, options):
                rows.append({**about, **row, 'of_peak': row['per_second'] / peaks[dtype]})
                print(line(rows[-1]), flush=True)
        except Exception as error:
            if name != PEER and 'RESOURCE_EXHAUSTED' not in str(error):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            print(f'{backbone.name} {name} {dtype}: left out: {reason}')
    return rows


def measure_side(
    side: sides.Ours | torch_side.Peer,
    ours: sides.Ours,
    pixels: Images,
    want: np.ndarray,
    options: argparse.Namespace,
) -> Iterator[Figures]:
    """Yields figures of each kind of work and batch size.

    Args:
        side: Whose work it is.
        ours: tlflax's side in the same compute type, which counts operations.
        pixels: The images.
        want: The features of the first two of them in float32.
        options: The command line.
    """
    error = relative_error(next(iter(side.extract([pixels[:2]]))), want)
    if not error <= TOLERANCE[ours.dtype]:
        raise SystemExit(f'error: {ours.dtype} differs from float32 by {error:.1e}')
    for batch in options.batches:
        count = options.images // batch * batch
        for work, repeat, operations in works(side, ours, pixels, batch):
            values = rates(repeat, count * PASSES.get(work, 1), options.rounds)
            median = statistics.median(values)
            yield {
                'work': work, 'batch': batch, 'images_per_second': median, 'rounds': values,
                'per_second': median * operations, 'error': error,
            }  # fmt: skip


def line(row: Figures) -> str:
    """Returns a row for people."""
    side, values = f'{row["side"]} {row["dtype"]}', row['rounds']
    spread = f'{min(values):.0f}..{max(values):.0f}'
    return (
        f'{row["backbone"]:10}{row["work"]:18}{side:22}{row["batch"]:6}'
        f'{row["images_per_second"]:11.1f}{spread:>18}{row["of_peak"]:9.3f}{row["error"]:9.1e}'
    )


def best(rows: list[Figures], **wanted: str) -> Figures | None:
    """Returns the fastest of the rows that have these values."""
    found = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return max(found, key=lambda row: row['images_per_second'], default=None)


def ratio(rows: list[Figures], backbone: str, work: str) -> float | None:
    """Returns tlflax's best bfloat16 rate by PyTorch's best; None where there is none."""
    pair = [
        best(rows, backbone=backbone, work=work, side=side, dtype='bfloat16')
        for side in ('tlflax', PEER)
    ]
    if pair[0] is None or pair[1] is None:
        return None
    return float(pair[0]['images_per_second'] / pair[1]['images_per_second'])


def table(rows: list[Figures]) -> str:
    """Returns the table of docs/performance.md: the best rate and its part of the peak."""
    lines = [
        '| backbone | work | float32 | TF32 | bfloat16 | `torch.compile`, bfloat16 | ratio |',
        '| --- | --- | --- | --- | --- | --- | --- |',
    ]
    for backbone, work in dict.fromkeys((row['backbone'], row['work']) for row in rows):
        cells = []
        for side, dtype in (*(('tlflax', dtype) for dtype in classifier.COMPUTE),
                            (PEER, 'bfloat16')):  # fmt: skip
            row = best(rows, backbone=backbone, work=work, side=side, dtype=dtype)
            rate, part = (row['images_per_second'], row['of_peak']) if row else (0, 0)
            cells.append(f'{rate:,.0f} ({part:.1%})' if row else 'left out')
        quotient = ratio(rows, backbone, work)
        cells.append(f'{quotient:.2f}' if quotient else 'left out')
        lines.append(f'| {backbone} | {work} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def read_options() -> argparse.Namespace:
    """Returns the command line, with what `--quick` stands for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers: Callable[[str], list[int]] = lambda text: [int(n) for n in text.split(',')]  # noqa: E731
    names: Callable[[str], list[str]] = lambda text: text.split(',')  # noqa: E731
    parser.add_argument('--quick', action='store_true', help='few small images, one backbone')
    parser.add_argument('--backbones', type=names, help=f'of {", ".join(BACKBONES)}')
    parser.add_argument('--batches', type=numbers, help='batch sizes')
    parser.add_argument('--images', type=int, help='images a round')
    parser.add_argument('--size', type=int, help='height and width in pixels')
    parser.add_argument('--rounds', type=int)
    parser.add_argument('--minutes', type=float, default=5.0, help='nothing begins after them')
    parser.add_argument('--peer-on-cpu', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args()
    quick = options.quick
    options.backbones = options.backbones or list(BACKBONES)[: 1 if quick else None]
    if unknown := set(options.backbones) - set(BACKBONES):
        parser.error(f'no such backbone: {", ".join(sorted(unknown))}')
    options.batches = options.batches or ([4] if quick else [256])
    options.images = max(options.images or (4 if quick else 1024), *options.batches)
    options.size = options.size or (32 if quick else 224)
    options.rounds = options.rounds or (1 if quick else 3)
    options.peak_width = 512 if quick else 8192
    options.deadline = time.monotonic() + 60 * options.minutes
    return options


def main() -> None:
    """Prints the rows and the table, and as its last line one JSON object."""
    options = read_options()
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # before JAX finds devices
    device = jax.devices()[0]
    print(f'{device.device_kind} ({device.platform}), jax {jax.__version__}')
    peaks = {dtype: measure_peak(dtype, options.peak_width) for dtype in classifier.COMPUTE}
    print(', '.join(f'{dtype} {rate / 1e12:.2f} TFLOP/s' for dtype, rate in peaks.items()))
    print(f'{"":50}{"batch":>6}{"images/s":>11}{"range":>18}{"of peak":>9}{"error":>9}')
    rows = [row for name in options.backbones for row in measure(BACKBONES[name], options, peaks)]
    print(f'\n{table(rows)}\n')
    kept = ('images_per_second', 'rounds', 'of_peak', 'error')
    by_side: Figures = {}
    for row in rows:
        if (row['backbone'], row['work']) == ('vgg16', HOST):
            of_side = by_side.setdefault(f'{row["side"]} {row["dtype"]}', {})
            of_side[str(row['batch'])] = {key: row[key] for key in kept}
    pairs = dict.fromkeys((row['backbone'], row['work']) for row in rows)
    told = {
        'device': device.device_kind,
        'ratio': {'torch': ratio(rows, 'vgg16', HOST)},
        'ratios': {f'{name} {work}': ratio(rows, name, work) for name, work in pairs},
        'peak': peaks,
        'sides': by_side,
        'rows': rows,
    }
    print(json.dumps(told))


if __name__ == '__main__':
    main()
