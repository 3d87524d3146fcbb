"""The files of a split and their classes: as they are named, and as they were read."""

import dataclasses
import os
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator

import numpy as np
from absl import logging
from jaxtyping import Float32

from tlflax.data.images.decode import MAX_PIXELS
from tlflax.data.images.files import Entry, ScannedFile
from tlflax.data.images.scan import read_all
from tlflax.data.inputs.walk import kind_of_stray
from tlflax.utils.errors import printable, quoted


@dataclasses.dataclass(frozen=True, eq=False)
class Listing:
    """The files that a folder, a manifest or a pattern names; nothing is read yet.

    Attributes:
        root: The absolute folder that the entries' paths start from.
        source: What named them, for messages, and to remember results under: the folder, the
            pattern, or the manifest and the split.
        entries: The files. Paths are relative to `root`, or absolute.
        names: The class of each.
        ignored: What was left out, by reason.
        empty: Classes without any file.
        file: The manifest; '' where the files come from elsewhere.
        lines: The manifest's line, from 1, that names each entry; None without a manifest.
        weights: The weight of each, from a manifest.
        groups: The group of each, from a manifest; '' for a file that is a group of its own.
    """

    root: str
    source: str
    entries: list[Entry]
    names: list[str]
    ignored: Counter[str]
    empty: tuple[str, ...] = ()
    file: str = ''
    lines: list[int] | None = None
    weights: Float32[np.ndarray, ' n'] | None = None
    groups: np.ndarray | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """All class names, sorted."""
        return tuple(sorted({*self.names, *self.empty}))


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
    """A listing that was read.

    Attributes:
        listing: What was read.
        files: What each of its entries is.
        ignored: What was left out, by reason, stray files included.
        num_read: How many files had to be read; the others were known.
    """

    listing: Listing
    files: list[ScannedFile]
    ignored: Counter[str]
    num_read: int

    def rows(self) -> Iterator[tuple[Entry, str, ScannedFile]]:
        """Yields each entry with its class and what it is."""
        yield from zip(self.listing.entries, self.listing.names, self.files, strict=True)


@dataclasses.dataclass
class Announced:
    """The inputs that the log has told of: it does so again only if files had to be read.

    Attributes:
        everything: The log has told of whatever is read.
        sources: What named the inputs.
    """

    everything: bool = False
    sources: set[str] = dataclasses.field(default_factory=set)

    def is_new(self, source: str) -> bool:
        """Returns whether the log has not told of an input; from now on it has."""
        new = not self.everything and source not in self.sources
        self.sources.add(source)
        return new


def scan(
    listing: Listing,
    *,
    max_pixels: int = MAX_PIXELS,
    background: tuple[int, int, int] = (0, 0, 0),
    announced: Announced | None = None,
) -> Scan:
    """Reads the files of a listing that are not known yet; see `read_all`.

    Args:
        listing: The files.
        max_pixels: See `read_all`.
        background: See `read_all`.
        announced: Of which inputs the log need not tell again; None: of none.
    """
    start = time.monotonic()
    files, num_read = read_all(
        listing.root,
        listing.entries,
        memory=listing.source,
        listed=listing.lines is not None,
        max_pixels=max_pixels,
        background=background,
    )
    if listing.lines is not None:
        files = [
            _with_hint(listing.root, entry.path, file) if entry.size < 0 else file
            for entry, file in zip(listing.entries, files, strict=True)
        ]
    found = Scan(listing, files, listing.ignored.copy(), num_read)
    found.ignored.update(
        kind_of_stray(entry.path) for entry, _, file in found.rows() if not file.is_image
    )
    if announced is None or announced.is_new(listing.source) or num_read:
        _tell(found, time.monotonic() - start)
    return found


def _tell(found: Scan, seconds: float) -> None:
    logging.info(
        '%s: %d images in %d classes (%d files read, %.1f s)%s',
        printable(found.listing.source),
        sum(file.is_good for file in found.files),
        len(found.listing.class_names),
        found.num_read,
        seconds,
        f'; ignored: {_tally(found.ignored)}' if found.ignored else '',
    )


def _with_hint(root: str, path: str, file: ScannedFile) -> ScannedFile:
    """Adds to the fault of a listed file that does not exist which one is meant, or what is odd."""
    slashes = path.replace('\\', '/')
    for other in (slashes, *(unicodedata.normalize(form, slashes) for form in ('NFC', 'NFD'))):
        if other != path and os.path.exists(os.path.join(root, other)):
            return file._replace(fault=f'{file.fault} (did you mean {quoted(other, [path])}?)')
    if slashes != path:
        return file._replace(fault=f'{file.fault} (folders are separated by /)')
    return file


def _tally(ignored: Counter[str]) -> str:
    return ', '.join(f'{count} {reason}' for reason, count in ignored.most_common())
