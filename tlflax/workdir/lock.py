"""One training at a time in a workdir."""

import contextlib
import datetime
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from tlflax.utils.errors import UserError, printable, reason
from tlflax.utils.files import NO_LOCKS, lock

_NAME = '.lock'


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes, and other threads of this one, from training in a folder.

    The lock is the kernel's (`flock`), so that one which a killed process left holds nobody up.

    Raises:
        UserError: Another training holds it; names its host and process and when it began.
    """
    path = folder / _NAME
    descriptor = _take(path)
    try:
        yield
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _take(path: Path) -> int | None:
    while True:
        try:
            descriptor = lock(path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:  # its holder has just removed it
            continue
        except BlockingIOError:
            raise UserError(
                f'another training runs in this workdir ({_holder(path)})',
                where=str(path.parent),
                fix='wait for it or stop it, or give another --workdir',
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise _unwritable(path, error) from error
            logging.warning(
                'WARNING: %s: the file system cannot lock files (%s), so nothing keeps a second '
                'training out of this workdir',
                *(path.parent, reason(error)),
            )
            return None
        since = datetime.datetime.now().astimezone().isoformat(' ', 'seconds')
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f'{socket.gethostname()} {os.getpid()} {since}\n'.encode(), 0)
        except OSError as error:
            os.close(descriptor)
            raise _unwritable(path, error) from error
        return descriptor


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f'the workdir cannot be written ({reason(error)})',
        where=str(path.parent),
        fix='make room or fix that, then run the same command to continue',
    )


def _holder(path: Path) -> str:
    """Returns who holds the lock, in words."""
    try:
        host, process, since = path.read_text(errors='replace').strip().split(' ', 2)
    except (OSError, ValueError):
        return 'it does not say which'
    return printable(f'process {process} on {host}, since {since}')
