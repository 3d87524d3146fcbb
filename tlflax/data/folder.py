"""Class folders to one sorted, verified table of images; no TensorFlow.

    root/red/a.jpg  root/red/night/b.png  root/green/c.webp

Each folder in the root is a class; folders inside a class, to any depth, belong to it. Classes are
sorted by name and images by (class, relative path), so the order never depends on the file system.
What counts as an image is decided by content: a file with an image's extension that is none, or a
picture in a format that is not read, is a bad image; other files are ignored and counted. So are
hidden entries and the folders of `walk.IGNORED_FOLDERS`. Links are followed; a folder that they
lead to several times is read once for each class.
"""

import dataclasses
import functools
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging
from jaxtyping import Bool, Int, Int32, UInt8

from tlflax.data import looks, scans
from tlflax.data.classes import (
    check_against_training,
    check_classes,
    refuse_empty,
    some,
    spelled_alike,
)
from tlflax.data.decode import printable
from tlflax.data.scans import Entry, Finding
from tlflax.data.walk import kind_of_stray, walk
from tlflax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class ImageTable:
    """Verified images with labels, sorted by (class, relative path).

    Attributes:
        root: The absolute folder they were found in.
        paths: Absolute paths.
        labels: Rows of `classes`.
        classes: Class names, by label.
        digests: SHA-256 of each file's bytes, in hexadecimal.
        plain_jpeg: True where TensorFlow's decoder gives Pillow's pixels; the others need Pillow.
        looks: What each looks like, see `tlflax.data.looks`; None: not known.
    """

    root: str
    paths: np.ndarray
    labels: Int32[np.ndarray, ' n']
    classes: tuple[str, ...]
    digests: np.ndarray
    plain_jpeg: Bool[np.ndarray, ' n']
    looks: UInt8[np.ndarray, 'n bytes'] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: Int[np.ndarray, ' m'] | Bool[np.ndarray, ' n']) -> 'ImageTable':
        """Returns the table of these rows (indices or a mask), with all the classes."""
        names = ('paths', 'labels', 'digests', 'plain_jpeg', 'looks')
        columns = {name: getattr(self, name) for name in names}
        chosen = {name: column[rows] for name, column in columns.items() if column is not None}
        return dataclasses.replace(self, **chosen)

    @property
    def counts(self) -> Int[np.ndarray, ' c']:
        """Images of each class."""
        return np.bincount(self.labels, minlength=len(self.classes))

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of class names, labels and contents, in order; independent of any location."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for label, content in zip(self.labels.tolist(), self.digests, strict=True):
            digest.update(f'\n{label} {content}'.encode())
        return digest.hexdigest()


def scan(
    root: str | os.PathLike[str],
    *,
    on_bad_image: str = 'error',
    key: str = 'config.data.train',
    classes: Sequence[str] | None = None,
    workers: int | None = None,
) -> ImageTable:
    """Finds, reads and verifies every image of a folder of class folders.

    Args:
        root: The folder that holds one folder for each class.
        on_bad_image: 'error', or 'skip' to leave bad images out, with a warning that names them.
        key: The configuration key that gave `root`, for messages.
        classes: The training split's class names, which decide the labels of this split; folders
            of other names are errors, missing ones a warning. None: this is the training split.
        workers: Threads that read files.

    Raises:
        UserError: No such folder, no class folders, images outside them, a single class, an empty
            class, a class unknown to training, or bad images unless skipped.
    """
    start = time.monotonic()
    root = os.path.abspath(os.path.expanduser(os.fspath(root)))
    ignored: Counter[str] = Counter()
    folders = walk(root, key=key, ignored=ignored)
    if classes is None:
        check_classes(folders, root, key)
        if twins := spelled_alike(folders):
            logging.warning('%s: class names that differ in spelling only: %s', key, some(twins))
        classes = tuple(folders)
    else:
        check_against_training(folders, classes, key)
    entries = [entry for name in folders for entry in folders[name]]
    findings, read = scans.read_all(root, entries, workers)
    _report_bad(entries, findings, on_bad_image, key)
    ignored.update(
        kind_of_stray(entry.path)
        for entry, finding in zip(entries, findings, strict=True)
        if not finding.is_image
    )
    table = _tabulate(root, entries, findings, tuple(classes))
    _check_counts(table, folders, key)
    logging.info(
        '%s: %d images in %d classes (%d files read, %.1f s)%s',
        *(printable(root), len(table), len(folders), read, time.monotonic() - start),
        f'; ignored: {_tally(ignored)}' if ignored else '',
    )
    return table


def _report_bad(
    entries: Sequence[Entry], findings: Sequence[Finding], on_bad_image: str, key: str
) -> None:
    """Names the bad images: as an error, or as a warning where they are to be skipped."""
    images = sum(finding.is_image for finding in findings)
    bad = [
        f'{printable(entry.path)} {finding.fault}'
        for entry, finding in zip(entries, findings, strict=True)
        if finding.fault
    ]
    if bad and on_bad_image == 'skip':
        logging.warning('%s: skipping %d of %d images:', key, len(bad), images)
        for line in bad:
            logging.warning('  %s', line)
    elif bad:
        raise UserError(
            f'{len(bad)} of {images} images cannot be used: {some(bad, quote=False)}',
            where=key,
            mend='replace or remove them, or leave them out with --config.data.on_bad_image=skip',
        )


def _tabulate(
    root: str, entries: Sequence[Entry], findings: Sequence[Finding], classes: tuple[str, ...]
) -> ImageTable:
    """Makes the table of the good images, which come sorted by class folder."""
    label_of = {name: label for label, name in enumerate(classes)}
    good = [
        (label_of[entry.path.split('/', 1)[0]], entry.path, finding.info, finding)
        for entry, finding in zip(entries, findings, strict=True)
        if finding.info is not None
    ]
    good.sort(key=lambda row: row[:2])
    return ImageTable(
        root=root,
        paths=np.array([os.path.join(root, path) for _, path, *_ in good], object),
        labels=np.array([label for label, *_ in good], np.int32),
        classes=classes,
        digests=np.array([finding.digest for *_, finding in good], object),
        plain_jpeg=np.array([info.plain_jpeg for *_, info, _ in good], bool),
        looks=looks.table([finding.look for *_, finding in good]),
    )


def _check_counts(table: ImageTable, folders: Mapping[str, list[Entry]], key: str) -> None:
    """Refuses a class folder without images; classes without a folder are a warning."""
    without = [table.classes[label] for label in np.flatnonzero(table.counts == 0)]
    refuse_empty([name for name in without if name in folders], key)
    if missing := [name for name in without if name not in folders]:
        logging.warning(
            '%s: no images of %d of the classes that training has: %s',
            *(key, len(missing), some(missing)),
        )


def _tally(ignored: Counter[str]) -> str:
    return ', '.join(f'{count} {reason}' for reason, count in ignored.most_common())
