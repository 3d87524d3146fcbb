"""Files of the feature store: created sparse, locked, written in place."""

import fcntl
import os
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from tlflax.utils.errors import UserError, reason


def allocate(path: Path, header: bytes, size: int) -> None:
    """Creates a sparse file of a header and `size` bytes."""
    with open(path, 'xb') as file:
        file.write(header)
        file.truncate(len(header) + size)


def lock(path: Path, mode: int, kind: int) -> int:
    """Opens and locks a file; returns its descriptor.

    Args:
        path: The file.
        mode: As for `os.open`.
        kind: As for `fcntl.flock`.

    Raises:
        FileNotFoundError: The file does not exist, or was deleted in the meantime.
        BlockingIOError: With LOCK_NB, if another process holds a lock that excludes this one.
        UserError: The file system has no locks.
    """
    descriptor = os.open(path, mode | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, kind)
        if os.fstat(descriptor).st_nlink == 0:
            raise FileNotFoundError(path)
    except (FileNotFoundError, BlockingIOError):
        os.close(descriptor)
        raise
    except OSError as error:
        os.close(descriptor)
        raise UserError(
            f'the file system cannot lock files ({reason(error)})',
            where=str(path.parent),
            fix='set TLFLAX_CACHE to a folder on a local disk, or features.cache=False',
        ) from error
    return descriptor


def touch(descriptor: int) -> None:
    """Marks a file as used now; in a read-only store nothing is marked."""
    try:
        os.utime(descriptor)
    except OSError:
        return


def write(descriptor: int, values: Shaped[np.ndarray, '...'], start: int) -> None:
    """Writes the bytes of a C-contiguous array at an offset."""
    view = values.view(np.uint8).reshape(-1).data
    while view:
        written = os.pwrite(descriptor, view, start)
        view, start = view[written:], start + written
