"""Every loader of outside input, with valid inputs to damage: for `fuzz_suite` and scripts/fuzz.py.

A loader keeps the promise if it takes an input or refuses it with a `UserError` of one sentence.
"""

import dataclasses
import functools
import io
import json
import random
import unicodedata
import unittest.mock
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import fuzz_seeds

from tlflax.utils.errors import UserError

Parse = Callable[[bytes, Path], object]


@dataclasses.dataclass(frozen=True)
class Target:
    """A loader.

    Attributes:
        name: What it loads.
        seeds: Makes valid inputs.
        parse: Takes an input and an empty folder of its own, which it may use again and again.
        share: How many inputs it gets where the slowest loader gets one.
        lines: Its messages may list differences, a line each.
        forged: Whether members of its archives are damaged under a checksum that fits, too.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    parse: Parse
    share: int = 1
    lines: bool = False
    forged: bool = True


class Fault(Exception):
    """A loader broke its promise."""


def check(target: Target, data: bytes, folder: Path) -> bool:
    """Gives an input to a loader; returns whether it was taken.

    Raises:
        Fault: It was refused with anything but a sentence.
    """
    try:
        target.parse(data, folder)
    except UserError as error:
        _check_sentence(str(error), target.lines)
        return False
    except Exception as error:
        raise Fault(f'{type(error).__name__}: {error}') from error
    return True


def _check_sentence(text: str, lines: bool) -> None:
    for line in text.split('\n') if lines else [text]:
        if any(unicodedata.category(char) in ('Cc', 'Cs') for char in line):
            raise Fault(f'its message holds control characters: {text!r}')
    if not text or len(text) > 20_000 or 'Traceback' in text:
        raise Fault(f'its message is no sentence: {text[:200]!r}')


# Damage

_HUGE = (b'\xff', b'\x7f\xff', b'\xff' * 4, b'\x7f' + b'\xff' * 3, b'\xff' * 3 + b'\x7f')
_HUGE += (b'\xff' * 8, b'\x7f' + b'\xff' * 7, b'\0\0\0\x40', b'\x40\0\0\0', b'9' * 7, b'9' * 19)


_MARKS = (b'NUMPY', b'NUMPY', b'PK\1\2', b'PK\3\4', b'GCOL', b'TREE', b'HEAP', b'name', b'data')


def mutate(data: bytes, other: bytes, rng: random.Random, forged: bool = True) -> bytes:
    """Damages an input in one to four places; of archives and PNGs also what checksums protect.

    Args:
        data: A valid input.
        other: Another one, of which parts may be taken.
        rng: Decides how.
        forged: See `Target`.
    """
    if rng.random() < 0.02:
        return rng.randbytes(rng.randrange(200))
    if forged and data[:4] == b'PK\x03\x04' and rng.random() < 0.7:
        return _inside_zip(data, rng)
    harmed = data
    for _ in range(rng.randint(1, 4)):
        harmed = rng.choice(_DAMAGE)(harmed, _place(harmed, rng), other, rng)
    return _png_checksums(harmed) if rng.random() < 0.5 else harmed


def _place(data: bytes, rng: random.Random) -> int:
    """Chooses a place, mostly where headers are: near the start, or after a mark of a format."""
    if rng.random() < 0.3:
        mark = data.find(rng.choice(_MARKS), rng.randrange(len(data) + 1))
        if mark >= 0:
            return min(mark + rng.randrange(100), len(data))
    return rng.randrange(min(len(data), rng.choice((64, 1024, 1 << 40))) + 1)


def _flip(data: bytes, at: int, other: bytes, rng: random.Random) -> bytes:
    return (
        data[:at]
        + bytes(byte ^ 1 << rng.randrange(8) for byte in data[at : at + 1])
        + data[at + 1 :]
    )


def _replace(data: bytes, at: int, other: bytes, rng: random.Random) -> bytes:
    return data[:at] + rng.randbytes(1) + data[at + 1 :]


def _cut(data: bytes, at: int, other: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice((at, at, 0, len(data) - 1))] if rng.random() < 0.4 else data


def _repeat(data: bytes, at: int, other: bytes, rng: random.Random) -> bytes:
    size = rng.choice((1, 4, 16, 100, 1000))
    return data[:at] + data[at : at + size] * rng.choice((2, 2, 3, 50)) + data[at + size :]


def _remove(data: bytes, at: int, other: bytes, rng: random.Random) -> bytes:
    return data[:at] + data[at + rng.choice((1, 2, 4, 8, 64)) :]


def _insert(data: bytes, at: int, other: bytes, rng: random.Random) -> bytes:
    return data[:at] + rng.randbytes(rng.choice((1, 2, 4, 8))) + data[at:]


def _enlarge(data: bytes, at: int, other: bytes, rng: random.Random) -> bytes:
    huge = rng.choice(_HUGE)
    return data[:at] + huge + data[at + len(huge) :]


def _number(data: bytes, at: int, other: bytes, rng: random.Random) -> bytes:
    """Changes a number that is written out, or makes it huge."""
    digits = [i for i in range(at, min(at + 200, len(data))) if 48 <= data[i] < 58]
    if not digits:
        return data
    place, new = rng.choice(digits), rng.choice((b'%d' % rng.randrange(10), b'9', b'9' * 400))
    return data[:place] + new + data[place + 1 :]


def _splice(data: bytes, at: int, other: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(other) + 1)
    return data[:at] + other[start : start + rng.choice((4, 32, 1 << 30))] + data[at:][: 1 << 16]


_DAMAGE = (_flip, _flip, _replace, _cut, _repeat, _remove, _insert, _enlarge, _number, _splice)


def _inside_zip(data: bytes, rng: random.Random) -> bytes:
    """Damages a member of an archive, whose checksum then fits."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(member, archive.read(member)) for member in archive.infolist()]
    harmed, out = rng.randrange(len(members)), io.BytesIO()
    with zipfile.ZipFile(out, 'w', rng.choice((0, 0, 8, 12, 14))) as archive:
        for number, (member, content) in enumerate(members):
            if number == harmed:
                content = mutate(content, rng.choice(members)[1], rng)
            archive.writestr(member.filename, content)
    return out.getvalue()


