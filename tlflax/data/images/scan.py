"""Reads every file of a folder once, in parallel, and remembers what it found.

A file is digested and really decoded, so that a run never meets a bad image later. What was found
is kept in `<TLFLAX_CACHE>/scans/`, so that the next scan of an unchanged file costs one `stat`.
"""

import dataclasses
import functools
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tlflax.data.images import decode, perceptual_hash, sniff
from tlflax.data.images.scan_cache import Entry, Finding, load, save
from tlflax.utils import assets, cpu
from tlflax.utils.errors import UserError
from tlflax.utils.progress import progress

IMAGE_EXTENSIONS = (
    frozenset(('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.gif', '.bmp', '.dib', '.webp'))
    | frozenset(('.tif', '.tiff', '.ppm', '.pgm', '.pbm', '.pnm'))
    | frozenset(('.heic', '.heif', '.avif', '.jp2', '.jxl'))
)

_CHUNK = 64  # files a task: a task each would cost as much as decoding a small file
_SAVE_SECONDS = 60.0


@dataclasses.dataclass(frozen=True, eq=False)
class Scanned:
    """What reading the files of a split found.

    Attributes:
        root: The absolute folder that the entries' paths start from.
        entries: The files.
        names: The class of each.
        findings: What each is.
        ignored: What was left out, by reason.
        read: How many files had to be read; the others were known.
    """

    root: str
    entries: list[Entry]
    names: list[str]
    findings: list[Finding]
    ignored: Counter[str]
    read: int


def read_all(
    root: str,
    entries: Sequence[Entry],
    workers: int | None = None,
    *,
    memory: str = '',
    listed: bool = False,
    max_pixels: int = decode.MAX_PIXELS,
    background: tuple[int, int, int] = (0, 0, 0),
) -> tuple[list[Finding], int]:
    """Reads the files that are not known yet.

    Args:
        root: The absolute folder that the entries' paths start from.
        entries: The files.
        workers: Threads. Threads, because a fork with JAX or TensorFlow loaded may hang and a
            spawned process would run the caller's script again; decoding releases the lock.
        memory: The absolute path under which the findings are remembered; `root` by default.
        listed: See `read_file`.
        max_pixels: Larger images are faults.
        background: See `read_file`.

    Returns:
        A finding for each entry, and how many files had to be read.
    """
    place = _place(memory or root, listed, max_pixels, background)
    findings = load(place, entries)
    todo = [row for row, finding in enumerate(findings) if finding is None]
    if not todo:
        return [finding for finding in findings if finding is not None], 0

    read_one = functools.partial(
        read_file, listed=listed, max_pixels=max_pixels, background=background
    )

    def read(rows: list[int]) -> list[Finding]:
        return _described([read_one(root, entries[row]) for row in rows])

    saved = time.monotonic()
    chunks = [todo[at : at + _CHUNK] for at in range(0, len(todo), _CHUNK)]
    try:
        with progress('reading images', len(todo)) as tick:
            for rows, found in _map(read, chunks, workers or _workers()):
                for row, finding in zip(rows, found, strict=True):
                    findings[row] = finding
                tick(len(rows))
                if time.monotonic() - saved > _SAVE_SECONDS:
                    save(place, entries, findings)
                    saved = time.monotonic()
    finally:  # an interrupted scan goes on where it stopped
        save(place, entries, findings)
    return [finding for finding in findings if finding is not None], len(todo)


def read_file(
    root: str,
    entry: Entry,
    *,
    listed: bool = False,
    max_pixels: int = decode.MAX_PIXELS,
    background: tuple[int, int, int] = (0, 0, 0),
) -> Finding:
    """Reads, digests and decodes one file; whatever is wrong with it is in the finding.

    Its look is still a thumbnail, for many of them are described at once.

    Args:
        root: The folder that the entry's path starts from.
        entry: The file.
        listed: Somebody listed it as an image, so it is no stray whatever its name and contents.
        max_pixels: A larger image is a fault.
        background: The RGB color, 0..255, that is seen behind transparent pixels.
    """
    looks_like_image = listed or os.path.splitext(entry.path)[1].lower() in IMAGE_EXTENSIONS
    path = os.path.join(root, entry.path)
    try:
        with open(path, 'rb', buffering=0) as file:
            data = file.read(sniff.HEAD_BYTES)
            kind = sniff.sniff(data)
            if kind in sniff.READABLE:
                data += file.read()
    except OSError as error:
        fault = 'is a broken link' if os.path.islink(path) else f'cannot be read: {error.strerror}'
        return Finding('', fault if looks_like_image else '')
    if kind not in sniff.READABLE:
        meant = looks_like_image or kind in sniff.OTHER_IMAGES
        return Finding(kind, f'is {sniff.describe(kind)}' if meant else '')
    try:
        info, look = decode.examine(data, max_pixels=max_pixels, background=background)
    except UserError as error:
        return Finding(kind, error.what)
    return Finding(kind, '', hashlib.sha256(data).hexdigest(), info, look)


def _described(found: list[Finding]) -> list[Finding]:
    """Makes looks of the thumbnails."""
    described = perceptual_hash.describe([finding.look for finding in found])
    return [
        finding._replace(look=look) if look else finding
        for finding, look in zip(found, described, strict=True)
    ]


def _workers() -> int:
    """As many as there are cores for this process: more get into each other's way."""
    return min(32, cpu.cores())


def _map(
    read: Callable[[list[int]], list[Finding]], chunks: list[list[int]], workers: int
) -> Iterator[tuple[list[int], list[Finding]]]:
    """Yields the findings of each chunk of rows, in order, with few chunks in flight."""
    window = 4 * workers  # an executor takes everything it is given at once
    with ThreadPoolExecutor(workers) as pool:
        for at in range(0, len(chunks), window):
            part = chunks[at : at + window]
            yield from zip(part, pool.map(read, part), strict=True)


def _place(memory: str, listed: bool, max_pixels: int, background: tuple[int, int, int]) -> Path:
    """The file that remembers a folder, by where it really is and by how it is read."""
    real = os.fsencode(os.path.realpath(memory))
    if (listed, max_pixels, tuple(background)) != (False, decode.MAX_PIXELS, (0, 0, 0)):
        real += f'\0{listed} {max_pixels} {tuple(background)}'.encode()
    name = hashlib.sha256(real).hexdigest()[:24]
    return assets.cache_folder() / 'scans' / f'{name}.npz'
