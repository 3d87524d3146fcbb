"""Keeps what reading the files of a folder showed, in one file a folder.

Columns and not rows, so that a million files load in seconds: texts in one block, numbers, digests
and perceptual hashes in arrays.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
from absl import logging
from jaxtyping import Int, Int64, UInt8

from tlflax.data.images import perceptual_hash
from tlflax.data.images.files import Entry, ScannedFile
from tlflax.models.weights import archives
from tlflax.utils.errors import reason
from tlflax.utils.files import replacing

# What is found may change with the decoder, so it is kept for one version of it.
_VERSION = f'5, Pillow {PIL.__version__}'
_NUMBERS = 13  # columns of the file
_NO_DIGEST = '0' * 64


def save(place: Path, entries: Sequence[Entry], files: Sequence[ScannedFile | None]) -> None:
    """Writes what is known; a cache that cannot be written costs time only and is a warning."""
    # What could not be read may be fixed unseen.
    known = [(entry, f) for entry, f in zip(entries, files, strict=True) if f and f.kind]
    columns = _pack(known)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as partial, open(partial, 'wb') as file:
            np.savez(file, allow_pickle=False, **columns)
    except OSError as error:
        logging.warning('%s: the scan cannot be remembered: %s', place, reason(error))


def _pack(known: Sequence[tuple[Entry, ScannedFile]]) -> dict[str, np.ndarray]:
    """Makes the columns: texts, numbers of each row, digests and perceptual hashes as bytes."""
    words: dict[str, int] = {}  # formats, modes and faults are few: rows hold their numbers

    def code(word: str) -> int:
        return words.setdefault(word, len(words))

    numbers = []
    for (_, *status), (kind, fault, digest, form, mode, *measures, _, _) in known:
        codes = code(kind), code(fault), code(form), code(mode)
        numbers.append((*status, *codes, *measures, bool(digest)))
    digests = ''.join(file.digest or _NO_DIGEST for _, file in known)
    paths = [entry.path for entry, _ in known]
    blob = '\0'.join([_VERSION, str(len(words)), *words, *paths])
    return {
        'texts': np.frombuffer(blob.encode('utf-8', 'surrogateescape'), np.uint8),
        'numbers': np.array(numbers, np.int64).reshape(-1, _NUMBERS),
        'digests': np.frombuffer(bytes.fromhex(digests), np.uint8).reshape(-1, 32),
        'looks': perceptual_hash.stack([file.perceptual_hash for _, file in known]),
    }


def load(place: Path, entries: Sequence[Entry]) -> list[ScannedFile | None]:
    """Returns what is known of each entry; None where nothing is.

    A file that is missing, damaged or of another version tells nothing.
    """
    try:
        file = archives.read_npz(place)
        texts = file['texts'].tobytes().decode('utf-8', 'surrogateescape').split('\0')
        if texts[0] == _VERSION:
            count = int(texts[1])
            words, paths = list(map(sys.intern, texts[2 : 2 + count])), texts[2 + count :]
            columns = [file[name] for name in ('numbers', 'digests', 'looks')]
            if {len(paths)} != {len(column) for column in columns}:
                raise ValueError('its columns differ in length')
            return _unpack(_match(entries, paths, columns[0]), words, *columns)
    except FileNotFoundError:
        pass
    except Exception as error:  # a damaged file makes NumPy and zipfile raise nearly anything
        logging.info('%s: this scan is damaged and is made again: %s', place, error)
    return [None] * len(entries)


def _match(
    entries: Sequence[Entry], paths: list[str], numbers: Int64[np.ndarray, 'm k']
) -> Int[np.ndarray, ' n']:
    """Returns the row that describes each entry as it is now; -1 where no row does."""
    row_of = dict(zip(paths, range(len(paths)), strict=True))
    rows = np.array([row_of.get(entry.path, -1) for entry in entries], np.int64)
    now = np.array([entry[1:] for entry in entries], np.int64).reshape(-1, 3)
    known = np.flatnonzero(rows >= 0)
    changed = (numbers[rows[known], :3] != now[known]).any(axis=1)
    rows[known[changed]] = -1
    return rows


def _unpack(
    rows: Int[np.ndarray, ' n'],
    words: list[str],
    numbers: Int64[np.ndarray, 'm k'],
    digests: UInt8[np.ndarray, 'm 32'],
    hashes: UInt8[np.ndarray, 'm bytes'],
) -> list[ScannedFile | None]:
    """Makes the results of some rows; None where the row is -1."""
    total, known = len(rows), np.flatnonzero(rows >= 0)
    rows = rows[known]
    hexadecimal, blob = digests[rows].tobytes().hex(), hashes[rows].tobytes()
    size = perceptual_hash.BYTES
    files: list[ScannedFile | None] = [None] * total
    shared: dict[int, int] = {}  # equal widths and heights share their memory
    same = shared.setdefault
    values = numbers[rows, 3:].tolist()
    for at, row in enumerate(known.tolist()):
        kind, fault, form, mode, width, height, orientation, plain, flat, good = values[at]
        if not good:
            files[row] = ScannedFile(words[kind], words[fault])
            continue
        digest = hexadecimal[64 * at : 64 * (at + 1)]
        hashed = blob[size * at : size * (at + 1)]
        measures = same(width, width), same(height, height), orientation, bool(plain), bool(flat)
        texts = words[kind], '', digest, words[form], words[mode]
        files[row] = ScannedFile(*texts, *measures, hashed)
    return files