def _png_checksums(data: bytes) -> bytes:
    """Corrects the checksums of a PNG's parts."""
    at, out = 8, data[:8]
    if out != b'\x89PNG\r\n\x1a\n':
        return data
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], 'big')
        part = data[at:end]
        out += part + zlib.crc32(part[4:]).to_bytes(4, 'big')
        at = end + 4
    return out


# Loaders


def _image(data: bytes, folder: Path) -> None:
    from tlflax.data.images import decode, scan

    path = folder / 'image.jpg'
    path.write_bytes(data)
    found = scan.read_file(str(path), max_pixels=10**6)
    if found.is_good == bool(found.fault):
        raise Fault('a scan calls it both good and bad, or neither')
    pixels = decode.read_image(data, max_pixels=10**6)
    if pixels.shape != (found.height, found.width, 3):
        raise Fault('the decoder reads what a scan refuses, or another size')


def _image_of_any_size(data: bytes, folder: Path) -> None:
    from tlflax.data.images import decode

    decode.read_image(data)


@functools.cache
def _backbones() -> list[object]:
    from toy_backbone import toy

    from tlflax.models.vgg import network, rows

    return [rows.make('vgg16', network.VGG16, widths=fuzz_seeds.WIDTHS), toy]


def _weights(backbone: int, data: bytes, folder: Path) -> None:
    from tlflax.models import pretrained
    from tlflax.models.weights import file_formats, hdf5

    path = folder / 'weights'
    path.write_bytes(data)
    chosen = _backbones()[backbone]
    # In this process, which takes milliseconds, and where a hang or a crash is seen as what it is.
    here = {'Keras HDF5': hdf5.read, 'Keras archive': hdf5.read_keras}
    with unittest.mock.patch.dict(file_formats.READERS, here):
        pretrained.load(path, chosen, layer='block5_pool' if backbone == 0 else None)


