"""The frozen network against every other way to run it, with the same weights and images.

python scripts/bench_backbone.py --quick
python scripts/bench_backbone.py --batches=1,8,16,32 --weights=vgg16.safetensors --images=FOLDER

Each contestant runs in a process of its own and waits while another is timed; they take turns, so
that other load on the machine affects all alike. Before that, all must agree with direct
convolution in float64. Prints a table for every batch size: the median images a second over the
rounds, their range, and the median over the rounds of tlflax's images a second over this one's
(above 1, tlflax is faster). The last line is one JSON object with the figures of the last batch
size and the relative error of tlflax's block5_pool. Peers that are not installed are left out.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import bench_peers
import jax.numpy as jnp
import numpy as np
import roofline

from tlflax.models import pretrained
from tlflax.models.vgg import network
from tlflax.models.vgg.rows import VGG16
from tlflax.models.weights import preprocess
from tlflax.utils import cpu

SIZE = 224
CHECKED = 2  # images compared with float64
TOLERANCE = 1e-4
REST = 0.1  # seconds in which the last contestant's threads stop spinning


class Contestant:
    """A process that runs one implementation on request."""

    def __init__(self, name: str, folder: Path, arguments: list[str]) -> None:
        self.name = name
        command = [sys.executable, bench_peers.__file__, name, str(folder), *arguments]
        backend = {'keras_jax': 'jax', 'tensorflow': 'tensorflow'}.get(name)
        environment = os.environ | ({'KERAS_BACKEND': backend} if backend else {})
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def hear(self) -> dict[str, Any]:
        """Waits for an answer.

        Raises:
            RuntimeError: The process ended.
        """
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f'{self.name} ended with code {self._process.wait()}')
        return json.loads(line)

    def run(self, batch: int) -> float:
        """Returns the seconds that one batch took."""
        assert self._process.stdin
        self._process.stdin.write(f'{batch}\n')
        self._process.stdin.flush()
        return self.hear()['seconds']

    def end(self) -> None:
        """Ends the process."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


def exact(params: network.Params, x: np.ndarray) -> np.ndarray:
    """Computes block5_pool by direct convolution in float64, with NumPy."""
    x = x.astype(np.float64)
    for block, depth in zip(network.BLOCKS, network.VGG16, strict=True):
        for name in network.conv_names(block, depth):
            kernel, bias = (np.asarray(params[name][k], np.float64) for k in ('kernel', 'bias'))
            height, width = x.shape[1:3]
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            x = np.maximum(
                bias
                + sum(
                    padded[:, i : i + height, j : j + width] @ kernel[i, j]
                    for i in range(3)
                    for j in range(3)
                ),
                0,
            )
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
    return x


def load_params(path: str | None) -> network.Params:
    """Returns the convolutions of a weights file, or random ones that keep activations' size."""
    if path:
        return pretrained.load(path, VGG16, layer=VGG16.layer).variables.params
    rng = np.random.default_rng(0)
    params: network.Params = {}
    for name, shape in network.shapes().items():
        layer, leaf = name.split('/')
        scale = np.sqrt(2 / np.prod(shape[:-1])) if leaf == 'kernel' else 0.1
        array = rng.standard_normal(shape, np.float32) * np.float32(scale)
        params.setdefault(layer, {})[leaf] = array
    return params


