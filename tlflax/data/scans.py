"""Reads every file of a folder once, in parallel, and remembers what it found.

A file is digested and really decoded, so that a run never meets a bad image later. What was found
is kept in `<TLFLAX_CACHE>/scans/`, so that the next scan of an unchanged file costs one `stat`.
"""

import dataclasses
import hashlib
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from absl import logging

from tlflax import assets
from tlflax.data import decode, sniff
from tlflax.errors import UserError
from tlflax.progress import progress

IMAGE_EXTENSIONS = (
    frozenset(('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.gif', '.bmp', '.dib', '.webp'))
    | frozenset(('.tif', '.tiff', '.ppm', '.pgm', '.pbm', '.pnm'))
    | frozenset(('.heic', '.heif', '.avif', '.jp2', '.jxl'))
)

_CHUNK = 64  # files a task: a task each would cost as much as decoding a small file
_SAVE_SECONDS = 60.0
# Findings may change with the decoder, so they are kept for one version of it.
_VERSION = f'2, Pillow {PIL.__version__}'
_TEXTS, _NUMBERS = 6, 7  # columns of the file that remembers
_NO_IMAGE = decode.ImageInfo('', 0, 0, '', 0, False)


class Entry(NamedTuple):
    """A file as the file system describes it.

    Attributes:
        path: Relative to the root, with '/' between its parts.
        size: Bytes; -1 where the file cannot be described, for example a broken link.
        mtime_ns: Time of the last change of the contents.
        ctime_ns: Time of the last change of anything: shows contents that were replaced by others
            of the same size whose old modification time was restored.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int


class Finding(NamedTuple):
    """What reading a file showed: an image, a fault, or neither (a stray file, to be ignored).

    Attributes:
        kind: What the bytes are, see `sniff.sniff`.
        fault: Why this image cannot be used; '' for a good image or a stray file.
        digest: SHA-256 of the bytes of a good image, in hexadecimal; else ''.
        info: Of a good image.
    """

    kind: str
    fault: str = ''
    digest: str = ''
    info: decode.ImageInfo | None = None

    @property
    def is_image(self) -> bool:
        """Whether the file is an image, good or bad, and not a stray."""
        return bool(self.digest or self.fault)


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

    Returns:
        A finding for each entry, and how many files had to be read.
    """
    place = _place(memory or root, listed, max_pixels)
    known = _load(place)
    findings = [known.get(entry) for entry in entries]
    todo = [row for row, finding in enumerate(findings) if finding is None]
    if not todo:
        return [finding for finding in findings if finding is not None], 0

    def read(rows: list[int]) -> list[Finding]:
        return [read_file(root, entries[row], listed=listed, max_pixels=max_pixels) for row in rows]

    saved = time.monotonic()
    chunks = [todo[at : at + _CHUNK] for at in range(0, len(todo), _CHUNK)]
    try:
        with progress('reading images', len(todo)) as tick:
            for rows, found in _map(read, chunks, workers or _workers()):
                for row, finding in zip(rows, found, strict=True):
                    findings[row] = finding
                tick(len(rows))
                if time.monotonic() - saved > _SAVE_SECONDS:
                    _save(place, entries, findings)
                    saved = time.monotonic()
    finally:  # an interrupted scan goes on where it stopped
        _save(place, entries, findings)
    return [finding for finding in findings if finding is not None], len(todo)


def read_file(
    root: str, entry: Entry, *, listed: bool = False, max_pixels: int = decode.MAX_PIXELS
) -> Finding:
    """Reads, digests and decodes one file; whatever is wrong with it is in the finding.

    Args:
        root: The folder that the entry's path starts from.
        entry: The file.
        listed: Somebody listed it as an image, so it is no stray whatever its name and contents.
        max_pixels: A larger image is a fault.
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
        info = decode.probe(data, max_pixels=max_pixels)
    except UserError as error:
        return Finding(kind, error.what)
    return Finding(kind, '', hashlib.sha256(data).hexdigest(), info)


def _workers() -> int:
    """As many as there are cores for this process: more get into each other's way."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return min(32, cores or 1)


def _map(
    read: Callable[[list[int]], list[Finding]], chunks: list[list[int]], workers: int
) -> Iterator[tuple[list[int], list[Finding]]]:
    """Yields the findings of each chunk of rows, in order, with few chunks in flight."""
    window = 4 * workers  # an executor takes everything it is given at once
    with ThreadPoolExecutor(workers) as pool:
        for at in range(0, len(chunks), window):
            part = chunks[at : at + window]
            yield from zip(part, pool.map(read, part), strict=True)


def _place(memory: str, listed: bool, max_pixels: int) -> Path:
    """The file that remembers a folder, by where it really is and by what counts as a fault."""
    real = os.fsencode(os.path.realpath(memory))
    if listed or max_pixels != decode.MAX_PIXELS:
        real += f'\0{listed} {max_pixels}'.encode()
    name = hashlib.sha256(real).hexdigest()[:24]
    return assets.cache_folder() / 'scans' / f'{name}.npz'


def _save(place: Path, entries: Sequence[Entry], findings: Iterable[Finding | None]) -> None:
    """Writes what is known; a cache that cannot be written costs only time, and is said."""
    texts: list[str] = [_VERSION]
    numbers: list[tuple[int, ...]] = []
    for entry, finding in zip(entries, findings, strict=True):
        if finding is None or not finding.kind:  # what could not be read may be mended unseen
            continue
        info = finding.info or _NO_IMAGE
        texts += (entry.path, finding.kind, finding.fault, finding.digest, info.format, info.mode)
        numbers.append((*entry[1:], info.width, info.height, info.orientation, info.plain_jpeg))
    blob = '\0'.join(texts).encode('utf-8', 'surrogateescape')
    table = np.array(numbers, np.int64).reshape(-1, _NUMBERS)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix='.') as folder:
            part = os.path.join(folder, place.name)
            np.savez(part, texts=np.frombuffer(blob, np.uint8), numbers=table)
            os.replace(part, place)
    except OSError as error:
        logging.warning('%s: the scan cannot be remembered: %s', place, error.strerror)


def _load(place: Path) -> dict[Entry, Finding]:
    """Returns what is known; nothing where the file is missing, damaged or of another version."""
    try:
        with np.load(place, allow_pickle=False) as file:
            texts = file['texts'].tobytes().decode('utf-8', 'surrogateescape').split('\0')
            numbers = file['numbers'].tolist()
        return _rows(texts, numbers) if texts[0] == _VERSION else {}
    except FileNotFoundError:
        return {}
    except Exception as error:  # a damaged file makes NumPy and zipfile raise nearly anything
        logging.info('%s: a damaged scan is made again: %s', place, error)
        return {}


def _rows(texts: list[str], numbers: list[list[int]]) -> dict[Entry, Finding]:
    known = {}
    rows = zip(*[iter(texts[1:])] * _TEXTS, strict=True)
    for row, (size, mtime, ctime, width, height, orientation, plain) in zip(
        rows, numbers, strict=True
    ):
        path, kind, fault, digest, file_format, mode = (row[0], *map(sys.intern, row[1:]))
        image = (file_format, width, height, mode, orientation, bool(plain))
        info = decode.ImageInfo(*image) if digest else None
        known[Entry(path, size, mtime, ctime)] = Finding(kind, fault, digest, info)
    return known
