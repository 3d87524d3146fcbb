"""Bodies of requests, counted while they arrive: bytes of each, bytes of all, and seconds."""

import asyncio
import contextlib
from collections.abc import Iterator

from fastapi import Request

from tlflax.serve.refusal import Refusal, busy


class Memory:
    """Bytes of all bodies that are held.

    Args:
        most: More are refused.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0

    @contextlib.contextmanager
    def lease(self) -> Iterator['Lease']:
        """Yields what takes bytes for one body; they are given back at the end."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            self.held -= lease.held

    def fits(self, size: int) -> bool:
        """Returns whether so many bytes more may be held."""
        return self.held + size <= self._most


class Lease:
    """Bytes of one body.

    Args:
        memory: What they are part of.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.held = 0

    def take(self, size: int) -> None:
        """Counts bytes.

        Raises:
            Refusal: All bodies together hold too many.
        """
        if not self._memory.fits(size):
            raise busy('Too many images are arriving at once.', 5)
        self.held += size
        self._memory.held += size


async def read(request: Request, lease: Lease, *, max_bytes: int, seconds: float) -> bytes:
    """Returns the body of a request.

    Raises:
        Refusal: It is empty or too large, or arrives too slowly.
        ClientDisconnect: The client has gone.
    """
    too_large = Refusal(413, f'The body has more than {max_bytes:,} bytes.')
    if _announced(request) > max_bytes:
        raise too_large
    chunks: list[bytes] = []
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                if lease.held + len(chunk) > max_bytes:
                    raise too_large
                lease.take(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        raise Refusal(408, f'The body did not arrive within {seconds:g} seconds.') from None
    if not lease.held:
        raise Refusal(422, 'The body is empty; send the bytes of an image file.')
    return b''.join(chunks)


def _announced(request: Request) -> int:
    """Returns the length of the body that the header claims; 0 if it claims none."""
    text = request.headers.get('content-length', '')
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 0
