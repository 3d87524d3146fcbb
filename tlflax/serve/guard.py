"""Around the application: counts requests, adds headers, answers what a stop cuts short."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from tlflax.serve.metrics import Metrics
from tlflax.serve.refusal import problem

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

GONE = 499  # the client has hung up; nobody reads it
_POLICY = b'content-security-policy'
_HEADERS = (
    (b'x-content-type-options', b'nosniff'),
    (b'cross-origin-resource-policy', b'same-origin'),
    (b'referrer-policy', b'no-referrer'),
    (b'cache-control', b'no-store'),
)
_NOTHING = (_POLICY, b"default-src 'none'; frame-ancestors 'none'")


def guarded(app: App, metrics: Metrics, paths: Collection[str]) -> App:
    """Returns an application that counts the requests of another and adds headers.

    Args:
        app: The other.
        metrics: Where requests are counted.
        paths: The endpoints that are counted by name.
    """

    async def run(scope: Message, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            await app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message['type'] == 'http.response.start':
                status = message['status']
                _add_headers(message)
            await send(message)

        try:
            await app(scope, receive, noted)
        except asyncio.CancelledError:  # the server stops, and the time for answers is over
            if not status:
                refused = problem(503, 'The server is stopping.', {'Retry-After': '5'})
                await refused(scope, receive, noted)
        finally:
            path = scope['path'] if scope['path'] in paths else 'other'
            outcome = 'disconnected' if status in (0, GONE) else str(status)
            metrics.answered(path, outcome, time.monotonic() - began)

    return run


def _add_headers(message: Message) -> None:
    headers = list(message.get('headers', []))
    headers += _HEADERS
    if not any(name.lower() == _POLICY for name, _ in headers):
        headers.append(_NOTHING)
    message['headers'] = headers