def load_images(folder: str | None, count: int) -> np.ndarray:
    """Returns preprocessed photographs from a folder, or noise; f32[count, 224, 224, 3]."""
    if folder is None:
        pixels = np.random.default_rng(1).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    else:
        from PIL import Image

        paths = sorted(p for p in Path(folder).rglob('*') if p.suffix.lower() in ('.jpg', '.png'))
        spread = [paths[i * len(paths) // count] for i in range(count)]
        pixels = np.stack(
            [np.asarray(Image.open(p).convert('RGB').resize((SIZE, SIZE))) for p in spread]
        )
    return np.asarray(preprocess.caffe(jnp.asarray(pixels)))


def start(folder: Path, names: list[str], arguments: list[str]) -> list[Contestant]:
    """Starts the contestants and leaves out those whose library is absent."""
    running = []
    for contestant in [Contestant(name, folder, arguments) for name in names]:
        answer = contestant.hear()
        if 'absent' in answer:
            print(f'{contestant.name}: left out, {answer["absent"]}')
            contestant.end()
        else:
            running.append(contestant)
    return running


def check(
    folder: Path, contestants: list[Contestant], batch: int, want: np.ndarray
) -> dict[str, float]:
    """Runs a batch once, which compiles, and returns every contestant's relative error.

    Ends the program where one is wrong.
    """
    errors = {}
    for contestant in contestants:
        contestant.run(batch)
        got = np.load(folder / f'{contestant.name}.npy').astype(np.float64)[: len(want)]
        exact = want[: len(got)]
        errors[contestant.name] = float(np.linalg.norm(got - exact) / np.linalg.norm(exact))
    wrong = {name: error for name, error in errors.items() if not error < TOLERANCE}
    if wrong:
        sys.exit(f'error: outputs differ from float64 by {wrong}, more than {TOLERANCE}')
    return errors


def race(contestants: list[Contestant], batch: int, rounds: int) -> dict[str, list[float]]:
    """Returns every contestant's images a second in every round."""
    rates: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for _ in range(rounds):
        for contestant in contestants:
            rates[contestant.name].append(batch / contestant.run(batch))
            time.sleep(REST)
    return rates


def report(batch: int, rates: dict[str, list[float]], errors: dict[str, float]) -> dict[str, Any]:
    """Prints the table of one batch size and returns its medians and ratios."""
    ours = rates['tlflax']
    ratios, medians = {}, {}
    print(f'\nbatch {batch:<10}{"images/s":>9}{"range":>16}{"tlflax/this":>13}{"error":>10}')
    for name, theirs in rates.items():
        medians[name] = statistics.median(theirs)
        ratios[name] = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        spread = f'{min(theirs):.2f}..{max(theirs):.2f}'
        print(f'{name:16}{medians[name]:9.2f}{spread:>16}', end='')
        print(f'{ratios[name]:13.2f}{errors[name]:10.1e}')
    del ratios['tlflax']
    return {'batch': batch, 'images_per_second': medians, 'ratio': ratios}


def main() -> None:
    """Prints the tables, and as its last line one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--quick', action='store_true', help='one batch size, few rounds')
    parser.add_argument('--batches', help='batch sizes, the last one for the summary')
    parser.add_argument('--rounds', type=int)
    parser.add_argument('--weights', help='a weights file; random weights without it')
    parser.add_argument('--images', help='a folder of photographs; noise without it')
    parser.add_argument('--only', help='contestants, by commas; tlflax always runs')
    options = parser.parse_args()
    batches = [int(b) for b in (options.batches or ('4' if options.quick else '1,16')).split(',')]
    rounds = options.rounds or (2 if options.quick else 7)
    wanted = options.only.split(',') if options.only else list(bench_peers.CONTESTANTS)
    names = [name for name in bench_peers.CONTESTANTS if name in wanted or name == 'tlflax']

    peak = roofline.measure_peak()
    print(cpu.described())
    print(f'peak: {peak.operations / 1e9:.0f} GFLOP/s, {peak.bytes / 1e9:.0f} GB/s copied')
    params = load_params(options.weights)
    images = load_images(options.images, max(CHECKED, *batches))
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        arrays = {f'{k}/{leaf}': a for k, layer in params.items() for leaf, a in layer.items()}
        np.savez(folder / 'params.npz', **arrays)
        np.save(folder / 'images.npy', images)
        contestants = start(folder, names, ['--guess'] if options.quick else [])
        for contestant in contestants:
            stack.callback(contestant.end)
        want = exact(params, images[: 1 if options.quick else CHECKED])
        results = []
        for batch in batches:
            errors = check(folder, contestants, batch, want)
            results.append(report(batch, race(contestants, batch, rounds), errors))
    direct = 2 * 15.35e9 * results[-1]['images_per_second']['tlflax']
    print(
        f'\ntlflax does {direct / peak.operations:.2f} of the peak in direct-equivalent operations'
    )
    print(
        json.dumps(
            results[-1]
            | {'machine': cpu.described(), 'relative_error': errors['tlflax'], 'all': results[:-1]}
        )
    )


if __name__ == '__main__':
    main()
