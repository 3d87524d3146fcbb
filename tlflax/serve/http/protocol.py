"""HTTP/1.1 of uvicorn, with limits that it lacks.

Uvicorn closes a connection that is idle between two requests, and waits forever for the rest of a
request's first lines, for a body after its answer, and for a client that does not read. Here each
of these has a time. Connections above a number are answered with 503 and closed.
"""

import asyncio
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from tlflax.serve.settings import Settings
from tlflax.utils.files import dump_json

_DRAIN = 5.0  # seconds for the rest of a body that is answered already


def _raw(status: str, detail: str, *headers: str) -> bytes:
    body = dump_json({'detail': detail}).encode()
    lines = [
        f'HTTP/1.1 {status}',
        'content-type: application/json',
        f'content-length: {len(body)}',
        'connection: close',
        *headers,
    ]
    return '\r\n'.join([*lines, '', '']).encode() + body


_FULL = _raw('503 Service Unavailable', 'Too many connections are open.', 'retry-after: 5')
_BAD = _raw('400 Bad Request', 'The request is not HTTP.')


class Protocol(H11Protocol):
    """One connection; `limits` is set in a subclass."""

    limits: ClassVar[Settings] = Settings()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._refused = False
        self._waits_for = ''  # of the client: 'head' or 'rest'
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuses a connection where too many are open."""
        if len(self.connections) >= self.limits.connections:
            self._refused = True
            transport.write(_FULL)
            transport.close()
            return
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends what waits for this connection."""
        self._set_timer('')
        self._read_by_client()
        if not self._refused:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes what arrives."""
        if not self._refused:
            super().data_received(data)
            self._watch()

    def on_response_complete(self) -> None:
        """Takes the next request."""
        super().on_response_complete()
        self._watch()
        if self.transport.get_write_buffer_size():
            self.pause_writing_timer()

    def pause_writing(self) -> None:
        """Gives a client that does not read its answer some time."""
        super().pause_writing()
        self.pause_writing_timer()

    def resume_writing(self) -> None:
        """Goes on, as the client reads."""
        super().resume_writing()
        self._read_by_client()

    def pause_writing_timer(self) -> None:
        """Closes the connection unless its client reads in time."""
        if self._unread is None:
            self._unread = self.loop.call_later(self.limits.timeout, self._close_unread)

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP, unless an answer has begun."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_BAD)
        self.transport.close()

    def _watch(self) -> None:
        """Starts or stops the timer, as the state of the connection asks."""
        if self.transport.is_closing():
            self._set_timer('')
        elif self.conn.their_state is h11.IDLE:
            self._set_timer('head')
        elif self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE:
            self._set_timer('rest')
        else:
            self._set_timer('')

    def _set_timer(self, waits_for: str) -> None:
        """Starts a timer for what the client has to send; one that runs for it goes on."""
        if waits_for == self._waits_for:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._waits_for = None, waits_for
        if waits_for:
            seconds = self.limits.head_timeout if waits_for == 'head' else _DRAIN
            self._timer = self.loop.call_later(seconds, self.transport.close)

    def _close_unread(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        self._unread = None

    def _read_by_client(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


def limited(settings: Settings) -> type[Protocol]:
    """Returns the protocol with the limits of a service."""
    return type('LimitedProtocol', (Protocol,), {'limits': settings})
