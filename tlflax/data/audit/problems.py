"""What an audit says is wrong.

An 'error' would spoil a result, a 'warning' may, a 'note' is only worth knowing.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from tlflax.data.images.decode import printable

LEVELS = ('error', 'warning', 'note')
CODES = (
    'leak', 'conflict', 'scene', 'near_leak', 'near_conflict', 'classes', 'empty_class', 'spelling',
    'bad_image', 'folder', 'few', 'imbalance', 'shortcut', 'repeat', 'cut_off', 'small',
    'extension', 'near_repeat', 'stretched', 'loop', 'empty_file', 'not_an_image', 'hidden',
    'left_out',
)  # fmt: skip
"""What is checked, the worst first."""


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """One thing that is wrong, with everything it concerns.

    Attributes:
        code: One of `CODES`.
        level: One of `LEVELS`.
        count: How many images, files or classes it concerns.
        what: A sentence.
        fix: How to put it right; may be empty.
        items: All it concerns: {'files': [...]} of copies, with 'bits' where they only look alike
            and 'scene' where that is all they share, or {'split', 'path'} of a file, with 'fault'
            where it has one.
    """

    code: str
    level: str
    count: int
    what: str
    fix: str = ''
    items: Sequence[dict[str, Any]] = ()

    @property
    def rank(self) -> tuple[int, int]:
        """Sorts the worst first."""
        return LEVELS.index(self.level), CODES.index(self.code)


def describe(item: dict[str, Any]) -> str:
    """Returns an item of a problem as a line."""
    if 'files' in item:
        sign = ' ~ ' if {'bits', 'scene'} & item.keys() else ' = '
        bits = f' ({item["bits"]} bits of 64 differ)' if 'bits' in item else ''
        scene = f' (scene {printable(item["scene"])!r})' if 'scene' in item else ''
        return sign.join(f'{file["split"]} {file["path"]}' for file in item['files']) + bits + scene
    return ' '.join(item[key] for key in ('split', 'path', 'fault') if key in item)
