"""SIGINT and SIGTERM, which ask a process to stop, handled alike."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

EXIT_CODE = 130  # 128 + SIGINT, as shells report it
GOES_ON = 'what was computed is kept; run the same command to continue'

_LATER = 0.05  # seconds: the callback has returned by then
_REPEATED = 0.1  # seconds in which a signal is the first one again: some launchers send it twice
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], object]


class Agreed(KeyboardInterrupt):
    """An interrupt after which nothing is left to do, in all processes that run together."""


@contextlib.contextmanager
def deferred(announce: Callable[[str], object]) -> Iterator[Callable[[], bool]]:
    """Turns the first signal into a request to stop; a second one raises KeyboardInterrupt.

    In a thread other than the main one, which gets no signals, nothing changes.

    Args:
        announce: Called with the name of the first signal.

    Yields:
        A function that returns whether a stop is requested.
    """
    requested: float | None = None

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        now = time.monotonic()
        if requested is None:
            requested = now
            announce(signal.Signals(number).name)
        elif now > requested + _REPEATED:
            raise KeyboardInterrupt

    before = {}
    try:
        for number in _SIGNALS:
            before[number] = signal.getsignal(number)
            signal.signal(number, handler)
    except ValueError:  # only the main thread may set handlers
        before = {}
    try:
        yield lambda: requested is not None
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def raised() -> None:
    """Lets SIGTERM raise KeyboardInterrupt in this process, as SIGINT does."""
    signal.signal(signal.SIGTERM, _raise)


def again() -> None:
    """Repeats, soon, an interrupt that came where none can be raised, as in a callback."""
    main = threading.main_thread().ident or 0
    timer = threading.Timer(_LATER, signal.pthread_kill, (main, signal.SIGINT))
    timer.daemon = True
    timer.start()


def ignored() -> None:
    """Ignores signals from now on, for a process that is ending; Python's own end is a second."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _raise(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
