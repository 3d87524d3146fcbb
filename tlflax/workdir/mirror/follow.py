"""A thread that uploads a workdir while it is written, and tells what hinders it."""

import random
import threading
import time
from collections.abc import Callable

from absl import logging

from tlflax.utils.errors import UserError
from tlflax.utils.storage.connect import explaining

PAUSE = 1.0
"""Seconds between two looks at the workdir."""

_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # seconds after a failure, doubled each time
_WARN = 3  # failures in a row
_LAST_TRIES = 5  # once nothing more is written


class Follower:
    """Calls a function until it has nothing left to do.

    Args:
        upload: Uploads what is new; returns whether nothing was left over.
        url: Of the workdir, for messages.
    """

    def __init__(self, upload: Callable[[], bool], url: str) -> None:
        self._upload, self._url = upload, url
        self._ending = threading.Event()
        self._failures = 0
        self._error: UserError | None = None
        self._thread = threading.Thread(target=self._run, name='uploads', daemon=True)
        self._thread.start()

    def finish(self) -> UserError | None:
        """Waits until everything is uploaded; returns why that failed, or None."""
        self._ending.set()
        self._thread.join(PAUSE)
        if self._thread.is_alive():
            logging.info('uploading what is left to %s', self._url)
        while self._thread.is_alive():  # a signal is answered between two waits
            self._thread.join(PAUSE)
        return self._error

    def _run(self) -> None:
        wait, tries = PAUSE, 0
        while True:
            last = self._ending.wait(wait)
            try:
                with explaining(
                    self._url, refused='may not be written', failed='cannot be written', fix=''
                ):
                    whole = self._upload()
            except UserError as error:
                self._tell(error)
                tries += last
                if tries == _LAST_TRIES:
                    self._error = error
                    return
                wait = _wait(tries or self._failures)
                if last:
                    time.sleep(wait)
            else:
                self._tell(None)
                wait = PAUSE
                if last and whole:
                    return

    def _tell(self, error: UserError | None) -> None:
        """Warns once of failures that go on, and says when they have ended."""
        if error is None:
            if self._failures >= _WARN:
                logging.info('%s: uploads work again', self._url)
            self._failures = 0
            return
        self._failures += 1
        if self._failures == _WARN:
            logging.warning('WARNING: %s; the run goes on, and uploads are tried again', error.what)


def _wait(failures: int) -> float:
    """Returns how long to wait after so many failures in a row, in seconds."""
    doubled = _FIRST_WAIT * 2 ** min(failures - 1, 10)
    return min(doubled, _LONGEST_WAIT) * random.uniform(0.75, 1.25)
