"""Reads every file of a folder once, in parallel, and remembers what it found.

A file is digested and really decoded, so that a run never meets a bad image later. What was found
is kept in `<TLFLAX_CACHE>/scans/`, so that the next scan of an unchanged file costs one `stat`.
"""

import contextlib
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tlflax.data.images import decode, perceptual_hash, sniff
from tlflax.data.images.files import Entry, ScannedFile
from tlflax.data.images.scan_cache import load, save
from tlflax.utils import assets, cpu
from tlflax.utils.errors import UserError, reason
from tlflax.utils.files import regular
from tlflax.utils.progress import progress

IMAGE_EXTENSIONS = (
    frozenset(('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.gif', '.bmp', '.dib', '.webp'))
    | frozenset(('.tif', '.tiff', '.ppm', '.pgm', '.pbm', '.pnm'))
    | frozenset(('.heic', '.heif', '.avif', '.jp2', '.jxl'))
)

_CHUNK = 64  # files a task: a task each would cost as much as decoding a small file
_SAVE_SECONDS = 60.0


def read_all(
    root: str,
    entries: Sequence[Entry],
    *,
    memory: str = '',
    listed: bool = False,
    max_pixels: int = decode.MAX_PIXELS,
    background: tuple[int, int, int] = (0, 0, 0),
) -> tuple[list[ScannedFile], int]:
    """Reads the files that are not known yet.

    Args:
        root: The absolute folder that the entries' paths start from.
        entries: The files.
        memory: The absolute path under which the results are remembered; `root` by default.
        listed: See `read_file`.
        max_pixels: See `read_file`.
        background: See `read_file`.

    Returns:
        What each entry is, and how many files had to be read.
    """
    place = _place(memory or root, listed, max_pixels, background)
    known = load(place, entries)
    todo = [row for row, file in enumerate(known) if file is None]
    read_one = functools.partial(
        read_file, listed=listed, max_pixels=max_pixels, background=background
    )

    def read(rows: list[int]) -> list[ScannedFile]:
        return _hashed([read_one(os.path.join(root, entries[row].path)) for row in rows])

    if todo:
        with (
            _saving(place, entries, known) as save_now_and_then,
            progress('reading images', len(todo)) as tick,
        ):
            for rows, files in _map(read, todo, _workers()):
                for row, file in zip(rows, files, strict=True):
                    known[row] = file
                tick(len(rows))
                save_now_and_then()
    return [file for file in known if file is not None], len(todo)


def read_file(
    path: str,
    *,
    listed: bool = False,
    max_pixels: int = decode.MAX_PIXELS,
    background: tuple[int, int, int] = (0, 0, 0),
) -> ScannedFile:
    """Reads, digests and decodes one file; what is wrong with it is in the result.

    A good image comes with its thumbnail and without its perceptual hash; see `read_all`.

    Args:
        path: The file.
        listed: It is listed as an image, for example in a manifest, so it is never a stray file.
        max_pixels: A larger image is a fault.
        background: The RGB color, 0..255, that is seen behind transparent pixels.
    """
    looks_like_image = listed or os.path.splitext(path)[1].lower() in IMAGE_EXTENSIONS
    try:
        with open(path, 'rb', buffering=0, opener=regular) as file:
            data = file.read(sniff.HEAD_BYTES)
            kind = sniff.sniff(data)
            if kind in sniff.READABLE:
                data += file.read()
    except OSError as error:
        fault = 'is a broken link' if os.path.islink(path) else f'cannot be read: {reason(error)}'
        return ScannedFile('', fault if looks_like_image else '')
    if kind not in sniff.READABLE:
        meant = looks_like_image or kind in sniff.OTHER_IMAGES
        return ScannedFile(kind, f'is {sniff.explain(kind)}' if meant else '')
    try:
        return decode.probe(data, max_pixels=max_pixels, background=background)
    except UserError as error:
        return ScannedFile(kind, error.what)


def is_meant(path: str) -> bool:
    """Whether a file is an image, good or bad, by its name or its first bytes; else a stray."""
    if os.path.splitext(path)[1].lower() in IMAGE_EXTENSIONS:
        return True
    try:
        with open(path, 'rb', buffering=0, opener=regular) as file:
            kind = sniff.sniff(file.read(sniff.HEAD_BYTES))
    except OSError:
        return False
    return kind in (*sniff.READABLE, *sniff.OTHER_IMAGES)


def _hashed(files: list[ScannedFile]) -> list[ScannedFile]:
    """Replaces thumbnails by perceptual hashes."""
    hashes = perceptual_hash.compute([file.thumbnail for file in files])
    return [
        file._replace(perceptual_hash=one, thumbnail=b'') if one else file
        for file, one in zip(files, hashes, strict=True)
    ]


def _workers() -> int:
    """Returns how many threads read files: one for each core, as more slow each other down.

    They are threads, as a fork with JAX or TensorFlow loaded may hang and a spawned process would
    run the caller's script again; decoding releases the lock.
    """
    return min(32, cpu.cores())


def _map(
    read: Callable[[list[int]], list[ScannedFile]], todo: list[int], workers: int
) -> Iterator[tuple[list[int], list[ScannedFile]]]:
    """Yields chunks of rows with what their files are, in order, with few chunks in flight."""
    chunks = [todo[at : at + _CHUNK] for at in range(0, len(todo), _CHUNK)]
    window = 4 * workers  # an executor takes everything it is given immediately
    with ThreadPoolExecutor(workers) as pool:
        for at in range(0, len(chunks), window):
            part = chunks[at : at + window]
            yield from zip(part, pool.map(read, part), strict=True)


@contextlib.contextmanager
def _saving(
    place: Path, entries: Sequence[Entry], known: list[ScannedFile | None]
) -> Iterator[Callable[[], None]]:
    """Yields a function that saves what is known once a minute, and saves it in the end.

    So an interrupted scan continues where it stopped.
    """
    saved = time.monotonic()

    def save_now_and_then() -> None:
        nonlocal saved
        if time.monotonic() - saved > _SAVE_SECONDS:
            save(place, entries, known)
            saved = time.monotonic()

    try:
        yield save_now_and_then
    finally:
        save(place, entries, known)


def _place(memory: str, listed: bool, max_pixels: int, background: tuple[int, int, int]) -> Path:
    """The file that remembers a folder, by where it really is and by how it is read."""
    real = os.fsencode(os.path.realpath(memory))
    if (listed, max_pixels, tuple(background)) != (False, decode.MAX_PIXELS, (0, 0, 0)):
        real += f'\0{listed} {max_pixels} {tuple(background)}'.encode()
    name = hashlib.sha256(real).hexdigest()[:24]
    return assets.cache_folder() / 'scans' / f'{name}.npz'
