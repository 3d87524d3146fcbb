"""The table of a split's images: sorted, verified, labeled; no TensorFlow.

Classes are sorted by name and images by (class, relative path), so the order never depends on the
file system.
"""

import dataclasses
import functools
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
from absl import logging
from jaxtyping import Bool, Float32, Int, Int32, UInt8

from tlflax.data.images import perceptual_hash
from tlflax.data.images.decode import MAX_PIXELS, printable
from tlflax.data.images.scan import Scanned, read_all
from tlflax.data.inputs.class_checks import (
    check_against_training,
    check_classes,
    refuse_empty,
    report_bad,
    some,
    spelled_alike,
)
from tlflax.data.inputs.listing import Listing
from tlflax.data.inputs.walk import kind_of_stray

_COLUMNS = ('paths', 'labels', 'digests', 'plain_jpeg', 'weights', 'groups', 'looks')


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
        weights: The factor of each image's training loss, from a manifest; None: 1.
        groups: The scene of each image, a string: images of one scene go to one side of a split.
            None: each image is a scene of its own.
        looks: What each looks like, see `tlflax.data.images.perceptual_hash`; None: not known.
    """

    root: str
    paths: np.ndarray
    labels: Int32[np.ndarray, ' n']
    classes: tuple[str, ...]
    digests: np.ndarray
    plain_jpeg: Bool[np.ndarray, ' n']
    weights: Float32[np.ndarray, ' n'] | None = None
    groups: np.ndarray | None = None
    looks: UInt8[np.ndarray, 'n bytes'] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: Int[np.ndarray, ' m'] | Bool[np.ndarray, ' n']) -> 'ImageTable':
        """Returns the table of these rows (indices or a mask), with all the classes."""
        columns = {name: getattr(self, name) for name in _COLUMNS}
        chosen = {name: column[rows] for name, column in columns.items() if column is not None}
        return dataclasses.replace(self, **chosen)

    @property
    def counts(self) -> Int[np.ndarray, ' c']:
        """Images of each class."""
        return np.bincount(self.labels, minlength=len(self.classes))

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of class names, labels, contents and weights, in order; of no location.

        Scenes are not part of it: once a split is made, they change nothing.
        """
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for label, content in zip(self.labels.tolist(), self.digests, strict=True):
            digest.update(f'\n{label} {content}'.encode())
        if self.weights is not None:
            digest.update(b'\nweights ' + self.weights.astype('<f4').tobytes())
        return digest.hexdigest()


def check(listing: Listing, *, key: str, classes: Sequence[str] | None) -> None:
    """Refuses, before anything is read, what cannot be a training split or one beside it.

    Raises:
        UserError: See `check_classes` and `check_against_training`.
    """
    if classes is None:
        check_classes(listing, key)
        if twins := spelled_alike(listing.classes):
            logging.warning('%s: class names that differ in spelling only: %s', key, some(twins))
    else:
        check_against_training(listing.classes, classes, key)


def read(
    listing: Listing,
    *,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    background: tuple[int, int, int] = (0, 0, 0),
) -> Scanned:
    """Reads the files of a listing, those that are not known yet: see `read_all`."""
    start = time.monotonic()
    findings, count = read_all(
        listing.root,
        listing.entries,
        workers,
        memory=listing.source,
        listed=listing.lines is not None,
        max_pixels=max_pixels,
        background=background,
    )
    ignored = listing.ignored.copy()
    ignored.update(
        kind_of_stray(entry.path)
        for entry, finding in zip(listing.entries, findings, strict=True)
        if not finding.is_image
    )
    logging.info(
        '%s: %d images in %d classes (%d files read, %.1f s)%s',
        printable(listing.source),
        sum(finding.info is not None for finding in findings),
        len(listing.classes),
        count,
        time.monotonic() - start,
        f'; ignored: {_tally(ignored)}' if ignored else '',
    )
    return Scanned(listing.root, listing.entries, listing.names, findings, ignored, count)


def tabulate(
    scanned: Scanned,
    listing: Listing,
    *,
    key: str,
    on_bad_image: str = 'error',
    classes: Sequence[str] | None = None,
) -> ImageTable:
    """Makes the table of the good images.

    Args:
        scanned: What reading the listing found.
        listing: What was read.
        key: The configuration key that gave it, for messages.
        on_bad_image: 'error', or 'skip' to leave bad images out, with a warning that names them.
        classes: The training split's class names, which decide the labels of this split; folders
            of other names are errors, missing ones a warning. None: this is the training split.

    Raises:
        UserError: Bad images unless skipped, or a class without a good one.
    """
    report_bad(scanned, listing, on_bad_image, key)
    classes = listing.classes if classes is None else tuple(classes)
    table = table_of(scanned, listing, classes)
    _check_counts(table, listing, key)
    return table


def table_of(scanned: Scanned, listing: Listing, classes: tuple[str, ...]) -> ImageTable:
    """Makes the table of the good images, whatever else is wrong.

    Args:
        scanned: What reading the listing found.
        listing: What was read.
        classes: Class names by label; all of the listing's are among them.
    """
    label_of = {name: label for label, name in enumerate(classes)}
    good = [row for row, finding in enumerate(scanned.findings) if finding.info is not None]
    good.sort(key=lambda row: (label_of[scanned.names[row]], scanned.entries[row].path))
    infos = [info for row in good if (info := scanned.findings[row].info)]
    paths = [os.path.join(scanned.root, scanned.entries[row].path) for row in good]
    return ImageTable(
        root=scanned.root,
        paths=np.array(paths, object),
        labels=np.array([label_of[scanned.names[row]] for row in good], np.int32),
        classes=classes,
        digests=np.array([scanned.findings[row].digest for row in good], object),
        plain_jpeg=np.array([info.plain_jpeg for info in infos], bool),
        weights=None if listing.weights is None else listing.weights[good],
        groups=None if listing.groups is None else listing.groups[good],
        looks=perceptual_hash.table([scanned.findings[row].look for row in good]),
    )


def _check_counts(table: ImageTable, listing: Listing, key: str) -> None:
    """Refuses a class that is named and has no images; one that is not named is a warning."""
    here = set(listing.classes)
    without = [table.classes[label] for label in np.flatnonzero(table.counts == 0)]
    refuse_empty([name for name in without if name in here], key)
    if missing := [name for name in without if name not in here]:
        logging.warning(
            '%s: no images of %d of the classes that training has: %s',
            *(key, len(missing), some(missing)),
        )


def _tally(ignored: Counter[str]) -> str:
    return ', '.join(f'{count} {reason}' for reason, count in ignored.most_common())
