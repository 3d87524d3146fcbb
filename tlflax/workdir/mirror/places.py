"""Where workdirs of object stores are kept on this machine, and which objects make a checkpoint."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from tlflax.utils import assets

MARKER = '_CHECKPOINT_METADATA'
"""The file of a checkpoint that is uploaded last and deleted first."""

LEASE = '.lease.json'
"""The object that says which training writes."""

CHECKPOINTS = ('checkpoints', 'damaged')
"""Folders that hold steps; see `tlflax.workdir.recovery`."""

_STEP = re.compile(rf'(?:.*/)?(?:{"|".join(CHECKPOINTS)})/[0-9]+/')
_SHARED = ('.writing',)  # hidden files that are part of a workdir


class Place:
    """The folders of one URL.

    Attributes:
        url: Without a slash at its end.
        folder: Holds all of them.
        run: The copy of a training on this machine.
        read: The copy of what commands read that do not train.
        index: What was noted of the objects in `read`.
        session: The last training of this machine; see `tlflax.workdir.mirror.lease`.
        sent: What was uploaded of `run`.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip('/')
        self.folder = root() / hashlib.sha256(self.url.encode()).hexdigest()[:16]
        name = re.sub(r'[^A-Za-z0-9_.-]+', '_', self.url.rpartition('/')[2]) or 'run'
        self.run, self.read = self.folder / 'run' / name, self.folder / 'read' / name
        self.index = self.folder / 'index.jsonl'
        self.session, self.sent = self.folder / 'session.json', self.folder / 'sent.json'


def root() -> Path:
    """Returns the folder of all workdirs of object stores."""
    return (assets.cache_folder() / 'workdirs').resolve()


def step_of(path: str) -> str:
    """Returns the step that a file belongs to, as 'checkpoints/12/'; '' for other files."""
    found = _STEP.match(path)
    return found[0] if found else ''


def incomplete(paths: Iterable[str]) -> set[str]:
    """Returns the steps of which objects exist, but not the one that is written last."""
    paths = set(paths)
    steps = {step for path in paths if (step := step_of(path))}
    return {step for step in steps if f'{step}{MARKER}' not in paths}


def is_part(path: str) -> bool:
    """Tells whether a file is part of a workdir, and not of how one is written."""
    parts = path.split('/')
    hidden = any(part.startswith('.') for part in parts[:-1]) or (
        parts[-1].startswith('.') and parts[-1] not in _SHARED
    )
    return not hidden and '.orbax-checkpoint-tmp' not in path
