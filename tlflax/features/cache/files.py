"""Files of the feature store: created sparse, locked, written in place."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from tlflax.utils import files
from tlflax.utils.errors import UserError, reason


def allocate(path: Path, header: bytes, size: int) -> None:
    """Creates a sparse file of a header and `size` bytes."""
    with open(path, 'xb') as file:
        file.write(header)
        file.truncate(len(header) + size)


def lock(path: Path, mode: int, kind: int) -> int:
    """Opens and locks a file of the store; see `tlflax.utils.files.lock`.

    Raises:
        UserError: The file system has no locks.
    """
    try:
        return files.lock(path, mode, kind)
    except (FileNotFoundError, BlockingIOError, PermissionError):
        raise
    except OSError as error:
        raise UserError(
            f'the file system cannot lock files ({reason(error)})',
            where=str(path.parent),
            fix='set TLFLAX_CACHE to a folder on a local disk, or features.cache=False',
        ) from error


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
