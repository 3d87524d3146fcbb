"""One line of a manifest, and the checks of its fields."""

import math
import os
from collections.abc import Mapping
from typing import NamedTuple

from tlflax.utils.errors import UserError, did_you_mean, printable

NEEDED = ('path', 'label')
COLUMNS = (*NEEDED, 'split', 'weight', 'group')
_SPLITS = {'train': 'train', 'training': 'train', 'val': 'val', 'valid': 'val'} | {
    'validation': 'val',
    'test': 'test',
    'testing': 'test',
}

Fields = Mapping[str, object]  # of one line, by column; texts in a CSV


class Row(NamedTuple):
    """A line of a manifest.

    Attributes:
        line: Its number, from 1.
        path: From the manifest's folder, or absolute.
        label: The name of its class.
        split: 'train', 'val' or 'test'; None where no split is named.
        weight: The factor of its training loss; None where no weight is named.
        group: Its group; None where no group is named.
    """

    line: int
    path: str
    label: str
    split: str | None
    weight: float | None
    group: str | None


def parse_row(path: str, line: int, fields: Fields) -> Row:
    """Checks the fields of one line.

    Raises:
        UserError: With file and line: a field is missing or cannot be what it is named.
    """
    texts = {name: _text(path, line, name, fields.get(name)) for name in COLUMNS}
    for name in NEEDED:
        if not texts[name]:
            raise fault_of(path, line, f'an empty {name}', 'fill it in or remove the line')
    split = texts['split']
    if split is not None and split.lower() not in _SPLITS:
        hint = did_you_mean(split, ('train', 'val', 'test'))
        raise fault_of(path, line, f'{split!r} is not a split', hint)
    return Row(
        line=line,
        path=os.path.normpath(str(texts['path'])),
        label=str(texts['label']),
        split=None if split is None else _SPLITS[split.lower()],
        weight=_weight(path, line, texts['weight']),
        group=texts['group'],
    )


def _text(path: str, line: int, name: str, value: object) -> str | None:
    """Returns a field as text without spaces around it; a path keeps its own."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise fault_of(path, line, f'{name!r} is a {type(value).__name__}', 'give text or a number')
    text = str(value) if name == 'path' else str(value).strip()
    if any(char < ' ' or '\ud800' <= char <= '\udfff' for char in text):
        raise fault_of(path, line, f'{name!r} holds a control character', 'remove it')
    return text


def _weight(path: str, line: int, text: str | None) -> float | None:
    if not text:
        return None
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        what = f'{text!r} is not a weight'
        raise fault_of(path, line, what, 'give a number, 0 or more; empty counts as 1')
    return weight


def fault_of(path: str, line: int, what: str, fix: str) -> UserError:
    """Returns the error of one line of a manifest."""
    return UserError(what, where=f'{printable(path)}, line {line}', fix=fix)
