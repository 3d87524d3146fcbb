"""Atomic file writes, and strict JSON."""

import contextlib
import json
import math
import os
import uuid
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
    # Whoever opens it creates it, with the mode that the user's umask gives.
    partial = path.with_name(f'.{path.name}.{uuid.uuid4().hex}')
    try:
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
    return json.dumps(plain_json(value), indent=indent, allow_nan=False)


def write_json(path: Path, value: object) -> None:
    """Writes indented JSON; see `dump_json` and `replacing`."""
    atomic_write(path, dump_json(value, indent=2) + '\n')


def plain_json(value: Any) -> Any:
    """Returns a value as strict JSON gives it back: tuples as lists, NaN and infinities as None."""
    if isinstance(value, dict):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
