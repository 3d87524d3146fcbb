"""The frozen network on an accelerator: tlflax against a compiled PyTorch network, and the peak.

    python scripts/bench_accelerator.py [--quick] [--batches=64,256] [--images=2048] [--size=224]

Both sides get uint8 photographs (noise) in host memory, preprocess on the device and return
block5_pool in host memory, with random weights of the right shapes; nothing here needs TensorFlow.
What is timed is the whole of `--images` images: transfers, preprocessing, thirteen convolutions and
the way back, with the next batch under way before the last one is fetched. PyTorch is
`torch.compile`d, in channels_last and bfloat16 under inference mode, with pinned memory and
transfers that do not block; it is left out where it is not installed or finds no accelerator of its
own (`--peer-on-cpu` lets it run on the CPU, uncompiled, to try the script). Before that, outputs
have to agree with float32.

Prints, for every compute type and batch size, the median images a second over the rounds, their
range and the part of the peak: direct convolution's 30.7 GFLOP an image by the best rate of square
matrix products of the same type on the same device in the same run. The last line is JSON: `ratio`
is tlflax's best bfloat16 rate by PyTorch's best (above 1, tlflax is faster).
"""

import argparse
import collections
import functools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import UInt8

from tlflax.features import programs
from tlflax.models import classifier
from tlflax.models.base.modules import Variables
from tlflax.models.vgg import network as vgg
from tlflax.models.vgg.rows import VGG16

Figures = dict[str, Any]  # a JSON object
Images = UInt8[np.ndarray, 'b h w 3']
Side = Callable[[list[Images]], Iterator[np.ndarray]]
"""Turns batches into their features, as float32 in host memory."""

TOLERANCE = {'float32': 1e-4, 'tensorfloat32': 5e-3, 'bfloat16': 5e-2}  # relative to float32
AHEAD = 2  # batches under way before the oldest is fetched


def tlflax(params: vgg.Params, size: int, dtype: str) -> Side:
    """Ours: `programs.backbone_step`, as the feature cache is filled with on accelerators."""
    model = classifier.create(
        VGG16, {}, image_size=(size, size), num_classes=2, head='gap_linear', units=1, dropout=0.0,
        preprocess='caffe', layer=VGG16.layer, dtype=dtype,
    )  # fmt: skip
    variables = Variables(jax.device_put(params), {})

    def run(batches: list[Images]) -> Iterator[np.ndarray]:
        waiting: collections.deque[jax.Array] = collections.deque()
        for batch in batches:
            image = jax.device_put(batch)
            waiting.append(programs.backbone_step(variables, image, classifier=model))
            if len(waiting) > AHEAD:
                yield np.asarray(waiting.popleft(), np.float32)
        while waiting:
            yield np.asarray(waiting.popleft(), np.float32)

    return run


