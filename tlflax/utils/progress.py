"""The progress of long work: images per second, time left, and what else is known of it."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import absl.logging
import tqdm

_PLAIN_SECONDS = 15.0  # between log lines
_DELAY = 0.5  # seconds before a bar appears: short work does not flicker


class Tick(Protocol):
    """Tells progress what was completed."""

    def __call__(self, images: int, note: Callable[[], str] | None = None) -> None:
        """Counts images that were completed since the last call.

        Args:
            images: Their number.
            note: Returns what is known of the work at this moment, or an empty text. It is called
                only when something is shown, a few times a second at most.
        """


_hidden = False


def hide() -> None:
    """Shows no progress from now on in this process; for commands."""
    global _hidden
    _hidden = True


@contextlib.contextmanager
def progress(name: str, total: int | None, note: str = '') -> Iterator[Tick]:
    """Shows images per second and time left, as a bar on a terminal and as log lines elsewhere.

    Args:
        name: Of the work.
        total: Images; None where their number is not known, and so no time left either.
        note: What is shown in addition, after the note of the moment.

    Yields:
        A function to call as images are completed.
    """
    if _hidden:
        yield lambda images, note=None: None
    elif sys.stderr.isatty():
        with _Bar(name, total, note) as bar, _cleared_for_log_lines(bar):
            yield bar.tick
    else:
        yield _Lines(name, total, note)


def _joined(*notes: str) -> str:
    return ', '.join(filter(None, notes))


class _Bar(tqdm.tqdm):
    """A bar with a note, and without tqdm's thread, which would outlive it."""

    monitor_interval = 0

    def __init__(self, name: str, total: int | None, note: str) -> None:
        self._note: Callable[[], str] | None = None
        self._constant = note
        super().__init__(total=total, desc=name, unit='img', leave=False, delay=_DELAY)

    def tick(self, images: int, note: Callable[[], str] | None = None) -> None:
        self._note = note
        self.update(images)

    def display(self, *arguments: Any, **options: Any) -> Any:
        self.postfix = _joined(self._note() if self._note else '', self._constant)
        return super().display(*arguments, **options)


class _Lines:
    """Log lines, with `_PLAIN_SECONDS` between them."""

    def __init__(self, name: str, total: int | None, note: str) -> None:
        self._name, self._total, self._constant = name, total, note
        self._began = self._last = time.perf_counter()
        self._done = 0

    def __call__(self, images: int, note: Callable[[], str] | None = None) -> None:
        self._done += images
        now = time.perf_counter()
        left = None if self._total is None else self._total - self._done
        if now - self._last < _PLAIN_SECONDS or (left is not None and left <= 0):
            return
        self._last = now
        rate = self._done / (now - self._began)
        told = _joined(
            f'{self._done} images' if left is None else f'{self._done}/{self._total} images',
            f'{rate:.1f}/s',
            '' if left is None else f'{left / rate:.0f} s left',
            note() if note else '',
            self._constant,
        )
        absl.logging.info('%s: %s', self._name, told)


@contextlib.contextmanager
def _cleared_for_log_lines(bar: _Bar) -> Iterator[None]:
    """Removes a bar before a line is logged; its next update shows it again, below the line."""

    def clear(record: logging.LogRecord) -> bool:
        bar.clear()
        return True

    handler = absl.logging.get_absl_handler()
    handler.addFilter(clear)
    try:
        yield
    finally:
        handler.removeFilter(clear)
