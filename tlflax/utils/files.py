"""Files that are written whole or not at all, and JSON that every reader takes."""

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a new path beside `path`, and renames what was written there when the block ends.

    A reader sees the old file or the new one, never a part of it. If the block raises, `path` stays
    as it was and nothing is left behind.
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


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """Returns strict JSON: NaN and infinities become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON for programs and people; see `dump_json` and `replacing`."""
    atomic_write(path, dump_json(value, indent=2) + '\n')


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _umask() -> int:
    """Returns the process's file mode creation mask without changing it, where that can be read."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path('/proc/self/status').read_text().split('Umask:')[1].split()[0], 8)
    return 0o022