def torch_network(params: vgg.Params, *, on_cpu: bool) -> Side | None:
    """Returns the peer, or None if it cannot run."""
    try:
        import torch
    except ImportError:
        print('PyTorch is not installed: left out')
        return None
    if not (torch.cuda.is_available() or on_cpu):
        print('PyTorch finds no accelerator: left out')
        return None
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    layers: list[torch.nn.Module] = []
    for block, depth in zip(vgg.BLOCKS, vgg.VGG16, strict=True):
        for name in vgg.conv_names(block, depth):
            kernel = torch.tensor(np.asarray(params[name]['kernel'])).permute(3, 2, 0, 1)
            conv = torch.nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1)
            conv.weight = torch.nn.Parameter(kernel.contiguous())
            conv.bias = torch.nn.Parameter(torch.tensor(np.asarray(params[name]['bias'])))
            layers += [conv, torch.nn.ReLU(inplace=True)]
        layers.append(torch.nn.MaxPool2d(2))
    network = torch.nn.Sequential(*layers).to(device, torch.bfloat16)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean = torch.tensor([103.939, 116.779, 123.68], device=device)

    def forward(image: torch.Tensor) -> torch.Tensor:
        x = image.float().flip(-1) - mean
        return network(x.to(torch.bfloat16).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    compiled = torch.compile(forward) if device.type == 'cuda' else forward

    def run(batches: list[Images]) -> Iterator[np.ndarray]:
        waiting: collections.deque[torch.Tensor] = collections.deque()
        with torch.inference_mode():
            for batch in batches:
                image = torch.from_numpy(batch)
                if device.type == 'cuda':
                    image = image.pin_memory()
                waiting.append(compiled(image.to(device, non_blocking=True)))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().float().cpu().numpy()
            while waiting:
                yield waiting.popleft().float().cpu().numpy()

    return run


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


def rates(side: Side, images: Images, batch: int, rounds: int) -> list[float]:
    """Returns images a second in every round; a first one compiles and does not count."""
    count = len(images) // batch * batch
    batches = [images[start : start + batch] for start in range(0, count, batch)]
    found = []
    for number in range(rounds + 1):
        began = time.perf_counter()
        for _ in side(batches if number else batches[:1]):
            pass
        found.append(count / (time.perf_counter() - began))
    return found[1:]


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Returns the norm of the difference divided by that of `want`."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def direct_operations(size: int) -> float:
    """Returns the operations of direct convolution for one image, two per multiplication."""
    shapes = vgg.shapes()
    return sum(
        2.0 * math.prod(shapes[f'{name}/kernel']) * (size >> (block - 1)) ** 2
        for block, depth in zip(vgg.BLOCKS, vgg.VGG16, strict=True)
        for name in vgg.conv_names(block, depth)
    )


def measure(options: argparse.Namespace) -> Figures:
    """Returns the figures of every compute type and side."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (options.images, options.size, options.size, 3), np.uint8)
    params = jax.device_get(vgg.init(jax.random.key(0)))
    want = next(tlflax(params, options.size, 'float32')([pixels[:2]]))
    sides = {f'tlflax {dtype}': (tlflax(params, options.size, dtype), dtype)
             for dtype in classifier.COMPUTE}  # fmt: skip
    if peer := torch_network(params, on_cpu=options.peer_on_cpu):
        sides['torch bfloat16'] = (peer, 'bfloat16')
    peaks = {dtype: measure_peak(dtype, options.peak_width) for dtype in classifier.COMPUTE}
    operations = direct_operations(options.size)
    print(f'{"":24}{"batch":>6}{"images/s":>10}{"range":>16}{"of peak":>9}{"error":>9}')
    found: Figures = {}
    for name, (side, dtype) in sides.items():
        error = relative_error(next(side([pixels[:2]])), want)
        if not error <= TOLERANCE[dtype]:
            raise SystemExit(f'error: {name} differs from float32 by {error:.1e}')
        for batch in options.batches:
            values = rates(side, pixels, batch, options.rounds)
            median = statistics.median(values)
            part = median * operations / peaks[dtype]
            found.setdefault(name, {})[str(batch)] = {
                'images_per_second': median, 'rounds': values, 'of_peak': part, 'error': error
            }  # fmt: skip
            spread = f'{min(values):.0f}..{max(values):.0f}'
            print(f'{name:24}{batch:6}{median:10.1f}{spread:>16}{part:9.2f}{error:9.1e}')
    return {'peak': peaks, 'sides': found}


def main() -> None:
    """Prints the table, and as its last line one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers: Callable[[str], list[int]] = lambda text: [int(n) for n in text.split(',')]  # noqa: E731
    parser.add_argument('--quick', action='store_true', help='few small images')
    parser.add_argument('--batches', type=numbers, help='batch sizes')
    parser.add_argument('--images', type=int, help='images a round')
    parser.add_argument('--size', type=int, help='height and width in pixels')
    parser.add_argument('--rounds', type=int)
    parser.add_argument('--peer-on-cpu', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args()
    quick = options.quick
    options.batches = options.batches or ([4] if quick else [64, 256])
    options.images = max(options.images or (8 if quick else 2048), *options.batches)
    options.size = options.size or (64 if quick else 224)
    options.rounds = options.rounds or (2 if quick else 5)
    options.peak_width = 512 if quick else 8192
    device = jax.devices()[0]
    print(f'{device.device_kind} ({device.platform}), jax {jax.__version__}')
    figures = measure(options)
    best = functools.partial(_best, figures['sides'])
    ours, theirs = best('tlflax bfloat16'), best('torch bfloat16')
    ratio = ours / theirs if ours and theirs else None
    print(json.dumps({'device': device.device_kind, 'ratio': {'torch': ratio}, **figures}))


def _best(sides: Figures, name: str) -> float | None:
    return max((row['images_per_second'] for row in sides.get(name, {}).values()), default=None)


if __name__ == '__main__':
    main()
