"""The files of a split and their classes, as a folder, a manifest or a pattern names them."""

import dataclasses
from collections import Counter

import numpy as np
from jaxtyping import Float32

from tlflax.data.images.scan_cache import Entry


@dataclasses.dataclass(frozen=True, eq=False)
class Listing:
    """What there is to read, before anything is read.

    Attributes:
        root: The absolute folder that the entries' paths start from.
        source: What named them, for messages, and to remember findings under: the folder, the
            pattern, or the manifest and the split.
        entries: The files. Paths are relative to `root`, or absolute.
        names: The class of each.
        ignored: What was left out, by reason.
        empty: Classes without any file.
        file: The manifest; '' if there is none.
        lines: The manifest's line, from 1, that names each entry; None: no manifest.
        weights: The weight of each, from a manifest.
        groups: The scene of each, from a manifest; '' for a scene of its own.
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
    def classes(self) -> tuple[str, ...]:
        """All class names, sorted."""
        return tuple(sorted({*self.names, *self.empty}))

    def select(self, rows: list[int]) -> 'Listing':
        """Returns the listing of these rows."""
        return dataclasses.replace(
            self,
            entries=[self.entries[row] for row in rows],
            names=[self.names[row] for row in rows],
            lines=None if self.lines is None else [self.lines[row] for row in rows],
            weights=None if self.weights is None else self.weights[rows],
            groups=None if self.groups is None else self.groups[rows],
        )
