"""What reading a file shows, and the file that remembers it for a whole folder.

Columns and not rows, so that a million files load in seconds: texts in one block, numbers, digests
and looks in arrays.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from absl import logging
from jaxtyping import Int, Int64, UInt8

from tlflax.data.images import decode, perceptual_hash

# Findings may change with the decoder, so they are kept for one version of it.
_VERSION = f'3, Pillow {PIL.__version__}'
_NUMBERS = 12  # columns of the file that remembers
_NO_IMAGE = decode.ImageInfo('', 0, 0, '', 0, False)
_NO_DIGEST = '0' * 64


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
        look: Of a good image, what it looks like: see `looks`.
    """

    kind: str
    fault: str = ''
    digest: str = ''
    info: decode.ImageInfo | None = None
    look: bytes = b''

    @property
    def is_image(self) -> bool:
        """Whether the file is an image, good or bad, and not a stray."""
        return bool(self.digest or self.fault)


def save(place: Path, entries: Sequence[Entry], findings: Sequence[Finding | None]) -> None:
    """Writes what is known; a cache that cannot be written costs only time, and is said."""
    # What could not be read may be fixed unseen.
    rows = [row for row, finding in enumerate(findings) if finding is not None and finding.kind]
    kept, found = [entries[row] for row in rows], [findings[row] for row in rows]
    columns = _pack(kept, [finding for finding in found if finding is not None])
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix='.') as folder:
            part = os.path.join(folder, place.name)
            np.savez(part, allow_pickle=False, **columns)
            os.replace(part, place)
    except OSError as error:
        logging.warning('%s: the scan cannot be remembered: %s', place, error.strerror)


def _pack(entries: Sequence[Entry], findings: Sequence[Finding]) -> dict[str, np.ndarray]:
    """Makes the columns of the file: texts, numbers of each row, digests and looks as bytes."""
    words: dict[str, int] = {}  # formats, modes and faults are few: rows hold their numbers

    def code(word: str) -> int:
        return words.setdefault(word, len(words))

    numbers, digests, all_looks = [], [], []
    for entry, (kind, fault, digest, info, look) in zip(entries, findings, strict=True):
        file_format, width, height, mode, orientation, plain = info or _NO_IMAGE
        codes = code(kind), code(fault), code(file_format), code(mode)
        numbers.append((*entry[1:], *codes, width, height, orientation, plain, bool(digest)))
        digests.append(digest or _NO_DIGEST)
        all_looks.append(look)
    paths = [entry.path for entry in entries]
    blob = '\0'.join([_VERSION, str(len(words)), *words, *paths])
    return {
        'texts': np.frombuffer(blob.encode('utf-8', 'surrogateescape'), np.uint8),
        'numbers': np.array(numbers, np.int64).reshape(-1, _NUMBERS),
        'digests': np.frombuffer(bytes.fromhex(''.join(digests)), np.uint8).reshape(-1, 32),
        'looks': perceptual_hash.table(all_looks),
    }


def load(place: Path, entries: Sequence[Entry]) -> list[Finding | None]:
    """Returns what is known of each entry.

    That is nothing where the file is missing, damaged or of another version.
    """
    try:
        with np.load(place, allow_pickle=False) as file:
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
        logging.info('%s: a damaged scan is made again: %s', place, error)
    return [None] * len(entries)


def _match(
    entries: Sequence[Entry], paths: list[str], numbers: Int64[np.ndarray, 'm k']
) -> Int[np.ndarray, ' n']:
    """Returns the row that describes each entry as it is now; -1 where there is none."""
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
    table: UInt8[np.ndarray, 'm bytes'],
) -> list[Finding | None]:
    """Makes the findings of some rows; None where the row is -1."""
    total, known = len(rows), np.flatnonzero(rows >= 0)
    rows = rows[known]
    hexadecimal, blob = digests[rows].tobytes().hex(), table[rows].tobytes()
    infos = _Infos(words)
    findings: list[Finding | None] = [None] * total
    values = numbers[rows, 3:].tolist()
    for at, row in enumerate(known.tolist()):
        kind, fault, *image, good = values[at]
        if good:
            digest = hexadecimal[64 * at : 64 * (at + 1)]
            look = blob[perceptual_hash.BYTES * at : perceptual_hash.BYTES * (at + 1)]
            findings[row] = Finding(words[kind], '', digest, infos[tuple(image)], look)
        else:
            findings[row] = Finding(words[kind], words[fault])
    return findings


class _Infos(dict[tuple[int, ...], decode.ImageInfo]):
    """Rows of numbers -> what they describe; equal ones share their memory."""

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__()
        self.words = words

    def __missing__(self, key: tuple[int, ...]) -> decode.ImageInfo:
        file_format, mode, width, height, orientation, plain = key
        words = self.words
        self[key] = info = decode.ImageInfo(
            words[file_format], width, height, words[mode], orientation, bool(plain)
        )
        return info
