"""One training at a time in a workdir of an object store: an object that its holder renews.

Stores have no locks, so the object is written, and read again after a while: of two that wrote it
at the same time the last one has it. Clocks of two machines are not compared, but for hours: a
holder is alive if it renews the object while somebody watches.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable

from absl import logging

from tlflax.utils.errors import UserError, printable
from tlflax.utils.files import JsonObject
from tlflax.utils.storage.connect import Store

BEAT = 10.0
"""Seconds between two renewals."""

SILENCE = 60.0
"""Seconds without a renewal after which a holder is taken for dead."""

_SETTLE = 1.0  # seconds that another one may need from reading to writing
_LOOK = 1.0  # seconds between two looks at another's lease
_LONG_AGO = 3600.0  # seconds: by then it is dead whatever the two clocks say


@dataclasses.dataclass
class Lease:
    """The lease of one URL.

    Attributes:
        store: Where it is.
        path: Of the object.
        url: Of the workdir, for messages.
        session: Names this holder.
        lost: Who has taken it over; '': nobody.
        on_loss: Called, in a thread, when somebody has.
    """

    store: Store
    path: str
    url: str
    on_loss: Callable[[], object]
    session: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    lost: str = ''
    _beats: int = 0
    _since: str = dataclasses.field(default_factory=lambda: _now().isoformat(' ', 'seconds'))
    _ended: threading.Event = dataclasses.field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def acquire(self, mine: str) -> bool:
        """Takes the lease; may wait for `SILENCE` where its holder was killed.

        Args:
            mine: The session that this machine's last training had, which has ended; '': none.

        Returns:
            Whether the last holder was that one, or there was none.

        Raises:
            UserError: Another training holds it.
        """
        before = self._read()
        if before is not None and before.get('session') != mine and not before.get('released'):
            before = self._watch(before)
        self._write()
        time.sleep(_SETTLE)
        if (now := self._read() or {}).get('session') != self.session:
            raise self._held(now)
        self._thread = threading.Thread(target=self._keep, name='lease', daemon=True)
        self._thread.start()
        return before is None or before.get('session') == mine

    def check(self) -> bool:
        """Returns whether the lease is still ours."""
        now = self._read()
        if now is not None and now.get('session') != self.session:
            self._lose(now)
        return not self.lost

    def release(self) -> None:
        """Says that the training has ended; the object stays, and tells whose it was."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self.check():
            self._write(released=True)

    def _watch(self, before: JsonObject) -> JsonObject:
        """Waits until the holder has released the lease or been silent for long."""
        if _age(before) > _LONG_AGO:
            return before
        logging.info(
            '%s is in use (%s); waiting for at most %.0f s to see whether that process lives',
            *(self.url, _holder(before), SILENCE),
        )
        deadline = time.monotonic() + SILENCE
        while time.monotonic() < deadline:
            time.sleep(_LOOK)
            now = self._read()
            if now is None or now.get('released'):
                return now or before
            if now != before:
                raise self._held(now)
        logging.info('it does not; this process goes on in its place')
        return before

    def _held(self, by: JsonObject) -> UserError:
        return UserError(
            f'another training runs in this workdir ({_holder(by)})',
            where=self.url,
            fix='wait for it or stop it, or give another --workdir',
        )

    def _keep(self) -> None:
        """Renews the lease until it is released or lost."""
        while not self._ended.wait(BEAT):
            # The uploads meet the same trouble, and tell it.
            with contextlib.suppress(Exception):
                if not self.check():
                    return
                self._beats += 1
                self._write()

    def _lose(self, to: JsonObject) -> None:
        if not self.lost:
            self.lost = _holder(to)
            self.on_loss()

    def _read(self) -> JsonObject | None:
        """Returns what the object says; None where there is none, {} where it is damaged."""
        try:
            found = json.loads(self.store.cat_file(self.path))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, *, released: bool = False) -> None:
        value = {
            'session': self.session,
            'host': socket.gethostname(),
            'process': os.getpid(),
            'since': self._since,
            'renewed': _now().isoformat(' ', 'seconds'),
            'beats': self._beats,
            'released': released,
        }
        self.store.pipe_file(self.path, json.dumps(value).encode())


def _now() -> datetime.datetime:
    return datetime.datetime.now().astimezone()


def _age(lease: JsonObject) -> float:
    """Returns seconds since a renewal, by two clocks; infinite where it does not say."""
    try:
        return (_now() - datetime.datetime.fromisoformat(lease['renewed'])).total_seconds()
    except (KeyError, TypeError, ValueError):
        return float('inf')


def _holder(lease: JsonObject) -> str:
    if not {'host', 'process', 'since'} <= lease.keys():
        return 'it does not say which'
    return printable(f'process {lease["process"]} on {lease["host"]}, since {lease["since"]}')
