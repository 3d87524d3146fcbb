"""Atomic file writes, and strict JSON."""

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

JsonObject = dict[str, Any]
"""The contents of a JSON object."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and renames it to `path` when the block ends.

    A reader sees the old file or the new one, never a part of it. If the block raises, `path` stays
    unchanged and the temporary file is deleted.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    os.close(descriptor)
    partial = Path(name)
    try:
        partial.chmod(0o666 & ~_umask())  # mkstemp makes it readable to its owner alone
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Writes a file; see `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def dump_json(value: object, *, indent: int | None = None) -> str:
    """Returns strict JSON: NaN and infinities become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def write_json(path: Path, value: object) -> None:
    """Writes indented JSON; see `dump_json` and `replacing`."""
    atomic_write(path, dump_json(value, indent=2) + '\n')


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _umask() -> int:
    """Returns the process's file mode creation mask, or 022 where it cannot be read unchanged."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path('/proc/self/status').read_text().split('Umask:')[1].split()[0], 8)
    return 0o022
