"""Files of the feature store: created sparse, locked, written in place."""

import functools
import os
import socket
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Shaped

from tlflax.utils import files
from tlflax.utils.errors import UserError, reason


class NoLocks(OSError):
    """The file system has no locks, so nobody can tell which files others use."""


def allocate(path: Path, header: bytes, size: int) -> None:
    """Creates a sparse file of a header and `size` bytes."""
    with open(path, 'xb') as file:
        file.write(header)
        file.truncate(len(header) + size)


def lock(path: Path, mode: int, kind: int) -> int:
    """Opens and locks a file of the store; see `tlflax.utils.files.lock`.

    Raises:
        NoLocks: The file system has no locks. The first in a process is a warning.
        UserError: The file cannot be opened for another reason than that it is gone, is locked, or
            belongs to somebody else.
    """
    try:
        return files.lock(path, mode, kind)
    except (FileNotFoundError, BlockingIOError, PermissionError):
        raise
    except OSError as error:
        if error.errno in files.NO_LOCKS:
            _warn(path.parents[2], reason(error))
            raise NoLocks(*error.args) from error
        raise UserError(
            f'stored features cannot be opened ({reason(error)})',
            where=str(path.parent),
            fix='set TLFLAX_CACHE to another folder, or features.cache=False',
        ) from error


def lock_or_open(path: Path, mode: int, kind: int) -> int:
    """Opens a file of the store, and locks it where the file system has locks; see `lock`."""
    try:
        return lock(path, mode, kind)
    except NoLocks:
        return os.open(path, mode | os.O_CLOEXEC)


def _warn(root: Path, why: str) -> None:
    logging.log_first_n(
        logging.WARNING,
        'WARNING: %s: the file system cannot lock files (%s), so each process writes features to '
        'files of its own, and features are never removed to make room; a folder on a local disk '
        'in TLFLAX_CACHE has neither limit',
        1,
        *(root, why),
    )


@functools.cache
def kernel() -> bytes:
    """Returns what tells the running kernel from all others: locks of two may not exclude."""
    try:
        return Path('/proc/sys/kernel/random/boot_id').read_bytes()
    except OSError:
        return socket.gethostname().encode()


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
