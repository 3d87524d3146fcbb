"""The table of a split's images: verified, labeled and sorted, without TensorFlow.

Classes are sorted by name and images by (class, relative path), so the order never depends on the
file system.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Sequence

import numpy as np
from absl import logging
from jaxtyping import Bool, Float32, Int, Int32, UInt8

from tlflax.data.images import perceptual_hash
from tlflax.data.inputs.class_checks import refuse_empty, report_bad, some
from tlflax.data.inputs.listing import Listing, Scan
from tlflax.utils.errors import printable

_COLUMNS = (
    'paths', 'labels', 'digests', 'plain_jpeg', 'weights', 'groups', 'perceptual_hashes',
    'aspect_ratios',
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class ImageTable:
    """Verified images with labels, sorted by (class, relative path).

    Attributes:
        root: The absolute folder they were found in.
        paths: Absolute paths.
        labels: Rows of `class_names`.
        class_names: Class names, by label.
        digests: SHA-256 of each file's bytes, in hexadecimal.
        plain_jpeg: True where TensorFlow's decoder gives Pillow's pixels; the others need Pillow.
        weights: The factor of each image's training loss, from a manifest; None: all are 1.
        groups: The group of each image, a string: images of a group go to one side of a split. ''
            and None: the image is a group of its own.
        perceptual_hashes: See `tlflax.data.images.perceptual_hash`; None: not known.
        aspect_ratios: Width over height of each upright image; None: not known.
    """

    root: str
    paths: np.ndarray
    labels: Int32[np.ndarray, ' n']
    class_names: tuple[str, ...]
    digests: np.ndarray
    plain_jpeg: Bool[np.ndarray, ' n']
    weights: Float32[np.ndarray, ' n'] | None = None
    groups: np.ndarray | None = None
    perceptual_hashes: UInt8[np.ndarray, 'n bytes'] | None = None
    aspect_ratios: Float32[np.ndarray, ' n'] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: Int[np.ndarray, ' m'] | Bool[np.ndarray, ' n']) -> 'ImageTable':
        """Returns the table of these rows (indices or a mask), with all class names."""
        columns = {name: getattr(self, name) for name in _COLUMNS}
        chosen = {name: column[rows] for name, column in columns.items() if column is not None}
        return dataclasses.replace(self, **chosen)

    @property
    def counts(self) -> Int[np.ndarray, ' c']:
        """Images of each class."""
        return np.bincount(self.labels, minlength=len(self.class_names))

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of class names, labels, contents and weights, in order.

        Locations are not part of it, nor are groups, which change nothing once a split is made.
        """
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for label, content in zip(self.labels.tolist(), self.digests, strict=True):
            digest.update(f'\n{label} {content}'.encode())
        if self.weights is not None:
            digest.update(b'\nweights ' + self.weights.astype('<f4').tobytes())
        return digest.hexdigest()


def make_table(
    scan: Scan, *, on_bad_image: str = 'error', class_names: Sequence[str] | None = None
) -> ImageTable:
    """Makes the table of the good images.

    Args:
        scan: What reading a listing found.
        on_bad_image: 'error', or 'skip' to leave bad images out, with a warning that names them.
        class_names: The training split's class names, which decide the labels of this split;
            folders of other names are errors, missing ones a warning. None: this is the training
            split.

    Raises:
        UserError: Bad images unless skipped, or a class without a good one.
    """
    report_bad(scan, on_bad_image)
    names = scan.listing.class_names if class_names is None else tuple(class_names)
    table = table_of(scan, names)
    _check_counts(table, scan.listing)
    return table


def table_of(scan: Scan, class_names: tuple[str, ...]) -> ImageTable:
    """Makes the table of the good images, without any check.

    Args:
        scan: What reading a listing found.
        class_names: Class names by label; all of the listing's are among them.
    """
    listing = scan.listing
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = [label_of[name] for name in listing.names]
    good = [row for row, file in enumerate(scan.files) if file.is_good]
    good.sort(key=lambda row: (labels[row], listing.entries[row].path))
    files = [scan.files[row] for row in good]
    paths = [os.path.join(listing.root, listing.entries[row].path) for row in good]
    return ImageTable(
        root=listing.root,
        paths=np.array(paths, object),
        labels=np.array([labels[row] for row in good], np.int32),
        class_names=class_names,
        digests=np.array([file.digest for file in files], object),
        plain_jpeg=np.array([file.plain_jpeg for file in files], bool),
        weights=None if listing.weights is None else listing.weights[good],
        groups=None if listing.groups is None else listing.groups[good],
        perceptual_hashes=perceptual_hash.stack([file.perceptual_hash for file in files]),
        aspect_ratios=np.array([file.width / file.height for file in files], np.float32),
    )


def _check_counts(table: ImageTable, listing: Listing) -> None:
    """Refuses a class that is named and has no images; one that is not named is a warning."""
    here = set(listing.class_names)
    without = [table.class_names[label] for label in np.flatnonzero(table.counts == 0)]
    refuse_empty([name for name in without if name in here])
    if missing := [name for name in without if name not in here]:
        logging.warning(
            '%s: no images of %d of the classes that training has: %s',
            *(printable(listing.source), len(missing), some(missing)),
        )
