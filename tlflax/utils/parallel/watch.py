"""Ends all processes of a run when one of them fails or is lost, with the first one's sentence."""

import atexit
import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Collection
from typing import NamedTuple, Protocol

from tlflax.utils.errors import EXIT_CODE, UserError, reason
from tlflax.utils.interrupts import EXIT_CODE as INTERRUPTED
from tlflax.utils.interrupts import GOES_ON

_PERIOD = 1.0  # seconds between two looks
_LOST = 20.0  # seconds without a sign of life
_PATIENCE = 5.0  # seconds for the others to end
_ERROR, _ALIVE, _ENDED = 'tlflax-error', 'tlflax-alive/', 'tlflax-ended/'
_CONNECTIONS = ('Gloo', 'NCCL', 'RCCL', 'UNAVAILABLE', 'onnection')


class Client(Protocol):
    """The part of JAX's client of its coordination service that is used here."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...

    def key_value_set_bytes(self, key: str, value: bytes) -> None: ...

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...

    def blocking_key_value_get_bytes(self, key: str, timeout_in_ms: int) -> bytes: ...


class Ending(NamedTuple):
    """Why a run ends.

    Attributes:
        process: The first process that ended.
        code: The exit code of all.
        sentence: What all say.
    """

    process: int
    code: int
    sentence: str


class Watch:
    """A thread that gives signs of life, and looks for those of the other processes.

    It ends this process at once when another one has failed: its main thread may wait for that one
    within a program, where nothing reaches it. What is on disk is whole at any moment.

    Args:
        client: JAX's.
        count: Number of processes.
        index: The number of this one.
    """

    def __init__(self, client: Client, count: int, index: int) -> None:
        self._client, self._count, self._index = client, count, index
        self._stopped = threading.Event()
        self._failing = False
        self._seen: dict[int, tuple[str, float]] = {}
        self._thread = threading.Thread(target=self._run, name='tlflax-watch', daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        self._thread.join()

    def fail(self, error: BaseException) -> None:
        """Lets the other processes end; does not return if another one was first.

        This process leaves with its own exit code, and without waiting for the others again.
        """
        if _is_lost_connection(error):
            time.sleep(_LOST + 3 * _PERIOD)  # the thread finds out who is lost, and ends this
        ending = _ending(self._index, error)
        self._failing = True
        if not self._publish(ending):
            with contextlib.suppress(Exception):  # process 0 may be gone
                self._leave(self._first() or ending)
        self._await_others(but=(0, self._index))
        self._mark_ended()
        self._stopped.set()
        atexit.register(_exit, ending.code)

    def _run(self) -> None:
        beat = 0
        while not self._stopped.wait(_PERIOD):
            beat += 1
            try:
                self._client.key_value_set(f'{_ALIVE}{self._index}', str(beat), True)
                ending = self._first() or self._lost()
            except Exception as error:  # whatever JAX raises
                ending = Ending(0, INTERRUPTED, f'process 0 cannot be reached ({reason(error)})')
            if ending is not None and not self._stopped.is_set() and not self._failing:
                self._leave(ending)

    def _publish(self, ending: Ending) -> bool:
        """Tells all others; returns whether this is the first ending."""
        try:
            self._client.key_value_set(_ERROR + '/first', json.dumps(ending))
        except Exception:
            return False
        return True

    def _first(self) -> Ending | None:
        found = self._client.key_value_dir_get(_ERROR)
        return Ending(*json.loads(found[0][1])) if found else None

    def _lost(self) -> Ending | None:
        """Returns the ending of a process that gives no signs of life, if there is one."""
        now = time.monotonic()
        for number, beat in self._numbers(_ALIVE).items():
            before, since = self._seen.get(number, ('', now))
            self._seen[number] = (beat, since if beat == before else now)
            if beat == before and now - since > _LOST:
                said = f'process {number} of {self._count} has ended or cannot be reached'
                return Ending(number, INTERRUPTED, said)
        return None

    def _numbers(self, folder: str) -> dict[int, str]:
        found = self._client.key_value_dir_get(folder)
        return {int(key.rsplit('/', 1)[1]): value for key, value in found}

    def _leave(self, ending: Ending) -> None:
        """Says why, and ends this process; the primary one, which the others need, as the last."""
        self._mark_ended()
        kind = 'interrupted' if ending.code == INTERRUPTED else 'error'
        said = ending.sentence
        if ending.process != self._index and ending.code != INTERRUPTED:
            said = f'process {ending.process} of {self._count}: {said}'
        elif ending.code == INTERRUPTED:
            said = f'{said}; {GOES_ON}'
        if self._index == 0:
            self._await_others(but=(0, ending.process if ending.code == INTERRUPTED else 0))
            time.sleep(_PERIOD)
        print(f'{kind}: {said}', file=sys.stderr, flush=True)  # the last line of this process
        _exit(ending.code)

    def _mark_ended(self) -> None:
        with contextlib.suppress(Exception):  # nobody is left who reads it
            self._client.key_value_set(f'{_ENDED}{self._index}', '')

    def _await_others(self, but: Collection[int]) -> None:
        """Waits a few seconds until other processes have ended."""
        deadline, others = time.monotonic() + _PATIENCE, {*range(self._count)} - {*but}
        with contextlib.suppress(Exception):
            while others and time.monotonic() < deadline:
                others -= self._numbers(_ENDED).keys()
                time.sleep(_PERIOD / 10)


def _ending(process: int, error: BaseException) -> Ending:
    if isinstance(error, UserError):
        return Ending(process, EXIT_CODE, str(error))
    if isinstance(error, KeyboardInterrupt):
        return Ending(process, INTERRUPTED, f'process {process} was asked to stop')
    return Ending(process, 1, f'{type(error).__name__}: {reason(error)}')


def _is_lost_connection(error: BaseException) -> bool:
    """Returns whether a program failed because another process did not take part in it."""
    if isinstance(error, UserError | KeyboardInterrupt):
        return False
    return any(word in str(error) for word in _CONNECTIONS)


def _exit(code: int) -> None:
    """Ends this process without JAX's own end, which waits for processes that are gone."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
