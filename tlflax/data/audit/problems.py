"""The problems that an audit reports.

An 'error' would spoil a result, a 'warning' may, a 'note' is only worth knowing.
"""

import dataclasses
from collections.abc import Sequence
from typing import TypedDict

from tlflax.utils.errors import printable

LEVELS = ('error', 'warning', 'note')
CODES = (
    'leak', 'conflict', 'scene', 'near_leak', 'near_conflict', 'classes', 'empty_class', 'spelling',
    'bad_image', 'folder', 'few', 'imbalance', 'shortcut', 'repeat', 'placeholder',
    'odd_size', 'cut_off', 'small', 'extension', 'near_repeat', 'stretched', 'loop', 'empty_file',
    'not_an_image', 'hidden', 'left_out',
)  # fmt: skip
"""What is checked, the worst first."""

File = TypedDict('File', {'split': str, 'class': str, 'path': str})
"""An image, by its path below the split's root."""


class Item(TypedDict, total=False):
    """One of the things that a problem concerns.

    Copies of an image have `files`; images that only look alike also `bits`, in how many bits of 64
    their hashes differ, and images that only share a group its name as `scene`. A single file has
    `split`, `path` and, where it has one, `fault`.
    """

    files: list[File]
    bits: int
    scene: str
    split: str
    path: str
    fault: str


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """One thing that is wrong, with everything it concerns.

    Attributes:
        code: One of `CODES`.
        level: One of `LEVELS`.
        count: How many images, files or classes it concerns.
        what: A sentence.
        fix: How to put it right; may be empty.
        items: All that it concerns.
    """

    code: str
    level: str
    count: int
    what: str
    fix: str = ''
    items: Sequence[Item] = ()

    @property
    def rank(self) -> tuple[int, int]:
        """Sorts the worst first."""
        return LEVELS.index(self.level), CODES.index(self.code)


def describe(item: Item) -> str:
    """Returns an item of a problem as a line."""
    if 'files' in item:
        sign = ' ~ ' if {'bits', 'scene'} & item.keys() else ' = '
        bits = f' ({item["bits"]} bits of 64 differ)' if 'bits' in item else ''
        group = f' (group {printable(item["scene"])!r})' if 'scene' in item else ''
        return sign.join(f'{file["split"]} {file["path"]}' for file in item['files']) + bits + group
    words = item.get('split'), item.get('path'), item.get('fault')
    return ' '.join(word for word in words if word is not None)