def _manifest(ending: str, data: bytes, folder: Path) -> None:
    from tlflax.data.inputs.manifest import list_manifest, read_manifest, splits

    path = folder / f'images{ending}'
    path.write_bytes(data)
    faults: list[UserError] = []
    try:
        rows = read_manifest(path, report=faults.append)
        list_manifest(path, rows, split=next(iter(sorted(splits(rows))), None))
    finally:
        for fault in faults:
            _check_sentence(str(fault), lines=False)
    list_manifest(path, read_manifest(path))


def _pattern(data: bytes, folder: Path) -> None:
    from tlflax.data.inputs.pattern import is_pattern, list_pattern

    inside = fuzz_seeds.tree(folder)
    spec = f'{inside}/{data.decode("utf-8", "surrogateescape").replace("..", "")}'
    if is_pattern(spec):
        list_pattern(spec, report=lambda fault: None)


def _config(data: bytes, folder: Path) -> None:
    from tlflax.config.parse import resolve, to_dict

    json.dumps(to_dict(resolve(fuzz_seeds.raw_config(data))))


def _sweep(data: bytes, folder: Path) -> None:
    from tlflax.config.parse import resolve
    from tlflax.sweep.settings import SWEPT, resolve_settings

    rng = random.Random(data)
    setting = {
        rng.choice((*SWEPT, 'data.train', 'nothing', '')): fuzz_seeds.any_value(rng)
        for _ in range(rng.randint(1, 3))
    }
    resolve_settings(resolve({'data': {'train': 'a', 'val': 'b'}}), [setting], 'sweep.py')


def _scan_cache(data: bytes, folder: Path) -> None:
    from tlflax.data.images.scan_cache import load

    path = folder / 'scan.npz'
    path.write_bytes(data)
    entries, files, _ = fuzz_seeds.scanned()
    for found, known in zip(load(path, entries), files, strict=True):
        if found is not None and found != known:
            raise Fault(f'it tells {found} of {known}')


def _weights_target(kind: str, backbone: int = 0, share: int = 2) -> Target:
    return Target(
        f'weights {kind}',
        functools.partial(fuzz_seeds.weights, kind),
        functools.partial(_weights, backbone),
        share,
        lines=True,
    )


TARGETS = [
    Target('images', fuzz_seeds.images, _image, 10),
    Target('images of any size', fuzz_seeds.images, _image_of_any_size, 1),
    _weights_target('h5'),
    _weights_target('h5 of Keras 1'),
    _weights_target('keras'),
    _weights_target('onnx'),
    _weights_target('safetensors'),
    _weights_target('npz'),
    _weights_target('npz by path', 1),
    _weights_target('pth'),
    _weights_target('pth of old PyTorch'),
    Target('csv', fuzz_seeds.csvs, functools.partial(_manifest, '.csv'), 10),
    Target('jsonl', fuzz_seeds.jsonls, functools.partial(_manifest, '.jsonl'), 10),
    Target('pattern', fuzz_seeds.patterns, _pattern, 10),
    Target('config', fuzz_seeds.noise, _config, 10),
    Target('command line', fuzz_seeds.command_lines, fuzz_seeds.parse_command_line, 2),
    Target('sweep', fuzz_seeds.noise, _sweep, 5),
    Target('scan cache', fuzz_seeds.scan_caches, _scan_cache, 10, forged=False),
]
BY_NAME = {target.name: target for target in TARGETS}


def damaged(target: Target, seeds: list[bytes], rng: random.Random) -> bytes:
    """Returns a damaged input of a loader."""
    return mutate(rng.choice(seeds), rng.choice(seeds), rng, target.forged)
